"""Whether a backup that is whole is one of this cluster."""

from common.errors import BackupError, CorruptRowError
from common.forms.backup.header import Header, check_signature
from common.forms.backup.opened import OpenedBackup
from common.forms.backup.tables import META
from common.forms.chain import Chain
from nexus.keys import manifest
from nexus.keys.opened import Serving
from nexus.store.protocol import ControlRow, Meta, Phase


def prove_backup(opened: OpenedBackup, serving: Serving, store: Meta) -> None:
    """Hold a backup that is whole against what this nexus serves, and where its *store* stands now.

    1. Its signer has to be in the chain of this cluster.
    2. It comes before the change that replaced its generation, and is not ahead of the store: an older root key may
       have leaked, and a store that was put back has later backups. Either would count as the newest for ever.
    3. If it is of the current generation, its control rows have to verify under the root key, all of them.

    Raises:
        BackupError: It is of another cluster, of a history that this one has left, or of a store that was edited.
    """
    header = opened.contents.header
    chain = check_signature(opened.contents, genesis=serving.genesis.fingerprint)
    if chain.seq > serving.chain.seq or serving.chain.cut(chain.seq).digest != chain.digest:
        raise BackupError(f"backup is of generation {header.generation} of a history that this cluster has left")
    _check_position(header, serving.chain, store)
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


def _check_position(header: Header, chain: Chain, store: Meta) -> None:
    """Hold a backup against the chain and the store (rule 2); revisions go on from one timeline to the next."""
    what = f"backup is of timeline {header.timeline}, revision {header.revision}"
    end = next((link for link in chain.links if link.generation > header.generation), None)
    if end is not None and (header.timeline > end.timeline or header.revision >= end.revision):
        raise BackupError(
            f"{what}, and generation {header.generation} ended before that: it is of a history that this cluster has "
            "left, or forged"
        )
    if header.position > (store.timeline, store.revision):
        raise BackupError(
            f"{what}, and the store is at {store.timeline}, {store.revision}: the store was put back, or the backup is "
            "forged"
        )


def _to_meta(opened: OpenedBackup) -> Meta:
    named = dict(zip((column.name for column in META.columns), opened.meta, strict=True))
    try:
        phase, is_sealed = Phase(str(named.pop("phase"))), bool(named.pop("sealed"))
    except ValueError as exc:
        raise BackupError("meta row of the backup has no known phase") from exc
    return Meta(phase=phase, sealed=is_sealed, **named)  # type: ignore[arg-type]  # META has the columns of Meta
