"""Every error that Shardhold raises inside its servers and tools.

    ShardholdError
    ├── UnavailableError            try again later
    │   ├── SealedError
    │   ├── RecoveringError
    │   │   └── StoreLostError       the store is not as the nexus left it: ready ends
    │   ├── StoreUnavailableError
    │   │   ├── OutcomeUnknownError  it may or may not have happened: the process exits
    │   │   └── StoreFileLostError   nor is that known here, but the process stays: the store's files were taken away
    │   ├── NotScrubbedError        what was destroyed may be in the files yet
    │   ├── AuditUnavailableError
    │   ├── BackupUnavailableError
    │   ├── KeeperUnreachableError
    │   ├── IdentityUnavailableError
    │   ├── OverloadedError
    │   ├── CallerGoneError         nobody waits for the answer any more
    │   └── InjectedError           a failpoint of development
    ├── RefusedError                the caller has to change something
    │   ├── InvalidArgumentError
    │   ├── UnauthenticatedError
    │   ├── DeniedError
    │   ├── NotFoundError
    │   ├── ConflictError
    │   ├── WrongStateError
    │   │   ├── OperationRefusedError   its reason is the rule that refuses
    │   │   ├── SetNotNewerError     a keeper held a newer shard set than the one that it is given
    │   │   └── KeeperTooOldError    a keeper of an earlier release, which does not know what is asked of it
    │   └── ConfigError             exit code 2, before a port opens
    └── IntegrityError              page someone: what was read is not what was written
        ├── DecryptionError
        ├── CorruptRowError
        ├── WrongRootKeyError
        ├── BadShardError
        ├── TooFewShardsError
        ├── MixedShardsError
        ├── StatementError
        ├── ChainError
        ├── BackupError
        ├── MarkError
        ├── WordsError
        └── ProtectionError         memory cannot be protected as configured

Messages say what was got and what was wanted, and never contain a secret, a key or a share. The families say what a
handler can do; the one table from errors to gRPC codes is in `common.server.edge`.
"""


class ShardholdError(Exception):
    """Base of all internal errors. `reason` is stable: google.rpc.ErrorInfo carries it and callers match on it."""

    reason: str = "INTERNAL"


class UnavailableError(ShardholdError):
    """The same call may work later."""

    reason = "UNAVAILABLE"


class SealedError(UnavailableError):
    """The nexus is sealed; only custodians can bring it back."""

    reason = "NEXUS_SEALED"


class RecoveringError(UnavailableError):
    """The nexus does not have its root key yet, and is recovering it."""

    reason = "NEXUS_RECOVERING"


class StoreLostError(RecoveringError):
    """The store is not as this nexus left it: it serves nothing from it, and recovers."""


class StoreUnavailableError(UnavailableError):
    """The store cannot be read or written now; the change was not made."""

    reason = "STORE_UNAVAILABLE"


class OutcomeUnknownError(StoreUnavailableError):
    """A commit failed and it is not known whether it took effect; only a restart can tell."""

    reason = "OUTCOME_UNKNOWN"


class StoreFileLostError(StoreUnavailableError):
    """A file of the store was deleted, renamed or replaced; what was committed last may be in no file that is left.

    The process stays: it may have the only descriptor of a deleted file, and a new start would make an empty store.
    """

    reason = OutcomeUnknownError.reason


class NotScrubbedError(UnavailableError):
    """Versions are destroyed, but what they held may be in the files of the store yet."""

    reason = "NOT_SCRUBBED"


class AuditUnavailableError(UnavailableError):
    """The audit entry cannot be written, so the call is refused."""

    reason = "AUDIT_UNAVAILABLE"


class BackupUnavailableError(UnavailableError):
    """A backup cannot be made or read now."""

    reason = "BACKUP_UNAVAILABLE"


class KeeperUnreachableError(UnavailableError):
    """A keeper does not answer."""

    reason = "KEEPER_UNREACHABLE"


