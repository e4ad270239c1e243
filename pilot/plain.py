"""Text that controls no terminal: a nexus may lie, be of another version, or hand on what somebody else wrote."""

import logging


def clean(text: str) -> str:
    """Replace what would control a terminal; line ends and tabs stay."""
    return "".join(character if _is_plain(character) else "\ufffd" for character in text)


def escape_json(document: str) -> str:
    """Escape what would control a terminal in a JSON document, which says the same afterwards."""
    return "".join(character if _is_plain(character) else _escape(character) for character in document)


class PlainFormatter(logging.Formatter):
    """Formats log records without what would control a terminal."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the record as plain text."""
        return clean(super().format(record))


def _is_plain(character: str) -> bool:
    return character.isprintable() or character in "\n\t"


def _escape(character: str) -> str:
    units = character.encode("utf-16-be", errors="surrogatepass")
    return "".join(f"\\u{units[at : at + 2].hex()}" for at in range(0, len(units), 2))
