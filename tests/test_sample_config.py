"""The sample configurations have every option of the models, with meaning, type, unit and default, and they load."""

import re
import tomllib
from collections.abc import Callable, Mapping
from pathlib import Path

import msgspec
import pytest

import keeper.config
import nexus.config
from common.config.options import Option, describe

SAMPLE = Path(__file__).parent.parent / "deploy" / "sample"
MODELS: dict[str, type[msgspec.Struct]] = {
    "nexus": nexus.config.NexusConfig,
    "keeper": keeper.config.KeeperConfig,
}
LOADERS: dict[str, Callable[[Path, Mapping[str, str]], msgspec.Struct]] = {
    "nexus": nexus.config.load_config,
    "keeper": keeper.config.load_config,
}

HEADER = re.compile(r"(\[\[?)([a-z_.]+)\]\]?")
OPTION = re.compile(r"(#?)([a-z_]+) = (.*)")


def read_sample(name: str) -> dict[str, tuple[str, bool, object]]:
    """Read for each option its comment, whether it is commented out, and its value, where it stands first."""
    options: dict[str, tuple[str, bool, object]] = {}
    section, comment = "", list[str]()
    for line in (SAMPLE / f"{name}.toml").read_text().splitlines():
        if header := HEADER.fullmatch(line):
            section = header[2] + ("[]." if header[1] == "[[" else ".")
        elif option := OPTION.fullmatch(line):
            value = tomllib.loads(f"value = {option[3]}")["value"]
            options.setdefault(section + option[2], (" ".join(comment), option[1] == "#", value))
        if line.startswith("# "):
            comment.append(line[2:])
        else:
            comment = []
    return options


def comment_of(option: Option) -> str:
    default = "required" if option.default is msgspec.NODEFAULT else f"default {show(option.default)}"
    return f"{option.doc} [{option.wants}; {default}]"


def show(default: object) -> str:
    return msgspec.json.encode(default).decode()


@pytest.mark.parametrize("name", MODELS)
def test_the_sample_has_every_option_and_no_other(name: str) -> None:
    """Meaning, type with unit, and default stand above each option, in the words of the model."""
    described = {option.name: comment_of(option) for option in describe(MODELS[name])}
    assert {option: comment for option, (comment, _, _) in read_sample(name).items()} == described


@pytest.mark.parametrize("name", MODELS)
def test_an_option_with_a_default_is_commented_out_and_shows_it(name: str) -> None:
    """Who takes the sample as it is gets the defaults, and only has to fill in what is required."""
    sample = read_sample(name)
    for option in describe(MODELS[name]):
        _, is_commented, value = sample[option.name]
        if option.default is msgspec.NODEFAULT:
            assert not is_commented, f"{option.name} is required"
        else:
            assert is_commented, f"{option.name} has a default"
            assert show(value) == show(option.default), option.name


@pytest.mark.parametrize("name", MODELS)
def test_the_sample_loads_and_its_comments_change_nothing(name: str, tmp_path: Path) -> None:
    """The sample is valid, and means the same when every commented option is taken in."""
    path = SAMPLE / f"{name}.toml"
    everything = tmp_path / "everything.toml"
    everything.write_text(re.sub(r"(?m)^#(?=[a-z_]+ = )", "", path.read_text()))
    assert LOADERS[name](path, {}) == LOADERS[name](everything, {})


@pytest.mark.parametrize("name", MODELS)
def test_every_option_is_documented_in_the_model(name: str) -> None:
    """The comment above a field is what the sample shows."""
    assert [option.name for option in describe(MODELS[name]) if not option.doc] == []
