"""Start pilot. Nothing else in pilot exits the process."""

import logging
import os
import sys
from typing import NoReturn

# Errors say in words what grpc's own lines on stderr say in C++ terms. grpc reads this when it is imported.
os.environ.setdefault("GRPC_VERBOSITY", "NONE")

from common.server.termination import end_process
from pilot.errors import INTERRUPTED, NO_READER, PilotError
from pilot.plain import PlainFormatter
from pilot.terminal.report import report, wants_json
from pilot.terminal.streams import drop_output, is_write_fault, open_missing


def main() -> NoReturn:
    """Run the command line and exit with its code."""
    open_missing()
    warnings = logging.StreamHandler()
    warnings.setFormatter(PlainFormatter("pilot: warning: %(message)s"))
    logging.basicConfig(level=logging.WARNING, handlers=[warnings])
    logging.getLogger("spiffe").setLevel(logging.CRITICAL)  # its errors come back as exceptions
    end_process(run(sys.argv[1:]))


def run(arguments: list[str]) -> int:
    """Run one command line and return its exit code; `pilot.errors` has the table."""
    try:
        code = _run(arguments)
        sys.stdout.flush()  # if the reader is gone, it shows here
        return code
    except PilotError as exc:
        error = exc
    except KeyboardInterrupt:
        error = PilotError("interrupted", exit_code=INTERRUPTED)
    except OSError as exc:
        if not is_write_fault(exc):
            raise
        drop_output()
        if isinstance(exc, BrokenPipeError):  # whoever left knows it
            return NO_READER
        error = PilotError(f"cannot write the output: {exc.strerror}")
    report(error, as_json=wants_json(arguments))
    return error.exit_code


def _run(arguments: list[str]) -> int:
    # Imported here: Ctrl-C may come this early.
    from pilot.app import run_command

    return run_command(arguments)


if __name__ == "__main__":
    main()
