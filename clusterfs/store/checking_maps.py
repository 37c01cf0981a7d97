"""fsck of what clones share: maps, map pages, and how many blocks that saves.

Counted anew, against what is stored beside them: who has each numbered map, who refers to each
shared page, and at last how many blocks each object has. And the numbers that come next are free: a
new map or page under a number in use would be another object's, too.

Memory: 8 bytes for each object with a numbered map; some 100 bytes for each map and each page that
several have.

Invariant: as in checking.py, nothing is written here; `problem` decides what is repaired.
"""

from array import array
from bisect import bisect_left
from collections.abc import Callable, Iterator
from itertools import chain

from clusterfs.store.contents import Contents
from clusterfs.store.maps import Maps
from clusterfs.store.objects import ObjectId
from clusterfs.store.whole_maps import UNKNOWN, SharedCounts, WholeMaps, number_of, owner_of

MAPS, PAGES = "shared map", "shared map page"


# Notes a problem of a kind, and repairs it if that is wanted.
Problem = Callable[[str, str, Callable[[], None] | None], None]


class MapChecks:
    """The checks, in the order in which they must be made."""

    def __init__(self, contents: Contents, problem: Problem) -> None:
        self._contents = contents
        self._state = contents.state
        self._problem = problem
        self._users: array[int] = array("Q")  # the number of the map of each who has one, sorted

    def count_users(self) -> None:
        """Count who has each numbered map; all that follows goes by that."""
        whole_maps = self._state.whole_maps
        numbers = (number for _, number in self._contents.map_users() if number)
        self._users = array("Q", sorted(array("Q", numbers)))
        stored = dict(whole_maps.all_shared())
        self._check_next(MAPS, whole_maps, max(chain(self._users[-1:], stored), default=0))
        for number, users in self._runs():
            said = stored.pop(number, SharedCounts(1, 0)).references
            if said != users:
                self._problem(
                    MAPS,
                    f"{users} objects have map {number}, its count says {said}",
                    self._set(number, users),
                )
        for number in stored:
            self._problem(MAPS, f"nobody has map {number}", self._set(number, 0))

    def is_used(self, owner: bytes) -> bool:
        """Tell whether pages may lie under this name, or it is an object's."""
        number, at = number_of(owner), bisect_left(self._users, number_of(owner))
        return not number or (at < len(self._users) and self._users[at] == number)

    def check_pages(self) -> None:
        """Count who refers to each shared page."""
        maps = self._state.maps
        counted = self._contents.page_references()
        numbers = (number for number, _ in maps.all_shared())
        self._check_next(PAGES, maps, max(chain(counted, numbers), default=0))
        for number, page in list(maps.all_shared()):
            should = counted.pop(number, 0)
            if page.references != should:
                self._problem(
                    PAGES,
                    f"{should} maps have page {number}, its count says {page.references}",
                    lambda number=number, should=should: (  # type: ignore[misc]
                        maps.correct(number, should)
                    ),
                )
        for number in counted:
            self._problem(PAGES, f"there is no page {number}: its blocks are lost", None)

    def _check_next(self, kind: str, numbered: Maps | WholeMaps, highest: int) -> None:
        """Compare the number that comes next with the highest one in use."""
        if highest >= numbered.next_number:
            self._problem(
                kind,
                f"the highest number is {highest}, the next one would be {numbered.next_number}",
                lambda: setattr(numbered, "next_number", highest + 1),
            )

    def check_blocks(self, *, silently: bool) -> None:
        """Count the blocks of all maps; last, for what is lost was said to be so meanwhile.

        silently: blocks were lost in repair, so the counts are known to be wrong.
        """
        state = self._state
        problem = self._repair_silently if silently else self._problem
        repeated = sum((p.references - 1) * p.blocks for _, p in state.maps.all_shared())
        blocks: dict[int, int] = {}
        for number, counts in list(state.whole_maps.all_shared()):
            found = blocks[number] = state.maps.count(owner_of(b"", number))
            repeated += (counts.references - 1) * found
            if counts.blocks != found:
                problem(
                    MAPS,
                    f"map {number} has {found} blocks, its count says {counts.blocks}",
                    self._set(number, counts.references),
                )
        for object_id in state.every_object():
            self._check_object(object_id, blocks, problem)
        if repeated != state.maps.repeated:
            said = state.maps.repeated
            problem(
                PAGES,
                f"sharing saves {repeated} blocks, the checkpoint says {said}",
                lambda: setattr(state.maps, "repeated", repeated),
            )

    def _check_object(self, object_id: ObjectId, blocks: dict[int, int], problem: Problem) -> None:
        state = self._state
        head = state.head(object_id)
        assert head is not None
        if head.blocks == UNKNOWN:
            return
        found = blocks.get(head.map, -1) if head.map else -1
        if found < 0:
            found = state.maps.count(owner_of(object_id, head.map))
        if head.blocks != found:
            problem(
                MAPS,
                f"object {object_id.hex()} has {found} blocks, its head says {head.blocks}",
                lambda: state.count_blocks(object_id, found),
            )

    def _runs(self) -> Iterator[tuple[int, int]]:
        """Yield (number, how many have that map)."""
        users, at = self._users, 0
        while at < len(users):
            end = at + 1
            while end < len(users) and users[end] == users[at]:
                end += 1
            yield users[at], end - at
            at = end

    def _set(self, number: int, users: int) -> Callable[[], None]:
        state = self._state

        def fix() -> None:
            blocks = state.maps.count(owner_of(b"", number))
            counts = SharedCounts(users, blocks) if users > 1 else None
            state.whole_maps.put(number, counts)

        return fix

    @staticmethod
    def _repair_silently(_kind: str, _text: str, fix: Callable[[], None] | None) -> None:
        if fix is not None:
            fix()
