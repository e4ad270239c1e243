"""Certificates whose structure is wrong in one place and right in all others, with a valid signature."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA384
from cryptography.hazmat.primitives.serialization import Encoding
from hypothesis import strategies as st

from tests.fuzz.mutations import mutated

_CONSTRUCTED = 0x20
_ECDSA_SHA384 = bytes.fromhex("300a06082a8648ce3d040303")


@dataclass(frozen=True)
class Node:
    """One TLV of DER: its tag and its content."""

    tag: int
    content: bytes = b""
    children: "tuple[Node, ...]" = ()

    def encode(self) -> bytes:
        content = b"".join(child.encode() for child in self.children) if self.children else self.content
        return bytes([self.tag]) + _encode_length(len(content)) + content


def parse(encoded: bytes) -> tuple[Node, ...]:
    """Take apart well-formed DER with one-byte tags, and octet strings that contain DER too."""
    nodes = []
    while encoded:
        tag, length = encoded[0], encoded[1]
        start = 2
        if length & 0x80:
            start += length & 0x7F
            length = int.from_bytes(encoded[2:start], "big")
        content, encoded = encoded[start : start + length], encoded[start + length :]
        nodes.append(Node(tag, content, parse(content) if tag & _CONSTRUCTED else ()))
    return tuple(nodes)


def hostile_der(encoded: bytes) -> st.SearchStrategy[bytes]:
    """Return *encoded* with one to three nodes changed, doubled, omitted or moved; lengths stay right."""
    changes = st.lists(
        st.tuples(
            st.integers(0, 2**16),
            st.sampled_from(["content", "content", "tag", "drop", "double", "swap"]),
            st.integers(0, 255),
            mutated(b"\x01\x02\x03", b"spiffe://example.org/a", b"\x30\x00", b"\x30\x03\x01\x01\xff"),
        ),
        min_size=1,
        max_size=3,
    )
    return st.builds(_change_all, st.just(parse(encoded)[0]), changes).map(Node.encode)


def resign(tbs: bytes, key: ec.EllipticCurvePrivateKey) -> bytes:
    """Return the certificate, in DER, that *key* makes of *tbs*, whatever that says."""
    signature = Node(0x03, b"\x00" + key.sign(tbs, ec.ECDSA(SHA384()))).encode()
    body = tbs + _ECDSA_SHA384 + signature
    return b"\x30" + _encode_length(len(body)) + body


def hostile_certificate(certificate: x509.Certificate, key: ec.EllipticCurvePrivateKey) -> st.SearchStrategy[bytes]:
    """Return *certificate*, in DER, with its structure changed and signed again with *key*, or with edited bytes."""
    structured = hostile_der(certificate.tbs_certificate_bytes).map(lambda tbs: resign(tbs, key))
    return structured | structured | mutated(certificate.public_bytes(Encoding.DER))


def _change_all(root: Node, changes: Sequence[tuple[int, str, int, bytes]]) -> Node:
    for number, kind, tag, content in changes:
        size = _count(root)
        root = _change(root, 1 + number % max(size - 1, 1), kind, tag, content)[0]
    return root


def _change(node: Node, number: int, kind: str, tag: int, content: bytes) -> tuple[Node, int]:
    """Change the node with this number, counted depth first; return the tree and the number of nodes passed."""
    passed = 1
    children: list[Node] = []
    for child in node.children:
        size = _count(child)
        if number == passed:
            match kind:
                case "content":
                    children.append(Node(child.tag & ~_CONSTRUCTED if child.children else child.tag, content))
                case "tag":
                    children.append(replace(child, tag=tag))
                case "double":
                    children += (child, child)
                case "swap":
                    children.insert(0, child)
        elif passed < number < passed + size:
            children.append(_change(child, number - passed, kind, tag, content)[0])
        else:
            children.append(child)
        passed += size
    return (replace(node, children=tuple(children)) if node.children else node), passed


def _count(node: Node) -> int:
    return 1 + sum(map(_count, node.children))


def _encode_length(length: int) -> bytes:
    if length < 0x80:
        return bytes([length])
    encoded = length.to_bytes((length.bit_length() + 7) // 8, "big")
    return bytes([0x80 | len(encoded)]) + encoded
