"""Steps of a change that write the next version of a secret, and prune the oldest ones."""

import os
from collections.abc import Collection, Mapping
from typing import Final

from nexus.policy.keeping import Keeping
from nexus.store.protocol import MadeByRequest, Reader, SecretRow
from nexus.vault.change import SecretChange, check_current
from nexus.vault.expected import INCARNATION_SIZE, Expected
from nexus.vault.fields import check_patched, decode_body, encode_body
from nexus.vault.history import explain_missing, name_versions
from nexus.vault.sealed import open_row, seal_row

PRUNED_AT_ONCE: Final = 100  # versions, which other changes wait for; the next one goes on


def put(change: SecretChange, body: bytes, expected: Expected, keeping: Keeping) -> MadeByRequest:
    """Write *body* as the next version, or as the first of a new incarnation."""
    secret = change.writer.load_secret(change.path)
    current = secret if secret is not None and _has_live(change.writer, change.path) else None
    expected.compare(current)
    if current is not None:
        return _append(change, current, body, keeping)
    change.writer.delete_secret(change.path)  # what is left of the previous incarnation
    made = _insert(change, os.urandom(INCARNATION_SIZE), 1, body)
    if secret is not None and secret.max_versions:
        change.writer.save_max_versions(change.path, secret.max_versions)
    return made


def patch(
    change: SecretChange,
    fields: Mapping[str, bytes],
    removed: Collection[str],
    expected: Expected,
    keeping: Keeping,
) -> MadeByRequest:
    """Write the newest version once more, with *fields* set and *removed* taken out."""
    secret = change.writer.load_secret(change.path)
    newest = change.writer.load_version(change.path, 0)
    if secret is None or newest is None or newest.deleted:
        raise explain_missing(change.writer, change.path)
    expected.compare(secret)
    check_current(change.serving.keyring.current_id, change.writer.basis.kek_id)
    patched = {**decode_body(open_row(newest, change.serving)), **fields}
    left = {name: value for name, value in patched.items() if name not in removed}
    check_patched(left)
    return _append(change, secret, encode_body(left), keeping)


def keep_at_most(change: SecretChange, max_versions: int, keeping: Keeping) -> MadeByRequest:
    """Set how many versions of a secret are kept; 0: as *keeping* says."""
    secret = change.writer.load_secret(change.path)
    if secret is None:
        raise explain_missing(change.writer, change.path)
    change.writer.save_max_versions(change.path, max_versions)
    change.record.detail = f"max_versions {max_versions}"
    _prune(change, secret, secret.current_version, max_versions or keeping.find_limit(change.path))
    return MadeByRequest(secret.incarnation, (secret.current_version,), change.writer.revision)


def _append(change: SecretChange, secret: SecretRow, body: bytes, keeping: Keeping) -> MadeByRequest:
    made = _insert(change, secret.incarnation, secret.current_version + 1, body)
    _prune(change, secret, made.versions[0], secret.max_versions or keeping.find_limit(change.path))
    return made


def _insert(change: SecretChange, incarnation: bytes, version: int, body: bytes) -> MadeByRequest:
    row = seal_row(
        body, change.serving, path=change.path, incarnation=incarnation, version=version, created_at=change.at
    )
    check_current(row.kek_id, change.writer.basis.kek_id)
    change.writer.insert_version(row, caller=change.caller)
    return MadeByRequest(incarnation, (version,), change.writer.revision)


def _prune(change: SecretChange, secret: SecretRow, newest: int, limit: int) -> None:
    """Destroy what is older than the newest *limit* versions, 0: nothing; at most `PRUNED_AT_ONCE`."""
    below = min(newest - limit + 1, secret.first_version + PRUNED_AT_ONCE)
    if limit and below > secret.first_version:
        change.writer.prune(change.path, below=below)
        pruned = f"destroyed versions {name_versions(range(secret.first_version, below))}"
        change.record.detail = f"{change.record.detail}; {pruned}" if change.record.detail else pruned


def _has_live(reader: Reader, path: str) -> bool:
    newest = reader.load_version(path, 0)
    return (newest is not None and not newest.deleted) or bool(reader.load_live_versions(path))
