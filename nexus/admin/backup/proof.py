"""Whether a backup that is whole is one of this cluster."""

from common.errors import BackupError, CorruptRowError
from common.forms.backup.header import check_signature
from common.forms.backup.opened import OpenedBackup
from common.forms.backup.tables import META
from nexus.keys import manifest
from nexus.keys.opened import Serving
from nexus.store.protocol import ControlRow, Meta, Phase


def prove_backup(opened: OpenedBackup, serving: Serving) -> None:
    """Hold a backup that is whole against what this nexus serves.

    Its signer has to be in the chain of this cluster. If it is of the current generation, its control rows have to
    verify under the root key, all of them.

    Raises:
        BackupError: It is of another cluster, of a history that this one has left, or of a store that was edited.
    """
    header = opened.contents.header
    chain = check_signature(opened.contents, genesis=serving.genesis.fingerprint)
    if chain.seq > serving.chain.seq or serving.chain.cut(chain.seq).digest != chain.digest:
        raise BackupError(f"backup is of generation {header.generation} of a history that this cluster has left")
    if header.generation != serving.root_key.generation:
        return
    rows = [ControlRow(*row) for row in opened.controls]
    try:
        controls = manifest.verify(_to_meta(opened), rows, serving.root_key)
    except CorruptRowError as exc:
        raise BackupError(f"control rows of the backup do not verify: {exc}") from exc
    if controls.damaged:
        names = ", ".join(sorted("/".join(key) for key in controls.damaged))
        raise BackupError(f"control rows of the backup do not verify: {names}")


def _to_meta(opened: OpenedBackup) -> Meta:
    named = dict(zip((column.name for column in META.columns), opened.meta, strict=True))
    try:
        phase, is_sealed = Phase(str(named.pop("phase"))), bool(named.pop("sealed"))
    except ValueError as exc:
        raise BackupError("meta row of the backup has no known phase") from exc
    return Meta(phase=phase, sealed=is_sealed, **named)  # type: ignore[arg-type]  # META has the columns of Meta
