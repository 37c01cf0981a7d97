import msgspec
import pytest

from clusterfs.cluster.enrolment import (
    Invitation,
    Token,
    decode_token,
    encode_token,
    expired,
    seal,
    unseal,
)
from clusterfs.errors import SetupError

TOKEN = Token("n2", "etcd:https://e1:2379", "images", "c-uuid", "ab" * 32, b"i" * 8, b"s" * 32)
INVITATION = Invitation(1000, 3, 256, 5.0, "CA", "CERTIFICATE", "KEY")


def test_a_token_is_one_word_that_survives_a_mail() -> None:
    word = encode_token(TOKEN)
    assert len(word.split()) == 1
    assert word.isascii()
    assert decode_token(word) == TOKEN
    assert decode_token(f" {word[:40]}\n  {word[40:]}\n") == TOKEN


@pytest.mark.parametrize("spoil", [lambda w: w[:-3], lambda w: w[:30] + "A" + w[31:], str.lower])
def test_a_token_that_was_not_copied_whole_is_refused(spoil: object) -> None:
    assert callable(spoil)
    with pytest.raises(SetupError, match="no token"):
        decode_token(spoil(encode_token(TOKEN)))


@pytest.mark.parametrize("text", ["", "x", "clusterfs1-", "clusterfs1-AAAA", "täöken", "=" * 9])
def test_garbage_is_no_token(text: str) -> None:
    with pytest.raises(SetupError, match="no token"):
        decode_token(text)


def test_only_the_token_opens_its_invitation() -> None:
    note = seal(TOKEN, INVITATION)
    assert unseal(TOKEN, note, 1000) == INVITATION
    assert b"KEY" not in note
    changes = {"name": "n3", "cluster": "d", "fingerprint": "", "id": b"j" * 8, "secret": b"t" * 32}
    for field, value in changes.items():
        with pytest.raises(SetupError, match="does not fit"):
            unseal(TOKEN._replace(**{field: value}), note, 1000)
    with pytest.raises(SetupError, match="does not fit"):
        unseal(TOKEN, note[:-1] + bytes([note[-1] ^ 1]), 1000)


def test_an_invitation_expires() -> None:
    note = seal(TOKEN, INVITATION)
    with pytest.raises(SetupError, match="expired: make another"):
        unseal(TOKEN, note, 1001)
    assert not expired(note, 1000)
    assert expired(note, 1001)
    assert expired(b"\xff garbage", 0)


def test_when_it_expires_cannot_be_put_off_by_who_stores_it() -> None:
    later = msgspec.structs.replace(INVITATION, expires_s=9999)
    outer = seal(TOKEN, later)[:4]
    note = seal(TOKEN, INVITATION)
    with pytest.raises(SetupError):
        unseal(TOKEN, outer + note[4:], 5000)
