"""Turns: one at a time, in order, and no checkpoint while it is free."""

import trio
import trio.testing

from clusterfs.fs.turns import Turns


async def test_free_turns_are_entered_without_a_pass_of_the_scheduler() -> None:
    turns = Turns()
    with trio.testing.assert_no_checkpoints():
        async with turns:
            assert turns.locked()
    assert not turns.locked()


async def test_who_comes_while_it_is_taken_waits_in_order() -> None:
    turns, order = Turns(), []

    async def user(name: str) -> None:
        async with turns:
            order.append(name)
            await trio.lowlevel.checkpoint()
            order.append(name)

    async with trio.open_nursery() as nursery:
        await turns.acquire()
        for name in "abc":
            nursery.start_soon(user, name)
            await trio.testing.wait_all_tasks_blocked()
        turns.release()
    assert order == ["a", "a", "b", "b", "c", "c"]
    assert not turns.locked()


async def test_a_waiter_that_is_cancelled_leaves_the_line_or_hands_on() -> None:
    turns = Turns()
    await turns.acquire()
    async with trio.open_nursery() as nursery:
        with trio.CancelScope() as first:
            nursery.start_soon(_cancel_when_waiting, first)
            await turns.acquire()
        second = trio.CancelScope()

        async def wait() -> None:
            with second:
                await turns.acquire()
                turns.release()

        nursery.start_soon(wait)
        await trio.testing.wait_all_tasks_blocked()
        turns.release()  # it is the second's now, whose scope is cancelled before it runs
        second.cancel()
    assert not turns.locked()


async def _cancel_when_waiting(scope: trio.CancelScope) -> None:
    await trio.testing.wait_all_tasks_blocked()
    scope.cancel()
