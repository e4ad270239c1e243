"""What an SVID is, and the Workload API that it comes from."""

import queue
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent import futures
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TypeAlias

import grpc
import pytest
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from spiffe._proto import workload_pb2, workload_pb2_grpc

from pilot.dev.ca import DevelopmentCA
from pilot.dev.provider import IdentityProvider
from shardhold.identity import ENDPOINT_VARIABLE, IdentityUnavailableError, Svid, WorkloadAPI, _HeldSvid
from tests.client.leaf import certify

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
                assert line.wait(10)
            else:
                yield line
        while context.is_active() and not self.ended.wait(0.05):
            pass


@pytest.fixture
def scripted(tmp_path: Path) -> Iterator[tuple[ScriptedAPI, str]]:
    """Run a scripted Workload API and give its socket."""
    api = ScriptedAPI()
    server = grpc.server(futures.ThreadPoolExecutor(8))
    workload_pb2_grpc.add_SpiffeWorkloadAPIServicer_to_server(api, server)  # type: ignore[no-untyped-call]
    path = tmp_path / "api.sock"
    server.add_insecure_port(f"unix:{path}")
    server.start()
    yield api, str(path)
    api.ended.set()
    server.stop(1).wait()


def _say(*svids: Svid, federated: DevelopmentCA | None = None) -> workload_pb2.X509SVIDResponse:
    return workload_pb2.X509SVIDResponse(
        svids=[
            workload_pb2.X509SVID(
                spiffe_id=svid.spiffe_id,
                x509_svid=svid.leaf().public_bytes(Encoding.DER),
                x509_svid_key=svid.private_key().private_bytes(Encoding.DER, PrivateFormat.PKCS8, NoEncryption()),
                bundle=b"".join(authority.public_bytes(Encoding.DER) for authority in svid.bundle()),
            )
            for svid in svids
        ],
        federated_bundles={f"spiffe://{federated.trust_domain}": federated.bundle_der} if federated else {},
    )


class TestSvid:
    """What is an SVID and what is not."""

    def test_parts(self, ca: DevelopmentCA) -> None:
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
    def test_names(self, ca: DevelopmentCA, uris: tuple[str, ...], problem: str) -> None:
        """A leaf has exactly one URI SAN, and it is a SPIFFE ID."""
        certificates, key = certify(ca, uris=uris)
        with pytest.raises(ValueError, match=problem):
            Svid.parse(certificates, key, ca.bundle_pem)

    def test_key_of_another(self, ca: DevelopmentCA) -> None:
        """A key that is not the leaf's is refused."""
        with pytest.raises(ValueError, match="private key is not the SVID's"):
            Svid.parse(certify(ca)[0], certify(ca)[1], ca.bundle_pem)

    def test_authority_of_another_time(self, ca: DevelopmentCA) -> None:
        """A bundle in which nobody issued the leaf is refused: its owner would not even trust itself."""
        successor = DevelopmentCA("example.org")
        with pytest.raises(ValueError, match="no authority of the bundle issued the SVID"):
            Svid.parse(*certify(ca), successor.bundle_pem)
        both = Svid.parse(*certify(ca), successor.bundle_pem + ca.bundle_pem)
        assert both.bundle() == (successor.certificate, ca.certificate)

    def test_half_a_certificate(self, ca: DevelopmentCA) -> None:
        """A bundle whose last certificate is cut off is refused whole, not taken in part."""
        bundle = ca.bundle_pem + DevelopmentCA("example.org").bundle_pem[:-40]
        with pytest.raises(ValueError):  # noqa: PT011, the parser's words or ours, by where it was cut
            Svid.parse(*certify(ca), bundle)

    def test_foreign_authorities_are_left_out(self, ca: DevelopmentCA) -> None:
        """Only authorities of the SVID's own trust domain count, since a foreign one could mint our names."""
        stranger = DevelopmentCA("stranger.example")
        svid = Svid.parse(*certify(ca), stranger.bundle_pem + ca.bundle_pem)
        assert svid.bundle() == (ca.certificate,)
        with pytest.raises(ValueError, match=r"the bundle has no authority of example\.org"):
            Svid.parse(*certify(ca), stranger.bundle_pem)


