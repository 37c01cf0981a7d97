import random
import threading
from itertools import pairwise

import pytest

from clusterfs.fuse import notify
from clusterfs.fuse.dropping import Dropping, pieces

PAGE = 4096


class Pages:
    """A kernel with one file: an invalidation waits at each page that is locked, in order."""

    def __init__(self, cached: set[int], locked: set[int]) -> None:
        self.cached = cached
        self.locked = locked
        self.attributes_dropped = False
        self.unlocked = threading.Event()
        self.failure: Exception | None = None

    def invalidate(self, _fd: int, inode: int, offset: int, length: int) -> None:
        assert inode == 7
        if offset == notify.ATTRIBUTES_ONLY:
            self.attributes_dropped = True
            return
        end = offset + length if length else 1 << 60
        for page in sorted(self.cached | self.locked):
            if offset <= page * PAGE < end:
                if page in self.locked:
                    assert self.unlocked.wait(300)
                self.cached.discard(page)


def dropping(pages: Pages, monkeypatch: pytest.MonkeyPatch) -> Dropping:
    monkeypatch.setattr(notify, "invalidate_inode", pages.invalidate)
    return Dropping(0, [7])


def test_all_goes_if_nothing_is_in_flight(monkeypatch: pytest.MonkeyPatch) -> None:
    pages = Pages({0, 5, 10**6}, set())
    assert dropping(pages, monkeypatch).run(lambda: False)
    assert pages.cached == set()
    assert pages.attributes_dropped


@pytest.mark.parametrize("seed", range(3))
def test_pages_in_flight_hide_nothing(monkeypatch: pytest.MonkeyPatch, seed: int) -> None:
    rng = random.Random(seed)
    locked = {rng.randrange(1 << rng.randrange(1, 31)) for _ in range(3)}
    locked |= set(range(100, 108))  # one read-ahead
    neighbours = {page + step for page in locked for step in (-1, 1)}
    pages = Pages({page for page in neighbours if page >= 0} - locked, locked)
    work = dropping(pages, monkeypatch)
    assert work.run(lambda: False)
    assert pages.cached == set()
    assert work.hanging >= len(locked)
    pages.unlocked.set()


def test_it_gives_up_when_told(monkeypatch: pytest.MonkeyPatch) -> None:
    pages = Pages({1}, {0})
    assert not dropping(pages, monkeypatch).run(lambda: True)
    pages.unlocked.set()


def test_too_many_pages_in_flight_are_admitted(monkeypatch: pytest.MonkeyPatch) -> None:
    pages = Pages(set(), set(range(64)))
    monkeypatch.setattr(notify, "invalidate_inode", pages.invalidate)
    assert not Dropping(0, [7], most_threads=20).run(lambda: False)
    pages.unlocked.set()


def test_pieces_cover_a_range_and_end_at_a_page() -> None:
    range_ = (7, 0, 1 << 44)
    while cut := pieces(range_):
        assert cut[0][1] == range_[1]
        assert cut[-1][2] == range_[2]
        assert all(before[2] == after[1] for before, after in pairwise(cut))
        range_ = cut[-1]
    assert range_[2] - range_[1] == PAGE
