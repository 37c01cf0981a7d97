"""What would be lost with this process, as the journal is told."""

import pytest

from clusterfs.fs.endangered import Endangered


class Journal:
    def __init__(self) -> None:
        self.marked: set[int] = set()
        self.killed: set[int] = set()

    def opened(self, handle: int, inode: int, flags: int, **_: bool) -> None: ...

    def closed(self, handle: int) -> None: ...

    def endangered(self, handle: int, so: bool) -> None:  # noqa: FBT001  the port's
        (self.marked.add if so else self.marked.discard)(handle)

    def staged(self, handle: int, so: bool) -> None: ...  # noqa: FBT001  the port's

    def dead(self, handle: int) -> None:
        self.killed.add(handle)


class OpenFile:
    def __init__(self, inode: "Inode", handle: int, *, writable: bool) -> None:
        self.inode, self.handle, self.writable, self.dead = inode, handle, writable, False
        inode.opened.append(self)


class Inode:
    def __init__(self) -> None:
        self.opened: list[OpenFile] = []
        self.needs_flush = False


@pytest.fixture
def journal() -> Journal:
    return Journal()


@pytest.fixture
def endangered(journal: Journal) -> Endangered:
    return Endangered(journal)


def test_handles_that_may_write_are_marked_until_a_sync_that_began_when_all_was_clean(
    endangered: Endangered, journal: Journal
) -> None:
    inode = Inode()
    OpenFile(inode, 1, writable=True)
    OpenFile(inode, 2, writable=False)
    inode.needs_flush = True
    endangered.note(inode)  # type: ignore[arg-type]
    assert journal.marked == {1}
    assert endangered.clean() == {}
    inode.needs_flush = False
    for one, note in endangered.clean().items():
        endangered.safe(one, note)
    assert journal.marked == set()
    assert len(endangered) == 0


def test_what_changed_again_during_the_sync_stays_marked(
    endangered: Endangered, journal: Journal
) -> None:
    inode = Inode()
    OpenFile(inode, 1, writable=True)
    endangered.note(inode)  # type: ignore[arg-type]
    ((one, note),) = endangered.clean().items()
    endangered.note(one)
    endangered.safe(one, note)
    assert journal.marked == {1}


def test_a_handle_opened_later_is_marked_too(endangered: Endangered, journal: Journal) -> None:
    inode = Inode()
    endangered.note(inode)  # type: ignore[arg-type]
    late = OpenFile(inode, 3, writable=True)
    endangered.joined(late)  # type: ignore[arg-type]
    assert journal.marked == {3}
    endangered.kill(late)  # type: ignore[arg-type]
    assert late.dead
    assert journal.killed == {3}


def test_without_a_journal_nothing_is_kept() -> None:
    endangered = Endangered(None)
    endangered.note(Inode())  # type: ignore[arg-type]
    assert len(endangered) == 0