class TestWorkloadAPI:
    """SVIDs from the Workload API."""

    def test_follows_rotation(self, provider: IdentityProvider, wait_until: WaitUntil) -> None:
        """A pushed SVID becomes the current one, and subscribers hear of it."""
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

    def test_same_svid_again(self, scripted: tuple[ScriptedAPI, str], ca: DevelopmentCA, wait_until: WaitUntil) -> None:
        """An update that changes nothing is no rotation: nobody is told."""
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
        """A failing subscriber is logged and keeps neither rotation nor the others from going on."""
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
        """A plain path and both URI forms work, from the environment too."""
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
        """A socket that somebody left behind gives an error within the time-out, with a hint."""
        path = tmp_path / "dead.sock"
        with socket.socket(socket.AF_UNIX) as dead:
            dead.bind(str(path))
        with pytest.raises(IdentityUnavailableError, match=r"waited at most 0\.3 s") as caught:
            WorkloadAPI(str(path), timeout=0.3)
        assert "registered" in caught.value.hint

    def test_not_registered(self, scripted: tuple[ScriptedAPI, str]) -> None:
        """PERMISSION_DENIED, which spiffe retries in silence for ever, ends at the time-out."""
        api, path = scripted
        api.play(grpc.StatusCode.PERMISSION_DENIED)
        with pytest.raises(IdentityUnavailableError, match="waited at most"):
            WorkloadAPI(path, timeout=0.5)

    def test_only_the_own_bundle(self, scripted: tuple[ScriptedAPI, str], ca: DevelopmentCA) -> None:
        """Federated bundles stay out of the roots."""
        api, path = scripted
        api.play(_say(ca.issue("/team/app"), federated=DevelopmentCA("friend.example")))
        source = WorkloadAPI(path)
        assert source.current().bundle() == (ca.certificate,)
        source.close()

    def test_select(self, scripted: tuple[ScriptedAPI, str], ca: DevelopmentCA) -> None:
        """With several SVIDs the first is taken, or the one that *select* says."""
        api, path = scripted
        for _ in range(2):
            api.play(_say(ca.issue("/team/app"), ca.issue("/shardhold/pilot/role/operator/ann")))
        first = WorkloadAPI(path)
        chosen = WorkloadAPI(path, select=lambda offered: next(name for name in offered if "operator" in name))
        assert first.current().spiffe_id == "spiffe://example.org/team/app"
        assert chosen.current().spiffe_id == "spiffe://example.org/shardhold/pilot/role/operator/ann"
        first.close()
        chosen.close()

    def test_select_that_refuses(self, scripted: tuple[ScriptedAPI, str], ca: DevelopmentCA) -> None:
        """What *select* says against the offer reaches the caller in its own words."""
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
        ca: DevelopmentCA,
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
        ca: DevelopmentCA,
        wait_until: WaitUntil,
        caplog: pytest.LogCaptureFixture,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        """A stream that stays open and brings no newer SVID in time is left for another, before the last one expires.

        So is one whose thread died or waits for minutes, as spiffe's does after a long time without an agent.
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

    def test_agent_restarts(self, ca: DevelopmentCA, tmp_path: Path, wait_until: WaitUntil) -> None:
        """An agent that goes away and comes back, with another authority even, is followed."""
        with IdentityProvider(tmp_path, ca) as provider:
            source = WorkloadAPI(str(provider.add("/team/app")))
        assert source.current().bundle() == (ca.certificate,)
        successor = DevelopmentCA("example.org")
        with IdentityProvider(tmp_path, successor) as provider:
            provider.add("/team/app")
            wait_until(lambda: source.current().bundle() == (successor.certificate,), timeout=30)
            source.close()

    def test_alarm_and_expiry(
        self,
        scripted: tuple[ScriptedAPI, str],
        ca: DevelopmentCA,
        wait_until: WaitUntil,
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        """An SVID that was not renewed in time is warned of, and refused."""
        api, path = scripted
        api.play(_say(Svid.parse(*certify(ca, lifetime=timedelta(seconds=-1)), ca.bundle_pem)))
        source = WorkloadAPI(path)
        wait_until(lambda: "has expired" in caplog.text)
        with pytest.raises(IdentityUnavailableError, match=r"spiffe://example\.org/team/app expired at"):
            source.current()
        source.close()

    def test_warnings_come_once_each(self, ca: DevelopmentCA, caplog: pytest.LogCaptureFixture) -> None:
        """In the last quarter of what it had left, and when it has expired; until then the SVID serves."""
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
        """Its thread could keep the interpreter from ending: stopped in the middle, it would keep a lock of gRPC."""
        source = WorkloadAPI(str(provider.add("/team/app")))
        is_told, go_on = threading.Event(), threading.Event()
        source.subscribe(lambda: (is_told.set(), go_on.wait(30)))  # type: ignore[func-returns-value, arg-type]
        provider.rotate()
        assert is_told.wait(30)
        closing = threading.Thread(target=source.close)
        closing.start()
        closing.join(0.5)
        assert closing.is_alive()
        go_on.set()
        closing.join(30)
        assert not closing.is_alive()

    def test_closed_for_good(self, ca: DevelopmentCA) -> None:
        """An SVID that was on its way when its source was closed changes nothing."""
        held = _HeldSvid("somewhere")
        held.close()
        held.replace(ca.issue("/team/app"))
        with pytest.raises(IdentityUnavailableError, match="was closed"):
            held.current()

    def test_closed(self, provider: IdentityProvider) -> None:
        """After close there is no identity; closing twice is fine."""
        source = WorkloadAPI(str(provider.add("/team/app")))
        source.close()
        source.close()
        with pytest.raises(IdentityUnavailableError, match="was closed"):
            source.current()


def test_import_is_light() -> None:
    """A server that reads this module does not pay for spiffe, cryptography or the SDK's client until it uses them."""
    heavy = "{'spiffe', 'cryptography', 'tenacity', 'shardhold._client'} & set(sys.modules)"
    code = f"import sys, shardhold.identity, shardhold.channel; print({heavy} or 'light')"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "light\n"


def test_process_ends_without_close(provider: IdentityProvider) -> None:
    """A process that never closes its source still ends at once."""
    code = "import sys; from shardhold.identity import WorkloadAPI; print(WorkloadAPI(sys.argv[1]).current().spiffe_id)"
    command = [sys.executable, "-c", code, str(provider.add("/team/app"))]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=20)
    assert done.stdout == "spiffe://example.org/team/app\n"
