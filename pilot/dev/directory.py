"""The directory of a development cluster: where everything is, and what it remembers between commands."""

import contextlib
import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import msgspec

from pilot.dev.processes import ProcessRecord
from pilot.errors import FAILED, PilotError

MARKER = "FOR-DEVELOPMENT-ONLY.txt"
MARKER_TEXT = """\
This directory holds a Shardhold cluster for development, made by `pilot dev`.

Its identities come from a certificate authority that trusts everyone who can open its sockets, all recovery shares are
side by side in one folder, and everything runs as one user on one machine. Never keep a real secret in it.
"""
GIT_IGNORE = ".gitignore"
SOCKET_LIMIT = 107  # bytes of a unix socket's path, see unix(7)
LONGEST_SOCKET_NAME = 40  # bytes


class DevError(PilotError):
    """A `pilot dev` command cannot do what it was asked to."""

    def __init__(self, message: str, *, hint: str = "", exit_code: int = FAILED) -> None:
        super().__init__(message, hint, exit_code=exit_code)


class Ports(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    grpc: int
    http: int


class Plan(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What is chosen once, at the first start."""

    keepers: int = 5
    threshold: int = 3
    lifetime_s: float = 300.0  # of SVIDs; they are replaced halfway through it
    # Memory protection, see common.keys.protected: development machines may have little lockable memory.
    lowest_level: int = 1
    highest_level: int = 3

    @property
    def servers(self) -> tuple[str, ...]:
        """Names of the servers, as on the command line."""
        return ("nexus", *(f"keeper-{number}" for number in range(1, self.keepers + 1)))


class State(msgspec.Struct, forbid_unknown_fields=True):
    """What the directory remembers; the file dev.json."""

    plan: Plan
    sockets: str = ""  # absolute path of the folder of the Workload API sockets; empty while nothing runs
    ports: dict[str, Ports] = {}
    processes: dict[str, ProcessRecord] = {}


class DevDirectory:
    """Paths and state of one development cluster."""

    def __init__(self, root: Path) -> None:
        self.root = root.absolute()

    @property
    def logs(self) -> Path:
        return self.root / "logs"

    @property
    def data(self) -> Path:
        return self.root / "data"

    @property
    def audit(self) -> Path:
        return self.root / "audit"

    @property
    def backups(self) -> Path:
        return self.root / "backups"

    @property
    def backup_identity(self) -> Path:
        """File of the identity that opens the backups, as age-keygen writes it."""
        return self.root / "backup-identity.txt"

    @property
    def recovery_shares(self) -> Path:
        return self.root / "recovery-shares"

    def recovery_share(self, number: int) -> Path:
        """File of the share card of the custodian with this number."""
        return self.recovery_shares / f"custodian-{number}.txt"

    @property
    def identities(self) -> Path:
        return self.root / "identities.json"

    def set_shares_aside(self) -> Path | None:
        """Keep the recovery shares of an earlier init under another name, which is returned; None if there are none.

        The store of their cluster may be missing only for now: nothing else opens it.
        """
        if not self.recovery_shares.is_dir():
            return None
        number = 1
        while (aside := self.recovery_shares.with_name(f"{self.recovery_shares.name}-{number}")).exists():
            number += 1
        return self.recovery_shares.rename(aside)

    def log(self, name: str) -> Path:
        return self.logs / f"{name}.log"

    def config(self, name: str) -> Path:
        return self.root / "config" / f"{name}.toml"

    @property
    def exists(self) -> bool:
        """Whether a development cluster was ever started here."""
        return (self.root / MARKER).is_file() and self._state.is_file()

    @property
    def _state(self) -> Path:
        return self.root / "dev.json"

    def create(self, plan: Plan) -> State:
        """Make an empty or missing directory the home of a new development cluster.

        Raises:
            DevError: The directory holds something else, or cannot be written.
        """
        self.claim()
        for folder in (self.logs, self.data, self.audit):
            folder.mkdir(mode=0o700, exist_ok=True)
        state = State(plan=plan)
        self.save(state)
        return state

    def claim(self) -> None:
        """Mark an empty or missing directory as one for development, which git ignores; a marked one stays as it is.

        Raises:
            DevError: The directory holds something else, or cannot be written.
        """
        try:
            self.root.mkdir(mode=0o700, parents=True, exist_ok=True)
            others = sorted(entry.name for entry in self.root.iterdir())
            if others and MARKER not in others:
                raise DevError(
                    f"{self.root} holds {others[0]!r}, which no development cluster made",
                    hint="name an empty or new directory with --dir",
                )
            (self.root / MARKER).write_text(MARKER_TEXT)
            self._ignore_in_git()
        except OSError as exc:
            raise DevError(
                f"{self.root} cannot be used: {exc.strerror}", hint="name another directory with --dir"
            ) from exc

    def _ignore_in_git(self) -> None:
        """Have git ignore everything here, this rule included; whatever somebody wrote there stays."""
        with contextlib.suppress(FileExistsError), (self.root / GIT_IGNORE).open("x") as file:
            file.write("*\n")

    def load(self) -> State:
        """Read the state.

        Raises:
            DevError: There is none, or it is damaged.
        """
        try:
            return msgspec.json.decode(self._state.read_bytes(), type=State)
        except FileNotFoundError as exc:
            raise DevError(f"there is no development cluster in {self.root}", hint="start one: pilot dev up") from exc
        except msgspec.DecodeError as exc:
            raise DevError(f"{self._state} is damaged: {exc}", hint="start over in a new directory") from exc

    def find_sockets(self) -> Path:
        """Return the folder of the Workload API sockets; without a cluster it is in this directory."""
        chosen = self.load().sockets if self.exists else ""
        return Path(chosen) if chosen else self.root / "sockets"

    def make_sockets(self) -> Path:
        """Create a folder, mode 0700, where the path of every socket is short enough for the kernel."""
        inside = self.root / "sockets"
        # Addresses of sockets are read as URIs.
        if len(os.fsencode(inside)) + 1 + LONGEST_SOCKET_NAME <= SOCKET_LIMIT and not set("%?#") & set(str(inside)):
            inside.mkdir(mode=0o700, exist_ok=True)
            return inside
        return Path(tempfile.mkdtemp(prefix="shardhold-dev-"))

    def remove_sockets(self, folder: Path) -> None:
        """Remove a folder of sockets that no process uses any more, if it is outside this directory."""
        if self.root not in folder.parents:
            shutil.rmtree(folder, ignore_errors=True)

    def save(self, state: State) -> None:
        """Write the state; a reader sees the old or the new one."""
        self.replace_file(self._state, msgspec.json.format(msgspec.json.encode(state), indent=2))

    def replace_file(self, path: Path, content: bytes) -> None:
        """Write a file whole, mode 0600; a reader sees the old or the new one.

        Raises:
            DevError: It cannot be written; the old one stays.
        """
        draft = path.with_name(f".{path.name}.{os.getpid()}")
        try:
            draft.touch(mode=0o600)
            draft.write_bytes(content)
            draft.replace(path)
        except OSError as exc:
            with contextlib.suppress(OSError):
                draft.unlink(missing_ok=True)
            raise DevError(f"{path} cannot be written: {exc.strerror}") from exc

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Let one command at a time change the cluster."""
        try:
            lock = (self.root / ".lock").open("wb")
        except OSError as exc:
            raise DevError(f"{self.root / '.lock'} cannot be written: {exc.strerror}") from exc
        with lock as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield
