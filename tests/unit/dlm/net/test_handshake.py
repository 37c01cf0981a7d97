"""Only who knows the secret and means this very node comes in."""

import msgspec
import pytest

from dlm.net import handshake
from dlm.net.errors import Malformed, Rejected
from dlm.net.handshake import Challenge, Dialer, Hello, Listener, Peer, Proof, Welcome
from dlm.net.wire import decode, encode

LOW, HIGH = Peer(1, 10, "low:1"), Peer(2, 20, "high:2")
SECRET = b"s" * 32


def dialer(secret: bytes = SECRET, me: Peer = LOW, target: Peer = HIGH, nonce: int = 1) -> Dialer:
    return Dialer(me, target, "c", secret, 1, bytes([nonce]) * 32)


def listener(secret: bytes = SECRET, cluster: str = "c", nonce: int = 2) -> Listener:
    return Listener(HIGH, cluster, secret, bytes([nonce]) * 32)


def test_both_learn_what_the_other_has_received() -> None:
    low, high = dialer(), listener()
    proof = low.prove(high.challenge(low.hello), 7)
    assert high.check(proof) == 7
    assert low.finish(high.welcome(8)) == 8
    assert high.hello is not None
    assert (high.hello.node, high.hello.incarnation, high.hello.attempt) == (1, 10, 1)


def test_the_dialer_rejects_a_listener_without_the_secret() -> None:
    low = dialer()
    with pytest.raises(Rejected, match="wrong cluster secret"):
        low.prove(listener(b"x").challenge(low.hello), 0)


def test_the_listener_rejects_a_dialer_without_the_secret() -> None:
    wrong, high = dialer(b"x"), listener()
    challenge = high.challenge(wrong.hello)
    with pytest.raises(Rejected, match="wrong cluster secret"):
        wrong.prove(challenge, 0)
    with pytest.raises(Rejected, match="wrong cluster secret"):
        high.check(encode(Proof(0, wrong._mac(b"dialer", 0))))


def test_a_proof_is_good_for_one_challenge_only() -> None:
    low, high = dialer(), listener()
    proof = low.prove(high.challenge(low.hello), 0)
    again = listener(nonce=3)
    again.challenge(low.hello)
    with pytest.raises(Rejected):
        again.check(proof)


def test_the_listeners_own_proof_cannot_be_reflected() -> None:
    low, high = dialer(), listener()
    challenge = decode(high.challenge(low.hello), Challenge)
    with pytest.raises(Rejected):
        high.check(encode(Proof(0, challenge.proof)))


@pytest.mark.parametrize("received", [0, 8])
def test_the_numbers_to_resume_from_are_under_the_proof(received: int) -> None:
    low, high = dialer(), listener()
    proof = decode(low.prove(high.challenge(low.hello), 7), Proof)
    with pytest.raises(Rejected):
        high.check(encode(msgspec.structs.replace(proof, received=received)))
    welcome = decode(high.welcome(7), Welcome)
    with pytest.raises(Rejected):
        low.finish(encode(msgspec.structs.replace(welcome, received=received)))


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"version": 99}, "protocol version 99, .*: upgrade this node"),
        ({"version": 1}, "protocol version 1, this node speaks 2: upgrade the other node"),
        ({"cluster": "other"}, "of cluster 'other'"),
        ({"target_node": 5}, "looks for node 5"),
        ({"target_incarnation": 19}, "incarnation 19"),
        ({"node": 2}, "the lower one should"),
    ],
)
def test_a_hello_for_somebody_else_is_rejected(change: dict[str, object], reason: str) -> None:
    hello = msgspec.structs.replace(decode(dialer().hello, Hello), **change)
    with pytest.raises(Rejected, match=reason):
        listener().challenge(encode(hello))


@pytest.mark.parametrize(
    "body", [b"", b"\xc1", b"\x90", b"\x91" * 2000, encode(Proof(0, b"x" * 31))]
)
def test_garbage_is_malformed(body: bytes) -> None:
    low, high = dialer(), listener()
    with pytest.raises(Malformed):
        high.challenge(body)
    with pytest.raises(Malformed):
        low.prove(body, 0)
    with pytest.raises(Malformed):
        low.finish(body)


def test_a_rejection_carries_its_reason_at_most_one_line_long() -> None:
    assert "too late" in handshake.rejection(handshake.reject("too late")).reason
    assert len(handshake.reject("x" * 5000)) < 300
    assert handshake.rejection(b"\xc1").told
