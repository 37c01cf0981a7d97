"""One store in which nearly everything is a clone of a clone: a Trial where sharing is at stake.

Transactions clone stripes whole, by the page and by the block, from several objects to several at
once, in circles and onto themselves; and they write, punch, shorten, empty and delete what is
shared, mostly at the borders of map pages and at both ends of a stripe.
"""

import msgspec

from clusterfs.sim.bricks import KEY, SMALL, Trial
from clusterfs.sim.disk import SimulatedDisk
from clusterfs.store.maps import MAP_BLOCKS
from clusterfs.store.objects import (
    ABSENT,
    STRIPE_BLOCKS,
    Change,
    Delete,
    Discard,
    ObjectId,
    Operation,
    Put,
    Share,
    Transaction,
    Write,
    stripe_object,
)
from clusterfs.store.opening import Options
from clusterfs.store.store import Store

CLONES = msgspec.structs.replace(SMALL, size_limit_bytes=8 << 20)
_OBJECTS = 6
_BORDERS = (0, MAP_BLOCKS, 2 * MAP_BLOCKS, 3 * MAP_BLOCKS, STRIPE_BLOCKS - MAP_BLOCKS)
_WHOLE = (0, STRIPE_BLOCKS, 0)
_SHARES = (  # first, count, first of the source
    *[_WHOLE] * 12,
    (0, MAP_BLOCKS, 0),
    (0, 3 * MAP_BLOCKS, MAP_BLOCKS),
    (MAP_BLOCKS, STRIPE_BLOCKS - MAP_BLOCKS, MAP_BLOCKS),
    (0, STRIPE_BLOCKS - MAP_BLOCKS, MAP_BLOCKS),
    (0, STRIPE_BLOCKS - 3, 0),
    (STRIPE_BLOCKS - MAP_BLOCKS, MAP_BLOCKS, 0),
    (MAP_BLOCKS - 2, 5, MAP_BLOCKS - 3),
    (3, 2 * MAP_BLOCKS, 3),
)


class CloneTrial(Trial):
    """A store and its model under one seeded workload of clones."""

    def __init__(
        self, store: Store, disk: SimulatedDisk, seed: int, options: Options = CLONES
    ) -> None:
        super().__init__(store, disk, seed, options)
        self.names = [stripe_object(7, number) for number in range(_OBJECTS)]
        self.clones = True  # else everything but clones

    async def run(self, steps: int) -> None:
        """Do so many random steps."""
        choices = [self.mix] * 12 + [self.decide] * 3 + [self.sync] * 2
        choices += [self.checkpoint, self.replace]
        for _ in range(steps):
            await self.random.choice(choices)()

    async def mix(self) -> None:
        """Change several objects at once; apply it, or prepare it."""
        transaction, payload = self._mixed(self.random.randint(1, 4))
        if await self._admit(transaction.changes):
            if self.random.random() < 0.2:  # noqa: PLR2004
                self._prepare(transaction, payload)
            else:
                self._apply(transaction, payload)

    async def end(self) -> None:
        """Decide all that is prepared, delete everything, and see that nothing is left."""
        await self.decide_all()
        for object_id in sorted(self.model.objects):
            operation = self.random.choice((Delete(), Discard(0, STRIPE_BLOCKS)))
            self._sequence += 1
            change = self._change(object_id, (operation,))
            assert await self._admit((change,))
            self._apply(Transaction(1, self._sequence, 1, (change,)), b"")
        self.store.validate()
        usage = self.store.usage()
        assert usage["live_bytes"] == usage["logical_bytes"] == 0
        state = self.store._state  # noqa: SLF001
        assert not list(state.maps.all_shared())
        assert not list(state.whole_maps.all_shared())

    async def decide_all(self) -> None:
        """Leave nothing prepared."""
        while self.model.prepared:
            await self.decide()

    def _mixed(self, wanted: int) -> tuple[Transaction, bytes]:
        self._sequence += 1
        locked = {c.object_id for t, _ in self.model.prepared.values() for c in t.changes}
        free = [name for name in self.names if name not in locked]
        chosen = self.random.sample(free, min(wanted, len(free)))
        changes, payload = [], b""
        for object_id in chosen:
            operations: list[Operation] = []
            for _ in range(self.random.choice((0, 1, 1, 2, 3))):
                operation, data = self._one(chosen)
                operations.append(operation)
                payload += data
            if object_id in self.model.objects and self.random.random() < 0.1:  # noqa: PLR2004
                operations.append(Delete())
            changes.append(self._change(object_id, tuple(operations)))
        client = self.random.randint(1, 3)
        return Transaction(client, self._sequence, 1, tuple(changes)), payload

    def _change(self, object_id: ObjectId, operations: tuple[Operation, ...]) -> Change:
        found = self.model.objects.get(object_id)
        expected, group = (found.version, found.group) if found else (ABSENT, 3)
        return Change(object_id, group, expected, expected.after(1), operations)

    def _one(self, chosen: list[ObjectId]) -> tuple[Operation, bytes]:
        """Return an operation on blocks, and what it writes."""
        border = self.random.choice(_BORDERS) + self.random.choice((0, 0, -1, 1, -5, 7))
        first = min(max(border, 0), STRIPE_BLOCKS - 1)
        rest = STRIPE_BLOCKS - first
        kind = self.random.randrange(0 if self.clones else 4, 10)
        if kind < 4:  # noqa: PLR2004
            place = self.random.choice(_SHARES)
            return Share(place[0], place[1], self.random.choice(chosen), place[2]), b""
        if kind < 8:  # noqa: PLR2004
            count = min(rest, self.random.choice((1, 1, 2, 3, 9)))
            return Write(first, count), self._data(count)
        if kind == 8:  # noqa: PLR2004
            return Put(b"a", self.random.randbytes(9)), b""
        count = self.random.choice((1, 3, MAP_BLOCKS, 2 * MAP_BLOCKS + 9, rest, rest, 1 << 20))
        return Discard(first, min(count, rest) if count < rest else count), b""


async def open_clones(seed: int) -> CloneTrial:
    """Return a trial of clones on a new simulated brick."""
    disk = SimulatedDisk()
    return CloneTrial(await Store.open(disk, KEY, options=CLONES), disk, seed)
