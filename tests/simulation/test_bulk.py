"""Many locks asked for at once, by tasks that lose patience: the library's own shell, by seed.

What is in a batch must all arrive, in order, once; nobody may keep what it no longer waits for;
what excludes others does so, whoever asked for it in whatever company.
"""

import os
import random
from collections import deque
from collections.abc import Callable
from contextlib import suppress

import pytest
import trio
from trio.testing import MockClock

from dlm import outbox
from dlm.errors import LockCancelled
from dlm.messages import Message, decode_all, encode_all
from dlm.node import Flags, Lock, Lockspace, Mode, Name

FIRST_SEED = int(os.environ.get("CLUSTERFS_SEED", "0"))
NODES, TASKS, ROUNDS, NAMES = 3, 3, 6, 24
MODES = (Mode.PR, Mode.PR, Mode.CR, Mode.PW, Mode.EX)


class Bulk:
    """Three lockspaces, links that take time, and tasks that take pages of locks."""

    def __init__(self, seed: int, nursery: trio.Nursery) -> None:
        self.dice = random.Random(seed)
        self.held: dict[Name, list[Lock]] = {}
        self._nursery = nursery
        self._links: dict[tuple[int, int], deque[tuple[float, bytes]]] = {}
        members = dict.fromkeys(range(1, NODES + 1), 1)
        self.spaces = {
            node: Lockspace(node, 1, self._sender(node), trio.current_time) for node in members
        }
        for space in self.spaces.values():
            nursery.start_soon(space.run)
            space.enter(1, members)

    def _sender(self, source: int) -> Callable[[int, bytes], None]:
        def send(target: int, body: bytes) -> None:
            link = self._links.setdefault((source, target), deque())
            last_s = link[-1][0] if link else 0.0
            at_s = max(last_s, trio.current_time() + self.dice.uniform(0.0001, 0.002))
            link.append((at_s, body))
            if len(link) == 1:
                self._nursery.start_soon(self._carry, source, target, link)

        return send

    async def _carry(self, source: int, target: int, link: deque[tuple[float, bytes]]) -> None:
        while link:
            await trio.sleep_until(link[0][0])
            self.spaces[target].deliver(source, link[0][1])
            link.popleft()

    async def work(self, node: int) -> None:
        """Take a page of locks, in the order of their names as everybody does, and give it up."""
        space, dice = self.spaces[node], self.dice
        for _ in range(ROUNDS):
            await trio.sleep(dice.uniform(0, 0.003))
            numbers = sorted(dice.sample(range(NAMES), dice.randint(1, 12)))
            names = [Name(b"root %d" % (number % 4), b"%d" % number) for number in numbers]
            names.sort()
            flags = dice.choice((Flags(0), Flags.NOQUEUE))
            mode, patience_s = dice.choice(MODES), dice.choice((0.002, 0.01, 60.0))
            with trio.move_on_after(patience_s), suppress(LockCancelled):
                locks = await space.lock_many(names, mode, flags=flags)
                assert [lock.name for lock in locks if lock is not None] == [
                    name for name, lock in zip(names, locks, strict=True) if lock is not None
                ]
                taken = [lock for lock in locks if lock is not None]
                await self._use(space, taken, mode)

    async def _use(self, space: Lockspace, locks: list[Lock], mode: Mode) -> None:
        for lock in locks:
            assert lock.mode is mode
            others = self.held.setdefault(lock.name, [])
            assert all(other.mode is None or mode.compatible(other.mode) for other in others), (
                others
            )
            others.append(lock)
        try:
            await trio.sleep(self.dice.uniform(0, 0.002))
        finally:
            for lock in locks:
                self.held[lock.name].remove(lock)
                space.unlock_nowait(lock)


async def live(seed: int) -> None:
    """Live through a seed; raises what it finds."""
    with trio.fail_after(3600.0):  # of virtual time: else somebody was forgotten
        async with trio.open_nursery() as nursery:
            bulk = Bulk(seed, nursery)
            async with trio.open_nursery() as tasks:
                for node in bulk.spaces:
                    for _ in range(TASKS):
                        tasks.start_soon(bulk.work, node)
            await trio.sleep(10.0)
            for space in bulk.spaces.values():
                space.validate()
                assert space.dump()["locks"] == [], "somebody keeps what nobody wants"
                assert space.dump()["resources"] == []
            nursery.cancel_scope.cancel()


@pytest.mark.parametrize("seed", range(FIRST_SEED, FIRST_SEED + 12))
async def test_pages_of_locks_are_all_decided_and_exclude(
    seed: int, autojump_clock: MockClock
) -> None:
    autojump_clock.autojump_threshold = 0
    await live(seed)


def lose_the_end_of_a_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    def shorter(messages: list[Message]) -> bytes:
        return encode_all(messages[:8])

    monkeypatch.setattr(outbox, "encode_all", shorter)


def turn_batches_round(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dlm.node.decode_all", lambda body: decode_all(body)[::-1])


def keep_what_nobody_waits_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Lockspace, "_abandon", lambda *_: None)


def forget_what_was_put_off(monkeypatch: pytest.MonkeyPatch) -> None:
    """An unlock that was to go with the next message never goes."""
    monkeypatch.setattr(outbox.Outbox, "send_soon", lambda self: self._waiting.clear())


@pytest.mark.parametrize(
    "plant",
    [
        lose_the_end_of_a_batch,
        turn_batches_round,
        keep_what_nobody_waits_for,
        forget_what_was_put_off,
    ],
)
async def test_a_planted_bug_is_found(
    plant: Callable[[pytest.MonkeyPatch], None],
    monkeypatch: pytest.MonkeyPatch,
    autojump_clock: MockClock,
) -> None:
    autojump_clock.autojump_threshold = 0
    plant(monkeypatch)
    with pytest.raises(BaseExceptionGroup) as found:
        await live_through(12)
    assert found.group_contains((AssertionError, trio.TooSlowError, KeyError), depth=None)


async def live_through(seeds: int) -> None:
    """Live through the first seeds."""
    for seed in range(seeds):
        await live(seed)
