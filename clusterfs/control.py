"""The admin protocol: one JSON object a line over a unix socket in the brick.

A request is {"request": NAME, ...}, its reply {"ok": true, ...} or {"ok": false, "error": TEXT}, in
order, any number on one connection. The daemon serves it with `Server`; tools ask with `ask`, which
is synchronous because tools are.

A unix socket's path has at most 107 bytes: longer ones go through the folder's descriptor in
/proc/self/fd.

Invariants:
  * root, the daemon's own user and the members of one group are answered, nobody else: the socket's
    mode says so, and each connection is asked who it is;
  * a request line has at most 64 KiB; garbage gets an error reply and the end of the connection;
  * a synchronous handler's reply is one consistent picture of the daemon; one that has much to say,
    or asks other nodes, returns an awaitable that ends within its own time limit.
"""

import contextlib
import grp
import os
import socket
import struct
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec
import trio

from clusterfs.errors import NotAnswering, SetupError

Reply = Mapping[str, Any]
Handler = Callable[[Mapping[str, Any]], Reply | Awaitable[Reply]]

REQUEST_BYTES = 64 << 10
LOOK_S = 15.0  # for what a daemon knows by heart
PATIENCE_S = 120.0  # an order may wait for a change of view, and for syncs of a disk that stalls
_REPLY_BYTES = 1 << 30  # a few million locks
_CHUNK_BYTES = 64 << 10
_PATH_BYTES = 107
_encoder = msgspec.json.Encoder()
_CREDENTIALS = struct.Struct("=iII")  # pid, uid, gid
_SO_PEERGROUPS = 59  # linux/socket.h; not in the module socket
_GROUPS_BYTES = 1024  # the most that getsockopt takes


class Server:
    """Answers requests by name: `handlers[name](request)` returns the fields of the reply."""

    def __init__(self, handlers: Mapping[str, Handler], group: int | None = None) -> None:
        self._group = group
        self._handlers: dict[str, Handler] = {"ping": lambda _request: {}, **handlers}

    async def serve(
        self, path: Path, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
    ) -> None:
        """Listen on `path` until cancelled; a socket left behind by a dead daemon is replaced."""
        listener = _listening(path, self._group)
        try:
            async with trio.open_nursery() as nursery:
                task_status.started()
                await trio.serve_listeners(
                    self._converse, [trio.SocketListener(listener)], handler_nursery=nursery
                )
        finally:
            listener.close()
            _remove(path)

    async def _converse(self, stream: trio.SocketStream) -> None:
        if not self._may_ask(stream.socket):
            await stream.aclose()
            return
        pending = bytearray()
        try:
            async with stream:
                async for chunk in stream:
                    pending += chunk
                    *lines, rest = pending.split(b"\n")
                    pending = rest
                    for line in lines:
                        reply = await self.answer(bytes(line))
                        await stream.send_all(_encoded(reply))
                    if len(pending) > REQUEST_BYTES:
                        return
        except trio.BrokenResourceError:
            return  # the tool went away; nothing depends on it

    def _may_ask(self, connection: trio.socket.SocketType) -> bool:
        """Tell whether root, our own user or a member of the group is at the other end."""
        packed = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
        pid, uid, gid = _CREDENTIALS.unpack(packed)
        if uid in (0, os.geteuid()):
            return True
        if self._group is not None and self._group in {gid, *_groups_of(connection)}:
            return True
        import structlog  # noqa: PLC0415  brings a terminal library, which programs that ask need not

        log = structlog.get_logger(package="control")
        log.warning("admin request refused", pid=pid, uid=uid, gid=gid)
        return False

    async def answer(self, line: bytes) -> dict[str, Any]:
        """Return the reply to one request line."""
        try:
            request = msgspec.json.decode(line, type=dict[str, Any])
        except (msgspec.DecodeError, RecursionError):
            return {"ok": False, "error": "a request is one JSON object on one line"}
        name = request.get("request")
        handler = self._handlers.get(name) if isinstance(name, str) else None
        if handler is None:
            known = ", ".join(sorted(self._handlers))
            return {"ok": False, "error": f"no such request: {name!r}; there are: {known}"}
        fields = handler(request)
        if isinstance(fields, Awaitable):
            fields = await fields
        return {"ok": True, **fields}


