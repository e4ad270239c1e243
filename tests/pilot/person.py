"""A person at a terminal, for tests of what pilot asks and shows."""

import os
import pty
import termios
import threading

from pilot.terminal.terminal import Terminal
from tests.kit.patience import join

DEADLINE_S = 10.0


def swap_words(share: str) -> str:
    """Return a share with two neighbouring words swapped."""
    words = share.split()
    at = next(at for at in range(len(words) - 1) if words[at] != words[at + 1])
    words[at], words[at + 1] = words[at + 1], words[at]
    return " ".join(words)


class Person:
    """Sits at the other end of a pseudo-terminal: waits for a prompt, then types."""

    def __init__(self) -> None:
        self._leader, self._follower = pty.openpty()
        self.source = os.fdopen(os.dup(self._follower), "r", encoding="utf-8")
        self.screen = os.fdopen(os.dup(self._follower), "w", encoding="utf-8")
        self.seen = ""
        self._thread: threading.Thread | None = None

    @property
    def terminal(self) -> Terminal:
        return Terminal(self.source, self.screen)

    def is_echoing(self) -> bool:
        return bool(termios.tcgetattr(self._follower)[3] & termios.ECHO)

    def act(self, *script: tuple[str, str]) -> None:
        """For each pair, wait until the first appears on the screen, then type the second and Enter."""

        def run() -> None:
            position = 0
            for prompt, typed in script:
                while (at := self.seen.find(prompt, position)) < 0:
                    self.seen += os.read(self._leader, 4096).decode(errors="replace")
                position = at + len(prompt)
                os.write(self._leader, typed.encode() + b"\n")

        self._thread = threading.Thread(target=run, daemon=True)
        self._thread.start()

    def leave(self) -> str:
        """Return everything that was on the screen."""
        if self._thread is not None:
            join(self._thread, DEADLINE_S)
            assert not self._thread.is_alive(), f"still waiting; on the screen: {self.seen!r}"
        self.source.close()
        self.screen.close()
        os.close(self._follower)
        while True:
            try:
                read = os.read(self._leader, 4096)
            except OSError:  # the last follower is closed
                break
            if not read:
                break
            self.seen += read.decode(errors="replace")
        os.close(self._leader)
        return self.seen
