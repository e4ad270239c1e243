"""Configuration: one model from file, environment and flags; errors name the option, what it got and what it wants."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal

import msgspec
import pytest

from common.config.config import IdentityOptions, MemoryOptions, check_address, load, split_address
from common.config.options import describe
from common.errors import ConfigError


class Section(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    # seconds to wait
    wait_s: float = 1.5
    # threads
    workers: Annotated[int, msgspec.Meta(ge=1, le=9)] = 8
    # largest thing in bytes
    limit_bytes: int = 1024
    # whether it is on
    enabled: bool = False
    # how much is said,
    # in one word
    mode: Literal["quiet", "loud"] = "quiet"


class Item(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    # what it is called
    name: str
    # how heavy it is in kilograms
    weight: int = 1


class Model(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    # of the process
    name: str
    section: Section = Section()
    # allowed peers
    peers: tuple[str, ...] = ()
    # things
    items: tuple[Item, ...] = ()
    # weights in kilograms
    weights: Mapping[str, Annotated[int, msgspec.Meta(ge=0)]] = msgspec.field(default_factory=dict)


def load_text(folder: Path, text: str, environ: dict[str, str] | None = None, **flags: object) -> Model:
    path = folder / "model.toml"
    path.write_text(text)
    dotted = {name.replace("__", "."): value for name, value in flags.items()}
    return load(Model, path=path, environ=environ or {}, prefix="APP", flags=dotted)


def test_defaults_stand_where_nothing_is_given(tmp_path: Path) -> None:
    """Only required options must be given; all others have defaults."""
    assert load_text(tmp_path, 'name = "a"') == Model(name="a")


def test_a_later_source_wins(tmp_path: Path) -> None:
    """Flags win over the environment, and the environment over the file; a flag that is None counts as not given."""
    text = 'name = "file"\n[section]\nworkers = 1\nwait_s = 1\nmode = "loud"\n'
    environ = {"APP__SECTION__WORKERS": "2", "APP__SECTION__WAIT_S": "2.5"}
    loaded = load_text(tmp_path, text, environ, section__workers=3, name=None)
    assert loaded == Model(name="file", section=Section(workers=3, wait_s=2.5, mode="loud"))


def test_no_file_is_needed() -> None:
    """Environment and flags alone make a configuration."""
    loaded = load(Model, path=None, environ={"APP__NAME": "env"}, prefix="APP", flags={"section.workers": "3"})
    assert loaded == Model(name="env", section=Section(workers=3))


def test_a_table_has_keys_of_its_own(tmp_path: Path) -> None:
    """Any keys, each with a value of the one type; from the file only."""
    loaded = load_text(tmp_path, 'name = "a"\nweights = {"x/y" = 1, z = 0}')
    assert loaded.weights == {"x/y": 1, "z": 0}
    with pytest.raises(ConfigError, match=r'^weights."x/y": got -1, want an integer of at least 0$'):
        load_text(tmp_path, 'name = "a"\nweights = {"x/y" = -1}')
    with pytest.raises(ConfigError, match=r"^weights: got 1, want a table, each an integer of at least 0$"):
        load_text(tmp_path, 'name = "a"\nweights = 1')
    with pytest.raises(ConfigError, match=r'^weights \(from APP__WEIGHTS\): got "x", want tables, which only the file'):
        load_text(tmp_path, 'name = "a"', {"APP__WEIGHTS": "x"})


def test_traces_of_grpc_are_refused(tmp_path: Path) -> None:
    """A server that is told to write gRPC traces does not start: they show in clear what it receives and sends."""
    with pytest.raises(ConfigError, match="GRPC_TRACE: want it unset"):
        load_text(tmp_path, 'name = "a"', {"GRPC_TRACE": "secure_endpoint"})
    assert load_text(tmp_path, 'name = "a"', {"GRPC_VERBOSITY": "debug"}) == Model(name="a")


@pytest.mark.parametrize(
    ("variable", "text", "expected"),
    [
        pytest.param("APP__SECTION__WORKERS", "4", Model(name="a", section=Section(workers=4)), id="integer"),
        pytest.param("APP__SECTION__WAIT_S", "4", Model(name="a", section=Section(wait_s=4.0)), id="number"),
        pytest.param("APP__SECTION__ENABLED", "True", Model(name="a", section=Section(enabled=True)), id="true"),
        pytest.param("APP__SECTION__ENABLED", "false", Model(name="a"), id="false"),
        pytest.param("APP__SECTION__MODE", "loud", Model(name="a", section=Section(mode="loud")), id="choice"),
        pytest.param("APP__PEERS", "x, y", Model(name="a", peers=("x", "y")), id="list"),
        pytest.param("APP__PEERS", "", Model(name="a"), id="empty list"),
        pytest.param("APP__NAME", "7", Model(name="7"), id="text that looks like a number"),
    ],
)
def test_environment_text_becomes_the_type_of_its_option(
    tmp_path: Path, variable: str, text: str, expected: Model
) -> None:
    assert load_text(tmp_path, 'name = "a"', {variable: text}) == expected


def test_names_without_two_underscores_are_not_ours(tmp_path: Path) -> None:
    """APP_PORT=tcp://…, which Kubernetes injects for a Service called app, does not stop the start."""
    environ = {"APP_PORT": "tcp://10.0.0.1:8553", "APP_SERVICE_HOST": "10.0.0.1", "APP": "x", "OTHER__NAME": "y"}
    assert load_text(tmp_path, 'name = "a"', environ) == Model(name="a")


