"""The processes that make and read backups, so that none outlives the nexus, nor keeps it from ending."""

import subprocess
import threading

from common.errors import BackupUnavailableError

Child = subprocess.Popen[bytes]


class Children:
    """Thread-safe."""

    def __init__(self) -> None:
        self._guard = threading.Lock()
        self._running: set[Child] = set()
        self._is_stopped = False

    def adopt(self, child: Child) -> None:
        """Kill *child* when the nexus ends.

        Raises:
            BackupUnavailableError: It ends already; *child* is killed.
        """
        with self._guard:
            self._running = {one for one in self._running if one.returncode is None} | {child}
            if not self._is_stopped:
                return
        child.kill()
        raise BackupUnavailableError("the nexus ends")

    def stop(self) -> None:
        """Kill all, and every one that is adopted later."""
        with self._guard:
            self._is_stopped = True
        self.kill()

    def kill(self) -> None:
        """Kill all that run now."""
        with self._guard:
            running = [child for child in self._running if child.returncode is None]
        for child in running:
            child.kill()
