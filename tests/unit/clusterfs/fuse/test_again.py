"""A request that the kernel sends a second time gets the answer that its first run would have."""

from collections.abc import Callable
from typing import Any

import pytest

from clusterfs.errors import EntryExists, FilesystemError, NoSuchEntry
from clusterfs.fs.results import Attributes, Entry
from clusterfs.fuse.again import Again
from clusterfs.fuse.binding import native
from clusterfs.fuse.notify import RESENT
from clusterfs.volume.placement import incarnation_of_inode

INODE = (7 << 40) + 12345
OURS = incarnation_of_inode(INODE) or 0


class Native:
    def __init__(self, number: int) -> None:
        self._number = number

    def current_request(self) -> int:
        return self._number


@pytest.fixture
def request_is(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    def use(number: int) -> None:
        monkeypatch.setattr("clusterfs.fuse.again.native", Native(number))

    assert hasattr(native, "current_request")
    return use


def entry() -> Entry:
    attributes = Attributes(
        inode=INODE,
        mode=0o40755,
        nlink=1,
        uid=0,
        gid=0,
        rdev=0,
        size=0,
        blocks=0,
        atime_ns=0,
        mtime_ns=0,
        ctime_ns=0,
        btime_ns=0,
    )
    return Entry(attributes, 0.0, 0.0)


async def look() -> Entry:
    return entry()


async def fails(failure: type[FilesystemError]) -> Any:
    raise failure


@pytest.mark.parametrize(
    ("incarnation", "number", "excused"),
    [(OURS, RESENT + 4, True), (OURS, 4, False), (OURS + 1, RESENT + 4, False), (0, RESENT, False)],
)
async def test_what_the_dead_daemon_made_is_the_answer(
    incarnation: int, number: int, *, excused: bool, request_is: Callable[[int], None]
) -> None:
    request_is(number)
    again = Again(incarnation)
    if excused:
        assert await again.made(fails(EntryExists), look) == entry()
    else:
        with pytest.raises(EntryExists):
            await again.made(fails(EntryExists), look)


async def test_a_link_is_excused_if_it_is_the_same(request_is: Callable[[int], None]) -> None:
    request_is(RESENT + 2)
    assert await Again(3).linked(fails(EntryExists), INODE, look) == entry()
    with pytest.raises(EntryExists):
        await Again(3).linked(fails(EntryExists), INODE + 1, look)


async def test_a_name_that_is_gone_was_removed(request_is: Callable[[int], None]) -> None:
    request_is(RESENT + 2)
    await Again(3).removed(fails(NoSuchEntry))
    request_is(2)
    with pytest.raises(NoSuchEntry):
        await Again(3).removed(fails(NoSuchEntry))
