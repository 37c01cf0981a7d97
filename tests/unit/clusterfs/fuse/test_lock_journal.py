"""The file locks of a mount, as the next daemon finds them."""

from clusterfs.fs.endangered import LockNote
from clusterfs.fuse.beat import Beat
from clusterfs.fuse.journal import HandleJournal
from clusterfs.fuse.lock_journal import LockJournal

END = 2**63 - 1


def successor(beat: Beat) -> LockJournal:
    """What another process sees that inherits the memory."""
    return LockJournal(Beat(beat.capacity, beat.handles, beat.locks, memory=beat.memory))


def note(inode: int, owner: int, start: int, *, flock: bool = False, handle: int = 1) -> LockNote:
    return LockNote(handle, inode, owner, 4_000_000, flock, start, END, 5)


def test_the_next_process_finds_every_lock_as_it_was() -> None:
    beat = Beat(4, 4, 8)
    journal = LockJournal(beat)
    of_a_file = [note(2**63 + 1, 2**64 - 1, 7), note(2**63 + 1, 2**64 - 1, 0, handle=2)]
    assert journal.replace(2**63 + 1, 2**64 - 1, of_a_file, flock=False)
    whole = note(2**63 + 1, 2**64 - 1, 0, flock=True)
    assert journal.replace(2**63 + 1, 2**64 - 1, [whole], flock=True)
    assert sorted(successor(beat).recover()) == sorted([*of_a_file, whole])


def test_what_is_noted_replaces_what_was_also_by_the_next_process() -> None:
    beat = Beat(4, 4, 4)
    first = LockJournal(beat)
    first.replace(9, 1, [note(9, 1, 0), note(9, 1, 50)], flock=False)
    first.replace(9, 2, [note(9, 2, 10)], flock=False)
    first.replace(9, 1, [note(9, 1, 60)], flock=False)
    assert sorted(successor(beat).recover()) == [note(9, 1, 60), note(9, 2, 10)]
    second = successor(beat)
    second.recover()
    second.replace(9, 1, [], flock=False)
    assert successor(beat).recover() == [note(9, 2, 10)]
    for start in range(20):  # slots are used again
        assert second.replace(9, 2, [note(9, 2, start)], flock=False)


def test_an_owner_without_room_is_not_there_at_all_and_its_handle_is_lost() -> None:
    beat = Beat(4, 4, 2)
    journal = LockJournal(beat)
    assert journal.replace(9, 1, [note(9, 1, 0)], flock=False)
    assert not journal.replace(9, 2, [note(9, 2, 0), note(9, 2, 5)], flock=False)
    assert successor(beat).recover() == [note(9, 1, 0)]
    handles = HandleJournal(beat)
    handles.opened(3, 9, 2, privileged=False, directory=False)
    handles.locked(3, True)
    assert [former.lost for former in HandleJournal(beat).recover(clean=True)] == [True]