class IdentityUnavailableError(UnavailableError):
    """No SVID, or an expired one."""

    reason = "IDENTITY_UNAVAILABLE"


class OverloadedError(UnavailableError):
    """A limit on calls or statements in flight is reached."""

    reason = "OVERLOADED"


class CallerGoneError(UnavailableError):
    """Work ended because the caller has left, or its deadline has passed."""

    reason = "CALLER_GONE"


class InjectedError(UnavailableError):
    """A failpoint, which only development arms, made this fail."""

    reason = "INJECTED"


class RefusedError(ShardholdError):
    """The same call will be refused again."""

    reason = "REFUSED"


class InvalidArgumentError(RefusedError):
    """An argument breaks a rule; the message names the field, what it was and the limit."""

    reason = "INVALID_ARGUMENT"


class UnauthenticatedError(RefusedError):
    """The peer has no usable SPIFFE ID."""

    reason = "UNAUTHENTICATED"


class DeniedError(RefusedError):
    """No role or policy allows the call; the message names the caller and the permission, never what exists."""

    reason = "DENIED"


class NotFoundError(RefusedError):
    """What was asked for does not exist, or no longer does."""

    reason = "NOT_FOUND"


class ConflictError(RefusedError):
    """A check-and-set found a version other than the expected one; the message names both."""

    reason = "VERSION_CONFLICT"


class WrongStateError(RefusedError):
    """The call is not served in this state, and waiting does not change that."""

    reason = "WRONG_STATE"


class OperationRefusedError(WrongStateError):
    """An operation on the root key cannot begin, go on or end in this way now; the reason names the rule."""

    reason = "OPERATION_REFUSED"

    def __init__(self, message: str, *, reason: str = reason) -> None:
        """*reason* is stable, as OPERATION_RUNNING."""
        super().__init__(message)
        self.reason = reason


class SetNotNewerError(WrongStateError):
    """A shard set is refused by a keeper that has held a newer one."""

    reason = "SET_NOT_NEWER"


class KeeperTooOldError(WrongStateError):
    """A keeper is of an earlier release, which does not know what is asked of it: it has to be upgraded first."""

    reason = "KEEPER_TOO_OLD"


class ConfigError(RefusedError):
    """An option is wrong; the message names it, its value and what is wanted."""

    reason = "CONFIG"


class IntegrityError(ShardholdError):
    """Something stored or received is not what it should be."""

    reason = "INTEGRITY"


class DecryptionError(IntegrityError):
    """A ciphertext does not open. It is never read as an empty value and never skipped."""

    reason = "DECRYPTION"


class CorruptRowError(IntegrityError):
    """A stored row does not verify or does not decode."""

    reason = "CORRUPT_ROW"


class WrongRootKeyError(IntegrityError):
    """A rebuilt key is not the root key of this cluster and generation."""

    reason = "WRONG_ROOT_KEY"


class BadShardError(IntegrityError):
    """A shard does not match its commitment, or has the wrong shape."""

    reason = "BAD_SHARD"


class TooFewShardsError(IntegrityError):
    """Fewer shards than the threshold."""

    reason = "TOO_FEW_SHARDS"


class MixedShardsError(IntegrityError):
    """Shards of two sets, or two shards for one x; combining them would give noise."""

    reason = "MIXED_SHARDS"


class StatementError(IntegrityError):
    """A signed statement does not verify, or does not state what was asked for."""

    reason = "STATEMENT"


class ChainError(IntegrityError):
    """A chain of generations does not verify."""

    reason = "CHAIN"


class BackupError(IntegrityError):
    """A backup is not whole, not of this cluster, or nobody gave what opens it."""

    reason = "BACKUP_DAMAGED"


class MarkError(IntegrityError):
    """A rollback mark does not verify."""

    reason = "MARK"


class WordsError(IntegrityError):
    """Recovery words are not a share, or not of this set."""

    reason = "WORDS"


class ProtectionError(IntegrityError):
    """Memory cannot be protected as configured."""

    reason = "MEMORY_PROTECTION"