def group_number(name: str | None) -> int | None:
    """Return a group's number. Raises SetupError if there is no such group."""
    if name is None:
        return None
    try:
        return grp.getgrnam(name).gr_gid
    except KeyError:
        raise SetupError(f"admin_group: this machine has no group {name}") from None


def _groups_of(connection: trio.socket.SocketType) -> tuple[int, ...]:
    """Return the other end's supplementary groups; none if it has more than 256."""
    try:
        packed = connection.getsockopt(socket.SOL_SOCKET, _SO_PEERGROUPS, _GROUPS_BYTES)
    except OSError:
        return ()
    return struct.unpack(f"={len(packed) // 4}I", packed)


def _listening(path: Path, group: int | None) -> trio.socket.SocketType:
    path.unlink(missing_ok=True)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    with short(path) as address:
        listener.bind(address)
    if group is not None:
        os.chown(path, -1, group)
    path.chmod(0o600 if group is None else 0o660)
    listener.listen(16)
    return trio.socket.from_stdlib_socket(listener)


def _remove(path: Path) -> None:
    with contextlib.suppress(OSError):  # the brick's filesystem may have failed
        path.unlink()


def ask(
    path: Path, request: str, *, timeout_s: float = PATIENCE_S, **arguments: Any
) -> dict[str, Any]:
    """Send one request to the daemon behind `path` and return its reply.

    Raises NotAnswering if nobody listens, the reply pauses for longer than `timeout_s`, is larger
    than 1 GiB or not whole, or is not ok.
    """
    line = msgspec.json.encode({"request": request, **arguments}) + b"\n"
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
            connection.settimeout(timeout_s)
            with short(path) as address:
                connection.connect(address)
            connection.sendall(line)
            answer = _receive_line(connection)
    except TimeoutError as failure:
        raise NotAnswering(f"{path}: no answer within {timeout_s:g} s") from failure
    except OSError as failure:
        raise NotAnswering(f"{path}: no daemon answers ({failure.strerror})") from failure
    if len(answer) >= _REPLY_BYTES:
        raise NotAnswering(
            f"{path}: the reply is larger than {_REPLY_BYTES >> 20} MiB: ask for less"
        )
    if not answer.endswith(b"\n"):
        raise NotAnswering(f"{path}: the daemon ended before its reply did")
    try:
        reply = msgspec.json.decode(answer, type=dict[str, Any])
    except msgspec.DecodeError as failure:
        raise NotAnswering(f"{path}: the reply is not a JSON object") from failure
    if not reply.get("ok"):
        raise NotAnswering(f"{path}: {reply.get('error', 'the daemon refused')}")
    return reply


def _receive_line(connection: socket.socket) -> bytes:
    received = bytearray()
    while not received.endswith(b"\n") and len(received) < _REPLY_BYTES:
        chunk = connection.recv(_CHUNK_BYTES)
        if not chunk:
            break
        received += chunk
    return bytes(received)


@contextmanager
def short(path: Path) -> Iterator[str]:
    """Give an address for `path` that fits into a unix socket's 107 bytes, to bind or connect."""
    if len(os.fsencode(path)) <= _PATH_BYTES:
        yield str(path)
        return
    folder = os.open(path.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{folder}/{path.name}"
    finally:
        os.close(folder)


def _encoded(reply: Mapping[str, Any]) -> bytearray:
    """Return a line; a very long one is not copied once more for its end."""
    line = bytearray()
    _encoder.encode_into(reply, line)
    line += b"\n"
    return line
