from clusterfs.store.location import BLOCK_UNITS
from clusterfs.store.segments import Segments


def segments_with(ready: int) -> Segments:
    segments = Segments(32, 10, 8)
    for number in range(ready):
        segments.add(number)
    return segments


def used(segments: Segments, first_id: int, last_id: int) -> int:
    number = segments.take()
    segments.close(first_id, last_id)
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


def test_the_victim_is_the_emptiest_that_gains_something() -> None:
    segments = segments_with(5)
    full, half, damaged, uncovered = (used(segments, n, n) for n in range(1, 5))
    segments.checkpointed_id = 3
    segments.damaged.add(damaged)
    live = {full: 24 * BLOCK_UNITS, half: 12 * BLOCK_UNITS, damaged: 1, uncovered: 1}
    assert segments.victim(live) == half
    del segments.used[half]
    assert segments.victim(live) is None


def test_counting() -> None:
    segments = segments_with(3)
    assert (segments.count, segments.free, segments.next_number) == (3, 10, 3)
    segments.take()
    assert (segments.count, segments.free) == (3, 9)
    segments.limit = 3
    assert segments.free == 2
