"""What a nexus and the child that writes its backup say to each other, one line of JSON each."""

import msgspec


class Request(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    copy: str  # path of the copy of the store
    header: bytes  # as `Header.encode` makes it
    recipients: tuple[str, ...]  # as age writes them


class Answer(msgspec.Struct, frozen=True, omit_defaults=True, forbid_unknown_fields=True):
    """One of digest, rows and error is set."""

    digest: bytes = b""  # of the stream, which waits for a signature
    rows: dict[str, int] = {}  # by table: it is written and synced
    error: str = ""
    is_damaged: bool = False  # the error: the store holds what cannot be backed up


class Signature(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    signature: bytes  # 64 bytes
