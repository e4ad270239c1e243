"""The chain of generations of this cluster, as control rows hold it: `genesis/current`, then `link/1`, `link/2`, …"""

from collections.abc import Collection, Mapping, Sequence

from common.errors import CorruptRowError
from common.forms.chain import Chain, verify_chain
from nexus.keys import manifest, records
from nexus.keys.records import Key
from nexus.store.protocol import ControlRow


def read_chain(bodies: Mapping[Key, bytes], listed: Collection[Key]) -> Chain:
    """Verify the chain that *bodies* hold, from their genesis record on; *listed* says which rows have to be there.

    Raises:
        CorruptRowError: A row of it is missing, does not verify, or does not decode.
        ChainError: The chain does not verify.
    """
    seqs = range(1, 1 + sum(kind == records.LINK for kind, _ in listed))
    genesis = records.find_genesis(_need(bodies, records.GENESIS))
    keys = [(records.LINK, str(seq)) for seq in seqs]
    links = [records.decode(records.LinkRecord, _need(bodies, key)).record for key in keys]
    return verify_chain([genesis.encode(), *links], genesis.fingerprint)


def find_chain(rows: Sequence[ControlRow]) -> Chain:
    """Verify the chain among *rows*. Their manifest is not verified yet: the chain may end earlier than it should.

    Raises:
        CorruptRowError, ChainError: As `read_chain`.
    """
    return read_chain({(row.kind, row.name): row.body for row in rows}, manifest.list_keys(rows))


def _need(bodies: Mapping[Key, bytes], key: Key) -> bytes:
    if key not in bodies:
        raise CorruptRowError(f"control row {'/'.join(key)} is missing or does not verify")
    return bodies[key]
