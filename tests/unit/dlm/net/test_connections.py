"""Connections that break, lie, come twice, are not listed yet, or belong to somebody else."""

import contextlib
import random
import socket
from typing import Any

import pytest
import trio

from dlm.errors import PeerLost
from dlm.net import Peer, Timing
from dlm.net.framing import Kind, encode
from dlm.net.greeting import Greeting, connect, handshake_frame
from dlm.net.handshake import Dialer
from dlm.net.session import Session

CHANNEL = 2
QUICK = Timing(ping_s=0.04, silent_s=0.16, handshake_s=0.5, unlisted_s=0.1)


async def dial(
    target: Peer, me: Peer, attempt: int, session: Session, secret: bytes = b"secret"
) -> Greeting:
    """Return a hand-made connection after its handshake."""
    greeting = Greeting(await connect(target.address))
    try:
        await introduce(greeting, target, me, attempt, session, secret)
    except BaseException:
        greeting.socket.close()
        raise
    return greeting


async def introduce(
    greeting: Greeting, target: Peer, me: Peer, attempt: int, session: Session, secret: bytes
) -> None:
    dialer = Dialer(me, target, "c", secret, attempt, random.Random(attempt).randbytes(32))
    await greeting.send(Kind.HELLO, dialer.hello)
    challenge = await greeting.receive(Kind.CHALLENGE)
    await greeting.send(Kind.PROOF, dialer.prove(challenge, session.received))
    session.resume(dialer.finish(await greeting.receive(Kind.WELCOME)))


async def write(sock: socket.socket, data: bytes) -> None:
    """Send everything, or as much as the other side takes before it hangs up."""
    stream = trio.SocketStream(trio.socket.from_stdlib_socket(sock))
    with contextlib.suppress(trio.BrokenResourceError):
        await stream.send_all(data)


async def hung_up(sock: socket.socket) -> None:
    """Wait until the other side closed the connection."""
    stream = trio.SocketStream(trio.socket.from_stdlib_socket(sock))
    with trio.fail_after(300):
        with contextlib.suppress(trio.BrokenResourceError):
            while await stream.receive_some():
                pass


@pytest.mark.parametrize("seed", range(6))
async def test_nothing_is_lost_or_doubled_by_cuts_in_the_middle_of_frames(
    start: Any, proxy: Any, until: Any, seed: int
) -> None:
    noise = random.Random(seed)
    low, high = await start(1), await start(2)
    between = await proxy(high.peer.address, seed)
    low.mesh.set_peers([high.peer._replace(address=between.address)])
    high.mesh.set_peers([low.peer])
    sent: list[bytes] = []
    calls = []
    for n in range(300):
        body = b"%d" % n
        payload = noise.randbytes(noise.choice([0, 10, 1000, 40_000]))
        if noise.random() < 0.4:
            calls.append((low.mesh.start_call(2, CHANNEL, body, payload), body, payload))
        else:
            low.mesh.send(2, CHANNEL, body, payload)
        high.mesh.send(1, CHANNEL, body, payload)
        sent.append(body)
        if n % 30 == 0:
            between.budget = noise.randrange(200_000)
        if n % 5 == 0:
            await trio.sleep(0)
    with trio.fail_after(300):
        for call, body, payload in calls:
            assert await call.wait() == (b"re " + body, payload)
    await until(lambda: len(high.handler.arrived) == len(low.handler.arrived) == 300)
    assert high.handler.bodies == sent
    assert low.handler.bodies == sent
    assert low.numbers(2)["connects"] > 1
    for node, peer in ((low, 2), (high, 1)):
        node.mesh._remotes[peer].session.validate()


@pytest.mark.parametrize("seed", range(4))
async def test_a_garbled_byte_costs_a_connection_but_no_message(
    start: Any, proxy: Any, seed: int
) -> None:
    low, high = await start(1, timing=QUICK), await start(2, timing=QUICK)
    between = await proxy(high.peer.address, seed)
    low.mesh.set_peers([high.peer._replace(address=between.address)])
    high.mesh.set_peers([low.peer])
    await low.mesh.call(2, CHANNEL, b"connect")
    between.garble = True
    with trio.fail_after(300):
        for n in range(20):
            assert await low.mesh.call(2, CHANNEL, b"%d" % n) == (b"re %d" % n, b"")
    assert high.handler.bodies == [b"connect", *(b"%d" % n for n in range(20))]
    assert low.numbers(2)["connects"] == 2


