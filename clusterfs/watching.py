"""Watching directories: changes made on any node, told in order, none left out without a word.

A node at which somebody watches says so to every member, again and again (REFRESH_S): which
directories, and a token. Each member tells it of changes to those by calls, and waits for the
answers (fs/events.py). A member that could not tell something forgets the watching node; the next
time it is refreshed it does not know the token, and that is how the watching node knows that it
missed something. It then says "overflow" to its watchers, as it does when a member has gone
(which may have changed something and died before it told), when one has come, and when a watcher
does not fetch its events.

Watchers are asked for by the admin socket: `watch` begins, `watch_next` waits for events. One that
does not ask for a while is forgotten.
"""

import secrets
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import msgspec
import trio

from clusterfs.fs.events import Event, Events
from dlm.errors import PeerLost
from dlm.net import Answer, Malformed, Mesh, Refused

CHANNEL = 6
ANSWER_S = 10.0  # how long a peer may take; who changes names waits for that long at most
REFRESH_S = 0.5
_PATIENCE_S = 2.0  # of `watch_next`
_FORGET_S = 60.0
_NUMBERS = 1 << 63  # inode numbers are below
_MOST = 100_000  # events that wait for one watcher
_FAILURES = (PeerLost, Refused, trio.TooSlowError)


class Interest(msgspec.Struct, frozen=True, tag="interest"):
    """What a node wants to hear of."""

    token: int
    directories: frozenset[int]


class Told(msgspec.Struct, frozen=True, tag="told"):
    """Something that happened."""

    event: Event


Body = Interest | Told


class Watch:
    """One watcher of some directories, at this node."""

    def __init__(self, directory: int) -> None:
        self.directories = {directory}
        self.events: list[Event] = []
        self.overflow = ""
        self.news = trio.Event()
        self.asked_at_s = trio.current_time()

    def hear(self, event: Event) -> None:
        """Keep an event for the watcher."""
        if event.directory and event.directory not in self.directories:
            return
        if len(self.events) < _MOST:
            self.events.append(event)
        else:
            self.overflow = "the watcher does not fetch its events"
        self.news.set()

    def miss(self, why: str) -> None:
        """Say that something may have been missed."""
        self.overflow = why
        self.news.set()


