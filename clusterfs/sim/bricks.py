"""One store under a seeded workload on a simulated disk, beside a model made of dicts.

`Trial` drives both and remembers, for each step, how long the disk's journal was when the step was
issued and when a sync acknowledged it. So for a power cut after any number of events it is known
what must be there (acknowledged) and what may be there (issued): `check_crash` opens the brick and
compares it with the model.

Invariant: after any power cut the store equals the model after some prefix of the steps that holds
all acknowledged ones; no step is there in part.
"""

import random
from typing import NamedTuple, Self

import msgspec
from blake3 import blake3

from clusterfs.errors import OutOfSpace
from clusterfs.sim.brick_model import Model
from clusterfs.sim.cleaning import clean_all
from clusterfs.sim.disk import Fate, SimulatedDisk
from clusterfs.sim.recovered import recovered
from clusterfs.store.objects import (
    ABSENT,
    BLOCK_BYTES,
    MARK,
    STRIPE_BLOCKS,
    Change,
    Delete,
    Discard,
    ObjectId,
    Operation,
    Put,
    Remove,
    Share,
    Transaction,
    Version,
    Write,
    stripe_object,
)
from clusterfs.store.opening import Options
from clusterfs.store.state import INCOMPLETE
from clusterfs.store.store import Store

KEY = bytes(range(32))
SMALL = Options(
    segment_bytes=128 << 10,
    log_bytes=32 << 10,
    buffers=4,
    size_limit_bytes=3 << 20,
    checkpoint_bytes=512 << 10,
    hints=4096,
    cache_bytes=0,  # what is read comes from the disk
)
TIGHT = msgspec.structs.replace(SMALL, size_limit_bytes=10 * SMALL.segment_bytes)
_CLIENTS = 3
_OBJECTS = 5
_BLOCKS = 24
# Of clones: first, count, first of the source; a map page has 256 blocks.
_SHARES = (
    (0, STRIPE_BLOCKS, 0),  # all of it
    (0, STRIPE_BLOCKS, 0),
    (0, 256, 0),
    (256, 512, 0),
    (0, 256, 256),
    (256, 256, 0),
    (512, 300, 256),
    (3, 9, 4),
)
_KEYS = (b"a", b"b", b"c", MARK)


async def dump(store: Store, sequences: int) -> dict[str, object]:
    """Return all a store holds, every block read and verified."""
    objects: dict[ObjectId, object] = {}
    for object_id, version in store.objects():
        blocks = []
        for block, _ in store.blocks(object_id):
            data = await store.read(object_id, block, 1)
            blocks.append((block, blake3(data).digest(8)))
        keys = store.scan(object_id)
        assert all(store.get(object_id, key) == value for key, value in keys)
        objects[object_id] = (version, store.group(object_id), keys, blocks)
        assert (object_id in store.marked()) == any(key == MARK for key, _ in keys)
    names = [(c, s) for c in range(1, _CLIENTS + 1) for s in range(1, sequences + 1)]
    return {
        "objects": objects,
        "applied": {name for name in names if store.applied(*name)},
        "prepared": {(t.client, t.sequence) for t in store.prepared()},
        "outcomes": {n: o for n in names if (o := store.outcome(*n)) is not None},
        "facts": {name: v for name in ("epoch", "cluster") if (v := store.fact(name)) is not None},
    }


class Step(NamedTuple):
    """One step of a workload, as far as crashes are concerned."""

    issued_at: int  # events in the journal before it
    dump: dict[str, object]  # the model after it
    model: Model


