"""What `--help` shows: plain text that wraps to the terminal, with an example and without types that say nothing."""

import functools
from collections.abc import Iterable, Mapping
from typing import Any, Final

from pilot.errors import EXIT_CODES
from pilot.examples import EXAMPLES
from pilot.options import GLOBALS

_WIDE: Final = 70  # columns, from which on a name and what it means stand side by side
_COUNTABLE: Final = 1_000_000  # a larger limit is one of a number's form, not one that anybody has in mind


def add_help(command: Any, path: str = "") -> None:
    """Have *command*, which typer made, and all below it show help in pilot's form. *path* is what one types for it."""
    vars(command)["format_help"] = functools.partial(_write_page, command, path)
    for name, child in getattr(command, "commands", {}).items():
        add_help(child, f"{path} {name}".strip())


def find_example(command: Any, path: str) -> str:
    """Return the example of a command: its own, or the table's; empty for a group."""
    return str(command.epilog or EXAMPLES.get(path, "")).removeprefix("Example:").strip()


def _write_page(command: Any, path: str, context: Any, formatter: Any) -> None:
    arguments, options = _split(command.get_params(context))
    children = list(getattr(command, "list_commands", lambda _: [])(context))
    pieces = ["[OPTIONS]", *map(_show_argument, arguments), *(["COMMAND"] if children else [])]
    formatter.write_usage(context.command_path, " ".join(pieces))
    command.format_help_text(context, formatter)
    own = [one for one in options if one.name not in GLOBALS or not path]
    _write_list(formatter, "Arguments", {_show_name(one): _describe(one) for one in arguments})
    _write_list(formatter, "Options", {_show_option(one): _describe(one) for one in own})
    if path:
        shared = [one for one in options if one.name in GLOBALS]
        _write_list(formatter, "Global options", {_show_option(one): _describe(one) for one in shared})
    _write_list(formatter, "Commands", dict(_list_children(command, context, children)))
    if not path:
        _write_list(formatter, "Exit codes", {str(code): meaning for code, meaning in EXIT_CODES.items()})
    if example := find_example(command, path):
        with formatter.section("Example"):
            formatter.write(f"  {example}\n")  # unbroken, to be copied


def _split(parameters: Iterable[Any]) -> tuple[list[Any], list[Any]]:
    shown = [one for one in parameters if not getattr(one, "hidden", False)]
    return (
        [one for one in shown if one.param_type_name == "argument"],
        [one for one in shown if one.param_type_name == "option"],
    )


def _write_list(formatter: Any, title: str, rows: Mapping[str, str]) -> None:
    if rows:
        with formatter.section(title):
            formatter.write_dl(list(rows.items()), col_max=30 if formatter.width >= _WIDE else 6)


def _list_children(command: Any, context: Any, names: Iterable[str]) -> Iterable[tuple[str, str]]:
    for name in names:
        child = command.get_command(context, name)
        if not child.hidden:
            yield name, " ".join((child.help or "").partition("\n\n")[0].split())


def _show_name(argument: Any) -> str:
    return str(argument.metavar or argument.name.upper())


def _show_argument(argument: Any) -> str:
    name = _show_name(argument)
    if not argument.required and not name.startswith("["):
        name = f"[{name}]"
    return f"{name}..." if argument.nargs == -1 and not name.endswith("…") else name


def _show_option(option: Any) -> str:
    names = ", ".join(sorted((*option.opts, *option.secondary_opts), key=len))
    return names if option.is_flag else f"{names} {option.metavar or option.name.upper()}"


def _describe(parameter: Any) -> str:
    said = [" ".join((parameter.help or "").split())]
    lowest, highest = getattr(parameter, "min", None), getattr(parameter, "max", None)
    if lowest is not None and highest is not None and highest <= _COUNTABLE:
        said.append(f"[{lowest:g} to {highest:g}]")
    if parameter.required and parameter.param_type_name == "option":
        said.append("[required]")
    elif parameter.show_default and not callable(parameter.default) and parameter.default not in (None, False, ""):
        said.append(f"[default: {parameter.default}]")
    if getattr(parameter, "show_envvar", False) and parameter.envvar:
        said.append(f"[environment: {parameter.envvar}]")
    return "  ".join(said)
