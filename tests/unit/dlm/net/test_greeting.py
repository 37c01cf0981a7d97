"""Addresses and sockets of a handshake."""

import socket

import pytest
import trio

from dlm.net.errors import Malformed, Rejected
from dlm.net.framing import Kind
from dlm.net.greeting import Greeting, accept, connect, listen, split_address
from dlm.net.handshake import reject


@pytest.mark.parametrize(
    ("address", "parts"),
    [("host:12", ("host", 12)), ("10.0.0.1:1", ("10.0.0.1", 1)), ("[::1]:7", ("::1", 7))],
)
def test_addresses_are_host_and_port(address: str, parts: tuple[str, int]) -> None:
    assert split_address(address) == parts


@pytest.mark.parametrize("address", ["", "host", "host:", "host:x"])
def test_what_has_no_port_is_no_address(address: str) -> None:
    with pytest.raises(ValueError, match="invalid literal"):
        split_address(address)


async def test_a_port_is_taken_once_and_refuses_when_nobody_listens() -> None:
    (listener,) = await listen("127.0.0.1", 0)
    port = listener.getsockname()[1]
    with listener, pytest.raises(OSError, match="in use"):
        await listen("127.0.0.1", port)
    with pytest.raises(ConnectionRefusedError):
        await connect(f"127.0.0.1:{port}")


async def test_connections_do_not_delay() -> None:
    (listener,) = await listen("127.0.0.1", 0)
    address = f"127.0.0.1:{listener.getsockname()[1]}"
    with listener, await connect(address) as near, await accept(listener) as far:
        for sock in (near, far):
            assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
            assert not sock.getblocking()


async def test_frames_of_a_handshake_come_one_by_one() -> None:
    here, there = socket.socketpair()
    here.setblocking(False)
    there.setblocking(False)
    with here, there:
        near, far = Greeting(here), Greeting(there)
        for kind, body in [(Kind.HELLO, b"1"), (Kind.PROOF, b"2"), (Kind.PROOF, b"3")]:
            await near.send(kind, body)
        await near.send(Kind.REJECT, reject("too late"))
        assert await far.receive(Kind.HELLO) == b"1"
        assert await far.receive(Kind.PROOF) == b"2"
        with pytest.raises(Malformed, match="expected WELCOME"):
            await far.receive(Kind.WELCOME)
        with pytest.raises(Rejected, match="too late"):
            await far.receive(Kind.WELCOME)
        here.close()
        with pytest.raises(ConnectionResetError), trio.fail_after(300):
            await far.receive(Kind.WELCOME)