@pytest.mark.parametrize(
    ("text", "environ", "message"),
    [
        pytest.param("", {}, "name: got nothing, want a string", id="required option missing"),
        pytest.param('nme = "a"', {}, "nme: no such option, did you mean name?", id="unknown option with a near one"),
        pytest.param(
            'name = "a"\nzzz = 1',
            {},
            "zzz: no such option, want one of name, section, peers, items, weights",
            id="unknown option",
        ),
        pytest.param(
            'name = "a"\n[section]\nwait_ms = 5',
            {},
            "section.wait_ms: no such option, did you mean section.wait_s?",
            id="another unit in the name",
        ),
        pytest.param(
            'name = "a"\n[section]\nwait_s = "5s"',
            {},
            'section.wait_s: got "5s", want a number (seconds)',
            id="unit in the value",
        ),
        pytest.param(
            'name = "a"\n[section]\nlimit_bytes = "1 MiB"',
            {},
            'section.limit_bytes: got "1 MiB", want an integer (bytes)',
            id="size as text",
        ),
        pytest.param(
            'name = "a"\n[section]\nwait_s = nan',
            {},
            "section.wait_s: got nan, want a number (seconds)",
            id="not a number",
        ),
        pytest.param(
            'name = "a"\n[section]\nworkers = 10',
            {},
            "section.workers: got 10, want an integer of at least 1 and at most 9",
            id="out of bounds",
        ),
        pytest.param(
            'name = "a"\n[section]\nworkers = true',
            {},
            "section.workers: got true, want an integer of at least 1 and at most 9",
            id="boolean for an integer",
        ),
        pytest.param(
            'name = "a"\n[section]\nenabled = 1', {}, "section.enabled: got 1, want true or false", id="1 for true"
        ),
        pytest.param(
            'name = "a"\n[section]\nmode = "shy"',
            {},
            'section.mode: got "shy", want "quiet" or "loud"',
            id="not one of the choices",
        ),
        pytest.param('name = "a"\nsection = 5', {}, "section: got 5, want a table", id="value for a table"),
        pytest.param(
            'name = "a"\nsection = 5',
            {"APP__SECTION__WORKERS": "1"},
            "section: got 5, want a table",
            id="value for a table that the environment goes into",
        ),
        pytest.param('name = "a"\npeers = "b"', {}, 'peers: got "b", want a list, each a string', id="text for a list"),
        pytest.param('name = "a"\npeers = ["b", 1]', {}, "peers[1]: got 1, want a string", id="wrong item"),
        pytest.param(
            'name = "a"\nitems = [{}]', {}, "items[0].name: got nothing, want a string", id="in a list of tables"
        ),
        pytest.param(
            'name = "a"\nitems = [{name = "b", wait = 1}]',
            {},
            "items[0].wait: no such option, did you mean items[0].weight?",
            id="unknown in a list of tables",
        ),
        pytest.param(
            'name = "a"',
            {"APP__SECTION__WORKERS": "many"},
            'section.workers (from APP__SECTION__WORKERS): got "many", want an integer of at least 1 and at most 9',
            id="wrong type in the environment",
        ),
        pytest.param(
            'name = "a"',
            {"APP__SECTION__ENABLED": "yes"},
            'section.enabled (from APP__SECTION__ENABLED): got "yes", want true or false',
            id="wrong boolean in the environment",
        ),
        pytest.param(
            'name = "a"',
            {"APP__SECTION__WORKER": "1"},
            "section.worker (from APP__SECTION__WORKER): no such option, did you mean section.workers?",
            id="unknown in the environment",
        ),
        pytest.param(
            'name = "a"',
            {"APP__NAME__FIRST": "1"},
            "name.first (from APP__NAME__FIRST): no such option, name is not a table",
            id="environment below an option",
        ),
        pytest.param(
            'name = "a"',
            {"APP__ITEMS": "b"},
            'items (from APP__ITEMS): got "b", want tables, which only the file can hold',
            id="list of tables in the environment",
        ),
        pytest.param(
            'name = "a"',
            {"APP__": "1"},
            "(from APP__): no such option, want one of name, section, peers, items, weights",
            id="prefix alone",
        ),
    ],
)
def test_a_wrong_option_is_named(tmp_path: Path, text: str, environ: dict[str, str], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_text(tmp_path, text, environ)
    assert str(caught.value) == message


PEM = "-----BEGIN PRIVATE KEY-----\nMIGHAgEAMBMGByqGSM49\n-----END PRIVATE KEY-----\n"


@pytest.mark.parametrize(
    "environ",
    [
        pytest.param({"APP__SECTION__WORKERS": PEM}, id="for a known option"),
        pytest.param({"APP__SECTION__KEY": PEM}, id="for an unknown option"),
        pytest.param({"APP__SECTION__MODE": "x" * 200}, id="long"),
    ],
)
def test_what_looks_like_the_content_of_a_file_is_not_echoed(tmp_path: Path, environ: dict[str, str]) -> None:
    with pytest.raises(ConfigError) as caught:
        load_text(tmp_path, 'name = "a"', environ)
    (content,) = environ.values()
    assert content[:24] not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        pytest.param(None, "cannot be read: No such file or directory", id="missing"),
        pytest.param(b"\xff\xfe", "is not UTF-8, want TOML", id="binary"),
        pytest.param(b"name: a", "is not TOML", id="another format"),
    ],
)
def test_an_unreadable_file_is_named(tmp_path: Path, content: bytes | None, message: str) -> None:
    path = tmp_path / "model.toml"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ConfigError, match=f"configuration file {path} {message}"):
        load(Model, path=path, environ={}, prefix="APP")


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        pytest.param("127.0.0.1:8553", ("127.0.0.1", 8553), id="IPv4"),
        pytest.param("[::1]:8553", ("::1", 8553), id="IPv6"),
        pytest.param("nexus.example:0", ("nexus.example", 0), id="name, port of the kernel's choice"),
    ],
)
def test_an_address_comes_apart(value: str, expected: tuple[str, int]) -> None:
    assert split_address("listen.address", value) == expected


