import errno
import os
import socket
from pathlib import Path
from typing import Any

import pytest
import trio

from clusterfs.control import Server, ask
from clusterfs.errors import NotAnswering


def echo(request: Any) -> dict[str, Any]:
    return {"said": request["word"] * request.get("times", 1)}


@pytest.mark.parametrize("depth", [0, 4], ids=["short path", "path of more than 107 bytes"])
async def test_requests_are_answered_over_the_socket(tmp_path: Path, depth: int) -> None:
    folder = tmp_path.joinpath(*["a-folder-with-a-long-name-of-forty-letters"] * depth)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "control.sock"
    path.write_text("left behind by a dead daemon")
    async with trio.open_nursery() as nursery:
        await nursery.start(Server({"echo": echo}).serve, path)
        assert path.stat().st_mode & 0o777 == 0o600
        assert await trio.to_thread.run_sync(lambda: ask(path, "ping")) == {"ok": True}
        big = await trio.to_thread.run_sync(lambda: ask(path, "echo", word="x", times=1 << 20))
        assert big["said"] == "x" * (1 << 20)
        with pytest.raises(NotAnswering, match="'nonsense'; there are: echo, ping"):
            await trio.to_thread.run_sync(lambda: ask(path, "nonsense"))
        nursery.cancel_scope.cancel()
    assert not path.exists()


async def test_it_ends_quietly_where_its_folder_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(path: Path, **_: bool) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO), str(path))

    async with trio.open_nursery() as nursery:
        await nursery.start(Server({}).serve, tmp_path / "control.sock")
        monkeypatch.setattr(Path, "unlink", fail)
        nursery.cancel_scope.cancel()


async def test_an_endless_request_ends_the_connection(tmp_path: Path) -> None:
    path = tmp_path / "control.sock"
    async with trio.open_nursery() as nursery:
        await nursery.start(Server({}).serve, path)
        async with await trio.open_unix_socket(str(path)) as stream:
            with pytest.raises(trio.BrokenResourceError):
                await stream.send_all(b"x" * (16 << 20))
        assert await trio.to_thread.run_sync(lambda: ask(path, "ping")) == {"ok": True}
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize(
    "line", [b"", b"{", b"[]", b"\xff", b'{"request": 3}', b"{}", b'{"a":' * 5000]
)
async def test_garbage_gets_an_error_reply(line: bytes) -> None:
    reply = await Server({}).answer(line)
    assert reply["ok"] is False
    assert isinstance(reply["error"], str)


async def test_a_reply_that_is_too_large_or_not_whole_is_said_to_be(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "control.sock"
    monkeypatch.setattr("clusterfs.control._REPLY_BYTES", 1 << 20)
    async with trio.open_nursery() as nursery:
        await nursery.start(Server({"echo": echo}).serve, path)
        with pytest.raises(NotAnswering, match="larger than 1 MiB: ask for less"):
            await trio.to_thread.run_sync(lambda: ask(path, "echo", word="x", times=1 << 21))
        nursery.cancel_scope.cancel()

    async def breaks_off(stream: trio.SocketStream) -> None:
        async with stream:
            await stream.receive_some()
            await stream.send_all(b'{"ok": true, "locks": [')

    with trio.socket.socket(trio.socket.AF_UNIX) as listener:
        await listener.bind(str(path))
        listener.listen()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio.serve_listeners, breaks_off, [trio.SocketListener(listener)])
            with pytest.raises(NotAnswering, match="ended before its reply did"):
                await trio.to_thread.run_sync(lambda: ask(path, "locks"))
            nursery.cancel_scope.cancel()


def test_nobody_listening_is_one_clear_line(tmp_path: Path) -> None:
    with pytest.raises(NotAnswering, match="no daemon answers"):
        ask(tmp_path / "control.sock", "ping")


async def test_a_handler_may_wait_for_others() -> None:
    async def later() -> dict[str, Any]:
        await trio.lowlevel.checkpoint()
        return {"said": "at last"}

    reply = await Server({"later": lambda _: later()}).answer(b'{"request": "later"}')
    assert reply == {"ok": True, "said": "at last"}


async def test_an_order_may_wait_for_a_disk_that_stalls(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A change of view is some syncs, one after the other, each of which may take seconds."""
    given: list[float] = []
    monkeypatch.setattr(
        socket.socket, "settimeout", lambda _self, seconds: given.append(seconds), raising=False
    )
    with pytest.raises(NotAnswering):
        ask(tmp_path / "nobody.sock", "forget")
    assert min(given) >= 60
