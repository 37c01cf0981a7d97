"""The open handles of a mount, as the next daemon finds them."""

import os

from clusterfs.fs.handles import Former
from clusterfs.fuse.beat import Beat
from clusterfs.fuse.journal import HandleJournal


def successor(beat: Beat) -> HandleJournal:
    """What another process sees that inherits the memory."""
    heir = Beat(beat.capacity, beat.handles, memory=beat.memory)
    return HandleJournal(heir)


def opened(journal: HandleJournal, handle: int, *, flags: int = os.O_RDWR) -> None:
    journal.opened(handle, handle + 100, flags, privileged=True, directory=False)


def test_the_next_process_finds_every_open_handle_as_it_was() -> None:
    beat = Beat(4, 8)
    journal = HandleJournal(beat)
    journal.opened(1, 2**63 + 5, os.O_RDWR | os.O_APPEND, privileged=True, directory=False)
    journal.opened(2, 7, 0, privileged=False, directory=True)
    opened(journal, 3)
    journal.closed(3)
    assert successor(beat).recover(clean=True) == [
        Former(1, 2**63 + 5, os.O_RDWR | os.O_APPEND, privileged=True),
        Former(2, 7, directory=True),
    ]


def test_what_was_in_memory_only_is_lost_with_a_crash_and_stays_lost() -> None:
    beat = Beat(4, 8)
    journal = HandleJournal(beat)
    for handle in (1, 2, 3):
        opened(journal, handle)
    journal.endangered(1, True)
    journal.endangered(2, True)
    journal.endangered(2, False)
    journal.staged(3, True)
    second = successor(beat)
    assert [former.lost for former in second.recover(clean=False)] == [True, False, True]
    third = successor(beat)
    assert [former.lost for former in third.recover(clean=True)] == [True, False, True]


def test_who_rested_loses_only_what_was_staged_or_dead() -> None:
    beat = Beat(4, 8)
    journal = HandleJournal(beat)
    for handle in (1, 2, 3):
        opened(journal, handle)
    journal.endangered(1, True)
    journal.staged(2, True)
    journal.dead(3)
    assert [former.lost for former in successor(beat).recover(clean=True)] == [False, True, True]


def test_slots_are_used_again_and_a_full_table_forgets_newcomers() -> None:
    beat = Beat(4, 2)
    journal = HandleJournal(beat)
    for handle in (1, 2, 3):
        opened(journal, handle)
    journal.endangered(3, True)  # it has no slot
    journal.closed(3)
    journal.closed(1)
    second = successor(beat)
    assert [former.handle for former in second.recover(clean=False)] == [2]
    opened(second, 4)
    opened(second, 5)
    assert [f.handle for f in successor(beat).recover(clean=False)] == [4, 2]
