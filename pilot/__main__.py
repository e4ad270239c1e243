"""Start pilot. Nothing else in pilot exits the process."""

import logging
import os
import sys
from typing import NoReturn, cast

# Errors say in words what grpc's own lines on stderr say in C++ terms. grpc reads this when it is imported.
os.environ.setdefault("GRPC_VERBOSITY", "NONE")

import typer

from common.server.termination import end_process
from pilot.app import app
from pilot.errors import FAILED, INTERRUPTED, USAGE, PilotError, UsageError, report
from pilot.plain import PlainFormatter
from pilot.terminal.streams import drop_output, is_write_fault, open_missing

# The base of typer's usage errors, taken from a public subclass: its own module differs between versions.
_BaseUsageError = cast(type[Exception], typer.BadParameter.__mro__[1])


def main() -> NoReturn:
    """Run the command line and exit with its code."""
    open_missing()
    warnings = logging.StreamHandler()
    warnings.setFormatter(PlainFormatter("pilot: warning: %(message)s"))
    logging.basicConfig(level=logging.WARNING, handlers=[warnings])
    logging.getLogger("spiffe").setLevel(logging.CRITICAL)  # its errors come back as exceptions
    end_process(run(sys.argv[1:]))


def run(arguments: list[str]) -> int:
    """Run one command line and return its exit code."""
    try:
        code = app(arguments, prog_name="pilot", standalone_mode=False)
        print(end="", flush=True)  # if the reader is gone, it shows here
    except PilotError as exc:
        report(exc)
        return exc.exit_code
    except _BaseUsageError as exc:
        return _report_usage(exc)
    except typer.Abort:
        code = INTERRUPTED
    except OSError as exc:
        if not is_write_fault(exc):
            raise
        drop_output()
        if not isinstance(exc, BrokenPipeError):  # a reader that is gone knows it
            report(PilotError(f"cannot write the output: {exc.strerror}"))
        return FAILED
    if code == INTERRUPTED:  # typer catches Ctrl-C itself and returns this code
        print("pilot: error: interrupted", file=sys.stderr)
    return code if isinstance(code, int) else 0


def _report_usage(error: Exception) -> int:
    if type(error).__name__ == "NoArgsIsHelpError":
        print(getattr(error, "message", ""), file=sys.stderr)
        return USAGE
    context = getattr(error, "ctx", None)
    command = context.command_path if context is not None else "pilot"
    message = str(getattr(error, "format_message", error.__str__)()).replace("Value error, ", "")
    report(UsageError(message, f"'{command} --help' shows its usage"))
    return USAGE


if __name__ == "__main__":
    main()
