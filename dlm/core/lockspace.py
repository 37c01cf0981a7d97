"""The one door to a lockspace: events go in, effects come out. PURE.

Every message belongs to a lock epoch. One of a newer epoch waits until we enter that; one of ours
waits, while we are frozen, until the thaw; an older one is void, but for the LVB it may carry.

Invariants: those of Mastery and Ownership, see `validate`.
"""

from collections import deque
from collections.abc import Callable
from typing import Any

from dlm.core.deadlock import Detector
from dlm.core.lock_waits import LockWaits
from dlm.core.mastery import Mastery
from dlm.core.ownership import Ownership
from dlm.core.recovery import Recovery
from dlm.core.situation import NEVER, Situation
from dlm.core.waits import LOCK
from dlm.effects import Complete, Effect
from dlm.errors import LockLost
from dlm.events import Acquire, Change, Enter, Event, Lose, Received, Release, Tick, Withdraw
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
    Masters,
    Message,
    Names,
    Probe,
    Queued,
    Remove,
    Removed,
    Request,
    Status,
    Unlock,
)

_RECOVERY = (Names, Masters, Locks)


class LockspaceCore:
    """All of one node's part in one lock namespace, for one incarnation."""

    def __init__(self, me: int, incarnation: int) -> None:
        here = self.here = Situation(me, incarnation)
        self.mastery = mastery = Mastery(here)
        self.ownership = owned = Ownership(here, mastery)
        self.recovery = recovery = Recovery(here, mastery, owned)
        self.detector = detector = Detector(here, {LOCK: LockWaits(here, mastery, owned)})
        self.lost = False
        self._held: deque[tuple[int, Message]] = deque()  # of this epoch, until the thaw
        self._early: list[tuple[int, Message]] = []  # of epochs that we have not entered yet
        self._events: dict[type, Callable[[Any], None]] = {
            Received: self._received,
            Acquire: self._acquire,
            Change: self._change,
            Release: self._release,
            Withdraw: owned.withdraw,
            Tick: self._tick,
            Enter: self._enter,
            Lose: self._lose,
        }
        self._messages: dict[type, Callable[[int, Any], None]] = {
            Request: mastery.request,
            Convert: mastery.convert,
            Demote: mastery.demote,
            Unlock: mastery.unlock,
            Cancel: mastery.cancel,
            Remove: mastery.remove,
            Removed: mastery.removed,
            Claim: mastery.claim,
            Claimed: owned.claimed,
            Granted: owned.granted,
            Queued: owned.queued,
            Denied: owned.denied,
            Blocking: owned.blocking,
            Mastered: owned.mastered,
            Names: recovery.names,
            Masters: recovery.masters,
            Locks: recovery.locks,
            Probe: detector.probe,
            Chase: detector.chase,
            Confirm: detector.confirm,
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
        local = here.local
        while local:
            self._receive(here.me, local.popleft())
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
            assert not self._held

    def _received(self, event: Received) -> None:
        if not self.lost:
            self._receive(event.sender, event.message)

    def _receive(self, sender: int, message: Message) -> None:
        here, epoch = self.here, message.epoch
        if epoch > here.epoch:
            self._early.append((sender, message))
        elif epoch < here.epoch:
            self._note_late(sender, message)
        elif here.frozen and not isinstance(message, _RECOVERY):
            self._held.append((sender, message))
        else:
            self._messages[type(message)](sender, message)
            if self._held and not here.frozen:
                self._receive_held()

    def _receive_held(self) -> None:
        """The thaw has just been: what waited for it comes now, before anything newer."""
        held, self._held = self._held, deque()
        for sender, message in held:
            self._messages[type(message)](sender, message)

    def _note_late(self, sender: int, message: Message) -> None:
        here = self.here
        if not here.frozen:
            here.misdirected += sender in here.members  # its records should have come after this
        elif isinstance(message, Demote | Unlock):
            self.mastery.note_late(sender, message)

    def _enter(self, event: Enter) -> None:
        here = self.here
        if self.lost:
            return
        assert event.epoch > here.epoch, "epochs only grow"
        assert event.members.get(here.me) == here.incarnation, "we are a member"
        for sender, message in self._held:
            self._note_late(sender, message)
        self._held.clear()
        self.recovery.enter(event.epoch, event.members)
        early, self._early = self._early, []
        for sender, message in early:
            if message.epoch >= event.epoch:
                self._receive(sender, message)

    def _acquire(self, event: Acquire) -> None:
        if self.lost:
            self.here.effects.append(Complete(event.lock, Status.LOST))
        else:
            self.ownership.acquire(event)

    def _change(self, event: Change) -> None:
        if self.lost:
            raise LockLost(repr(event.lock))
        self.ownership.change(event)

    def _release(self, event: Release) -> None:
        if self.lost:
            raise LockLost(repr(event.lock))
        self.ownership.release(event)

    def _tick(self, _event: Tick) -> None:
        """Let every part that waits for a time look at the clock; each names its next deadline."""
        here = self.here
        if here.now_s < self.deadline_s or self.lost:
            return
        here.deadline_s = NEVER
        self.mastery.claims.tick()
        if not here.frozen:  # the thaw will begin with other trees
            self.mastery.tick()
        self.detector.tick()

    def _lose(self, _event: Lose) -> None:
        self.lost = self.here.frozen = True
        self.ownership.lose()
        self._held.clear()
        self._early.clear()
        self.mastery.trees.clear()
        self.mastery.copies.clear()
        self.mastery.directory.clear()
