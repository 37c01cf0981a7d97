"""The client side of transactions: sent in call order, acknowledged by every replica of the view.

A transaction whose groups share one target set (in_sync | syncing) is one message per replica. Else
it is prepared at every replica of every group, on disk, and then committed from memory. A view that
changes a group re-issues everything unacknowledged in the order of its sequences; replicas know
what they applied already, so this is idempotent.

Invariants:
  * messages leave in the order of sequences, but for transactions on objects of an undecided one:
    these wait, and keep their order among themselves;
  * an answer counts only in the epoch and stage in which it was asked;
  * a transaction is acknowledged when every target of the current view has answered well.
"""

from collections.abc import Callable, Collection, Sequence
from functools import partial

import msgspec
import trio

from clusterfs.cluster.views import View, nodes_of
from clusterfs.store.objects import Change, ObjectId, Transaction
from clusterfs.volume.departed import OutcomeUnknown, Sent
from clusterfs.volume.messages import (
    Answered,
    Apply,
    Code,
    Decide,
    Message,
    Prepare,
    Stage,
    Void,
)
from clusterfs.volume.parts import of_groups
from clusterfs.volume.pending import ERRORS, Pending, judge
from clusterfs.volume.placement import targets
from clusterfs.volume.ports import Buffer
from clusterfs.volume.site import Site, Spawn
from clusterfs.volume.unsynced import Unsynced
from dlm.errors import LockLost
from dlm.net.wire import encode

# Hands a message of this node's own client to its own replica.
Local = Callable[[Message, Buffer], None]


