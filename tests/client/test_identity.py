"""What an SVID is, and the Workload API that it comes from."""

import queue
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent import futures
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TypeAlias

import grpc
import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from spiffe._proto import workload_pb2, workload_pb2_grpc

from pilot.dev.provider import IdentityProvider
from shardhold.identity import ENDPOINT_VARIABLE, IdentityUnavailableError, Svid, WorkloadAPI, _HeldSvid
from tests.kit.authority import Authority
from tests.kit.credentials import certify
from tests.kit.patience import at_most, join, patiently

APP = "spiffe://example.org/team/app"
WaitUntil: TypeAlias = Callable[..., None]


Line: TypeAlias = workload_pb2.X509SVIDResponse | grpc.StatusCode | threading.Event


class ScriptedAPI(workload_pb2_grpc.SpiffeWorkloadAPIServicer):
    """A Workload API that plays one script for each stream: responses, events to wait for, a code to end with."""

    def __init__(self) -> None:
        self.ended = threading.Event()
        self._scripts: queue.Queue[tuple[Line, ...]] = queue.Queue()

    def play(self, *lines: Line) -> None:
        """Set the script of the next stream. A stream without one gets PERMISSION_DENIED."""
        self._scripts.put(lines)

    def FetchX509SVID(  # noqa: N802, the name is the contract's
        self, request: workload_pb2.X509SVIDRequest, context: grpc.ServicerContext
    ) -> Iterator[workload_pb2.X509SVIDResponse]:
        """Play the next script, then stay open."""
        try:
            lines = self._scripts.get_nowait()
        except queue.Empty:
            lines = (grpc.StatusCode.PERMISSION_DENIED,)
        for line in lines:
            if isinstance(line, grpc.StatusCode):
                context.abort(line, "as the script says")
            elif isinstance(line, threading.Event):
                assert patiently(line.wait, 10)
            else:
                yield line
        while context.is_active() and not self.ended.wait(0.05):
            pass


@pytest.fixture
def scripted(tmp_path: Path) -> Iterator[tuple[ScriptedAPI, str]]:
    """Run a scripted Workload API and return its socket."""
    api = ScriptedAPI()
    server = grpc.server(futures.ThreadPoolExecutor(8))
    workload_pb2_grpc.add_SpiffeWorkloadAPIServicer_to_server(api, server)  # type: ignore[no-untyped-call]
    path = tmp_path / "api.sock"
    server.add_insecure_port(f"unix:{path}")
    server.start()
    yield api, str(path)
    api.ended.set()
    server.stop(1).wait()