@pytest.mark.parametrize("value", ["", "8553", ":8553", "host:", "host:65536", "host:-1", "::1:8553", "[]:1", "host:٣"])
def test_a_bad_address_is_named(value: str) -> None:
    """An address that is not host:port is refused with the option's name."""
    with pytest.raises(ConfigError, match=r"^listen\.address: got .*, want host:port$"):
        check_address("listen.address", value)


def test_files_as_source_of_identity_need_a_folder() -> None:
    """An SVID from files without a folder is refused at start, not at the first handshake."""
    with pytest.raises(ConfigError, match="identity.svid_dir: got nothing"):
        IdentityOptions(trust_domain="example.org", source="files")


def test_memory_levels_are_in_order() -> None:
    """A lowest memory level above the highest is refused: it could never be met."""
    with pytest.raises(ConfigError, match="memory.lowest_level: got 3, want at most highest_level \\(2\\)"):
        MemoryOptions(lowest_level=3, highest_level=2)


def test_describe_names_every_option_with_type_default_and_meaning() -> None:
    """The description covers options of sections and of tables in lists, and joins comments of several lines."""
    described = {option.name: option for option in describe(Model)}
    assert list(described) == [
        "name",
        "section.wait_s",
        "section.workers",
        "section.limit_bytes",
        "section.enabled",
        "section.mode",
        "peers",
        "items[].name",
        "items[].weight",
        "weights",
    ]
    assert described["name"].default is msgspec.NODEFAULT
    assert (described["section.wait_s"].default, described["section.wait_s"].doc) == (1.5, "seconds to wait")
    assert described["section.workers"].wants == "an integer of at least 1 and at most 9"
    assert described["section.mode"].doc == "how much is said, in one word"
