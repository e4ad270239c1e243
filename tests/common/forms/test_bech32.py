"""Recipients and identities of age as text, held against pyrage."""

import pyrage
import pytest
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from hypothesis import given
from hypothesis import strategies as st

from common.errors import InvalidArgumentError
from common.forms.bech32 import decode_recipient, encode_identity, encode_recipient

# The example of its README.
RECIPIENT = "age1ql3z7hjy54pw3hyww5ayyfg7zqgvc7w3j2elw8zmrj2kg5sfn9aqmcac8p"


@given(st.binary(min_size=32, max_size=32))
def test_age_reads_what_we_write(secret: bytes) -> None:
    """The identity as text gives the recipient that its public key gives."""
    recipient = encode_recipient(X25519PrivateKey.from_private_bytes(secret).public_key().public_bytes_raw())
    assert str(pyrage.x25519.Identity.from_str(encode_identity(secret)).to_public()) == recipient
    assert encode_recipient(decode_recipient(recipient)) == recipient


def test_a_recipient_from_elsewhere_is_read() -> None:
    """And written as it was."""
    assert encode_recipient(decode_recipient(RECIPIENT)) == RECIPIENT


@pytest.mark.parametrize("at", range(len(RECIPIENT)))
def test_a_mistyped_recipient_is_refused(at: int) -> None:
    """Wherever the wrong letter stands, and where one is missing."""
    for wrong in (RECIPIENT[:at] + "b" + RECIPIENT[at + 1 :], RECIPIENT[:at] + RECIPIENT[at + 1 :]):
        with pytest.raises(InvalidArgumentError, match="recipient"):
            decode_recipient(wrong)


@given(st.text() | st.text().map("age1".__add__))
def test_noise_is_no_recipient(text: str) -> None:
    """Whatever is typed, it is one error."""
    with pytest.raises(InvalidArgumentError):
        decode_recipient(text)


@pytest.mark.parametrize(
    "text",
    [
        pytest.param(RECIPIENT.upper(), id="upper case"),
        pytest.param(encode_identity(bytes(32)), id="an identity"),
        pytest.param(encode_recipient(bytes(16)), id="too short"),
        pytest.param(encode_recipient(bytes(33)), id="too long"),
    ],
)
def test_other_keys_are_no_recipients(text: str) -> None:
    """Only an X25519 public key, as age writes it."""
    with pytest.raises(InvalidArgumentError, match="recipient"):
        decode_recipient(text)
