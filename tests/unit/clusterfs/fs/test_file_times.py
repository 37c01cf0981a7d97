"""File times of nodes whose clocks differ or jump."""

import pytest

from clusterfs.fs.file_times import MOST_AHEAD_NS, FileClock

HOUR_NS = 3600 * 10**9


class Wall:
    """A clock that stands where it is put."""

    def __init__(self, now_ns: int) -> None:
        self.now_ns = now_ns

    def __call__(self) -> int:
        return self.now_ns


def test_times_are_this_hosts_and_never_the_same() -> None:
    wall = Wall(HOUR_NS)
    clock = FileClock(wall)
    first, second = clock(), clock()
    assert first == HOUR_NS
    assert first < second < first + 1000
    wall.now_ns += HOUR_NS
    assert clock() == 2 * HOUR_NS


@pytest.mark.parametrize("ahead_ns", [1, 10**6, MOST_AHEAD_NS - 2])
def test_who_has_seen_a_change_makes_a_later_one(ahead_ns: int) -> None:
    wall = Wall(HOUR_NS)
    clock = FileClock(wall)
    clock.saw(HOUR_NS + ahead_ns)
    assert clock() == HOUR_NS + ahead_ns + 1
    wall.now_ns += MOST_AHEAD_NS
    assert clock() == wall.now_ns


@pytest.mark.parametrize("ahead_ns", [MOST_AHEAD_NS, HOUR_NS, 2**62])
def test_a_clock_that_is_wrong_is_not_followed(ahead_ns: int) -> None:
    clock = FileClock(Wall(HOUR_NS))
    clock.saw(HOUR_NS + ahead_ns)
    clock.saw(HOUR_NS + 5)
    assert clock() == HOUR_NS + 6


def test_a_clock_that_is_set_back_a_little_does_not_go_back() -> None:
    wall = Wall(HOUR_NS)
    clock = FileClock(wall)
    first = clock()
    wall.now_ns -= MOST_AHEAD_NS // 2
    assert clock() > first


def test_a_clock_that_is_set_back_by_hours_is_believed() -> None:
    wall = Wall(2 * HOUR_NS)
    clock = FileClock(wall)
    clock()
    wall.now_ns = HOUR_NS
    assert clock() == HOUR_NS
    clock.saw(HOUR_NS + 7)
    assert clock() == HOUR_NS + 8


def test_an_old_change_means_nothing() -> None:
    clock = FileClock(Wall(HOUR_NS))
    clock.saw(5)
    assert clock() == HOUR_NS
