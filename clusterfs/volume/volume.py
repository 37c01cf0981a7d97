"""Replicated objects and transactions: one per process, client side and replica side.

The parts: `Writer` sends transactions, `Reader` reads, `Replica` applies what clients send,
`Service` answers calls, `Gate` rolls forward after a client is gone, `Resync` brings this node's
copy up to date, `Ledger` and `Purse` keep space credits. They share a `Site`. This class wires them
to the mesh and to the views, and keeps the clock: watermarks, background syncs, slow replicas.

Invariants:
  * a view takes effect in all parts in one step, before anything of its epoch is served;
  * `stable` passes a transaction only after every replica has it on disk.
"""

from collections.abc import Awaitable, Callable, Collection, Sequence
from contextlib import suppress
from functools import partial
from typing import Any, NamedTuple

import structlog
import trio

from clusterfs.cluster.views import View, nodes_of
from clusterfs.errors import BrickFailed, OutOfSpace, Unavailable
from clusterfs.store.objects import Change, ObjectId, Version, split_object_id
from clusterfs.volume import placement
from clusterfs.volume.comparing import Comparer
from clusterfs.volume.credits import Purse
from clusterfs.volume.departed import Sent
from clusterfs.volume.gate import Gate
from clusterfs.volume.memory import Memory
from clusterfs.volume.mending import Mender
from clusterfs.volume.messages import (
    CHANNEL,
    Answered,
    Code,
    Granted,
    Message,
    Patience,
    Report,
    Reported,
    Synced,
    Watermark,
    decode_message,
    decode_request,
)
from clusterfs.volume.pace import Pace
from clusterfs.volume.ports import Buffer, LocalStore, Mesh, Views
from clusterfs.volume.reader import Reader
from clusterfs.volume.replica import Replica
from clusterfs.volume.resync import Resync
from clusterfs.volume.returning import Returner
from clusterfs.volume.service import Service
from clusterfs.volume.site import Site
from clusterfs.volume.syncer import Syncer
from clusterfs.volume.trimming import REST_S, Trimmer
from clusterfs.volume.writer import Writer
from dlm.errors import LockLost, PeerLost
from dlm.net.errors import Malformed, Refused
from dlm.net.wire import decode, encode

_ANSWERS = frozenset((Answered, Synced, Granted, Patience))
_TICK_S = 0.25
_CREDIT_ROUNDS = 3
_CREDIT_WAIT_S = 1.0
_REPORT_S = 2.0


class Space(NamedTuple):
    """Room of the volume, in bytes of user data."""

    total: int
    free: int


