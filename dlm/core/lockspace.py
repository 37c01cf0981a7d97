"""The one door to a lockspace: events go in, effects come out. PURE.

A message of an epoch (or of a term that began in one) that we have not entered yet waits until we
have. Nothing else waits here, and a change of members voids nothing but what comes from nodes that
are no members any more: each part judges what it hears by the term of the tree in question.

Invariants: those of Mastery and Ownership, see `validate`.
"""

from collections.abc import Callable
from typing import Any

from dlm.core.affinity import Affinity
from dlm.core.deadlock import Detector
from dlm.core.directory import Directory
from dlm.core.lock_waits import LockWaits
from dlm.core.mastery import Mastery
from dlm.core.migration import Migration
from dlm.core.ownership import Ownership
from dlm.core.range_keeper import RANGE, Keeper
from dlm.core.range_user import RangeUser
from dlm.core.range_waits import RangeWaits
from dlm.core.range_witness import Witnesses
from dlm.core.recovery import Recovery
from dlm.core.situation import NEVER, Situation
from dlm.core.succession import Succession
from dlm.core.waits import LOCK
from dlm.effects import Answered, Complete, Effect, Heard
from dlm.errors import LockLost
from dlm.events import (
    Acquire,
    AskRange,
    AskWitnesses,
    CancelRange,
    Change,
    Depart,
    Enter,
    Event,
    FreeRange,
    GiveBack,
    Lose,
    Migrate,
    Opened,
    Place,
    Publish,
    Received,
    Release,
    Tick,
    Withdraw,
)
from dlm.fields import TERM_BITS, epoch_of
from dlm.messages import (
    Blocking,
    Cancel,
    Chase,
    Claim,
    Claimed,
    Confirm,
    Convert,
    Demote,
    Denied,
    Granted,
    Locks,
    Mastered,
    Message,
    Probe,
    Queued,
    Reigns,
    Remove,
    Removed,
    Request,
    Seats,
    Status,
    Unlock,
    Verify,
)
from dlm.moving import Abandon, Freeze, Frozen, Handover, Move, Noted, Settled
from dlm.range_messages import (
    RangeAnswer,
    RangeAsk,
    RangeCancel,
    RangeFree,
    RangeFreed,
    RangeHurry,
    RangeLent,
    RangeRecall,
    RangeReturn,
    RangeTell,
    RangeWitness,
    RangeWitnessed,
    Verdict,
)

_OF_A_TERM = {
    Granted,
    Queued,
    Denied,
    Blocking,
    Convert,
    Demote,
    Unlock,
    Cancel,
    Freeze,
    Frozen,
    Handover,
    Settled,
    Abandon,
}
_OF_A_TELLING = {Locks, Reigns}


