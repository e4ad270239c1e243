"""Pilot before a nexus that lies, or is of another version: only text reaches the terminal, and no traceback."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp

from common.errors import ShardholdError
from common.server.edge import Call, GrpcServer, Method
from pilot.__main__ import run
from shardhold.v1 import audit_pb2, backup_pb2, cluster_pb2, policies_pb2, recovery_pb2, root_pb2, secrets_pb2
from tests.kit.authority import Authority
from tests.kit.credentials import write_svid
from tests.kit.fixed_identity import FixedIdentity

# Sets the title, colours by a C1 control, turns the direction of text, and clears the screen.
NASTY = "a\x1b]0;owned\x07\x9b31m\u202e\x1b[2J\r\x00z"
NUMBERS = {FieldDescriptor.CPPTYPE_INT64: 2**63 - 1, FieldDescriptor.CPPTYPE_UINT64: 2**64 - 1}
EXIT_CODES = range(9)
_MODULES = (audit_pb2, backup_pb2, cluster_pb2, policies_pb2, recovery_pb2, root_pb2, secrets_pb2)
_MAX_DEPTH = 4

POLICY = str(Path(__file__).parent / "policy.toml")

COMMANDS = [
    ("status",),
    ("status", "--exit-code"),
    ("watch", "--count", "1", "--interval", "0.2"),
    ("keeper", "list"),
    ("keeper", "add", "k", "k:1", "spiffe://example.test/k", "--dry-run"),
    ("root", "status"),
    ("root", "reshare", "--wait"),
    ("root", "reshare", "--dry-run"),
    ("root", "rotate", "--wait"),
    ("root", "rotate", "--dry-run", "--emergency"),
    ("root", "pause", "--reason", "x"),
    ("root", "resume"),
    ("root", "history"),
    ("root", "impact", "--generation", "1"),
    ("root", "quarantine", "list"),
    ("root", "quarantine", "retry", "a/b", "1"),
    ("root", "quarantine", "abandon", "a/b", "1", "--incarnation", "00", "--reason", "x"),
    ("root", "abort"),
    ("root", "continue", "--with-threshold"),
    ("root", "continue", "--lost", "k"),
    ("secret", "list"),
    ("secret", "get", "a/b"),
    ("secret", "put", "a/b", "@/dev/null", "--allow-empty"),
    ("secret", "patch", "a/b", "--remove", "x"),
    ("secret", "delete", "a/b"),
    ("secret", "versions", "a/b"),
    ("secret", "undelete", "a/b", "--version", "1"),
    ("secret", "destroy", "a/b", "--yes"),
    ("secret", "metadata", "get", "a/b"),
    ("secret", "metadata", "set", "a/b", "--max-versions", "1"),
    ("policy", "apply", POLICY),
    ("policy", "get", "p"),
    ("policy", "get", "p", "-o", "toml"),
    ("policy", "list"),
    ("policy", "list", "-o", "toml"),
    ("policy", "delete", "p"),
    ("policy", "explain", "--as", "spiffe://example.test/x", "read", "a/b"),
    ("backup", "create"),
    ("backup", "list"),
    ("backup", "status"),
    ("backup", "prune"),
    ("backup", "verify"),
    ("audit", "tail"),
    ("audit", "verify"),
    ("audit", "accept-new-chain", "--reason", "x"),
    ("unseal", "status"),
    ("unseal", "start"),
    ("unseal", "exclude", "spiffe://example.test/x"),
    ("unseal", "reset"),
    ("seal", "--yes"),
    ("accept-older-store", "--timeline", "1", "--revision", "1"),
]


def lie(message: Message, depth: int = 0) -> Message:
    """Fill every field with what no honest nexus of this version says."""
    for field in message.DESCRIPTOR.fields:
        is_list = field.is_repeated
        if field.message_type is not None and field.message_type.GetOptions().map_entry:
            continue
        if field.message_type is not None:
            if depth < _MAX_DEPTH:
                part = getattr(message, field.name)
                lie(part.add() if is_list else part, depth + 1)
            continue
        value = _lie_of(field)
        if is_list:
            getattr(message, field.name).append(value)
        else:
            setattr(message, field.name, value)
    if isinstance(message, Timestamp):
        message.seconds, message.nanos = 2**63 - 1, -1
    return message


def _lie_of(field: Any) -> Any:
    match field.cpp_type:
        case FieldDescriptor.CPPTYPE_STRING:
            return NASTY.encode() if field.type == FieldDescriptor.TYPE_BYTES else NASTY
        case FieldDescriptor.CPPTYPE_BOOL:
            return True
        case FieldDescriptor.CPPTYPE_ENUM:
            return 99
        case kind:
            return NUMBERS.get(kind, 2**31 - 1)


def lie_about_lines(*lines: bytes) -> Callable[[Message], Message]:
    """Let everything be empty, and the audit have these lines."""

    def make(message: Message) -> Message:
        if isinstance(message, audit_pb2.TailAuditResponse):
            message.timeline, message.nexus = 1, "n1"
            message.timelines.append(1)
            message.lines.extend(lines)
        return message

    return make


def refuse(_: Message) -> Message:
    """Refuse with a message that would control a terminal."""
    raise ShardholdError(NASTY)


LIES = [
    pytest.param(lie, id="every field is hostile"),
    pytest.param(lambda message: message, id="every field is empty"),
    pytest.param(refuse, id="a hostile error"),
    pytest.param(lie_about_lines(b"\xff\x1b[2J\n"), id="a line that is no text"),
    pytest.param(lie_about_lines(b"[]\n"), id="a line that is no object"),
    pytest.param(lie_about_lines(b'{"seq":"x","entry":[]}\n'), id="a line of other types"),
    pytest.param(
        lie_about_lines(b'{"seq":1,"entry":{"at":1e300,"actor":{},"detail":["\xc2\x9b2J"]}}\n'), id="odd cells"
    ),
    pytest.param(lie_about_lines(b"[" * 200_000 + b"\n"), id="a line of brackets"),
]


class LyingNexus:
    """Answers every RPC that pilot knows, as *lie* says."""

    def __init__(self, ca: Authority) -> None:
        self.lie: Callable[[Message], Message] = lie
        identity = FixedIdentity(ca.issue("/shardhold/nexus/n1", dns="nexus.shardhold"))
        self._server = GrpcServer(
            list(self._list_methods()), address="127.0.0.1:0", identity=identity, trust_domain=ca.trust_domain
        )
        self.address = f"127.0.0.1:{self._server.start()}"

    def stop(self) -> None:
        self._server.stop(0)

    def _list_methods(self) -> Iterator[Method]:
        for module in _MODULES:
            for service in module.DESCRIPTOR.services_by_name.values():
                for method in service.methods:
                    request, response = (getattr(module, kind.name) for kind in (method.input_type, method.output_type))

                    def answer(_: Call, __: Any, response: type[Message] = response) -> Message:
                        return self.lie(response())

                    yield Method(f"/{service.full_name}/{method.name}", request, response, answer)


@pytest.fixture(scope="module")
def liar(ca: Authority) -> Iterator[LyingNexus]:
    """One for all."""
    nexus = LyingNexus(ca)
    yield nexus
    nexus.stop()


@pytest.fixture(scope="module")
def person(ca: Authority, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The SVID of a superuser, as files."""
    svid = ca.issue("/shardhold/pilot/role/superuser/ann")
    return write_svid(tmp_path_factory.mktemp("ann") / "svid", svid)


