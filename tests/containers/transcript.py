"""The transcripts of a document, and whether a run of their commands shows the same."""

import re
from dataclasses import dataclass, field

# What differs from run to run, wherever it stands.
_VARYING = (
    (re.compile(r"\b[0-9a-f]{32,}\b"), "[0-9a-f]{32,}"),
    (re.compile(r"\b([0-9a-f]{4} ){7,}[0-9a-f]{4}\b"), "([0-9a-f]{4} )+[0-9a-f]{4}"),
    (re.compile(r"\b[0-9]+\b"), "[0-9]+"),
)


@dataclass
class Step:
    """One command as it is printed, and the lines that it shows."""

    command: str
    shown: list[str] = field(default_factory=list)


def read_steps(text: str, heading: str) -> list[Step]:
    """Return the steps of the section with this heading, in their order."""
    section = text.partition(f"\n## {heading}\n")[2].partition("\n## ")[0]
    steps: list[Step] = []
    for block in re.findall(r"^```console\n(.*?)^```$", section, re.MULTILINE | re.DOTALL):
        for line in block.splitlines():
            if line.startswith("$ "):
                steps.append(Step(line[2:]))
            else:
                steps[-1].shown.append(line)
    return steps


def looks_alike(shown: list[str], lines: list[str]) -> bool:
    """Return whether a run printed these lines, but for what differs from run to run."""
    return len(shown) == len(lines) and all(
        re.fullmatch(_to_pattern(wanted), line.rstrip()) for wanted, line in zip(shown, lines, strict=True)
    )


def _to_pattern(line: str) -> str:
    """Return an expression for a line of the document."""
    spans = sorted(
        ((*found.span(), pattern) for varying, pattern in _VARYING for found in varying.finditer(line)),
        key=lambda span: (span[0], -span[1]),
    )
    pattern, end = "", 0
    for first, last, varying in spans:
        if first >= end:
            pattern += re.escape(line[end:first]) + varying
            end = last
    return pattern + re.escape(line[end:])