class Watching:
    """The watchers of this node, and what other nodes watch."""

    def __init__(
        self,
        mesh: Mesh,
        events: Events,
        me: Callable[[], int],
        members: Callable[[], dict[int, str]],
    ) -> None:
        self._mesh = mesh
        self._events = events
        self._me = me
        self._members = members
        self._watches: dict[int, Watch] = {}
        self._token = 0
        self._knowing: set[int] = set()  # nodes that tell us
        self._interests: dict[int, Interest] = {}  # of other nodes
        self._refreshing = trio.Lock()
        events.listener = self._tell
        mesh.register(CHANNEL, self)

    # -- telling

    async def _tell(self, event: Event) -> None:
        """Tell everybody who wants to know, and wait until they have heard it."""
        self._hear(event)
        wanting = [
            node
            for node, interest in self._interests.items()
            if not event.directory or event.directory in interest.directories
        ]
        if wanting:
            async with trio.open_nursery() as nursery:
                for node in wanting:
                    nursery.start_soon(self._tell_node, node, event)

    async def _tell_node(self, node: int, event: Event) -> None:
        try:
            with trio.fail_after(ANSWER_S):
                await self._mesh.call(node, CHANNEL, _encode(Told(event)))
        except _FAILURES:
            self._interests.pop(node, None)  # its next refresh finds that out
            self._note()

    def _hear(self, event: Event) -> None:
        for watch in self._watches.values():
            watch.hear(event)

    def _note(self) -> None:
        """Let the filesystem know which directories are watched."""
        self._events.watched = self._wanted().union(
            *(interest.directories for interest in self._interests.values())
        )

    def _wanted(self) -> frozenset[int]:
        return frozenset().union(*(watch.directories for watch in self._watches.values()))

    # -- being told

    def message(self, *_: object) -> None:
        """Refuse: watching is done by calls."""
        raise Malformed("the channel of watching takes no messages")

    def begin_call(
        self, sender: int, incarnation: int, epoch: int, body: bytes, payload: bytes
    ) -> Answer:
        """Hear an event of a peer, or what it wants to hear of."""
        del incarnation, epoch, payload
        try:
            asked: Body = msgspec.msgpack.decode(body, type=Body)
        except msgspec.DecodeError as bad:
            raise Malformed(str(bad)) from bad
        if isinstance(asked, Told):
            self._hear(asked.event)
            return b"", b""
        known = self._interests.get(sender)
        if asked.directories:
            self._interests[sender] = asked
        else:
            self._interests.pop(sender, None)
        self._note()
        return b"", b"1" if known is not None and known.token == asked.token else b"0"

    # -- watching

    async def run(self) -> None:
        """Refresh what this node wants to hear of, for ever."""
        while True:
            await trio.sleep(REFRESH_S)
            now_s = trio.current_time()
            for number, watch in list(self._watches.items()):
                if now_s - watch.asked_at_s > _FORGET_S:
                    del self._watches[number]
            if self._watches or self._knowing:
                await self._refresh()

    async def _refresh(self) -> set[int]:
        """Tell every member what this node wants to hear of; returns who does not answer."""
        silent: set[int] = set()
        async with self._refreshing:
            self._note()
            wanted = self._wanted()
            interest = Interest(self._token, wanted)
            others = {n: name for n, name in self._members().items() if n != self._me()}
            for node in self._knowing - set(others):
                self._knowing.discard(node)
                self._miss(f"node {node} left the cluster")
            async with trio.open_nursery() as nursery:
                for node, name in others.items():
                    nursery.start_soon(self._refresh_node, node, name, interest, silent)
            if not wanted:
                self._knowing.clear()
        return silent

    async def _refresh_node(
        self, node: int, name: str, interest: Interest, silent: set[int]
    ) -> None:
        try:
            with trio.fail_after(ANSWER_S):
                _, known = await self._mesh.call(node, CHANNEL, _encode(interest))
        except _FAILURES:
            silent.add(node)  # as long as it does not answer, nobody knows whether it tells us
            return
        if known != b"1":
            self._miss(f"{name} may have changed something without telling")
        self._knowing.add(node)

    def _miss(self, why: str) -> None:
        for watch in self._watches.values():
            watch.miss(why)

    # -- the admin socket

    def begin(self, request: Mapping[str, Any]) -> Awaitable[dict[str, Any]]:
        """Answer "watch": {directory: inode}; the reply has a number for `watch_next`."""
        return self._begin(request)

    async def _begin(self, request: Mapping[str, Any]) -> dict[str, Any]:
        directory = request.get("directory")
        if not isinstance(directory, int) or not 0 < directory < _NUMBERS:
            return {"ok": False, "error": "directory is an inode number"}
        if not self._watches:
            self._token = secrets.randbits(62) | 1
        number = secrets.randbits(48)
        watch = self._watches[number] = Watch(directory)
        await self._refresh()
        silent = set(self._members()) - self._knowing - {self._me()}
        watch.overflow = "" if not silent else "not all nodes answer"
        return {"watch": number}

    def change(self, request: Mapping[str, Any]) -> Awaitable[dict[str, Any]]:
        """Answer "watch_change": {watch, add: inodes, remove: inodes}, once all nodes know."""
        return self._change(request)

    async def _change(self, request: Mapping[str, Any]) -> dict[str, Any]:
        watch = self._known(request)
        add, remove = (request.get(word, []) for word in ("add", "remove"))
        if watch is None or not _are_inodes(add) or not _are_inodes(remove):
            return {"ok": False, "error": "no such watch, or no lists of inode numbers"}
        watch.directories |= set(add)
        watch.directories -= set(remove)
        if await self._refresh():
            watch.miss("not all nodes answer")
        return {}

    def next(self, request: Mapping[str, Any]) -> Awaitable[dict[str, Any]]:
        """Answer "watch_next": {watch}; waits a moment for events."""
        return self._next(request)

    async def _next(self, request: Mapping[str, Any]) -> dict[str, Any]:
        watch = self._known(request)
        if watch is None:
            return {
                "ok": False,
                "error": "no such watch: it was not asked for too long; start anew",
            }
        watch.asked_at_s = trio.current_time()
        with trio.move_on_after(_PATIENCE_S):
            await watch.news.wait()
        watch.news = trio.Event()
        events, watch.events = watch.events, []
        overflow, watch.overflow = watch.overflow, ""
        return {"events": [_told(event) for event in events], "overflow": overflow}

    def end(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """Answer "watch_end": {watch}."""
        for number, watch in list(self._watches.items()):
            if watch is self._known(request):
                del self._watches[number]
        self._note()
        return {}

    def _known(self, request: Mapping[str, Any]) -> Watch | None:
        number = request.get("watch")
        return self._watches.get(number) if isinstance(number, int) else None


def _are_inodes(numbers: object) -> bool:
    return isinstance(numbers, list) and all(
        isinstance(number, int) and 0 < number < _NUMBERS for number in numbers
    )


def _encode(body: Body) -> bytes:
    return msgspec.msgpack.encode(body)


def _told(event: Event) -> dict[str, Any]:
    name = event.name.decode("utf-8", "surrogateescape").encode("utf-8", "backslashreplace")
    fields = msgspec.structs.asdict(event)
    return fields | {"name": name.decode(), "raw": event.name.hex()}