@pytest.mark.parametrize("output", ["table", "json"])
@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
@pytest.mark.parametrize("says", LIES)
def test_what_a_lying_nexus_says_controls_no_terminal(
    liar: LyingNexus,
    person: Path,
    capsys: pytest.CaptureFixture[str],
    says: Callable[[Message], Message],
    command: tuple[str, ...],
    output: str,
) -> None:
    """Each command ends with a documented code, and shows text alone; lines of the audit go to a file as they are."""
    liar.lie = says
    code = run(["-o", output, "--address", liar.address, "--svid-dir", str(person), "--timeout", "5", *command])
    shown = capsys.readouterr()
    assert code in EXIT_CODES
    is_copy = (command, output) == (("audit", "tail"), "json")
    for text in (shown.err,) if is_copy else (shown.out, shown.err):
        assert all(character.isprintable() or character in "\n\t" for character in text), ascii(text)[:500]


@pytest.mark.parametrize("command", ["secret get", "policy get", "keeper remove"])
@pytest.mark.parametrize("says", LIES[:3])
def test_what_a_lying_nexus_says_completes_no_word(
    liar: LyingNexus,
    person: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    says: Callable[[Message], Message],
    command: str,
) -> None:
    """A name that would control the terminal is not offered, and an error is not shown."""
    liar.lie = says
    words = f"pilot --address {liar.address} --svid-dir {person} {command} "
    monkeypatch.setenv("_PILOT_COMPLETE", "complete_bash")
    monkeypatch.setenv("COMP_WORDS", words)
    monkeypatch.setenv("COMP_CWORD", str(words.count(" ")))
    with pytest.raises(SystemExit):
        run([])
    told = capfd.readouterr()
    assert (told.out.strip(), told.err) == ("", "")
