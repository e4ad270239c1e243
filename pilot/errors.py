"""What pilot says when something fails, and with which exit code.

| code | meaning |
|---|---|
| 0 | done |
| 1 | error |
| 2 | usage: the command line, a file or an argument breaks a rule |
| 3 | not found |
| 4 | denied |
| 5 | sealed or unavailable |
| 6, 7, 8 | with `pilot status --exit-code`: sealed; recovering or blocked; not initialised |
| 127 | `pilot dev exec` cannot run its command |
| 130 | interrupted with Ctrl-C |
"""

import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

from common.errors import ConfigError, InvalidArgumentError, ShardholdError
from pilot.plain import clean

if TYPE_CHECKING:
    from shardhold._errors import Error

FAILED = 1
USAGE = 2
NOT_FOUND = 3
DENIED = 4
UNAVAILABLE = 5
INTERRUPTED = 130


class PilotError(Exception):
    """An error, with hints on what to do about it, one line each."""

    def __init__(self, message: str, *hints: str, exit_code: int = FAILED) -> None:
        super().__init__(message)
        self.hints = tuple(hint for hint in hints if hint)
        self.exit_code = exit_code


class UsageError(PilotError):
    """The command line, or a file that it names, is wrong."""

    def __init__(self, message: str, *hints: str) -> None:
        super().__init__(message, *hints, exit_code=USAGE)


def report(error: PilotError) -> None:
    """Print an error and its hints to stderr, if that takes anything: lower case, no full stop."""
    with suppress(OSError):
        print(f"pilot: error: {clean(_tidy(str(error)))}", file=sys.stderr)
        for hint in error.hints:
            print(f"pilot: hint: {clean(_tidy(hint))}", file=sys.stderr)


@contextmanager
def described() -> Iterator[None]:
    """Turn errors of the SDK and of `common` into a `PilotError`; any other is a bug in pilot and passes through."""
    try:
        yield
    except PilotError:
        raise
    except (UnicodeEncodeError, UnicodeDecodeError) as exc:
        raise _describe_encoding(exc.encoding) from None  # not chained: *exc* holds the text, which may be a value
    except ShardholdError as exc:
        is_usage = isinstance(exc, InvalidArgumentError | ConfigError)
        raise PilotError(str(exc), exit_code=USAGE if is_usage else FAILED) from exc
    except Exception as exc:
        # Imported only now, since it imports grpc.
        from shardhold._errors import Error

        if isinstance(exc, Error):
            raise describe(exc) from exc
        raise


def describe(error: "Error") -> PilotError:
    """Turn an error of the SDK into one with an exit code, and add what usually helps."""
    from shardhold import _errors as sdk

    table: tuple[tuple[type[sdk.Error], int, str], ...] = (
        (sdk.SealedError, UNAVAILABLE, "only custodians can bring a sealed nexus back: 'pilot unseal'"),
        (sdk.RecoveringError, UNAVAILABLE, "'pilot status' says what it waits for, and what to do"),
        (sdk.OverloadedError, UNAVAILABLE, "try again in a moment"),
        (sdk.UnavailableError, UNAVAILABLE, ""),
        (sdk.DeadlineError, UNAVAILABLE, "give it longer with --timeout SECONDS"),
        (sdk.IdentityUnavailableError, UNAVAILABLE, ""),
        (sdk.UnauthenticatedError, DENIED, "'pilot whoami' shows your SVID; it must be of the nexus's trust domain"),
        (sdk.DeniedError, DENIED, "'pilot whoami' shows who you are; --role chooses among several SVIDs"),
        (sdk.NotFoundError, NOT_FOUND, ""),
        (sdk.ConflictError, FAILED, "read the current version and decide again"),
        (sdk.InvalidArgumentError, USAGE, ""),
        (sdk.WrongStateError, FAILED, "'pilot status' shows the state of the nexus"),
        (sdk.UnsupportedError, FAILED, "is the address a nexus, and as new as this pilot?"),
        (sdk.IntegrityError, FAILED, "stop and look: what is stored is not what was written"),
    )
    exit_code, hint = next(
        ((code, hint) for kind, code, hint in table if isinstance(error, kind)), (FAILED, "the nexus's log says more")
    )
    hints = [error.hint or hint]
    if isinstance(error, sdk.IdentityUnavailableError):
        hints.append("SVID files are named with --svid-dir; a cluster of 'pilot dev' with: eval \"$(pilot dev env)\"")
    return PilotError(error.message, *hints, exit_code=exit_code)


def _describe_encoding(encoding: str) -> PilotError:
    if encoding.lower() in ("utf-8", "utf8"):
        return UsageError("what was typed, or given as an argument, is not UTF-8")
    return PilotError(f"the output encoding {encoding} cannot show this result", "set PYTHONIOENCODING=utf-8")


def _tidy(text: str) -> str:
    """Lower the first letter of an ordinary word (not of NAMES, I/O or BeginInit) and drop a full stop."""
    text = text.strip()
    text = text[:-1] if text.endswith(".") and not text.endswith("..") else text
    first = text.split(maxsplit=1)[0] if text else ""
    is_word = first[:1].isupper() and first[1:].islower()
    return text[0].lower() + text[1:] if is_word else text
