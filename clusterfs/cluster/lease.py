"""Until when this node may serve, and who has fallen silent. PURE.

A lease runs from the moment its renewal was *sent*, less 1 % for the difference in clock rates; an
observer waits a whole lease, plus 1 %, from the moment after it first *saw* the last heartbeat. So
when the observer's wait is over, so is the lease, whatever the messages' delays were.

A lease that ended stays ended: a paused process that resumes may not revive it by renewing late,
for its kernel's caches were promised gone by then.

An observer whose own loop stalled starts every wait anew: what it did not watch proves nothing,
and a stall of the machine or of the provider would otherwise make the first to wake evict the rest.
"""

from collections.abc import Collection, Mapping
from typing import NamedTuple

from clusterfs.cluster.views import Member, State, View, mask_of

CLOCK_RATE_ERROR = 0.01
RENEWALS_PER_LEASE = 5


class Lease:
    """This node's own right to serve."""

    def __init__(self, lease_s: float, sent_s: float) -> None:
        self._length_s = lease_s * (1 - CLOCK_RATE_ERROR)
        self._end_s = sent_s + self._length_s
        self._ended = False

    def left_s(self, now_s: float) -> float:
        """Return the seconds left; once it was not positive it never is again."""
        if self._ended:
            return 0.0
        left_s = self._end_s - now_s
        self._ended = left_s <= 0
        return left_s

    def renewed(self, sent_s: float, now_s: float) -> bool:
        """Extend it after a successful renewal; False if it had ended before the answer came."""
        if self.left_s(now_s) <= 0:
            return False
        self._end_s = max(self._end_s, sent_s + self._length_s)
        return True

    def end(self) -> None:
        """Give it up at once."""
        self._ended = True


class _Pulse:
    __slots__ = ("beat", "moved", "since_s")

    def __init__(self, beat: int, since_s: float) -> None:
        self.beat = beat
        self.since_s = since_s
        self.moved = False


class Heartbeats:
    """What this node saw of others' beats, by incarnation."""

    def __init__(self, lease_s: float) -> None:
        self._lease_s = lease_s
        self._pulses: dict[int, _Pulse] = {}
        self._watched_s: float | None = None

    def observe(self, beats: Mapping[int, int], now_s: float) -> None:
        """Note all beats as read just before `now_s`; those not in the mapping are forgotten."""
        self.watch(now_s)
        for incarnation in self._pulses.keys() - beats.keys():
            del self._pulses[incarnation]
        for incarnation, beat in beats.items():
            pulse = self._pulses.setdefault(incarnation, _Pulse(beat, now_s))
            if pulse.beat != beat:
                pulse.beat, pulse.since_s, pulse.moved = beat, now_s, True

    def watch(self, now_s: float) -> None:
        """Note that this observer's loop is running; if it was not, every wait starts anew."""
        if self._watched_s is not None and now_s - self._watched_s > self._lease_s / 4:
            for pulse in self._pulses.values():
                pulse.since_s = now_s
        self._watched_s = now_s

    def beats(self, incarnations: Collection[int]) -> dict[int, int]:
        """Return the last beats seen of those among these that are known."""
        return {i: self._pulses[i].beat for i in incarnations if i in self._pulses}

    def alive(self, incarnation: int) -> bool:
        """Tell whether its beat was seen to move."""
        return incarnation in self._pulses and self._pulses[incarnation].moved

    def expired(self, incarnation: int, now_s: float) -> bool:
        """Tell whether its last possible lease has ended."""
        return self._silent_s(incarnation, now_s) >= self._lease_s * (1 + CLOCK_RATE_ERROR)

    def doubtful(self, incarnation: int, now_s: float) -> bool:
        """Tell whether it has missed more than one renewal."""
        return self._silent_s(incarnation, now_s) > self._lease_s / 2

    def _silent_s(self, incarnation: int, now_s: float) -> float:
        pulse = self._pulses.get(incarnation)
        return 0.0 if pulse is None else now_s - pulse.since_s


class Reprieve:
    """Accusations that wait: of a node that alone has more of the data than who accuses it.

    Of two that do not reach each other the one without data could go on with nothing. So the other
    gets two leases to accuse it, and only if it does not, whoever insists has it removed after all.
    """

    def __init__(self, lease_s: float) -> None:
        self._lease_s = lease_s
        self._accused: dict[int, tuple[float, float]] = {}  # incarnation -> first, last

    def holds(self, view: View, me: int, accused: Member, now_s: float) -> bool:
        """Note that node `me` accuses that member now; tell whether to let it pass."""
        if alone(view, accused.node) <= alone(view, me):
            return False
        first_s, last_s = self._accused.get(accused.incarnation, (now_s, now_s))
        if now_s - last_s > self._lease_s:
            first_s = now_s
        self._accused[accused.incarnation] = first_s, now_s
        return now_s - first_s < 2 * self._lease_s


def alone(view: View, node: int) -> int:
    """Return of how many groups no other node has all the data."""
    return sum(in_sync == 1 << node for in_sync in view.in_sync)


class Verdict(NamedTuple):
    """Which incarnations to refuse from now on, and which to forget."""

    leaving: frozenset[int]
    down: frozenset[int]


def judge(
    others: Collection[Member],
    heartbeats: Heartbeats,
    accused: Collection[int],
    caches_dropped: Collection[int],
    now_s: float,
) -> Verdict:
    """Say who is to leave. The caller has just renewed its own lease.

    `accused` are incarnations to which a fresh connection failed; `caches_dropped` those of which
    it is known that they serve nothing any more.
    """
    down = frozenset(
        m.incarnation
        for m in others
        if m.incarnation in caches_dropped or heartbeats.expired(m.incarnation, now_s)
    )
    leaving = frozenset(
        m.incarnation for m in others if m.incarnation in accused and m.state is State.UP
    )
    return Verdict(leaving - down, down)


def undecided(
    view: View, down: Collection[int], heartbeats: Heartbeats, now_s: float
) -> frozenset[int]:
    """Return members on which the verdict must wait because more of a group may be dying.

    When all in-sync replicas of a group lose power together, their last beats differ a little. One
    view that removes them all keeps the whole in-sync set; removing them one by one would leave the
    last as the only copy that may restart the group. It waits half a lease at most.
    """
    dying = mask_of(m.node for m in view.members if m.incarnation in down)
    doubtful = mask_of(
        m.node
        for m in view.members
        if m.incarnation not in down and heartbeats.doubtful(m.incarnation, now_s)
    )
    held = 0
    for stopped, bits in zip(view.stopped, view.in_sync, strict=True):
        if not stopped and bits & dying and bits & doubtful and not bits & ~(dying | doubtful):
            held |= bits & dying
    return frozenset(m.incarnation for m in view.members if held & 1 << m.node)