def to_der(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(Encoding.DER)


def _say(*svids: Svid, federated: Sequence[Authority] = ()) -> workload_pb2.X509SVIDResponse:
    return workload_pb2.X509SVIDResponse(
        svids=[
            workload_pb2.X509SVID(
                spiffe_id=svid.spiffe_id,
                x509_svid=to_der(svid.leaf()),
                x509_svid_key=svid.private_key().private_bytes(Encoding.DER, PrivateFormat.PKCS8, NoEncryption()),
                bundle=b"".join(map(to_der, svid.bundle())),
            )
            for svid in svids
        ],
        federated_bundles={f"spiffe://{other.trust_domain}": to_der(other.certificate) for other in federated},
    )


class TestSvid:
    """What counts as an SVID and what does not."""

    def test_parts(self, ca: Authority) -> None:
        """Names, times and certificates come from the leaf, and the text form shows no key."""
        svid = ca.issue("/team/app")
        assert (svid.spiffe_id, svid.trust_domain) == ("spiffe://example.org/team/app", "example.org")
        assert svid.chain() == (svid.leaf(),)
        assert svid.bundle() == (ca.certificate,)
        assert svid.not_before < datetime.now(UTC) < svid.expires_at
        assert "BEGIN" not in repr(svid)

    @pytest.mark.parametrize(
        ("uris", "problem"),
        [
            pytest.param((), r"URI SANs \[\]", id="no URI SAN"),
            pytest.param(("spiffe://example.org/a", "spiffe://example.org/b"), "want exactly one", id="two URI SANs"),
            pytest.param(("https://example.org/a",), "want exactly one SPIFFE ID", id="no SPIFFE ID"),
        ],
    )
    def test_names(self, ca: Authority, uris: tuple[str, ...], problem: str) -> None:
        """A leaf must have exactly one URI SAN, a SPIFFE ID."""
        leaf = certify(ca, uris=uris)
        with pytest.raises(ValueError, match=problem):
            leaf.parse()

    def test_key_of_another(self, ca: Authority) -> None:
        """A key that is not the leaf's is refused."""
        with pytest.raises(ValueError, match="private key is not the SVID's"):
            replace(certify(ca, uris=[APP]), key=certify(ca, uris=[APP]).key).parse()

    def test_authority_of_another_time(self, ca: Authority) -> None:
        """A bundle in which nobody issued the leaf is refused: its owner would not even trust itself."""
        successor = Authority("example.org")
        with pytest.raises(ValueError, match="no authority of the bundle issued the SVID"):
            certify(ca, uris=[APP]).parse(successor.bundle_pem)
        both = certify(ca, uris=[APP]).parse(successor.bundle_pem + ca.bundle_pem)
        assert both.bundle() == (successor.certificate, ca.certificate)

    def test_half_a_certificate(self, ca: Authority) -> None:
        """A bundle whose last certificate is cut off is refused whole, not used in part."""
        bundle = ca.bundle_pem + Authority("example.org").bundle_pem[:-40]
        with pytest.raises(ValueError):  # noqa: PT011, the parser's words or ours, by where it was cut
            certify(ca, uris=[APP]).parse(bundle)

    def test_foreign_authorities_are_left_out(self, ca: Authority) -> None:
        """Only authorities of the SVID's own trust domain count, since a foreign one could mint our names."""
        stranger = Authority("stranger.example")
        svid = certify(ca, uris=[APP]).parse(stranger.bundle_pem + ca.bundle_pem)
        assert svid.bundle() == (ca.certificate,)
        with pytest.raises(ValueError, match=r"the bundle has no authority of example\.org"):
            certify(ca, uris=[APP]).parse(stranger.bundle_pem)


class TestWorkloadAPI:
    """SVIDs from the Workload API."""

    def test_follows_rotation(self, provider: IdentityProvider, wait_until: WaitUntil) -> None:
        """A pushed SVID becomes the current one, and subscribers are notified."""
        source = WorkloadAPI(str(provider.add("/team/app")))
        heard: list[Svid] = []
        source.subscribe(lambda: heard.append(source.current()))
        first = source.current()
        provider.rotate()
        wait_until(lambda: heard)
        assert heard == [source.current()]
        assert source.current().spiffe_id == first.spiffe_id
        assert source.current() != first
        source.close()

    def test_same_svid_again(self, scripted: tuple[ScriptedAPI, str], ca: Authority, wait_until: WaitUntil) -> None:
        """An update that changes nothing is not a rotation: no subscriber is notified."""
        api, path = scripted
        before, after, go_on = ca.issue("/team/app"), ca.issue("/team/app"), threading.Event()
        api.play(_say(before), go_on, _say(before), _say(before), _say(after))
        source = WorkloadAPI(path)
        heard: list[Svid] = []
        source.subscribe(lambda: heard.append(source.current()))
        go_on.set()
        wait_until(lambda: source.current().leaf() == after.leaf())
        wait_until(lambda: heard)
        assert [svid.leaf() for svid in heard] == [after.leaf()]
        source.close()

    def test_subscriber_that_fails(
        self, provider: IdentityProvider, wait_until: WaitUntil, caplog: pytest.LogCaptureFixture
    ) -> None:
        """A failing subscriber is logged, and stops neither rotation nor the other subscribers."""
        source = WorkloadAPI(str(provider.add("/team/app")))
        heard: list[int] = []
        source.subscribe(lambda: 1 // 0)  # type: ignore[arg-type]
        source.subscribe(lambda: heard.append(1))
        provider.rotate()
        wait_until(lambda: heard)
        assert "ZeroDivisionError" in caplog.text
        source.close()

    @pytest.mark.parametrize("form", ["{}", "unix:{}", "unix://{}"])
    def test_forms_of_the_address(self, provider: IdentityProvider, monkeypatch: pytest.MonkeyPatch, form: str) -> None:
        """A plain path and both URI forms work, also in the environment variable."""
        monkeypatch.setenv(ENDPOINT_VARIABLE, form.format(provider.add("/team/app")))
        source = WorkloadAPI()
        assert source.current().spiffe_id == "spiffe://example.org/team/app"
        source.close()

    def test_no_address(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Without a socket named anywhere, the error names the variable."""
        monkeypatch.delenv(ENDPOINT_VARIABLE, raising=False)
        with pytest.raises(IdentityUnavailableError, match="SPIFFE_ENDPOINT_SOCKET is not set"):
            WorkloadAPI()

    def test_not_a_unix_socket(self, tmp_path: Path) -> None:
        """TCP, a missing socket and a plain file are refused at once, by name."""
        (tmp_path / "file").touch()
        with pytest.raises(IdentityUnavailableError, match="want unix:/path"):
            WorkloadAPI("tcp://127.0.0.1:1")
        with pytest.raises(IdentityUnavailableError, match=f"no Workload API at {tmp_path}/none"):
            WorkloadAPI(str(tmp_path / "none"))
        with pytest.raises(IdentityUnavailableError, match="not a unix socket"):
            WorkloadAPI(str(tmp_path / "file"))

    def test_nobody_answers(self, tmp_path: Path) -> None:
        """A socket that nothing serves any more gives an error within the time-out, with a hint."""
        path = tmp_path / "dead.sock"
        with socket.socket(socket.AF_UNIX) as dead:
            dead.bind(str(path))
        with pytest.raises(IdentityUnavailableError, match=r"waited at most 0\.3 s") as caught:
            WorkloadAPI(str(path), timeout=0.3)
        assert "registered" in caught.value.hint

    def test_not_registered(self, scripted: tuple[ScriptedAPI, str]) -> None:
        """PERMISSION_DENIED, which spiffe silently retries for ever, ends at the time-out."""
        api, path = scripted
        api.play(grpc.StatusCode.PERMISSION_DENIED)
        with pytest.raises(IdentityUnavailableError, match="waited at most"):
            WorkloadAPI(path, timeout=0.5)

    def test_only_the_own_bundle(self, scripted: tuple[ScriptedAPI, str], ca: Authority) -> None:
        """Federated bundles stay out of the roots."""
        api, path = scripted
        api.play(_say(ca.issue("/team/app"), federated=[Authority("friend.example")]))
        source = WorkloadAPI(path)
        assert source.current().bundle() == (ca.certificate,)
        source.close()

    def test_select(self, scripted: tuple[ScriptedAPI, str], ca: Authority) -> None:
        """With several SVIDs the first is used, or the one that *select* chooses."""
        api, path = scripted
        for _ in range(2):
            api.play(_say(ca.issue("/team/app"), ca.issue("/shardhold/pilot/role/operator/ann")))
        first = WorkloadAPI(path)
        chosen = WorkloadAPI(path, select=lambda offered: next(name for name in offered if "operator" in name))
        assert first.current().spiffe_id == "spiffe://example.org/team/app"
        assert chosen.current().spiffe_id == "spiffe://example.org/shardhold/pilot/role/operator/ann"
        first.close()
        chosen.close()

    def test_select_that_refuses(self, scripted: tuple[ScriptedAPI, str], ca: Authority) -> None:
        """An error that *select* raises about the offer reaches the caller with its own text."""
        api, path = scripted
        api.play(_say(ca.issue("/team/app")))

        def refuse(offered: object) -> str:
            raise IdentityUnavailableError("no SVID with the role operator")

        with pytest.raises(IdentityUnavailableError, match="^no SVID with the role operator$"):
            WorkloadAPI(path, select=refuse)
        api.play(_say(ca.issue("/team/app")))
        with pytest.raises(IdentityUnavailableError, match=r"offers spiffe://example.org/team/app, not spiffe://x/y"):
            WorkloadAPI(path, select=lambda offered: "spiffe://x/y")

    @pytest.mark.parametrize(
        "trouble",
        [
            pytest.param(workload_pb2.X509SVIDResponse(), id="an empty update"),
            pytest.param(grpc.StatusCode.INVALID_ARGUMENT, id="an error that spiffe does not retry"),
        ],
    )
    def test_closed_stream_is_opened_again(
        self,
        scripted: tuple[ScriptedAPI, str],
        ca: Authority,
        wait_until: WaitUntil,
        caplog: pytest.LogCaptureFixture,
        trouble: workload_pb2.X509SVIDResponse | grpc.StatusCode,
    ) -> None:
        """What closes spiffe's source is logged; the last SVID serves until a new stream brings another."""
        api, path = scripted
        before, after = ca.issue("/team/app"), ca.issue("/team/app")
        go_on = threading.Event()
        api.play(_say(before), go_on, trouble)
        api.play(_say(after))
        source = WorkloadAPI(path)
        heard: list[Svid] = []
        source.subscribe(lambda: heard.append(source.current()))
        assert source.current().leaf() == before.leaf()
        go_on.set()
        wait_until(lambda: heard)
        assert source.current().leaf() == after.leaf()
        wait_until(lambda: "it is open again" in caplog.text)
        source.close()

    def test_silent_stream_is_left(
        self,
        scripted: tuple[ScriptedAPI, str],
        ca: Authority,
        wait_until: WaitUntil,
        caplog: pytest.LogCaptureFixture,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        """A stream that stays open without a newer SVID is replaced by another before the last SVID expires.

        A stream whose thread died or waits for minutes is replaced too; spiffe's does after long without an agent.
        """
        api, path = scripted
        before, after = ca.issue("/team/app"), ca.issue("/team/app")
        api.play(_say(before))
        api.play(_say(after))
        source = WorkloadAPI(path)
        assert source.current().leaf() == before.leaf()
        late = before.not_before + 0.9 * (before.expires_at - before.not_before)
        monkeypatch.setattr(source._held, "_now", lambda: late)
        wait_until(lambda: source.current().leaf() == after.leaf())
        wait_until(lambda: "it is open again" in caplog.text)
        source.close()

    def test_agent_restarts(self, ca: Authority, tmp_path: Path, wait_until: WaitUntil) -> None:
        """An agent that goes away and comes back, even with another authority, is followed."""
        with IdentityProvider(tmp_path, ca) as provider:
            source = WorkloadAPI(str(provider.add("/team/app")))
        assert source.current().bundle() == (ca.certificate,)
        successor = Authority("example.org")
        with IdentityProvider(tmp_path, successor) as provider:
            provider.add("/team/app")
            wait_until(lambda: source.current().bundle() == (successor.certificate,))
            source.close()

    def test_alarm_and_expiry(
        self,
        scripted: tuple[ScriptedAPI, str],
        ca: Authority,
        wait_until: WaitUntil,
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        """An SVID that is not renewed in time causes a warning, and is refused once it has expired."""
        api, path = scripted
        api.play(_say(certify(ca, uris=[APP], valid=(timedelta(hours=-2), timedelta(seconds=-1))).parse()))
        source = WorkloadAPI(path)
        wait_until(lambda: "has expired" in caplog.text)
        with pytest.raises(IdentityUnavailableError, match=r"spiffe://example\.org/team/app expired at"):
            source.current()
        source.close()

    def test_warnings_come_once_each(self, ca: Authority, caplog: pytest.LogCaptureFixture) -> None:
        """There is one warning in the SVID's last quarter and one at its expiry; until then it serves."""
        svid = ca.issue("/team/app")
        now = svid.not_before
        held = _HeldSvid("somewhere", now=lambda: now)
        held.replace(svid)
        for part, warnings in ((0.74, 0), (0.76, 1), (0.9, 1), (0.999, 1), (1.0, 2), (2.0, 2)):
            now = svid.not_before + part * (svid.expires_at - svid.not_before)
            held.check_age()
            assert (part, len(caplog.records)) == (part, warnings)
            if part < 1:
                assert held.current() == svid
        assert "will soon expire" in caplog.messages[0]
        assert "has expired" in caplog.messages[1]

    def test_close_waits_for_the_stream(self, provider: IdentityProvider) -> None:
        """Close waits for the stream's thread: the interpreter could stop it with a gRPC lock held, and never end."""
        source = WorkloadAPI(str(provider.add("/team/app")))
        is_told, go_on = threading.Event(), threading.Event()
        source.subscribe(lambda: (is_told.set(), go_on.wait(at_most(30))))  # type: ignore[func-returns-value, arg-type]
        provider.rotate()
        assert patiently(is_told.wait, 30)
        closing = threading.Thread(target=source.close)
        closing.start()
        closing.join(0.5)
        assert closing.is_alive()
        go_on.set()
        join(closing, 30)
        assert not closing.is_alive()

    def test_closed_for_good(self, ca: Authority) -> None:
        """An SVID that arrives while its source is being closed changes nothing."""
        held = _HeldSvid("somewhere")
        held.close()
        held.replace(ca.issue("/team/app"))
        with pytest.raises(IdentityUnavailableError, match="was closed"):
            held.current()

    def test_closed(self, provider: IdentityProvider) -> None:
        """After close there is no identity; closing twice is allowed."""
        source = WorkloadAPI(str(provider.add("/team/app")))
        source.close()
        source.close()
        with pytest.raises(IdentityUnavailableError, match="was closed"):
            source.current()


def test_import_is_light() -> None:
    """A server that imports this module loads spiffe, cryptography and the SDK's client only when it uses them."""
    heavy = "{'spiffe', 'cryptography', 'shardhold._client'} & set(sys.modules)"
    code = f"import sys, shardhold.identity, shardhold.channel; print({heavy} or 'light')"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "light\n"


def test_process_ends_without_close(provider: IdentityProvider) -> None:
    """A process that never closes its source still ends at once."""
    code = "import sys; from shardhold.identity import WorkloadAPI; print(WorkloadAPI(sys.argv[1]).current().spiffe_id)"
    command = [sys.executable, "-c", code, str(provider.add("/team/app"))]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=at_most(20))
    assert done.stdout == "spiffe://example.org/team/app\n"