async def test_a_silent_connection_is_dropped_and_dialled_again(
    start: Any, proxy: Any, until: Any
) -> None:
    low, high = await start(1, timing=QUICK), await start(2, timing=QUICK)
    between = await proxy(high.peer.address)
    low.mesh.set_peers([high.peer._replace(address=between.address)])
    high.mesh.set_peers([low.peer])
    await low.mesh.call(2, CHANNEL, b"x")
    between.stalled = True
    low.mesh.send(2, CHANNEL, b"swallowed")
    await until(lambda: low.numbers(2)["drops"] and high.numbers(1)["drops"])
    assert "silent" in low.numbers(2)["last_drop"] or "silent" in high.numbers(1)["last_drop"]
    between.stalled = False
    between.cut()
    await until(lambda: b"swallowed" in high.handler.bodies)


async def test_pings_keep_an_idle_connection(start: Any, until: Any) -> None:
    low, high = await start(3, timing=QUICK), await start(4, timing=QUICK)
    low.mesh.set_peers([high.peer])
    high.mesh.set_peers([low.peer])
    await low.mesh.call(4, CHANNEL, b"x")
    await until(lambda: low.mesh._remotes[4].link.age_ticks > 30)
    assert low.numbers(4)["connects"] == 1
    assert low.numbers(4)["unacked"] == high.numbers(3)["unacked"] == 0  # pings acknowledge


async def test_on_lost_tells_both_sides_when_nobody_listens_any_more(
    start: Any, until: Any
) -> None:
    low, middle, high = await start(1, 6), await start(2, 7), await start(3, 8)
    for node, others in ((low, [middle]), (middle, [low, high]), (high, [middle])):
        node.mesh.set_peers([other.peer for other in others])
    await low.mesh.call(2, CHANNEL, b"x")
    await middle.mesh.call(3, CHANNEL, b"x")
    await middle.stop()
    await until(lambda: low.lost and high.lost)
    assert set(low.lost) == set(high.lost) == {(2, 7)}  # low dials it; high probes it


async def test_a_broken_connection_to_a_live_peer_accuses_nobody(
    start: Any, proxy: Any, until: Any
) -> None:
    low, high = await start(1), await start(2)
    between = await proxy(high.peer.address)
    low.mesh.set_peers([high.peer._replace(address=between.address)])
    high.mesh.set_peers([low.peer])
    for n in range(1, 4):
        await low.mesh.call(2, CHANNEL, b"x")
        between.cut()
        await until(lambda n=n: low.numbers(2)["connects"] == high.numbers(1)["connects"] == n + 1)
    await until(lambda: not high.mesh._remotes[1].probing)
    assert (low.lost, high.lost) == ([], [])
    assert low.log.about("connection lost")
    assert high.log.about("connection lost")


async def test_who_never_connected_is_not_accused(start: Any, until: Any) -> None:
    gone, low = await start(2), await start(1)
    await gone.stop()
    low.mesh.set_peers([gone.peer])
    await until(lambda: low.mesh._remotes[2].attempt == 0 and low.log.about("cannot connect"))
    assert low.lost == []


IMPATIENT = Timing(ping_s=0.04, silent_s=0.16, handshake_s=0.5, unlisted_s=0.1, unreachable_s=0.2)


async def test_a_newcomer_that_nobody_can_reach_is_accused_and_accuses_nobody(
    start: Any, until: Any, unused_port: int
) -> None:
    nowhere = f"127.0.0.1:{unused_port}"
    older, newcomer = await start(1, 5, timing=IMPATIENT), await start(3, 7, timing=IMPATIENT)
    older.mesh.set_peers([Peer(2, 6, nowhere)])
    newcomer.mesh.set_peers([Peer(2, 6, nowhere), Peer(4, 5, nowhere)])
    await until(lambda: older.lost)
    assert set(older.lost) == {(2, 6)}
    assert older.mesh.never_met() == [Peer(2, 6, nowhere)]
    # So long that it would have, were it the older one.
    await until(lambda: newcomer.mesh._remotes[2].unlinked_ticks * 0.02 > 10 * 0.2)
    assert newcomer.lost == []


