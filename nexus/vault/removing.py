"""Steps of a change that delete versions of a secret, bring them back, or destroy them."""

from collections.abc import Sequence
from typing import Final

from nexus.store.protocol import MadeByRequest, SecretRow, VersionState
from nexus.vault.change import SecretChange
from nexus.vault.expected import Expected
from nexus.vault.history import explain_missing, find_state, name_versions

_MOST_RUNS_AUDITED: Final = 100  # as many as a request can name


def delete(change: SecretChange, wanted: Sequence[int], expected: Expected) -> MadeByRequest:
    """Mark versions as deleted; none: all that are live."""
    secret = _require(change)
    live = change.writer.load_live_versions(change.path)
    if not live:
        raise explain_missing(change.writer, change.path)
    expected.compare(secret)
    for version in wanted:
        if version not in live:
            raise explain_missing(change.writer, change.path, version)
    versions = wanted or live
    change.writer.mark_deleted(change.path, versions, caller=change.caller)
    return _finish(change, secret, versions)


def undelete(change: SecretChange, wanted: Sequence[int]) -> MadeByRequest:
    """Bring deleted versions back."""
    secret = _require(change)
    for version in wanted:
        if find_state(change.writer, change.path, version) is not VersionState.DELETED:
            raise explain_missing(change.writer, change.path, version)
    change.writer.undelete(change.path, wanted)
    return _finish(change, secret, wanted)


def destroy(change: SecretChange, wanted: Sequence[int], expected: Expected) -> MadeByRequest:
    """Destroy versions, deleted or not; none: all that are there."""
    secret = _require(change)
    expected.compare(secret)
    for version in wanted:
        if find_state(change.writer, change.path, version) in (None, VersionState.DESTROYED):
            raise explain_missing(change.writer, change.path, version)
    versions = wanted or change.writer.load_kept_versions(change.path)
    if not versions:
        raise explain_missing(change.writer, change.path)
    change.writer.destroy(change.path, versions, caller=change.caller, destroyed_at=change.at)
    return _finish(change, secret, versions)


def _require(change: SecretChange) -> SecretRow:
    secret = change.writer.load_secret(change.path)
    if secret is None:
        raise explain_missing(change.writer, change.path)
    return secret


def _finish(change: SecretChange, secret: SecretRow, versions: Sequence[int]) -> MadeByRequest:
    change.record.detail = f"versions {name_versions(versions, most=_MOST_RUNS_AUDITED)}"
    return MadeByRequest(secret.incarnation, tuple(versions), change.writer.revision)
