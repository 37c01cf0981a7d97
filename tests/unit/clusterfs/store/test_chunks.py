from collections import Counter
from random import Random

import pytest
from blake3 import blake3

from clusterfs.sim.disk import SimulatedDisk
from clusterfs.store.chunks import PAGE_CIDS, ChunkPage, ChunkTable
from clusterfs.store.hints import Hints
from clusterfs.store.layers import Values
from clusterfs.store.location import BLOCK_UNITS, locate_units
from clusterfs.store.table import Table


def identity(number: int) -> bytes:
    return blake3(b"%d" % number).digest(16)


def table_with(chunks: int) -> tuple[Table, ChunkTable]:
    table = SimulatedDisk().open_table()
    found = ChunkTable(Values(table))
    found.add(1, [(100, chunks)], range(chunks), b"".join(map(identity, range(chunks))))
    for cid in range(1, chunks + 1):
        found.take(cid)
    return table, found


def test_a_chunk_lives_as_long_as_it_has_references() -> None:
    _, chunks = table_with(3)
    chunks.take(2)
    assert chunks.live_total == 3 * BLOCK_UNITS
    assert chunks.find(2) == (101, 1)
    assert chunks.is_live(2, identity(1))
    assert not chunks.is_live(2, identity(9))
    chunks.drop(2)
    assert chunks.find(2) is not None
    chunks.drop(2)
    assert chunks.find(2) is None
    assert not chunks.is_live(2, identity(1))
    assert (chunks.live_total, chunks.live[0]) == (2 * BLOCK_UNITS, 2 * BLOCK_UNITS)
    with pytest.raises(OverflowError):
        chunks.drop(2)
    with pytest.raises(AssertionError, match="not in the table"):
        chunks.take(PAGE_CIDS * 9)


def test_many_references_at_once_count_as_each_alone() -> None:
    random = Random(1)
    alone, together = table_with(PAGE_CIDS * 3)[1], table_with(PAGE_CIDS * 3)[1]
    for chunks in (alone, together):
        for cid in (2, 3, 70, 130):  # packed, and in other segments
            found = chunks.find(cid)
            assert found is not None
            assert chunks.move(cid, found[0], locate_units(cid, 5, cid % 64, 10))
    for round_number in range(40):
        cids = [random.randrange(PAGE_CIDS * 3 + 1) for _ in range(random.randrange(200))]
        if round_number % 2:
            for cid in filter(None, cids):
                alone.take(cid)
            together.take_all(cids)
        else:
            counts = Counter(filter(None, cids))
            held = {cid: references_of(alone, cid) for cid in counts}
            cids = [cid for cid, most in held.items() for _ in range(min(most, counts[cid]))]
            random.shuffle(cids)
            for cid in cids:
                alone.drop(cid)
            together.drop_all([0, *cids, 0])
        for chunks in (alone, together):
            chunks.live = {segment: units for segment, units in chunks.live.items() if units}
        assert totals(together) == totals(alone)
        assert [p.encode() for _, p in together.pages()] == [p.encode() for _, p in alone.pages()]
        assert [p.live for _, p in together.pages()] == [p.live for _, p in alone.pages()]
        assert together._emptied == alone._emptied
    dead = next(cid for cid in range(1, PAGE_CIDS * 3) if together.find(cid) is None)
    with pytest.raises(OverflowError):
        together.drop_all([dead])
    with pytest.raises(AssertionError, match="not in the table"):
        together.drop_all([PAGE_CIDS * 9])


