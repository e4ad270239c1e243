"""A clock that a test sets for one process while it runs, by libfaketime; the monotonic one only if it says so."""

from collections.abc import Sequence
from pathlib import Path

_LIBRARY = "faketime/libfaketimeMT.so.1"
_PLACES = (f"lib/*/{_LIBRARY}", f"lib/{_LIBRARY}", f"local/lib/{_LIBRARY}")  # below /usr


def find_library() -> Path | None:
    """Return the path of libfaketime; None where it is not installed."""
    return next((path for place in _PLACES for path in Path("/usr").glob(place)), None)


class FakeClock:
    """The clock of whatever runs with `variables`: right at first."""

    def __init__(self, file: Path, *, sets_monotonic: bool = False) -> None:
        self._file = file
        self._sets_monotonic = sets_monotonic
        self.set(0)

    def set(self, seconds: int) -> None:
        """Set it so many seconds ahead of the true time, or behind. A reader sees the old or the new setting."""
        draft = self._file.with_suffix(".draft")
        draft.write_text(f"{seconds:+d}\n")
        draft.replace(self._file)

    @property
    def variables(self) -> dict[str, str]:
        """The environment of a process that goes by this clock."""
        library = find_library()
        assert library is not None, "libfaketime is not installed"
        return {
            "LD_PRELOAD": str(library),
            "FAKETIME_TIMESTAMP_FILE": str(self._file),
            "FAKETIME_NO_CACHE": "1",  # look at the file at each call
            "FAKETIME_DONT_FAKE_MONOTONIC": "0" if self._sets_monotonic else "1",
        }

    def wrap(self, command: Sequence[str]) -> list[str]:
        """Return a command that runs *command* by this clock, as the same process."""
        return ["env", *(f"{name}={value}" for name, value in self.variables.items()), *command]