class Trial:
    """A store and its model under one seeded workload."""

    def __init__(self, store: Store, disk: SimulatedDisk, seed: int, options: Options) -> None:
        self.store = store
        self._options = options
        self._seed = seed
        self.disk = disk
        self.model = Model()
        self.random = random.Random(seed)
        self._sequence = 0
        self._pool = [self.random.randbytes(BLOCK_BYTES) for _ in range(12)]
        self._pool.append(bytes(BLOCK_BYTES))
        self.counts = (1, 1, 1, 2, 5, 12)  # blocks that an operation concerns
        self.steps = [Step(0, self.model.dump(), self.model.copy())]
        self.acknowledged: list[tuple[int, int]] = []  # (events, steps)

    async def run(self, steps: int) -> None:
        """Do so many random steps."""
        choices = [self.transact] * 12 + [self.prepare] * 2 + [self.decide] * 3
        choices += [self.share] * 2
        choices += [self.sync] * 5 + [self.note, self.replace, self.checkpoint, self.stabilise]
        for _ in range(steps):
            await self.random.choice(choices)()

    def issue(self) -> None:
        """Note the model's new state; call it after the store took the step."""
        self.steps.append(Step(self._issued_at, self.model.dump(), self.model.copy()))

    async def _admit(self, changes: tuple[Change, ...] = ()) -> bool:
        try:
            await self.store.admit_transaction(Transaction(0, 0, 0, changes))
        except OutOfSpace:
            return False
        self._issued_at = len(self.disk.journal)
        return True

    async def transact(self) -> None:
        """Apply one to three changes."""
        transaction, payload = self._transaction(self.random.randint(1, 3))
        if await self._admit(transaction.changes):
            self._apply(transaction, payload)

    def _apply(self, transaction: Transaction, payload: bytes) -> None:
        self.store.apply(transaction, payload)
        self.model.perform(transaction.changes, payload)
        self.model.applied.add((transaction.client, transaction.sequence))
        self.issue()

    def _prepare(self, transaction: Transaction, payload: bytes) -> None:
        self.store.prepare(transaction, payload)
        self.model.prepared[transaction.client, transaction.sequence] = (transaction, payload)
        self.issue()

    async def share(self) -> None:
        """Clone blocks of one object to another, or within one; apply it, or prepare it."""
        made = self._shares()
        if made is None or not await self._admit(made[0].changes):
            return
        if self.random.random() < 0.3:  # noqa: PLR2004
            self._prepare(*made)
        else:
            self._apply(*made)

    def _shares(self) -> tuple[Transaction, bytes] | None:
        """Return a transaction that shares, and writes to the source, too, or deletes it."""
        locked = {c.object_id for t, _ in self.model.prepared.values() for c in t.changes}
        names = [stripe_object(7, n) for n in range(_OBJECTS)]
        sources = [name for name in names if name not in locked and name in self.model.objects]
        if not sources:
            return None
        self._sequence += 1
        source = self.random.choice(sources)
        target = self.random.choice([name for name in names if name not in locked])
        operations: dict[ObjectId, list[Operation]] = {source: [], target: []}
        payload = b""
        for _ in range(self.random.randint(1, 2)):
            first, count, from_first = self.random.choice(_SHARES)
            operations[target].append(Share(first, count, source, from_first))
        if source != target:
            more, payload = self._operations(exists=True)
            if self.random.random() < 0.5:  # noqa: PLR2004
                operations[source] += more
            else:
                payload = b""
        changes = []
        for name in self.random.sample(sorted(operations), len(operations)):
            found = self.model.objects.get(name)
            expected, group = (found.version, found.group) if found else (ABSENT, 2)
            done = tuple(operations[name])
            changes.append(Change(name, group, expected, expected.after(1), done))
        client = self.random.randint(1, _CLIENTS)
        return Transaction(client, self._sequence, 1, tuple(changes)), payload

    async def write_all(self, blocks: int) -> bytes:
        """Write new data to the first blocks of all objects in one transaction; return it."""
        self._sequence += 1
        changes, parts = [], []
        for object_id in (stripe_object(7, n) for n in range(_OBJECTS)):
            found = self.model.objects.get(object_id)
            expected, group = (found.version, found.group) if found else (ABSENT, 1)
            writes = (Write(0, blocks),)
            changes.append(Change(object_id, group, expected, expected.after(1), writes))
            parts += [self._block() for _ in range(blocks)]
        transaction = Transaction(1, self._sequence, 1, tuple(changes))
        assert await self._admit(transaction.changes)
        payload = b"".join(parts)
        self._apply(transaction, payload)
        return payload

    async def prepare(self) -> None:
        """Prepare a transaction."""
        transaction, payload = self._transaction(self.random.randint(1, 2))
        if await self._admit(transaction.changes):
            self._prepare(transaction, payload)

    async def decide(self) -> None:
        """Commit or abort something prepared."""
        if not self.model.prepared or not await self._admit():
            return
        key = self.random.choice(sorted(self.model.prepared))
        transaction, payload = self.model.prepared.pop(key)
        if self.random.random() < 0.6:  # noqa: PLR2004
            self.store.commit(*key)
            self.model.perform(transaction.changes, payload)
            self.model.applied.add(key)
            self.model.outcomes[key] = "committed"
        else:
            self.store.abort(*key)
            self.model.outcomes[key] = "aborted"
        self.issue()

    async def note(self) -> None:
        """Set a fact."""
        if await self._admit():
            name = self.random.choice(("epoch", "cluster"))
            value = self.random.choice((self.random.randrange(1 << 60), b"\0cluster"))
            self.store.set_fact(name, value)
            self.model.facts[name] = value
            self.issue()

    async def stabilise(self) -> None:
        """Raise a client's stable watermark."""
        if await self._admit():
            client = self.random.randint(1, _CLIENTS)
            below = self.random.randint(0, self._sequence)
            self.store.set_stable(client, below)
            self.model.applied |= {(client, n) for n in range(1, below + 1)}
            self.issue()

    async def replace(self) -> None:
        """Replace an object in two pieces, as resync does."""
        locked = {c.object_id for t, _ in self.model.prepared.values() for c in t.changes}
        object_id = stripe_object(7, self.random.randrange(_OBJECTS))
        if object_id in locked:
            return
        found = self.model.objects.get(object_id)
        version = Version(9, found.version.counter + 1 if found else 1)
        data = self._data(3)
        pieces: list[tuple[Version, tuple[Operation, ...], bytes]] = [
            (INCOMPLETE, (Put(b"a", b"pulled"), Write(2, 3)), data),
            (version, (Remove(b"b"), Discard(10, 4)), b""),
        ]
        for piece_version, operations, payload in pieces:
            change = Change(object_id, 5, ABSENT, piece_version, operations)
            if not await self._admit((change,)):
                return
            self.store.replace(object_id, 5, piece_version, operations, payload)
            self.model.perform((change,), payload)
            self.issue()

    async def sync(self) -> None:
        """Sync everything; what is there now is acknowledged."""
        steps = len(self.steps) - 1
        await self.store.sync()
        self.acknowledged.append((len(self.disk.journal), steps))

    async def checkpoint(self) -> None:
        """Take a checkpoint."""
        await self.store.checkpoint()

    async def clean(self) -> None:
        """Have the cleaner move everything that it can."""
        await clean_all(self.store)
        self.store._log.seal_cold()  # noqa: SLF001

    def _transaction(self, wanted: int) -> tuple[Transaction, bytes]:
        self._sequence += 1
        locked = {c.object_id for t, _ in self.model.prepared.values() for c in t.changes}
        names = [stripe_object(7, n) for n in range(_OBJECTS)]
        free = [name for name in names if name not in locked]
        changes, payload = [], b""
        for object_id in self.random.sample(free, min(wanted, len(free))):
            found = self.model.objects.get(object_id)
            expected = found.version if found else ABSENT
            operations, data = self._operations(exists=found is not None)
            payload += data
            group = found.group if found else self.random.randrange(4)
            changes.append(Change(object_id, group, expected, expected.after(1), operations))
        client = self.random.randint(1, _CLIENTS)
        return Transaction(client, self._sequence, 1, tuple(changes)), payload

    def _operations(self, *, exists: bool) -> tuple[tuple[Operation, ...], bytes]:
        if exists and self.random.random() < 0.08:  # noqa: PLR2004
            return (Delete(),), b""
        operations: list[Operation] = []
        payload = b""
        for _ in range(self.random.randint(1, 3)):
            first = self.random.randrange(_BLOCKS)
            count = self.random.choice(self.counts)
            match self.random.randrange(6):
                case 0:
                    value = self.random.randbytes(self.random.choice((3, 90, 9000)))
                    operations.append(Put(self.random.choice(_KEYS), value))
                case 1:
                    operations.append(Remove(self.random.choice(_KEYS)))
                case 2:
                    operations.append(Discard(first, count))
                case _:
                    operations.append(Write(first, count))
                    payload += self._data(count)
        return tuple(operations), payload

    def _data(self, blocks: int) -> bytes:
        return b"".join(
            self.random.choice(self._pool)
            if self.random.random() < 0.4  # noqa: PLR2004
            else self._block()
            for _ in range(blocks)
        )

    def _block(self) -> bytes:
        """Return a block unlike all others; it compresses if the store does that."""
        if self._options.compression == "off":
            return self.random.randbytes(BLOCK_BYTES)
        return self.random.randbytes(self.random.choice((100, 1500, 4096))).ljust(BLOCK_BYTES, b"-")

    # -- crashes

    async def check_live(self) -> None:
        """Compare the running store with the model."""
        self.store.validate()
        found = await dump(self.store, self._sequence)
        assert found == self.model.dump()

    async def check_crash(self, at: int, fate: Fate) -> None:
        """Cut the power after `at` events, open the brick and compare."""
        life = await self.next_life(self.disk.crash(at, fate), at)
        life.store.validate()
        await life.store.close()

    def check_cold(self, at: int, fate: Fate) -> None:
        """Cut the power after `at` events, look at what is left, run fsck, and compare."""
        self.check_cold_of(self.disk, at, fate, at)

    def check_cold_of(self, brick: SimulatedDisk, events: int, fate: Fate, at: int) -> None:
        """The same for a brick that this one, cut after `at` events, became."""
        report, found = recovered(
            brick.crash(events, fate), range(1, _CLIENTS + 1), range(1, self._sequence + 1)
        )
        assert not report.problems, report.problems
        self._step_of(found, at)

    async def next_life(self, brick: SimulatedDisk, at: int) -> Self:
        """Open what is left of the brick after `at` events, compare, and return its own trial."""
        store = await Store.open(brick, KEY, options=self._options)
        found = await dump(store, self._sequence)
        step = self.steps[self._step_of(found, at)]
        life = type(self)(store, brick, self._seed + 1, self._options)
        life.model = step.model.copy()
        life.steps = [Step(0, step.dump, step.model)]
        life.acknowledged = [(len(brick.journal), 0)]
        life._sequence = self._sequence  # noqa: SLF001 - of the same class
        return life

    def _step_of(self, found: dict[str, object], at: int) -> int:
        low = max((steps for events, steps in self.acknowledged if events <= at), default=0)
        high = max(i for i, step in enumerate(self.steps) if step.issued_at <= at)
        for step in range(high, low - 1, -1):
            if self.steps[step].dump == found:
                return step
        others = [i for i, step in enumerate(self.steps) if step.dump == found]
        raise AssertionError(
            f"after {at} events the brick must be at a step in [{low}, {high}]; it is at {others}"
        )


async def open_trial(seed: int, options: Options = SMALL) -> Trial:
    """Return a trial on a new simulated brick."""
    disk = SimulatedDisk()
    store = await Store.open(disk, KEY, options=options)
    return Trial(store, disk, seed, options)
