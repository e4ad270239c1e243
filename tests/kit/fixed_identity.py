"""An identity that a test turns by hand."""

from collections.abc import Callable

from shardhold.identity import IdentityUnavailableError, Svid


class FixedIdentity:
    """An identity source with one SVID, which a test may replace, or take away by None."""

    def __init__(self, svid: Svid | None) -> None:
        self.svid = svid
        self.closed = False

    def current(self) -> Svid:
        if self.svid is None:
            raise IdentityUnavailableError("no SVID")
        return self.svid

    def subscribe(self, callback: Callable[[], None]) -> None:
        """Never called: whoever needs the SVID has to ask."""

    def close(self) -> None:
        """Note that it was closed."""
        self.closed = True
