"""Sockets until a link takes over: listen, connect, and the frames of a handshake.

Everything here is done once a connection, so it is written for clarity; sockets are non-blocking
stdlib ones, because Link reads and writes them without trio's layer between.
"""

import errno
import socket
from typing import Any, Final

import trio

from dlm.net.errors import Malformed
from dlm.net.framing import HANDSHAKE_LIMIT, Decoder, Kind, encode
from dlm.net.handshake import rejection
from dlm.net.tls import Channel

_BACKLOG = 128


class Greeting:
    """One connection during its handshake."""

    def __init__(self, sock: Channel) -> None:
        self.socket: Final = sock
        self.decoder: Final = Decoder(HANDSHAKE_LIMIT)

    async def send(self, kind: Kind, body: bytes) -> None:
        """Send one handshake frame."""
        left = memoryview(handshake_frame(kind, body))
        while left:
            try:
                left = left[self.socket.send(left) :]
            except BlockingIOError:
                await trio.lowlevel.wait_writable(self.socket)

    async def receive(self, kind: Kind) -> bytes:
        """Return the body of the next frame, which must be of that kind.

        Raises:
            Rejected: the other side says no.
            Malformed: anything else came.
            ConnectionResetError: closed.
        """
        while not (frames := self.decoder.frames(1)):
            try:
                count = self.socket.recv_into(self.decoder.room())
            except BlockingIOError:
                await trio.lowlevel.wait_readable(self.socket)
                continue
            if not count:
                raise ConnectionResetError(errno.ECONNRESET, "closed during the handshake")
            self.decoder.received(count)
        if frames[0].kind == Kind.REJECT:
            raise rejection(frames[0].body)
        if frames[0].kind != kind:
            raise Malformed(f"frame kind {frames[0].kind}, expected {kind.name}")
        return frames[0].body


def handshake_frame(kind: Kind, body: bytes) -> bytes:
    """Return the bytes of a frame outside the sequence."""
    return bytes(encode(kind, 0, 0, 0, 0, 0, 0, body)[0])


def split_address(address: str) -> tuple[str, int]:
    """Return host and port of `host:port` or `[v6]:port`.

    Raises:
        ValueError: it is neither.
    """
    host, _, port = address.rpartition(":")
    return host.removeprefix("[").removesuffix("]"), int(port)


async def listen(host: str, port: int) -> list[socket.socket]:
    """Return listening sockets for every address of the host, all on the same port.

    Raises:
        OSError: the port is taken, the host has no such address.
    """
    found = await trio.socket.getaddrinfo(
        host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
    )
    listeners: list[socket.socket] = []
    try:
        for family, kind, protocol, _, address in found:
            if listeners and not port:
                break  # a port of the kernel's choice would differ per address
            listener = socket.socket(family, kind, protocol)
            listeners.append(listener)
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6:
                listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            listener.setblocking(False)
            listener.bind(address)
            listener.listen(_BACKLOG)
    except OSError:
        for listener in listeners:
            listener.close()
        raise
    return listeners


async def accept(listener: socket.socket) -> socket.socket:
    """Return the next connection.

    Raises:
        OSError: no descriptors left, or the connection is gone again.
    """
    while True:
        await trio.lowlevel.wait_readable(listener)
        try:
            sock, _ = listener.accept()
        except BlockingIOError:
            continue
        try:
            prepare(sock)
        except OSError:
            sock.close()
            raise
        return sock


async def connect(address: str) -> socket.socket:
    """Return a connection to the first address that answers.

    Raises:
        OSError: none does.
        ValueError: no address.
    """
    host, port = split_address(address)
    refusal = OSError(errno.EADDRNOTAVAIL, f"{address} has no address")
    for family, kind, protocol, _, target in await trio.socket.getaddrinfo(
        host, port, type=socket.SOCK_STREAM
    ):
        sock = socket.socket(family, kind, protocol)
        try:
            prepare(sock)
            await _connect(sock, target)
        except OSError as error:
            sock.close()
            refusal = error
        except BaseException:
            sock.close()
            raise
        else:
            return sock
    raise refusal


def prepare(sock: socket.socket) -> None:
    """Make a fresh socket what this package needs."""
    sock.setblocking(False)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)


async def _connect(sock: socket.socket, target: Any) -> None:
    code = sock.connect_ex(target)
    if code == errno.EINPROGRESS:
        await trio.lowlevel.wait_writable(sock)
        code = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
    if code:
        raise OSError(code, errno.errorcode.get(code, "connect"))


async def answers(address: str, within_s: float = 2.0) -> bool:
    """Tell whether the host at an address answers, be it that nobody listens there."""
    try:
        with trio.fail_after(within_s):
            (await connect(address)).close()
    except ConnectionRefusedError:
        return True
    except (OSError, ValueError, trio.TooSlowError):
        return False
    return True
