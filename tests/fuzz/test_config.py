"""Configuration from file, environment and flags: a model that keeps its own rules, or an error of ours."""

import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.config.config import split_address
from common.errors import ConfigError
from keeper.config import KeeperConfig
from keeper.config import load_config as load_keeper
from nexus.config import NexusConfig
from nexus.config import load_config as load_nexus
from tests.fuzz.budget import budget
from tests.fuzz.mutations import assert_is_short, hostile, hostile_text

Load = Callable[[Path | None, Mapping[str, str], Mapping[str, object] | None], NexusConfig | KeeperConfig]

SAMPLE = Path(__file__).parent.parent.parent / "deploy" / "sample"
LOADERS: dict[str, Load] = {"nexus": load_nexus, "keeper": load_keeper}
TEXTS = {name: (SAMPLE / f"{name}.toml").read_bytes() for name in LOADERS}
ODD = [
    b"x = " + b"[" * 5_000,
    b"x = " + b"9" * 5_000,
    b"name = 2026-02-30",
    b"[a.b]\n[a]\nb = 1",
    b"\xff",
    b"a.a.a = {}",
]
VARIABLES = [
    "NAME",
    "DEV",
    "LISTEN__WORKERS",
    "LISTEN__ADDRESS",
    "LISTEN",
    "IDENTITY__TRUST_DOMAIN",
    "IDENTITY__SOURCE",
    "KEEPERS",
    "KEEPERS__NAME",
    "NEXUSES",
    "SHUTDOWN__DRAIN_S",
    "MEMORY__LOWEST_LEVEL",
    "LOG__LEVEL__X",
    "__",
    "_",
]
VALUES = hostile_text("8", "true", "1e400", "nan", "-1", "9" * 5_000, "127.0.0.1:8443", "[::1]:1", "a:" + "1" * 5_000)
ENVIRONMENT = st.dictionaries(st.sampled_from(VARIABLES) | hostile_text(*VARIABLES), VALUES, max_size=3)


def check(name: str, content: bytes, environ: Mapping[str, str]) -> None:
    with tempfile.NamedTemporaryFile(suffix=".toml") as file:
        file.write(content)
        file.flush()
        prefixed = {f"SHARDHOLD_{name.upper()}__{variable}": value for variable, value in environ.items()}
        try:
            config = LOADERS[name](Path(file.name), prefixed, None)
        except ConfigError as exc:
            assert_is_short(exc, 1_000)
            return
    assert isinstance(config, NexusConfig | KeeperConfig)
    for address in (config.listen.address, config.listen.http):
        _, port = split_address("", address)
        assert 0 <= port <= 65535
    assert config.shutdown.drain_s >= 0
    assert 1 <= config.memory.lowest_level <= config.memory.highest_level <= 3
    assert config.dev or config.memory.lowest_level >= 2


@pytest.mark.parametrize("name", LOADERS)
@budget(4)
@given(data=st.data())
def test_file(name: str, data: st.DataObject) -> None:
    """Any file gives a configuration or a ConfigError."""
    check(name, data.draw(hostile(TEXTS[name], *ODD)), {})


@pytest.mark.parametrize("name", LOADERS)
@budget(4)
@given(environ=ENVIRONMENT)
def test_environment(name: str, environ: dict[str, str]) -> None:
    """Any environment over a good file gives a configuration or a ConfigError."""
    check(name, TEXTS[name], environ)


@budget(4)
@given(VALUES)
def test_address(value: str) -> None:
    """Any address is host and port, or an error that names the option."""
    try:
        host, port = split_address("listen.address", value)
    except ConfigError as exc:
        assert_is_short(exc, 200)
        return
    assert host
    assert 0 <= port <= 65535


@pytest.mark.parametrize("name", LOADERS)
def test_the_samples_are_good(name: str) -> None:
    """The seeds of the mutations load without a change."""
    assert LOADERS[name](SAMPLE / f"{name}.toml", {}, None).listen.workers > 0