class Writer:
    """This node's unacknowledged transactions."""

    def __init__(
        self,
        site: Site,
        spawn: Spawn,
        local: Local,
        answer_timeout_s: float,
        charge: Callable[[int, int], None],
    ) -> None:
        self._charge = charge  # (mask of replicas, bytes): data was sent to them
        self._site = site
        self._spawn = spawn
        self._local = local
        self._answer_timeout_s = answer_timeout_s
        self._pendings: dict[int, Pending] = {}
        self._held_back: list[Pending] = []
        self._wanted_epoch = 0
        self._lost = False
        self.sequence = 0
        self.stable = 0
        self.unsynced = Unsynced()
        self.commits = self.reissues = self.prepares = 0

    async def commit(
        self,
        changes: Sequence[Change],
        payload: Buffer,
        *,
        durable: bool = False,
        shield: bool = False,
    ) -> bool:
        """Send a transaction, and wait until every replica has it in memory.

        durable: ask them to answer from disk, if one message does it. shield: the wait cannot be
        cancelled. Returns whether all that was committed before is on the disks of all replicas
        now, this transaction included.
        """
        if self._lost:
            raise LockLost("this node was removed from the cluster")
        assert changes, "an empty transaction"
        self.sequence += 1
        self.commits += 1
        transaction = Transaction(
            self._site.incarnation, self.sequence, self._site.view.epoch, tuple(changes)
        )
        pending = Pending(transaction, payload, durable=durable)
        self._pendings[self.sequence] = pending
        self._admit(pending)
        if not pending.finished:
            pending.wake = trio.lowlevel.current_task()
            abort = _never if shield else partial(_stop_waiting, pending)
            await trio.lowlevel.wait_task_rescheduled(abort)
        if pending.error is not None:
            raise pending.error
        self.unsynced.note(changes, transaction.sequence)
        return pending.everywhere

    def holders(self, inodes: Collection[int]) -> int:
        """Return the mask of replicas where something of these inodes may not be on disk yet."""
        mask = 0
        for group in self.unsynced.groups(inodes):
            mask |= targets(self._site.view, group)
        return mask

    def oldest(self) -> int:
        """Return the lowest sequence that is not acknowledged, or the next one."""
        return next(iter(self._pendings), self.sequence + 1)

    def outstanding(self) -> int:
        """Return how many transactions are not acknowledged."""
        return len(self._pendings)

    def entered(self, old: View, new: View) -> None:
        """Re-issue what the change of view concerns."""
        if self._lost:
            return
        concerned = (
            any(g > old.epoch for g in new.generation) or new.epoch >= self._wanted_epoch > 0
        )
        if concerned:
            self._reissue()

    def answered(self, node: int, answer: Answered) -> None:
        """Take a replica's answer."""
        pending = self._pendings.get(answer.sequence)
        if (
            pending is None
            or pending.transaction.epoch != answer.epoch
            or pending.stage is not answer.stage
        ):
            return
        if answer.code is Code.STALE:
            self._outdated(answer.view)
        elif pending.answered(node, answer.code):
            self._settle(pending)

    def patience(self, node: int, now_s: float) -> None:
        """A replica waits for others: do not count this time against it."""
        for pending in self._pendings.values():
            if pending.waiting >> node & 1:
                pending.since_s = now_s

    def overdue(self, now_s: float) -> dict[int, str]:
        """Return the replicas that let others' answers wait for too long, with the reason."""
        slow = 0
        for pending in self._pendings.values():
            if now_s - pending.since_s < self._answer_timeout_s:
                break
            if pending.applied:
                slow |= pending.waiting
        return dict.fromkeys(nodes_of(slow), "does not answer")

    def lose(self) -> None:
        """Fail every wait: this node is out, and the outcome of what is in flight is unknown."""
        self._lost = True
        for pending in list(self._pendings.values()):
            transaction = pending.transaction
            sent = Sent(transaction.client, transaction.sequence, pending.groups[0])
            self._finish(pending, OutcomeUnknown(sent))
        self._held_back.clear()

    def begin(self) -> None:
        """Start anew as another incarnation."""
        assert not self._pendings, "lose first"
        self._lost = False
        self._wanted_epoch = 0
        self.sequence = self.stable = 0
        self.unsynced.clear()

    # -- sending --------------------------------------------------------------------------------

    def _admit(self, pending: Pending) -> None:
        """Send now, unless an undecided transaction or one held back touches the same objects."""
        if self._held_back or self._undecided():
            blocked = self._undecided().union(*(p.objects for p in self._held_back))
            if blocked.intersection(pending.objects):
                self._held_back.append(pending)
                return
        self._issue(pending)

    def _undecided(self) -> set[ObjectId]:
        if not self.prepares:
            return set()
        return {
            object_id
            for pending in self._pendings.values()
            if pending.issued and pending.stage is Stage.PREPARE
            for object_id in pending.objects
        }

    def _release(self) -> None:
        """Send what waited for a decision, in order, as far as nothing undecided is touched."""
        blocked = self._undecided()
        waiting, self._held_back = self._held_back, []
        for pending in waiting:
            if blocked.isdisjoint(pending.objects):
                self._issue(pending)
                if pending.stage is Stage.PREPARE:
                    blocked.update(pending.objects)
            else:
                self._held_back.append(pending)
                blocked.update(pending.objects)

    def _issue(self, pending: Pending) -> None:
        view = self._site.view
        if any(view.stopped[group] or not view.in_sync[group] for group in pending.groups):
            pending.issued = False  # the next view that changes the group re-issues it
            return
        masks = {targets(view, group) for group in pending.groups}
        if len(masks) == 1:
            mask = masks.pop()
            pending.expect(Stage.APPLY, mask, trio.current_time())
            self._pay(pending, mask)
            pending.everywhere = pending.durable and mask == self._site.replicas
            message = Apply(pending.transaction, self.stable, pending.durable)
            self._spread(message, mask, pending.payload)
        else:
            self._prepare(pending, view)

    def _prepare(self, pending: Pending, view: View) -> None:
        self.prepares += 1
        pending.everywhere = False
        pending.participants = 0
        for group in pending.groups:
            pending.participants |= targets(view, group)
        pending.expect(Stage.PREPARE, pending.participants, trio.current_time())
        self._pay(pending, pending.participants)
        for node in nodes_of(pending.participants):
            mine = {group for group in pending.groups if targets(view, group) >> node & 1}
            transaction, payload = of_groups(pending.transaction, pending.payload, mine)
            message = Prepare(transaction, self.stable, pending.groups)
            self._spread(message, 1 << node, payload)

    def _pay(self, pending: Pending, mask: int) -> None:
        """Charge the data once to each replica that it goes to."""
        fresh = mask & ~pending.charged
        if fresh and pending.payload:
            pending.charged |= fresh
            self._charge(fresh, len(pending.payload))

    def _spread(self, message: Message, mask: int, payload: Buffer = b"") -> None:
        site = self._site
        if mask & ~site.bit:
            body = encode(message)
            for node in nodes_of(mask & ~site.bit):
                site.send(node, body, payload)
        if mask & site.bit:
            self._local(message, payload)

    # -- answers --------------------------------------------------------------------------------

    def _settle(self, pending: Pending) -> None:
        view = self._site.view
        outcome = judge([view.in_sync[g] for g in pending.groups], pending.applied, pending.failed)
        if outcome.drop:
            reason = ", ".join(f"node {n}: {pending.failed[n].name}" for n in outcome.drop)
            for node in outcome.drop:
                broken = pending.failed[node] is not Code.MISMATCH
                groups = None if broken else range(len(view.in_sync))
                self._spawn(self._site.views.drop_replica, node, groups, reason)
        elif outcome.error is not Code.OK:
            self._fail(pending, outcome.error)
        elif pending.stage is Stage.PREPARE:
            self._decide(pending)
        else:
            self._finish(pending, None)

    def _decide(self, pending: Pending) -> None:
        pending.decided = True
        pending.expect(Stage.COMMIT, pending.participants, trio.current_time())
        decision = Decide(pending.transaction.sequence, pending.transaction.epoch, committed=True)
        self._spread(decision, pending.participants)
        self._release()

    def _fail(self, pending: Pending, code: Code) -> None:
        """Nothing was applied anywhere that counts; who noted or prepared it forgets it."""
        if pending.applied:
            sequence, epoch = pending.transaction.sequence, pending.transaction.epoch
            undo: Message = Void(sequence)
            if pending.stage is Stage.PREPARE:
                undo = Decide(sequence, epoch, committed=False)
            self._spread(undo, pending.applied)
        self._finish(pending, ERRORS[code](f"transaction {pending.transaction.sequence}"))
        self._release()

    def _finish(self, pending: Pending, error: Exception | None) -> None:
        del self._pendings[pending.transaction.sequence]
        pending.payload = b""
        pending.error = error
        pending.finished = True
        if pending.wake is not None:
            trio.lowlevel.reschedule(pending.wake)

    # -- another view ---------------------------------------------------------------------------

    def _outdated(self, epoch: int) -> None:
        """A replica refuses our epoch: enter its view, and issue again."""
        if self._site.view.epoch >= epoch:
            self._reissue()
        elif epoch > self._wanted_epoch:
            self._wanted_epoch = epoch
            self._spawn(self._site.views.entered, epoch)

    def _reissue(self) -> None:
        epoch = self._site.view.epoch
        self._held_back.clear()
        for pending in list(self._pendings.values()):
            if pending.finished:
                continue
            self.reissues += 1
            pending.issued = False
            pending.stage = Stage.APPLY
            pending.transaction = msgspec.structs.replace(pending.transaction, epoch=epoch)
        for pending in list(self._pendings.values()):
            if not pending.finished:
                self._admit(pending)


def _never(_: object) -> trio.lowlevel.Abort:
    return trio.lowlevel.Abort.FAILED


def _stop_waiting(pending: Pending, _: object) -> trio.lowlevel.Abort:
    pending.wake = None
    return trio.lowlevel.Abort.SUCCEEDED
