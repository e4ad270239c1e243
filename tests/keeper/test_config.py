"""`keeper.config`: which configurations are refused, by which option."""

from collections.abc import Mapping
from pathlib import Path

import pytest

from common.errors import ConfigError
from keeper.config import load_config

GOOD = """
name = "k1"
nexuses = ["spiffe://example.test/shardhold/nexus/n1", "spiffe://example.test/shardhold/nexus/n2"]
[identity]
trust_domain = "example.test"
"""


def write(directory: Path, text: str) -> Path:
    path = directory / "keeper.toml"
    path.write_text(text)
    return path


def test_defaults(tmp_path: Path) -> None:
    """A file with only the options that have no default gives the documented rest."""
    config = load_config(write(tmp_path, GOOD), {})
    assert config.server_name == "k1.keeper.shardhold"
    assert (config.listen.address, config.listen.http) == ("127.0.0.1:8443", "127.0.0.1:9443")
    assert (config.memory.lowest_level, config.memory.highest_level, config.dev) == (2, 3, False)


@pytest.mark.parametrize(
    ("environ", "address"),
    [
        pytest.param({"SHARDHOLD_KEEPER__LISTEN__ADDRESS": "10.0.0.1:1"}, "10.0.0.1:1", id="ours"),
        pytest.param({"SHARDHOLD_KEEPER_PORT": "tcp://10.0.0.1:8443"}, "127.0.0.1:8443", id="of a Kubernetes service"),
    ],
)
def test_environment(tmp_path: Path, environ: Mapping[str, str], address: str) -> None:
    """Names with two underscores are options, others are somebody else's."""
    assert load_config(write(tmp_path, GOOD), environ).listen.address == address


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        pytest.param('name = "k1"\n', "", "^name: got nothing", id="no name"),
        pytest.param('"k1"', '"k1.x"', '^name: got "k1.x"', id="a name that is two DNS labels"),
        pytest.param('"k1"', '"K1"', "^name: ", id="upper case"),
        pytest.param('"k1"', '""', "^name: ", id="empty name"),
        pytest.param("nexuses = [", "nexusses = [", "^nexusses: no such option", id="unknown option"),
        pytest.param("[identity]", "[identities]", "^identities: no such option", id="unknown table"),
        pytest.param('nexuses = ["', 'nexuses = ["https://x", "', r"^nexuses\[0\]: ", id="no SPIFFE ID"),
        pytest.param("example.test/shardhold/nexus/n2", "other/n2", r"^nexuses\[1\]: ", id="foreign nexus"),
        pytest.param("/shardhold/nexus/n2", "", r"^nexuses\[1\]: ", id="a whole trust domain"),
        pytest.param("nexus/n2", "nexus/*", r"^nexuses\[1\]: ", id="a pattern"),
        pytest.param("nexus/n2", "nexus/n2/", r"^nexuses\[1\]: ", id="slash at the end"),
        pytest.param("[identity]", "[listen]\naddress = 1\n[identity]", "^listen.address: ", id="wrong type"),
        pytest.param("[identity]", '[listen]\naddress = "x"\n[identity]', "^listen.address: ", id="no port"),
        pytest.param("[identity]", '[listen]\nhttp = ":1"\n[identity]', "^listen.http: ", id="no host"),
        pytest.param(
            "[identity]", "[memory]\nlowest_level = 1\n[identity]", "^memory.lowest_level: ", id="plain memory"
        ),
        pytest.param("[identity]", "[shutdown]\ndrain_s = -1\n[identity]", "^shutdown.drain_s: ", id="negative time"),
    ],
)
def test_wrong_options_are_named(tmp_path: Path, old: str, new: str, words: str) -> None:
    """What is wrong is named first, so that one look is enough."""
    assert old in GOOD
    with pytest.raises(ConfigError, match=words):
        load_config(write(tmp_path, GOOD.replace(old, new)), {})


def test_no_nexuses(tmp_path: Path) -> None:
    """A keeper that nobody may call is a mistake."""
    text = 'name = "k1"\nnexuses = []\n[identity]\ntrust_domain = "example.test"\n'
    with pytest.raises(ConfigError, match="^nexuses: got none"):
        load_config(write(tmp_path, text), {})


def test_plain_memory_is_for_development(tmp_path: Path) -> None:
    """dev = true allows level 1."""
    text = GOOD.replace('name = "k1"', 'name = "k1"\ndev = true') + "[memory]\nlowest_level = 1\n"
    assert load_config(write(tmp_path, text), {}).memory.lowest_level == 1
