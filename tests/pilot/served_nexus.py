"""Pilot in this process before a real nexus: its core, vault and store behind its wire, with played keepers."""

import io
import sys
from contextlib import closing, redirect_stderr, redirect_stdout
from pathlib import Path

from common.keys.protected import Level, ProtectedMemory
from common.server.edge import GrpcServer
from pilot.__main__ import run
from tests.kit.authority import Authority
from tests.kit.credentials import write_svid
from tests.kit.fixed_identity import FixedIdentity
from tests.kit.transcript import Transcript
from tests.nexus import cluster
from tests.nexus.core import NexusCore, make_ready
from tests.pilot.person import Person

ALICE = "/shardhold/pilot/role/superuser/alice"


class ServedNexus:
    """A ready nexus, and people who ask it by pilot."""

    def __init__(self, folder: Path, core: NexusCore) -> None:
        self.core = core
        self._folder = folder
        self._ca = Authority(cluster.TRUST_DOMAIN)
        identity = FixedIdentity(self._ca.issue("/shardhold/nexus/n1", dns="nexus.shardhold"))
        self._server = GrpcServer(
            core.list_methods(), address="127.0.0.1:0", identity=identity, trust_domain=cluster.TRUST_DOMAIN
        )
        self.address = f"127.0.0.1:{self._server.start()}"

    @classmethod
    def found(cls, folder: Path) -> "ServedNexus":
        """Found a cluster in *folder*, with the policy of superusers alone, and serve it."""
        memory = ProtectedMemory(highest=Level.LOCKED)
        founded = cluster.found(cluster.open_store(folder), memory, keepers=3, threshold=2)
        core = NexusCore(folder, founded.store, memory, founded.keepers())
        make_ready(core, founded)
        return cls(folder, core)

    def stop(self) -> None:
        self._server.stop(0)
        self.core.close()
        self.core.store.close()

    def reach(self, who: str = ALICE) -> list[str]:
        """Return the options that lead the owner of this path of a SPIFFE ID to the nexus."""
        svid = self._folder / who.replace("/", "-")
        if not svid.exists():
            write_svid(svid, self._ca.issue(who))
        return ["--address", self.address, "--svid-dir", str(svid)]

    def pilot(self, *arguments: str | Path, stdin: bytes = b"", who: str = ALICE) -> Transcript:
        """Run a command line with *stdin* on a pipe."""
        return run_here([*map(str, arguments), *self.reach(who)], stdin=io.TextIOWrapper(io.BytesIO(stdin)))

    def at_terminal(self, *arguments: str | Path, script: list[tuple[str, str]], who: str = ALICE) -> Transcript:
        """Run a command line before somebody who waits for the first of each pair, and types the second."""
        person = Person()
        person.act(*script)
        told = run_here([*map(str, arguments), *self.reach(who)], stdin=person.source, stderr=person.screen)
        return Transcript(told.code, told.out, person.leave().replace("\r\n", "\n"))


def run_here(
    arguments: list[str], *, stdin: io.TextIOBase | io.TextIOWrapper, stderr: io.TextIOBase | None = None
) -> Transcript:
    """Run a command line in this process."""
    out, err = io.TextIOWrapper(io.BytesIO(), encoding="utf-8"), stderr or io.StringIO()
    before, sys.stdin = sys.stdin, stdin
    try:
        with redirect_stdout(out), redirect_stderr(err):
            code = run(arguments)
    finally:
        sys.stdin = before
    out.flush()
    with closing(out):
        shown = out.buffer.getvalue().decode()
    return Transcript(code, shown, err.getvalue() if isinstance(err, io.StringIO) else "")