class Volume:
    """This node's door to the replicated objects."""

    def __init__(  # noqa: PLR0913 - what a volume stands on, and four settings
        self,
        store: LocalStore | None,
        mesh: Mesh,
        views: Views,
        *,
        answer_timeout_s: float = 5.0,
        durable_s: float = 1.0,
        resync_bytes: int = 0,
        trim_after_s: float = REST_S,
        read_only: Collection[str] = (),
    ) -> None:
        self._site = site = Site(store, mesh, views)
        site.read_only = frozenset(read_only)
        self._store = store
        self._views = views
        self._durable_s = durable_s
        self._log = structlog.get_logger("clusterfs.volume").bind(node=site.node)
        self._nursery: trio.Nursery | None = None
        self._counter = 0
        self._purse = Purse()
        self._credited = trio.Event()
        self._lost = False
        self._writer = Writer(site, self._spawn, self._to_myself, answer_timeout_s, self._charge)
        self._mender = None if store is None else Mender(site, store)
        self._reader = Reader(site, self._mend)
        self._syncer = Syncer(site, self._spawn, self._to_myself)
        self._memory = Memory()
        self._replica: Replica | None = None
        self._resync: Resync | None = None
        self._gate: Gate | None = None
        self._service: Service | None = None
        self._trimmer: Trimmer | None = None
        self._comparer: Comparer | None = None
        self._returner: Returner | None = None
        if store is not None:
            self._resync = Resync(site, store, self._syncer.sync, Pace(resync_bytes))
            self._replica = Replica(
                site, store, self._memory, self._resync, self._spawn, self._answer, self._wait_gate
            )
            self._gate = Gate(site, store, self._memory, self._replica, self._resync)
            self._comparer = Comparer(site, store)
            self._returner = Returner(site, store)
            self._service = Service(site, store, self._gate, self._resync, self._comparer)
            self._trimmer = Trimmer(site, store, trim_after_s)
        mesh.register(CHANNEL, self)

    async def run(self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Follow the views and do the background work until cancelled.

        Subscribes now: whoever lists the mesh's peers must have subscribed before.
        """
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            self._views.subscribe(self._entered)
            self._begin_views()
            if self._gate is not None and self._resync is not None:
                nursery.start_soon(self._gate.run)
                nursery.start_soon(self._resync.run)
            if self._mender is not None:
                nursery.start_soon(self._mender.run)
            if self._trimmer is not None and self._comparer is not None:
                nursery.start_soon(self._trimmer.run)
                nursery.start_soon(self._comparer.run)
            if self._returner is not None:
                nursery.start_soon(self._returner.run)
            nursery.start_soon(self._keep_clock)
            nursery.start_soon(self._keep_durable)
            task_status.started()

    def rolled_forward(self, lock_epoch: int) -> bool:
        """Tell whether what clients did that were lost up to that lock epoch is here."""
        site = self._site
        return self._gate is None or (site.gate_open and site.view.lock_epoch >= lock_epoch)

    def when_rolled_forward(self, tell: Callable[[], None]) -> None:
        """Call `tell` whenever `rolled_forward` may have become true."""
        if self._gate is not None:
            self._gate.on_open = tell

    # -- placement ------------------------------------------------------------------------------

    @property
    def epoch(self) -> int:
        """The view in force."""
        return self._site.view.epoch

    @property
    def incarnation(self) -> int:
        """The number of this start of this node."""
        return self._site.incarnation

    @property
    def groups(self) -> int:
        """How many groups there are."""
        return self._groups()

    def new_inode(self, group: int | None = None) -> int:
        """Return a number never used before; without a group in a fresh one, for a directory."""
        self._counter += 1
        if self._counter > placement.MAX_COUNTER:
            raise OutOfSpace("this start of the node has used up its inode numbers; restart it")
        incarnation = self._site.incarnation
        if group is None:
            group = placement.fresh_group(incarnation, self._counter, self._groups())
        return placement.inode_number(group, incarnation, self._counter)

    def group_of_inode(self, inode: int) -> int:
        """Return the group of an inode object, and of stripe 0 of a file that is its own origin."""
        return placement.group_of_inode(inode, self._groups())

    def group_of_stripe(self, inode: int, seed: int, n: int) -> int:  # noqa: ARG002 - a clone's own number does not matter
        """Return the group of a stripe; `seed` is the inode number that the data began with."""
        return placement.group_of_stripe(seed, n, self._groups())

    def maker_is_present(self, inode: int) -> bool:
        """Tell whether the node that made the number up is a member still, in that incarnation."""
        incarnation = placement.incarnation_of_inode(inode)
        return any(member.incarnation == incarnation for member in self._site.view.members)

    def same_replicas(self, one: int, other: int) -> bool:
        """Tell whether two groups have the same replicas now, so that objects may share blocks."""
        view = self._site.view
        return one == other or placement.targets(view, one) == placement.targets(view, other)

    # -- reads ----------------------------------------------------------------------------------

    def fetch_nowait(
        self, object_id: ObjectId, group: int, keys: Sequence[bytes]
    ) -> tuple[Version, list[bytes | None]]:
        """Return version and values from this node; raises WouldBlock."""
        return self._reader.fetch_nowait(object_id, group, keys)

    async def fetch(
        self, object_id: ObjectId, group: int, keys: Sequence[bytes]
    ) -> tuple[Version, list[bytes | None]]:
        """Return version and values; ABSENT has none. Raises LockLost."""
        return await self._reader.fetch(object_id, group, keys)

    async def scan(
        self, object_id: ObjectId, group: int, prefix: bytes, after: bytes, limit: int
    ) -> list[tuple[bytes, bytes]]:
        """Return up to `limit` keys > after that start with prefix, sorted. Raises LockLost."""
        return await self._reader.scan(object_id, group, prefix, after, limit)

    def read_nowait(self, object_id: ObjectId, group: int, first: int, count: int) -> bytes:
        """Return blocks from this node's memory; raises WouldBlock."""
        return self._reader.read_nowait(object_id, group, first, count)

    async def read(self, object_id: ObjectId, group: int, first: int, count: int) -> bytes:
        """Return verified blocks; zeros for holes. Raises ChunkCorrupted, LockLost."""
        return await self._reader.read(object_id, group, first, count)

    async def extents(
        self, object_id: ObjectId, group: int, first: int, count: int
    ) -> list[tuple[int, int]]:
        """Return (first, count) of the stretches of blocks that are no holes. Raises LockLost."""
        return await self._reader.extents(object_id, group, first, count)

    async def stripes(self, inode: int) -> list[tuple[int, int, Version]]:
        """Return (stripe, group, version) of each existing stripe."""
        return await self._reader.stripes(inode)

    async def marked(self, groups: Sequence[int]) -> list[ObjectId]:
        """Return the objects with a MARK in these groups."""
        return await self._reader.marked(groups)

    async def took_place(self, sent: Sent) -> bool | None:
        """Tell whether a transaction of a former incarnation took place; None: nobody knows.

        Called after a readmission: so what did not take place never will. Raises LockLost.
        """
        here = None if self._service is None else self._service.took_place
        return await self._reader.took_place(sent, here)

    # -- changes --------------------------------------------------------------------------------

    async def commit(
        self,
        changes: Sequence[Change],
        payload: Buffer = b"",
        *,
        durable: bool = False,
        shield: bool = False,
    ) -> None:
        """Apply changes at every replica's memory, all or none; sent in the order of calls.

        The payload must not change before this returns. durable: wait, as `sync` does, until this
        and all that was committed before is on all disks; that takes one round trip, not two.
        shield: once it is sent the wait cannot be cancelled, at less cost than a scope's.

        Raises:
            OutOfSpace, VersionMismatch, BrickFailed: nothing happened.
            LockLost: this incarnation is out; OutcomeUnknown: and whether it happened is unknown.
        """
        stable = self._writer.oldest() - 1
        everywhere = await self._writer.commit(changes, payload, durable=durable, shield=shield)
        if everywhere:
            self._synced(stable)
        elif durable:
            with trio.CancelScope(shield=shield):
                await self.sync({split_object_id(change.object_id)[0] for change in changes})

    async def sync(self, inodes: Collection[int] | None = None) -> None:
        """Wait until all that is committed is on all disks. Raises BrickFailed, LockLost.

        With inodes only what this node committed of them is waited for where a replica does not
        answer; of everything else it is enough then that each group has it on one disk.
        """
        stable = self._writer.oldest() - 1
        needed = None if inodes is None else partial(self._writer.holders, inodes)
        if await self._syncer.sync(needed):
            self._synced(stable)

    def _synced(self, stable: int) -> None:
        """Every replica has synced since all up to `stable` was acknowledged."""
        if not any(self._site.view.stopped):
            self._writer.stable = max(self._writer.stable, stable)
            self._writer.unsynced.stable(stable)

    # -- space ----------------------------------------------------------------------------------

    def reserve_nowait(self, nbytes: int) -> bool:
        """Take space credits; False if there are none right now."""
        if self._purse.available(self._site.replica_incarnations) < nbytes:
            return False
        self._purse.reserved += nbytes
        return True

    async def reserve(self, nbytes: int) -> None:
        """Wait for space credits; a replica that does not answer is waited for.

        So is what other clients hold of our fair share: they give it back when they hear of us.

        Raises:
            OutOfSpace: every replica has answered, several times, and they do not promise enough.
            LockLost: this node was removed.
        """
        rounds = 0
        while not self.reserve_nowait(nbytes):
            if rounds >= _CREDIT_ROUNDS:
                if not self._purse.due(self._site.replica_incarnations, nbytes):
                    raise OutOfSpace(f"no replica promises {nbytes} bytes")
                await trio.sleep(_TICK_S)
            await self._ask_for_credit()
            rounds += 1

    def unreserve(self, nbytes: int) -> None:
        """Give credits back: the data was committed, or dropped."""
        assert self._purse.reserved >= nbytes, "more given back than taken"
        self._purse.reserved -= nbytes

    async def statfs(self) -> Space:
        """Return the room of the volume: what one more byte on each copy's replicas allows."""
        incarnations = self._site.replica_incarnations
        while not incarnations or any(self._purse.room(i) is None for i in incarnations):
            await self._ask_for_credit()
            incarnations = self._site.replica_incarnations
        rooms = [room for i in incarnations if (room := self._purse.room(i)) is not None]
        copies = min(self._site.view.replicas, len(rooms))
        if copies == len(rooms):
            return Space(min(r[0] for r in rooms), min(r[1] for r in rooms))
        return Space(sum(r[0] for r in rooms) // copies, sum(r[1] for r in rooms) // copies)

    # -- the node comes and goes ----------------------------------------------------------------

    def lose(self) -> None:
        """This incarnation is out: every wait fails with LockLost, nothing is served."""
        self._lost = True
        self._hear_of_credit()
        self._writer.lose()
        self._reader.lose()
        self._syncer.lose()
        if self._gate is not None and self._replica is not None:
            self._gate.close()
            self._replica.close()

    def session(self, incarnation: int) -> None:
        """Start anew after a rejoin; call it before the new incarnation does anything."""
        assert incarnation == self._views.incarnation, "join first"
        old = self._site.view
        self._counter = 0
        self._purse = Purse()
        self._lost = False
        self._site.begin()
        self._writer.begin()
        self._reader.begin()
        self._syncer.begin()
        if self._nursery is not None:
            self._enter_parts(old, self._site.view)

    @property
    def mending(self) -> bool:
        """Tell whether damage is known here for which no repair was tried yet."""
        return self._mender is not None and self._mender.is_due

    async def resync_reports(self) -> dict[int, Reported]:
        """Return how far each node is that syncs now; those that answer. For administrators."""
        view = self._site.view
        syncing = 0
        for mask in view.syncing:
            syncing |= mask
        reports: dict[int, Reported] = {}
        if self._resync is not None and syncing & self._site.bit:
            reports[self._site.node] = self._resync.report()

        async def ask(node: int) -> None:
            with suppress(PeerLost, Refused), trio.move_on_after(_REPORT_S):
                body, _ = await self._site.call(node, encode(Report(view.epoch)))
                reports[node] = decode(body, Reported)

        async with trio.open_nursery() as nursery:
            for node in self._site.others(syncing):
                nursery.start_soon(ask, node)
        return reports

    @property
    def comparer(self) -> Comparer | None:
        """Compares this node's copies with the others'."""
        return self._comparer

    def set_resync_rate(self, rate_bytes: int) -> None:
        """Let a resync of this node's copy so many bytes a second; 0: as fast as it goes."""
        if self._resync is not None:
            self._resync.pace.rate_bytes = rate_bytes

    def resync_rate(self) -> int:
        """Return how many bytes a second a resync may copy; 0: as fast as it goes."""
        return 0 if self._resync is None else self._resync.pace.rate_bytes

    def heard(self, epoch: int) -> None:
        """Note the epoch of a message on any channel: reads wait for at least that view."""
        self._site.hear(epoch)

    @property
    def heard_epoch(self) -> int:
        """The highest epoch heard of; what messages on all channels should carry."""
        return self._site.heard

    def statistics(self) -> dict[str, Any]:
        """Return counters and the state of gate and resync."""
        writer, reader, replica = self._writer, self._reader, self._replica
        found: dict[str, Any] = {
            "epoch": self.epoch,
            "commits": writer.commits,
            "outstanding": writer.outstanding(),
            "reissues": writer.reissues,
            "prepares": writer.prepares,
            "sequence": writer.sequence,
            "stable": writer.stable,
            "reads_local": reader.local,
            "reads_remote": reader.remote,
            "repaired": 0 if self._mender is None else self._mender.repaired,
            "unrepaired": 0 if self._mender is None else self._mender.unrepaired,
            "reserved_bytes": self._purse.reserved,
        }
        if replica is not None and self._gate is not None and self._resync is not None:
            found |= {
                "applied": replica.applied,
                "refused": replica.refused,
                "queued": replica.queued(),
                "gate": self._gate.statistics(),
                "resync": self._resync.statistics(),
                "trimmed": 0 if self._trimmer is None else self._trimmer.trimmed,
            }
        return found

    dump = statistics

    # -- what the mesh calls --------------------------------------------------------------------

    def message(
        self, sender: int, incarnation: int, epoch: int, body: bytes, payload: bytes
    ) -> None:
        """Take a one-way message."""
        self._site.hear(epoch)
        try:
            message = decode_message(body)
        except Malformed as error:
            self._log.warning("malformed message", sender=sender, error=str(error))
            return
        self._take(sender, incarnation, message, payload)

    def begin_call(
        self,
        sender: int,
        incarnation: int,
        epoch: int,
        body: bytes,
        payload: bytes,  # noqa: ARG002
    ) -> tuple[bytes, bytes] | Awaitable[tuple[bytes, bytes]]:
        """Answer a call, at once where possible. Raises Refused."""
        self._site.hear(epoch)
        if self._service is None:
            raise Refused(Code.STALE)
        try:
            request = decode_request(body)
        except Malformed as error:
            raise Refused(Code.MALFORMED, str(error).encode()) from error
        return self._service.serve(sender, incarnation, request)

    # -- below ----------------------------------------------------------------------------------

    def _take(self, sender: int, incarnation: int, message: Message, payload: Buffer) -> None:
        if type(message) in _ANSWERS:
            if self._site.up.get(sender) == incarnation:
                self._take_answer(sender, incarnation, message)
        elif self._replica is not None and self._site.incarnation == self._views.incarnation:
            self._replica.message(sender, incarnation, message, payload)

    def _take_answer(self, sender: int, incarnation: int, message: Message) -> None:
        if isinstance(message, Answered):
            if message.grant is not None:
                self._purse.granted(incarnation, message.grant)
            self._writer.answered(sender, message)
        elif isinstance(message, Synced):
            self._syncer.synced(sender, message)
        elif isinstance(message, Granted):
            self._purse.granted(incarnation, message.grant)
            self._hear_of_credit()
        elif isinstance(message, Patience):
            self._writer.patience(sender, trio.current_time())

    def _hear_of_credit(self) -> None:
        credited, self._credited = self._credited, trio.Event()
        credited.set()

    def _to_myself(self, message: Message, payload: Buffer = b"") -> None:
        """Hand a message of this node's client to this node's replica."""
        assert self._replica is not None, "a node without a store is in no set"
        self._replica.message(self._site.node, self._site.incarnation, message, payload)

    def _answer(self, node: int, incarnation: int, message: Message) -> None:
        """Send a replica's answer; drop it if that start of the client is gone."""
        if node == self._site.node:
            self._take(node, self._site.incarnation, message, b"")
            return
        known = self._site.incarnations.get(node)
        if known is not None and incarnation in {known, 0}:
            self._site.send(node, encode(message))

    def _mend(self) -> None:
        if self._mender is not None:
            self._mender.poke()

    async def _wait_gate(self) -> None:
        assert self._gate is not None
        await self._gate.wait_open()

    def _spawn(self, call: Callable[..., Awaitable[Any]], *arguments: Any) -> None:
        assert self._nursery is not None, "run first"
        self._nursery.start_soon(self._guarded, call, *arguments)

    async def _guarded(self, call: Callable[..., Awaitable[Any]], *arguments: Any) -> None:
        """Run a task whose purpose ends with this incarnation."""
        try:
            await call(*arguments)
        except (Unavailable, LockLost) as error:
            self._log.info("gave up", task=getattr(call, "__name__", repr(call)), error=str(error))

    def _entered(self, old: View, new: View) -> None:
        if self._nursery is None or self._site.incarnation != self._views.incarnation:
            return  # `run`, or `session`, takes the view up
        self._site.enter(new)
        self._enter_parts(old, new)

    def _enter_parts(self, old: View, new: View) -> None:
        if self._replica is not None and self._gate is not None and self._resync is not None:
            self._replica.entered()
            self._resync.entered(old, new)
            self._gate.entered(old, new)
        self._writer.entered(old, new)
        self._syncer.entered()

    def _begin_views(self) -> None:
        self._site.begin()
        view = self._site.view
        self._enter_parts(view, view)

    def _groups(self) -> int:
        return len(self._site.view.in_sync)

    def _charge(self, mask: int, nbytes: int) -> None:
        members = self._site.incarnations
        self._purse.spend([members[n] for n in nodes_of(mask) if n in members], nbytes)

    async def _ask_for_credit(self) -> None:
        """Wait until each replica of the view has answered once more. Raises LockLost."""
        before = self._purse.answers.copy()
        while not self._lost:
            self._send_watermarks()
            with trio.move_on_after(_CREDIT_WAIT_S):
                while not self._lost:
                    replicas = self._site.replica_incarnations
                    if replicas and all(self._purse.answers[i] > before[i] for i in replicas):
                        return
                    await self._credited.wait()
        raise LockLost("this node was removed from the cluster")

    def _send_watermarks(self) -> None:
        site = self._site
        for member in site.view.members:
            if not site.replicas >> member.node & 1:
                continue
            message = Watermark(self._writer.stable, self._purse.give_back(member.incarnation))
            if member.node == site.node:
                self._to_myself(message)
            else:
                site.send(member.node, encode(message))

    async def _keep_clock(self) -> None:
        """Send watermarks, reassure who waits for us, and drop replicas that do not answer."""
        ticks = 0
        while True:
            if ticks % 4 == 0:
                self._send_watermarks()
            ticks += 1
            if self._replica is not None:
                self._replica.reassure()
            for node, reason in self._writer.overdue(trio.current_time()).items():
                self._spawn(self._views.drop_replica, node, None, reason)
            await trio.sleep(_TICK_S)

    async def _keep_durable(self) -> None:
        """Have what was committed on disk soon, also when nobody asks."""
        while True:
            await trio.sleep(self._durable_s)
            if self._writer.stable < self._writer.oldest() - 1:
                try:
                    await self.sync()
                except (BrickFailed, LockLost) as error:
                    self._log.warning("background sync failed", error=str(error))
