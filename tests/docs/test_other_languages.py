"""What docs/other-languages.md tells a client to do is what the servers want, and what SDK and example do."""

import re
from datetime import timedelta
from pathlib import Path

import pytest

from common.server import edge
from docs.tables.errors import REASONS, UNEXPLAINED
from nexus.config import NexusListenOptions
from nexus.vault.secrets import REQUEST_ID_SIZE
from shardhold import _connections
from shardhold._calls import SERVER_NAME, TIMEOUT_S
from shardhold.identity import BUNDLE_FILE, KEY_FILE, SVID_FILE
from shardhold.v1 import cluster_pb2, secrets_pb2
from tests.docs.tables import read_code, read_sections, read_table

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "other-languages.md").read_text()
SECTIONS = read_sections(PAGE)
GO = "".join(file.read_text() for file in sorted((ROOT / "examples" / "go").glob("*.go")))
TRANSPORT = dict(edge._TRANSPORT_OPTIONS)


@pytest.mark.parametrize(
    ("said", "in_go"),
    [
        pytest.param(f"`{SERVER_NAME}`", f'"{SERVER_NAME}"', id="server name"),
        pytest.param(f"domain `{edge.ERROR_DOMAIN}`", f'"{edge.ERROR_DOMAIN}"', id="domain of an ErrorInfo"),
        pytest.param(f"{REQUEST_ID_SIZE} random bytes", f"requestIDSize = {REQUEST_ID_SIZE}", id="request id"),
        pytest.param(f"{edge._MAX_MESSAGE >> 20} MiB", f"= {edge._MAX_MESSAGE >> 20} << 20", id="message"),
        pytest.param(f"takes {TIMEOUT_S:g} s", f"{TIMEOUT_S:g}*time.Second", id="deadline"),
        pytest.param(f"`{SVID_FILE}`", f'"{SVID_FILE}"', id="SVID"),
        pytest.param(f"`{KEY_FILE}`", f'"{KEY_FILE}"', id="key"),
        pytest.param(f"`{BUNDLE_FILE}`", f'"{BUNDLE_FILE}"', id="bundle"),
        pytest.param("TLS 1.3", "tls.VersionTLS13", id="TLS"),
    ],
)
def test_page_and_example_have_the_value_of_the_code(said: str, in_go: str) -> None:
    """Both of them, so that none is forgotten when it changes."""
    assert said in PAGE
    assert in_go in GO


def test_names_of_services_are_those_of_the_contracts() -> None:
    """As they are on the wire."""
    status = cluster_pb2.DESCRIPTOR.services_by_name["ClusterService"].methods_by_name["GetStatus"]
    assert f"`{secrets_pb2.DESCRIPTOR.services_by_name['SecretService'].full_name}`" in PAGE
    assert f"`{status.containing_service.full_name}/{status.name}`" in PAGE


def test_what_is_to_be_repeated_is_what_errors_says() -> None:
    """Codes without a reason, and reasons; what the page warns of is not among them."""
    repeated, _, warned = SECTIONS["Retries"].partition("Repeat nothing else")
    codes, reasons = re.findall(r"^- (.*?)[;.]\n", repeated, flags=re.M | re.S)
    assert set(re.findall(r"\b[A-Z_]{6,}\b", codes)) == {
        code.name for code, advice in UNEXPLAINED.items() if advice.repeat == "yes"
    }
    assert set(read_code(reasons)) == {reason for reason, advice in REASONS.items() if advice.repeat == "yes"}
    assert {REASONS[reason].repeat for reason in read_code(warned)} == {"later"}


def test_times_of_a_connection_are_those_of_servers_and_sdk() -> None:
    """Pings, and how long a connection lives."""
    time, timeout = (_connections._DEFAULTS[f"grpc.keepalive_{what}_ms"] // 1000 for what in ("time", "timeout"))
    assert f"every {time} s, and give up after {timeout} s" in " ".join(PAGE.split())
    assert f"Time: {time} * time.Second, Timeout: {timeout} * time.Second" in GO
    shortest = TRANSPORT["grpc.http2.min_ping_interval_without_data_ms"] // 1000
    assert f"more often than every {shortest} s" in PAGE
    assert timedelta(seconds=NexusListenOptions().max_connection_age_s) == timedelta(hours=1)


def test_every_file_of_the_example_is_named() -> None:
    """The table has all, and no other."""
    named = [read_code(row[0])[0] for row in read_table(SECTIONS["The example"])]
    assert sorted(named) == sorted(file.name for file in (ROOT / "examples" / "go").iterdir())