class LockspaceCore:
    """All of one node's part in one lock namespace, for one incarnation."""

    def __init__(self, me: int, incarnation: int) -> None:
        here = self.here = Situation(me, incarnation)
        self.directory = directory = Directory(here)
        self.mastery = mastery = Mastery(here, directory)
        self.ownership = owned = Ownership(here, mastery)
        self.succession = succession = Succession(here, owned)
        self.recovery = recovery = Recovery(here, directory, mastery, owned, succession)
        self.migration = migration = Migration(here, mastery, recovery)
        self.affinity = Affinity(here, mastery, migration)
        self.detector = detector = Detector(here, {LOCK: LockWaits(here, mastery, owned)})
        self.lost = False
        self._early: list[tuple[int, Message]] = []  # of epochs that we have not entered yet
        self._events: dict[type, Callable[[Any], None]] = {
            Received: self._received,
            Acquire: owned.acquire,
            Change: owned.change,
            Release: owned.release,
            Withdraw: owned.withdraw,
            Tick: self._tick,
            Publish: self._publish,
            Migrate: self._migrate,
            Place: self._place,
            Depart: self._depart,
            Opened: self._opened,
            Enter: self._enter,
            Lose: self._lose,
        }
        self._messages: dict[type, Callable[[int, Any], None]] = {
            Request: mastery.request,
            Convert: mastery.convert,
            Demote: mastery.demote,
            Unlock: mastery.unlock,
            Cancel: mastery.cancel,
            Remove: directory.remove,
            Removed: mastery.removed,
            Claim: directory.claim,
            Claimed: owned.claimed,
            Granted: owned.granted,
            Queued: owned.queued,
            Denied: owned.denied,
            Blocking: owned.blocking,
            Mastered: owned.mastered,
            Verify: mastery.verify,
            Seats: recovery.seats,
            Locks: recovery.locks,
            Reigns: succession.reigns,
            Probe: detector.probe,
            Chase: detector.chase,
            Confirm: detector.confirm,
            Freeze: succession.freeze,
            Frozen: migration.frozen,
            Handover: migration.handover,
            Settled: migration.settled,
            Move: directory.move,
            Noted: migration.noted,
            Abandon: migration.abandon,
        }
        self._add_ranges()

    def _add_ranges(self) -> None:
        here = self.here
        self.keeper = keeper = Keeper(here)
        self.ranges = ranges = RangeUser(here, keeper)
        waits = RangeWaits(here, keeper, ranges)
        self.detector.register(RANGE, waits)
        self.witnesses = witnesses = Witnesses(here, ranges)
        self._events |= {
            AskRange: self._ask_range,
            FreeRange: ranges.free,
            CancelRange: ranges.cancel,
            GiveBack: ranges.give_back,
            AskWitnesses: self._ask_witnesses,
        }
        self._messages |= {
            RangeAsk: keeper.ask,
            RangeFree: keeper.free,
            RangeCancel: keeper.cancel,
            RangeReturn: keeper.returned,
            RangeTell: keeper.tell,
            RangeAnswer: ranges.answer,
            RangeFreed: ranges.freed,
            RangeLent: ranges.lent,
            RangeRecall: ranges.recall,
            RangeHurry: waits.hurry,
            RangeWitness: witnesses.witness,
            RangeWitnessed: witnesses.witnessed,
        }

    def handle(self, event: Event, now_s: float) -> list[Effect]:
        """Take `event` in, and return what is to be done, in order.

        Raises:
            LockBusy: the lock is being asked for or converted; nothing has changed.
            LockLost: this node was removed; its locks are void.
        """
        here = self.here
        here.now_s = now_s
        effects: list[Effect] = []
        here.effects = effects
        self._events[type(event)](event)
        local, me = here.local, here.me
        while local:  # of epochs that we have entered, as it is we who sent it
            message = local.popleft()
            self._messages[type(message)](me, message)
        here.effects = []  # effects lead to locks, and are no matter of the garbage collector
        return effects

    @property
    def deadline_s(self) -> float:
        """When a Tick is due; infinite: not at all as things are."""
        here = self.here
        return here.deadline_s if here.frozen else min(here.deadline_s, here.waits.due_s)

    def validate(self) -> None:
        """Assert every invariant that one node can see; for tests."""
        assert not self.here.local
        self.here.waits.validate()
        self.ownership.validate()
        if not self.here.frozen:
            self.mastery.validate()
            self.migration.validate()
            self.affinity.validate()
        self.keeper.validate()
        self.ranges.validate()

    def _received(self, event: Received) -> None:
        self._receive(event.sender, event.message)

    def _receive(self, sender: int, message: Any) -> None:
        here = self.here
        kind = type(message)
        epoch = message.term >> TERM_BITS if kind in _OF_A_TERM else _epoch(message)
        if epoch > here.epoch:
            self._early.append((sender, message))
        elif sender in here.members:
            self._messages[kind](sender, message)

    def _enter(self, event: Enter) -> None:
        here = self.here
        if self.lost:
            return
        assert event.epoch > here.epoch, "epochs only grow"
        assert event.members.get(here.me) == here.incarnation, "we are a member"
        skipped = event.before != here.epoch
        lost = {
            node: incarnation
            for node, incarnation in here.members.items()
            if event.members.get(node) != incarnation
        }
        old = here.members
        here.epoch, here.members = event.epoch, dict(sorted(event.members.items()))
        over = any(event.leaving.get(node) != start for node, start in here.leaving.items())
        first, here.leaving, here.frozen = here.frozen, dict(event.leaving), False
        if lost or over or skipped or first:
            here.loss = here.epoch
        self.directory.enter(skipped=skipped)
        self.mastery.enter(skipped=skipped)
        self.migration.enter()
        if lost:
            self.mastery.left(lost)
        self.ownership.part()
        if lost or skipped or first:
            self.ownership.ask_again()
        self.recovery.enter(skipped=skipped)
        self.keeper.enter(old)
        self.recovery.add_job(self.ranges.enter())
        self.witnesses.enter(event.before if event.before >= 0 else event.epoch - 1)
        early, self._early = self._early, []
        for sender, message in early:
            self._receive(sender, message)

    def _acquire_lost(self, event: Acquire) -> None:
        self.here.effects.append(Complete(event.lock, Status.LOST))

    def _use_lost(self, event: Change | Release) -> None:
        raise LockLost(repr(event.lock))

    def _ignore(self, _event: Received) -> None:
        """Hear nothing more."""

    def _ask_range(self, event: AskRange) -> None:
        if self.lost:
            event.request.verdict = Verdict.LOST
            self.here.effects.append(Answered(event.request))
        else:
            self.ranges.ask(event)

    def _ask_witnesses(self, event: AskWitnesses) -> None:
        if self.lost:
            event.hearing.lost = event.hearing.ended = True
            self.here.effects.append(Heard(event.hearing))
        else:
            self.witnesses.ask(event)

    def _tick(self, _event: Tick) -> None:
        """Let every part that waits for a time look at the clock; each names its next deadline."""
        here = self.here
        if here.now_s < self.deadline_s or self.lost:
            return
        here.deadline_s = NEVER
        self.recovery.tick()
        self.mastery.claims.tick()
        self.ownership.holding.tick()
        self.mastery.tick()
        self.affinity.tick()
        self.detector.tick()

    def _publish(self, _event: Publish) -> None:
        if not self.lost:
            self.mastery.claims.flush()

    def _migrate(self, event: Migrate) -> None:
        if not self.lost:
            self.migration.start(event.root, event.target)

    def _place(self, event: Place) -> None:
        if self.lost or event.root not in self.mastery.trees:
            return
        if event.pin:
            self.affinity.pin(event.root, event.target)
        else:
            self.affinity.wish(event.root, event.target)

    def _depart(self, _event: Depart) -> None:
        if not self.lost:
            self.affinity.leave()

    def _opened(self, _event: Opened) -> None:
        if not self.here.frozen:
            self.recovery.opened()

    def _lose(self, _event: Lose) -> None:
        self.lost = self.here.frozen = True
        self._events |= {
            Received: self._ignore,
            Acquire: self._acquire_lost,
            Change: self._use_lost,
            Release: self._use_lost,
        }
        self.ownership.lose()
        self.ranges.lose()
        self.witnesses.lose()
        self.keeper.lose()
        self._early.clear()
        self.recovery.lose()
        self.migration.lose()
        self.affinity.lose()
        self.mastery.clear()
        self.directory.clear()


def _epoch(message: Any) -> int:
    """Return the lock epoch that the reader must have entered; the message is of no term."""
    if type(message) in _OF_A_TELLING:
        return message.tag if message.tag < 1 << TERM_BITS else epoch_of(message.tag)
    epoch: int = message.epoch
    return epoch
