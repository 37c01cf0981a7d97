"""Which endpoint the gateway asks, against endpoints of the test's own that hang."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

import pytest
import trio

from clusterfs.cluster.providers.etcd_gateway import Gateway, Login
from clusterfs.errors import ProviderAway

ATTEMPT_S = 5.0  # longer than a busy machine makes the good one wait
_HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n"
_FOUND = b'{"header": {"revision": "7"}}'
_WATCHED = b'{"result": {"header": {"revision": "7"}, "created": true}}\n'


async def good(stream: trio.SocketStream) -> None:
    """Answer every request."""
    with suppress(trio.BrokenResourceError):
        while await stream.receive_some(65536):
            await stream.send_all(_HEAD + b"Content-Length: %d\r\n\r\n%s" % (len(_FOUND), _FOUND))


async def hung(stream: trio.SocketStream) -> None:
    """Open watches, and answer nothing else."""
    asked = await stream.receive_some(65536)
    if b"/v3/watch" in asked:
        chunk = b"%x\r\n%s\r\n" % (len(_WATCHED), _WATCHED)
        await stream.send_all(_HEAD + b"Transfer-Encoding: chunked\r\n\r\n" + chunk)
    await trio.sleep_forever()


@asynccontextmanager
async def gateway() -> AsyncIterator[tuple[Gateway, trio.Nursery]]:
    """Yield one that prefers an endpoint that hangs, before a good one."""
    async with trio.open_nursery() as nursery:
        endpoints = []
        for handler in (hung, good):
            listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
            nursery.start_soon(trio.serve_listeners, handler, listeners)
            endpoints.append(f"http://127.0.0.1:{listeners[0].socket.getsockname()[1]}")
        asked = Gateway(Login(tuple(endpoints)), ATTEMPT_S)
        yield asked, nursery
        await asked.close()
        nursery.cancel_scope.cancel()


async def test_calls_at_once_all_find_the_endpoint_that_answers() -> None:
    async with gateway() as (asked, _), trio.open_nursery() as calls:
        calls.start_soon(asked.range, b"k")
        await trio.sleep(ATTEMPT_S / 5)  # so one learns while the other still waits
        calls.start_soon(asked.range, b"k")


async def test_a_watch_ends_when_calls_find_its_endpoint_dead() -> None:
    async with gateway() as (asked, nursery):
        standing = trio.Event()
        failed = trio.Event()

        async def watch() -> None:
            with pytest.raises(ProviderAway):
                await asked.watch(b"p", 6, 600.0, lambda _revision: standing.set())
            failed.set()

        nursery.start_soon(watch)
        with trio.fail_after(300):
            await standing.wait()
            assert (await asked.range(b"k")).revision == 7
            await failed.wait()


async def test_an_endpoint_that_is_always_slow_is_given_the_time_it_needs() -> None:
    """As one whose disk takes long to sync."""
    asked_s = 0.3

    async def slow(stream: trio.SocketStream) -> None:
        while await stream.receive_some(65536):
            await trio.sleep(2 * asked_s)
            with suppress(trio.BrokenResourceError):
                await stream.send_all(
                    _HEAD + b"Content-Length: %d\r\n\r\n%s" % (len(_FOUND), _FOUND)
                )

    async with trio.open_nursery() as nursery:
        listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
        nursery.start_soon(trio.serve_listeners, slow, listeners)
        address = f"http://127.0.0.1:{listeners[0].socket.getsockname()[1]}"
        asked = Gateway(Login((address,)), asked_s)
        with pytest.raises(ProviderAway):
            await asked.range(b"k")
        found = None
        with trio.fail_after(300):
            while found is None:
                with suppress(ProviderAway):
                    found = await asked.range(b"k")
        assert found.revision == 7
        await asked.close()
        nursery.cancel_scope.cancel()


# httpx leaves generators of requests that were cancelled to the garbage collector.
@pytest.mark.filterwarnings("ignore::ResourceWarning")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
async def test_calls_that_nobody_answered_leave_connections_for_those_that_come_later() -> None:
    """Many at once are cancelled while a connection becomes free, and is given to them."""
    answering = False

    async def moody(stream: trio.SocketStream) -> None:
        if answering:
            await good(stream)
        await trio.sleep_forever()

    async def call_in_vain() -> None:
        with suppress(ProviderAway):
            await asked.range(b"k")

    async with trio.open_nursery() as nursery:
        listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
        nursery.start_soon(trio.serve_listeners, moody, listeners)
        address = f"http://127.0.0.1:{listeners[0].socket.getsockname()[1]}"
        asked = Gateway(Login((address,)), 0.1)  # soon it waits for a busy machine
        for _ in range(10):
            async with trio.open_nursery() as calls:
                for _ in range(30):
                    calls.start_soon(call_in_vain)
                    await trio.sleep(0.001)
        answering = True
        found = None
        with trio.fail_after(300):
            while found is None:
                with suppress(ProviderAway):
                    found = await asked.range(b"k")
        assert found.revision == 7
        await asked.close()
        nursery.cancel_scope.cancel()