def references_of(chunks: ChunkTable, cid: int) -> int:
    page = chunks.page(cid // PAGE_CIDS)
    assert page is not None
    return page.references[cid % PAGE_CIDS]


def totals(chunks: ChunkTable) -> tuple[object, ...]:
    return chunks.live, chunks.live_total, chunks.references_total, chunks.count


def test_a_move_counts_only_from_the_right_place() -> None:
    _, chunks = table_with(2)
    target = locate_units(5, 3, 70, 10)
    assert not chunks.move(1, 999, target)
    assert chunks.move(1, 100, target)
    assert chunks.find(1) == (target, 0)
    assert (chunks.live[0], chunks.live[5], chunks.live_total) == (
        BLOCK_UNITS,
        10,
        BLOCK_UNITS + 10,
    )
    chunks.drop(2)
    assert not chunks.move(2, 101, target), "the dead do not move"


def test_a_checkpoint_does_not_see_later_changes() -> None:
    table, chunks = table_with(PAGE_CIDS * 2)
    chunks.freeze()
    chunks.drop(1)
    chunks.add(chunks.next_cid, [(777, 1)], [7], identity(7))
    chunks.take(chunks.next_cid - 1)
    table.commit(chunks.frozen_changes())
    image = ChunkTable(Values(table))
    table.refresh()
    image.next_cid = PAGE_CIDS * 2 + 1
    assert image.find(1) == (100, 0)
    chunks.thaw()
    assert chunks.find(1) is None
    assert chunks.find(5) == (104, 4)
    assert chunks.identity(5) == identity(4)


def test_a_page_without_living_chunks_is_removed_at_the_next_checkpoint() -> None:
    table, chunks = table_with(PAGE_CIDS * 2)
    chunks.freeze()
    table.commit(chunks.frozen_changes())
    table.refresh()
    chunks.thaw()
    assert len(list(table.items(b"C", b"D"))) == 3
    for cid in range(1, PAGE_CIDS):
        chunks.drop(cid)
    chunks.freeze()
    table.commit(chunks.frozen_changes())
    table.refresh()
    chunks.thaw()
    assert len(list(table.items(b"C", b"D"))) == 2
    assert chunks.find(1) is None
    assert chunks.find(PAGE_CIDS) is not None


def test_a_page_reads_back() -> None:
    page = ChunkPage()
    page.locations[3], page.references[3], page.checksums[3] = 2**63, 2**31, 2**64 - 1
    page.identities[48:64] = identity(5)
    found = ChunkPage.decode(page.encode())
    assert found.encode() == page.encode()
    assert found.live == 1
    copy = found.copy()
    copy.references[3] = 0
    assert found.references[3] == 2**31


def test_a_hint_counts_only_if_the_table_agrees() -> None:
    _, chunks = table_with(3)
    hints = Hints(chunks, 4096)
    hints.add(identity(0), 1)
    hints.add(identity(1), 1)  # wrong
    assert hints.find(identity(0)) == 1
    assert hints.find(identity(1)) is None
    assert hints.find(identity(2)) is None
    hints._damaged.add(1)
    assert hints.find(identity(0)) is None
    hints._damaged.clear()
    chunks.drop(1)
    assert hints.find(identity(0)) is None


def test_the_window_is_bounded_and_keeps_what_is_used() -> None:
    table = SimulatedDisk().open_table()
    chunks = ChunkTable(Values(table))
    count = 3000
    chunks.add(1, [(0, count)], range(count), b"".join(map(identity, range(count))))
    for cid in range(1, count + 1):
        chunks.take(cid)
    hints = Hints(chunks, 1024)
    assert hints.nbytes == 12 * 1024
    for number in range(count):
        hints.add(identity(number), number + 1)
        assert hints.find(identity(0)) == 1
        assert len(hints) <= 1024
    assert len(hints) > 900
    assert hints.find(identity(5)) is None
    assert hints.hits == count


def test_what_is_new_is_remembered_in_one_go() -> None:
    _, chunks = table_with(3000)
    hints = Hints(chunks, 1024)
    for first in range(0, 3000, 100):
        hints.add_new(map(identity, range(first, first + 100)), first + 1)
        assert hints.find(identity(first + 99)) == first + 100
        assert len(hints) <= 1024
    assert len(hints) > 900
    assert hints.find(identity(5)) is None
    assert sum(hints.find(identity(number)) == number + 1 for number in range(2500, 3000)) > 450


def test_hints_are_rebuilt_from_the_newest_chunks() -> None:
    _, chunks = table_with(PAGE_CIDS * 3)
    hints = Hints(chunks, 1 << 20)
    hints.fill(1)
    assert hints.find(identity(PAGE_CIDS * 3 - 1)) == PAGE_CIDS * 3
    assert hints.find(identity(0)) is None
    assert not hints.fill_more(1)
    hints.fill(100)
    assert hints.find(identity(0)) == 1


def test_a_page_at_a_time_fills_the_window() -> None:
    _, chunks = table_with(PAGE_CIDS * 3)
    hints = Hints(chunks, 1 << 20)
    hints._unfilled = iter(chunks.numbers())
    assert hints.fill_more(2)
    assert hints.find(identity(0)) == 1
    assert hints.find(identity(PAGE_CIDS * 3 - 1)) is None
    chunks.drop(PAGE_CIDS * 3)
    assert hints.fill_more(2)
    assert not hints.fill_more(2)
    assert hints.find(identity(PAGE_CIDS * 3 - 1)) is None
    assert hints.find(identity(PAGE_CIDS * 3 - 2)) == PAGE_CIDS * 3 - 1


def test_the_numbers_of_the_pages_are_those_of_all_layers() -> None:
    table, chunks = table_with(PAGE_CIDS * 5)
    chunks.freeze()
    table.commit(chunks.frozen_changes())
    table.refresh()
    chunks.thaw()
    for cid in range(PAGE_CIDS, 2 * PAGE_CIDS):
        chunks.drop(cid)
    chunks.freeze()  # page 1 is gone in a layer above
    chunks.take(7)
    chunks.add(chunks.next_cid + 5 * PAGE_CIDS, [(9, 1)], [9], identity(9))
    assert list(chunks.numbers()) == [0, 2, 3, 4, 5, 10]
    assert list(chunks.numbers(2, 2)) == [2, 3]
    assert [number for number, _ in chunks.pages()] == [0, 2, 3, 4, 5, 10]


def test_references_can_be_corrected() -> None:
    _, chunks = table_with(3)
    chunks.correct(2, 4)
    chunks.correct(3, 0)
    assert chunks.references_total == 1 + 4
    assert chunks.live_total == 2 * 64
    assert chunks.find(3) is None