async def test_a_peer_that_was_just_listed_is_not_one_that_cannot_be_reached(
    start: Any, until: Any, unused_port: int
) -> None:
    patient = Timing(ping_s=0.04, silent_s=0.16, handshake_s=0.5, unlisted_s=0.1, unreachable_s=600)
    low = await start(1, timing=patient)
    low.mesh.set_peers([Peer(2, 6, f"127.0.0.1:{unused_port}")])
    await until(lambda: low.log.about("cannot connect"))
    assert low.mesh.never_met() == []


async def test_who_was_connected_and_cannot_be_reached_any_more_is_accused(
    start: Any, until: Any
) -> None:
    low, high = await start(1, timing=IMPATIENT), await start(2, timing=IMPATIENT)
    low.mesh.set_peers([high.peer])
    high.mesh.set_peers([low.peer])
    await until(lambda: low.mesh._remotes[2].link is not None)
    assert low.mesh.never_met() == []
    high.mesh.set_peers([])  # it listens, and lets nobody in
    await until(lambda: low.lost)
    assert set(low.lost) == {(2, high.peer.incarnation)}


async def test_a_newcomer_connects_as_soon_as_it_is_listed(start: Any, until: Any) -> None:
    low, high = await start(1, timing=QUICK), await start(2, timing=QUICK)
    low.mesh.set_peers([high.peer])
    call = low.mesh.start_call(2, CHANNEL, b"early")
    await until(lambda: high.log.about("node 1 incarnation 1 is not listed"))
    assert not low.mesh.reachable(2)
    assert high.handler.arrived == []
    high.mesh.set_peers([low.peer])
    assert await call.wait() == (b"re early", b"")


async def test_a_restarted_peer_is_another_one(start: Any, until: Any) -> None:
    low, high = await start(1, 1), await start(2, 1)
    low.mesh.set_peers([high.peer])
    high.mesh.set_peers([low.peer])
    held = low.mesh.start_call(2, CHANNEL, b"held")
    await until(lambda: high.handler.arrived)
    await high.stop()
    again = await start(2, 2)
    again.mesh.set_peers([low.peer])
    low.mesh.set_peers([Peer(2, 1, again.peer.address)])  # an old view: finds a stranger there
    await until(lambda: again.log.about("looks for node 2 incarnation 1"))
    low.mesh.set_peers([again.peer])
    with pytest.raises(PeerLost):
        await held.wait()
    assert await low.mesh.call(2, CHANNEL, b"new") == (b"re new", b"")
    assert again.handler.bodies == [b"new"]


async def test_an_older_incarnation_is_refused_at_once(start: Any, until: Any) -> None:
    old, high = await start(1, 1), await start(2, timing=Timing(unlisted_s=1.9))
    high.mesh.set_peers([Peer(1, 2, "127.0.0.1:1")])
    old.mesh.set_peers([high.peer])
    await until(lambda: high.log.about("node 1 incarnation 1 is not listed"))
    assert not old.mesh.reachable(2)


@pytest.mark.parametrize(
    ("wrong", "reason"), [({"secret": b"x"}, "wrong cluster secret"), ({"cluster": "d"}, "cluster")]
)
async def test_strangers_are_refused_with_one_line_and_members_are_not_disturbed(
    start: Any, until: Any, wrong: dict[str, Any], reason: str
) -> None:
    stranger, low, high = await start(1, **wrong), await start(2), await start(3)
    stranger.mesh.set_peers([high.peer])
    low.mesh.set_peers([high.peer])
    high.mesh.set_peers([stranger.peer, low.peer])
    await until(lambda: stranger.numbers(3)["refused"] > 3)
    assert await low.mesh.call(3, CHANNEL, b"x") == (b"re x", b"")
    assert not high.mesh.reachable(1)
    assert len(high.log.about(reason)) == 1
    assert len(stranger.log.about(reason)) == 1


async def test_a_newer_connection_replaces_the_older_and_a_late_older_one_is_refused(
    start: Any, until: Any
) -> None:
    high, me, session = await start(2), Peer(1, 5, ""), Session()
    high.mesh.set_peers([me])
    first = await dial(high.peer, me, 1, session)
    with first.socket:
        second = await dial(high.peer, me, 3, session)
        with second.socket:
            await hung_up(first.socket)
            frame = session.push(Kind.MESSAGE, CHANNEL, 0, 0, 1, b"over the second")
            await write(second.socket, b"".join(frame))
            await until(lambda: high.handler.bodies == [b"over the second"])
            for late in (1, 2, 3):
                with pytest.raises(Exception, match="older attempt"):
                    await dial(high.peer, me, late, session)
            assert high.mesh.reachable(1)
            assert high.numbers(1)["connects"] == 2


