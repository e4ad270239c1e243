"""The row of a version, and the fields that it holds as ciphertext."""

from nexus.keys.envelope import Place, SealedValue, open_value, seal_value
from nexus.keys.opened import Serving
from nexus.store.protocol import VersionRow


def open_row(row: VersionRow, serving: Serving) -> bytes:
    """Open the body of a version.

    Raises:
        DecryptionError: It does not open.
        CorruptRowError: Its KEK is not in the keyring.
    """
    sealed = SealedValue(row.kek_id, row.dek_id, row.wrapped_dek, row.value)
    return open_value(sealed, Place(serving.cluster_id, row.path, row.incarnation, row.version), serving.keyring)


def seal_row(
    body: bytes, serving: Serving, *, path: str, incarnation: bytes, version: int, created_at: int
) -> VersionRow:
    """Seal *body* under the current KEK, as the row of a version; *created_at* in microseconds since 1970."""
    sealed = seal_value(body, Place(serving.cluster_id, path, incarnation, version), serving.keyring)
    return VersionRow(
        path=path,
        incarnation=incarnation,
        version=version,
        kek_id=sealed.kek_id,
        dek_id=sealed.dek_id,
        wrapped_dek=sealed.wrapped_dek,
        value=sealed.value,
        created_at=created_at,
        deleted=False,
    )
