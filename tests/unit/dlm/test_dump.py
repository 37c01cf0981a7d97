"""However many locks there are, and however they lie, few are described without a pause."""

import trio

from dlm.core.dump import PAGE
from dlm.node import Lockspace, Mode, Name

MANY = 12 * PAGE


def alone() -> Lockspace:
    space = Lockspace(1, 1, lambda *_: None, trio.current_time)
    space.enter(1, {1: 1})
    return space


async def test_the_leaves_of_one_root_are_described_in_pages() -> None:
    space = alone()
    for number in range(MANY):
        await space.lock(Name(b"root", b"%d" % number), Mode.PR)
    _, long = space.dump_in_pages()
    resources, locks = list(long["resources"]), list(long["locks"])
    assert sum(map(len, resources)) == sum(map(len, locks)) == MANY
    assert max(map(len, [*resources, *locks])) <= PAGE


async def test_the_locks_of_a_name_count_not_the_names() -> None:
    space = alone()
    for number in range(MANY):
        await space.lock(Name(b"root %d" % (number // 40), b""), Mode.CR)
    pages = list(space.dump_in_pages()[1]["resources"])
    held = [sum(len(resource["granted"]) for resource in page) for page in pages]  # type: ignore[arg-type,misc]
    assert sum(held) == MANY
    assert max(held) <= PAGE + 40


async def test_names_are_looked_at_in_pages_even_if_none_is_shown() -> None:
    space = alone()
    for number in range(MANY):
        await space.lock(Name(b"root", b"%d" % number), Mode.PR)
    pages = list(space.dump_in_pages(only_busy=True)[1]["resources"])
    assert len(pages) > MANY // PAGE
    assert not any(pages)


async def test_locks_may_come_and_go_while_they_are_described() -> None:
    space = alone()
    locks = [await space.lock(Name(b"root", b"%d" % number), Mode.PR) for number in range(MANY)]
    long = space.dump_in_pages()[1]
    shown = 0
    for name, pages in long.items():
        for page in pages:
            shown += len(page) if name == "locks" else 0
            if locks:
                space.unlock_nowait(locks.pop())
                await space.lock(Name(b"other", b"%d" % len(locks)), Mode.EX)
    assert shown
