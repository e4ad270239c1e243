"""What a program is given: variables and files, from secrets that may change while it runs."""

import contextlib
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pilot.errors import PilotError, UsageError
from pilot.plain import clean
from pilot.programs.reference import Reference, pick_values
from pilot.programs.secret_file import SecretFile
from pilot.programs.template import Template, parse_template
from pilot.programs.variables import make_environment

if TYPE_CHECKING:
    from shardhold import Secret


@dataclass(frozen=True, slots=True)
class FileOrder:
    """A file to be made: from which template, and where."""

    template: Template
    target: Path


def parse_files(arguments: Sequence[str]) -> list[FileOrder]:
    """Read the arguments of --template, and the templates that they name.

    Raises:
        UsageError: One is not `FILE:TARGET`, names a target twice, would overwrite its template, or the template
            cannot be read.
    """
    orders: list[FileOrder] = []
    for argument in arguments:
        file, colon, target = argument.rpartition(":")
        if not (file and colon and target):
            raise UsageError(f"--template: got {argument!r}, want FILE:TARGET")
        order = FileOrder(parse_template(_read(Path(file)), name=file), Path(target).absolute())
        if order.target in [other.target for other in orders]:
            raise UsageError(f"--template: {target} is a target twice")
        if _are_same(order.target, Path(file)):
            raise UsageError(f"--template: {target} is the template itself")
        orders.append(order)
    return orders


class HandOver:
    """What one program is given. Enter it: its files are there from the first `refresh` until its exit.

    Args:
        variables: The reference of each variable.
        files: The files to make.
        get_secrets: Returns the current secrets, by path.
        may_be_on_disk: Whether files may be on something other than a tmpfs.
    """

    def __init__(
        self,
        variables: Mapping[str, Reference],
        files: Sequence[FileOrder],
        *,
        get_secrets: "Callable[[], Mapping[str, Secret]]",
        may_be_on_disk: bool,
    ) -> None:
        self._variables = variables
        self._references = list_references(variables, files)
        self._get_secrets = get_secrets
        self._values: dict[Reference, bytes] | None = None  # nothing was handed over yet
        self._environment: dict[bytes, bytes] = {}
        self._open = contextlib.ExitStack()
        with contextlib.ExitStack() as opening:
            self._files = [
                (
                    one.template,
                    opening.enter_context(contextlib.closing(SecretFile(one.target, may_be_on_disk=may_be_on_disk))),
                )
                for one in files
            ]
            self._open = opening.pop_all()

    def __enter__(self) -> "HandOver":
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._open.close()

    @property
    def environment(self) -> dict[bytes, bytes]:
        """The environment for a start: this process's own, and the variables."""
        return {**_own_environment(), **self._environment}

    def refresh(self) -> bool:
        """Take the current values, and write the files that differ; return whether anything does.

        Raises:
            PilotError: A field is missing, a value does not fit where it goes, or a file cannot be written.
        """
        values, before = pick_values(self._references, self._get_secrets()), self._values
        if values == before:
            return False
        environment = make_environment(self._variables, values)
        contents = [template.render(values) for template, _ in self._files]  # all of them, before any is written
        for content, (template, file) in zip(contents, self._files, strict=True):
            if before is None or any(values[one] != before[one] for one in template.references):
                file.write(content)
        self._values, self._environment = values, environment
        return True

    def try_refresh(self) -> bool:
        """Do the same while the program runs: what fails is a warning, and the program keeps what it was given."""
        try:
            return self.refresh()
        except PilotError as exc:
            warning = clean(f"{exc}; the program keeps what it has until the next change")
            with contextlib.suppress(OSError):  # nobody reads it
                print(f"pilot: warning: {warning}", file=sys.stderr, flush=True)
            return False


def list_references(variables: Mapping[str, Reference], files: Sequence[FileOrder]) -> frozenset[Reference]:
    """Return everything that variables and files refer to."""
    return frozenset(variables.values()).union(*(one.template.references for one in files))


def _own_environment() -> dict[bytes, bytes]:
    environ = dict(os.environb)
    if environ.get(b"GRPC_VERBOSITY") == b"NONE":  # pilot's own setting, which would silence the program's gRPC
        del environ[b"GRPC_VERBOSITY"]
    return environ


def _are_same(target: Path, file: Path) -> bool:
    try:
        return target.samefile(file)
    except OSError:  # no such file, or one that writing it will complain of
        return False


def _read(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError as exc:
        raise UsageError(f"--template: {file}: {exc.strerror}") from exc
