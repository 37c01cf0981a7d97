from clusterfs.store.location import BLOCK_UNITS
from clusterfs.store.segments import Segments


def segments_with(ready: int) -> Segments:
    segments = Segments(32, 10, 8)
    for number in range(ready):
        segments.add(number)
    return segments


def used(segments: Segments, first_id: int, last_id: int, *, cold: bool = False) -> int:
    number = segments.take(cold=cold)
    segments.close(number, first_id, last_id)
    return number


def test_a_dead_segment_is_reusable_only_behind_a_checkpoint() -> None:
    segments = segments_with(4)
    dead, alive = used(segments, 1, 5), used(segments, 6, 9)
    young = used(segments, 10, 20)
    live = {dead: 0, alive: 3}
    assert segments.reusable(live, 9) == [dead]
    assert segments.reusable(live, 20) == [dead, young]
    before = segments.gained
    segments.release([dead])
    assert list(segments.ready) == [3, dead]
    assert segments.gained == before + 1
    segments.validate(live)


def test_a_segment_being_read_is_handed_out_only_afterwards() -> None:
    segments = segments_with(1)
    number = used(segments, 1, 2)
    segments.pin(number)
    segments.pin(number)
    segments.release([number])
    assert not segments.ready
    segments.unpin(number)
    assert not segments.ready
    segments.unpin(number)
    assert list(segments.ready) == [number]
    segments.validate({})


NOW, LIVE_BLOCKS = 1000, 200


def victim(segments: Segments, live: dict[int, int], packs_to: float = 1.0) -> int | None:
    return segments.victim(live, NOW, LIVE_BLOCKS, packs_to)


def test_of_equal_age_the_emptiest_is_the_victim_if_it_gains_something() -> None:
    segments = segments_with(5)
    full, half, damaged, uncovered = (used(segments, n, n) for n in range(1, 5))
    segments.checkpointed_id = 3
    segments.damaged.add(damaged)
    live = {full: 24 * BLOCK_UNITS, half: 12 * BLOCK_UNITS, damaged: 1, uncovered: 1}
    assert victim(segments, live) == half
    del segments.used[half]
    assert victim(segments, live) is None


def test_old_data_is_worth_cleaning_before_emptier_new_data() -> None:
    segments = segments_with(3)
    old, new = used(segments, 1, 1), used(segments, 2, 2)
    segments.checkpointed_id = 2
    live = {old: 16 * BLOCK_UNITS, new: 12 * BLOCK_UNITS}
    segments.born = {old: 900, new: 980}
    assert victim(segments, live) == old
    segments.born[new] = 900
    assert victim(segments, live) == new


def test_ages_beyond_three_quarters_of_the_live_data_count_the_same() -> None:
    segments = segments_with(3)
    oldest, older = used(segments, 1, 1), used(segments, 2, 2)
    segments.checkpointed_id = 2
    segments.born = {oldest: 1, older: NOW - LIVE_BLOCKS}
    assert victim(segments, {oldest: 13 * BLOCK_UNITS, older: 12 * BLOCK_UNITS}) == older


def test_a_full_segment_is_a_victim_if_it_will_be_packed() -> None:
    segments = segments_with(3)
    raw, packed = used(segments, 1, 1), used(segments, 2, 2, cold=True)
    segments.checkpointed_id = 2
    live = {raw: 24 * BLOCK_UNITS, packed: 24 * BLOCK_UNITS}
    assert victim(segments, live) is None
    assert victim(segments, live, packs_to=0.6) == raw
    assert victim(segments, {packed: 20 * BLOCK_UNITS}, packs_to=0.6) == packed
    found = segments.victim({packed: 20 * BLOCK_UNITS}, NOW, LIVE_BLOCKS, 0.6, is_short=False)
    assert found is None, "with room left only packing is worth the work"


def test_counting() -> None:
    segments = segments_with(3)
    assert (segments.count, segments.free, segments.next_number) == (3, 10, 3)
    segments.take()
    assert (segments.count, segments.free) == (3, 9)
    segments.limit = 3
    assert segments.free == 2
