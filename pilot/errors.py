"""What pilot says when something fails, and with which exit code."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import MappingProxyType
from typing import TYPE_CHECKING, Final

from common.errors import ConfigError, InvalidArgumentError, ShardholdError

if TYPE_CHECKING:
    from shardhold._errors import Error

DONE: Final = 0
FAILED: Final = 1
USAGE: Final = 2
NOT_FOUND: Final = 3
DENIED: Final = 4
UNAVAILABLE: Final = 5
SEALED: Final = 6
WAITING: Final = 7
NO_CLUSTER: Final = 8
NOT_RUNNABLE: Final = 126
CANNOT_RUN: Final = 127
INTERRUPTED: Final = 130  # 128 and SIGINT, as shells have it
NO_READER: Final = 141  # 128 and SIGPIPE

# `pilot --help` shows this table, and docs/exit-codes.md says more about each.
EXIT_CODES: Final[Mapping[int, str]] = MappingProxyType(
    {
        DONE: "done",
        FAILED: "failed",
        USAGE: "usage: the command line, an argument or a file breaks a rule",
        NOT_FOUND: "not found",
        DENIED: "denied",
        UNAVAILABLE: "unavailable: sealed, recovering, or not reached",
        SEALED: "status --exit-code: sealed",
        WAITING: "status --exit-code: recovering or blocked",
        NO_CLUSTER: "status --exit-code: uninitialised or initialising",
        NOT_RUNNABLE: "run: the command cannot be run",
        CANNOT_RUN: "run: no such command; dev exec: the command cannot be run",
        INTERRUPTED: "interrupted with Ctrl-C",
        NO_READER: "nobody reads the output any more",
    }
)


class PilotError(Exception):
    """An error, with hints on what to do about it, one line each.

    *reason* is the stable name that the nexus gives an error, such as NEXUS_SEALED; empty for errors of pilot itself.
    """

    def __init__(self, message: str, *hints: str, exit_code: int = FAILED, reason: str = "") -> None:
        super().__init__(message)
        self.hints = tuple(hint for hint in hints if hint)
        self.exit_code = exit_code
        self.reason = reason


class UsageError(PilotError):
    """The command line, or a file that it names, is wrong."""

    def __init__(self, message: str, *hints: str) -> None:
        super().__init__(message, *hints, exit_code=USAGE)


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
        raise PilotError(str(exc), exit_code=USAGE if is_usage else FAILED, reason=exc.reason) from exc
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
    return PilotError(error.message, *hints, exit_code=exit_code, reason=error.reason)


def _describe_encoding(encoding: str) -> PilotError:
    if encoding.lower() in ("utf-8", "utf8"):
        return UsageError("what was typed, or given as an argument, is not UTF-8")
    return PilotError(f"the output encoding {encoding} cannot show this result", "set PYTHONIOENCODING=utf-8")