async def test_a_peer_that_forgot_the_session_is_given_up(start: Any, until: Any) -> None:
    high, me, session = await start(2), Peer(1, 5, ""), Session()
    high.mesh.set_peers([me])
    greeting = await dial(high.peer, me, 1, session)
    with greeting.socket:
        frame = session.push(Kind.MESSAGE, CHANNEL, 0, 0, 1, b"x")
        high.mesh.send(1, CHANNEL, b"reply")
        await until(lambda: high.numbers(1)["sent"] == 1)
        session.received = 1
        await write(greeting.socket, b"".join(frame + session.control(Kind.ACK, 1)))
        await until(lambda: high.numbers(1)["unacked"] == 0 and high.handler.arrived)
    with pytest.raises(Exception, match="acknowledged 1"):
        await dial(high.peer, me, 2, Session())
    assert high.numbers(1)["given_up"]


@pytest.mark.parametrize("seed", range(25))
async def test_noise_before_the_handshake_ends_is_harmless(start: Any, seed: int) -> None:
    noise = random.Random(seed)
    low, high = await start(1), await start(2, timing=QUICK)
    high.mesh.set_peers([low.peer])
    dialer = Dialer(low.peer, high.peer, "c", b"secret", 1, noise.randbytes(32))
    hello = handshake_frame(Kind.HELLO, dialer.hello)
    flipped = bytearray(hello)
    flipped[noise.randrange(len(hello))] ^= 1 << noise.randrange(8)
    for data in (
        noise.randbytes(noise.randrange(1, 10_000)),
        hello[: noise.randrange(len(hello))],
        bytes(flipped),
        hello + noise.randbytes(100),
        handshake_frame(Kind(noise.choice(list(Kind))), noise.randbytes(noise.randrange(100))),
        handshake_frame(Kind.HELLO, b"\x91" * 3000),
    ):
        with await connect(high.peer.address) as sock:
            await write(sock, data)
            if noise.random() < 0.5:
                await hung_up(sock)
    low.mesh.set_peers([high.peer])
    assert await low.mesh.call(2, CHANNEL, b"x") == (b"re x", b"")


def nonsense(noise: random.Random, ahead: int) -> bytes:
    """Return what is no frame, or a frame with something wrong in it."""
    kind = noise.choice([*Kind, 0, 25, 200])
    sequence, call = (noise.choice([0, 1, ahead, 2**63, 2**64 - 1]) for _ in range(2))
    ack = noise.choice([0, 2**63, 2**64 - 1])
    frame = encode(kind, 99, 7, sequence, ack, call, 1, noise.randbytes(20))
    return noise.choice([noise.randbytes(5000), bytes(48), b"\xff" * 48, b"".join(frame)])


@pytest.mark.parametrize("seed", range(25))
async def test_noise_of_a_genuine_peer_drops_its_connection_and_nothing_else(
    start: Any, until: Any, seed: int
) -> None:
    noise = random.Random(seed)
    high, me, session = await start(2), Peer(1, 5, ""), Session()
    high.mesh.set_peers([me])
    for attempt in range(1, 6):
        greeting = await dial(high.peer, me, attempt, session)
        with greeting.socket:
            good = session.push(Kind.MESSAGE, CHANNEL, 0, 0, 1, b"%d" % attempt, bytes(3000))
            await write(greeting.socket, b"".join(good))
            await until(lambda n=attempt: high.handler.bodies[-1:] == [b"%d" % n])
            await write(greeting.socket, nonsense(noise, session.sent + 2))
            if noise.random() < 0.5:
                high.mesh.send(1, CHANNEL, b"into the void")
    assert high.handler.bodies == [b"%d" % n for n in range(1, 6)]
    low = await start(1, 6)
    low.mesh.set_peers([high.peer])
    high.mesh.set_peers([low.peer])
    assert await low.mesh.call(2, CHANNEL, b"x") == (b"re x", b"")
