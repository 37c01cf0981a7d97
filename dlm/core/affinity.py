"""Which node a tree should be mastered on, and when it is worth moving it there. PURE.

What a node does with the locks it holds costs nothing, wherever their master is; its requests and
conversions cost messages unless it is the master itself. So these are counted, by tree and node,
and smoothed (EWMA). Once a period the trees are looked at: one goes to the node that asks most if
that is enough to matter and well ahead of what is asked here, if the tree has been here for a
while, is not too large, and no attempt has just come to nothing. Two nodes that fight for a tree
thus do not make it follow each of them in turn: to whom it went, it stays.

A tree may also be sent away by command, or pinned to a node: then it goes there, is retried until
it is there, and measurement moves it no more. The pin goes with the tree, keeps it when nobody has
a lock in it, and ends with its master's start. A node that leaves sends all its trees away first.

Invariants (`validate`): a wish is for a tree that is mastered here; a Tick is due while anything is
to be measured or wished for.
"""

from typing import Final, NamedTuple

from dlm.core.mastery import Mastery
from dlm.core.migration import Migration
from dlm.core.situation import Situation
from dlm.core.traffic import PERIOD_S
from dlm.core.tree import Tree

AT_ONCE_LEAVING: Final = 64  # trees on their way
_RETRY_S = 0.02  # at first
_LONGEST_RETRY_S = 1.0
_COLD = 0.1  # requests a second; nobody looks at less


class Policy(NamedTuple):
    """When a tree is worth moving."""

    half_life_s: float = 2.0  # of the smoothed rates
    least_rate: float = 5.0  # requests a second by the node that is to have it
    lead: float = 2.0  # and this many times what its present master asks
    residence_s: float = 5.0  # since it came here
    cooldown_s: float = 10.0  # since the last attempt
    most_locks: int = 10_000
    at_once: int = 4  # trees that leave a node at the same time


class Affinity:
    """Decides for the trees mastered here."""

    def __init__(self, here: Situation, mastery: Mastery, migration: Migration) -> None:
        self._here = here
        self._mastery = mastery
        self._migration = migration
        self.policy: Policy | None = None  # None: nothing moves by itself
        self.rates: dict[bytes, dict[int, float]] = {}  # requests a second, by root and node
        self.wishes: dict[bytes, int] = {}  # where to, by command
        self._tried_s: dict[bytes, float] = {}
        self._retry_s = 0.0
        self._patience_s = _RETRY_S
        self.leaving = False
        migration.on_taken = self._taken

    def enable(self, policy: Policy | None) -> None:
        """Let trees move by themselves, or not."""
        self.policy = policy
        self._mastery.traffic.counting = policy is not None

    # -- commands --------------------------------------------------------------------------------

    def wish(self, root: bytes, target: int) -> None:
        """Send the tree to a node, as soon as it can go; it is mastered here, and not pinned."""
        tree = self._mastery.trees[root]
        assert not tree.pinned or tree.pinned == target
        if target == self._here.me:
            self.wishes.pop(root, None)
        else:
            self.wishes[root] = target
            self._patience_s = _RETRY_S
            self._grant_wishes()

    def pin(self, root: bytes, target: int) -> None:
        """Keep the tree, which is mastered here, on a node; 0: anywhere, as it is used."""
        self._mastery.trees[root].pinned = target
        self.wishes.pop(root, None)
        if target:
            self.wish(root, target)

    def leave(self) -> None:
        """Send all trees away that others have locks in: this node is about to go."""
        self.leaving = True
        self._mastery.leave()
        self._send_away()

    @property
    def drained(self) -> bool:
        """No other node depends on this one as a master."""
        if self._mastery.departures:
            return False
        me = {self._here.me}
        return all(tree.owners() <= me for tree in self._mastery.trees.values())

    # -- time ------------------------------------------------------------------------------------

    def tick(self) -> None:
        """Measure if it is time; try again what could not be done."""
        here, traffic = self._here, self._mastery.traffic
        if self.leaving:
            self._send_away()
        elif self.wishes and here.now_s >= self._retry_s:
            self._grant_wishes()
        elif self.wishes:
            here.wake(self._retry_s)
        if not traffic.counts and not self.rates:
            return
        due_s = traffic.since_s + PERIOD_S
        if here.now_s >= due_s:
            self._measure(here.now_s - traffic.since_s)
            traffic.since_s = here.now_s
            due_s = here.now_s + PERIOD_S
        if traffic.counts or self.rates:
            here.wake(due_s)

    def _measure(self, seconds: float) -> None:
        policy, traffic, trees = self.policy, self._mastery.traffic, self._mastery.trees
        counts, traffic.counts = traffic.counts, {}
        if policy is None:
            self.rates.clear()
            return
        kept = 0.5 ** (seconds / policy.half_life_s)
        for root in counts.keys() | self.rates.keys():
            counted, rates = counts.get(root, {}), self.rates.get(root, {})
            rates = {
                node: rates.get(node, 0.0) * kept + counted.get(node, 0) / seconds * (1 - kept)
                for node in counted.keys() | rates.keys()
            }
            if root not in trees or sum(rates.values()) < _COLD:
                self.rates.pop(root, None)
                continue
            self.rates[root] = rates
            if len(self._mastery.departures) < policy.at_once:
                self._consider(policy, trees[root], rates)
        self._tried_s = {
            root: at_s
            for root, at_s in self._tried_s.items()
            if at_s + policy.cooldown_s > self._here.now_s
        }

    def _consider(self, policy: Policy, tree: Tree, rates: dict[int, float]) -> None:
        """Move the tree to whoever uses it most, if that is worth it."""
        here, root = self._here, tree.root
        if tree.pinned or root in self.wishes or root in self._tried_s:
            return
        best, most = here.me, 0.0
        for node, rate in rates.items():
            if node in here.members and rate > most:
                best, most = node, rate
        if best == here.me or most < max(policy.least_rate, policy.lead * rates.get(here.me, 0.0)):
            return
        if tree.since_s + policy.residence_s > here.now_s or tree.locks() > policy.most_locks:
            return
        self._tried_s[root] = here.now_s
        self._migration.start(root, best)

    def _grant_wishes(self) -> None:
        here, trees = self._here, self._mastery.trees
        for root, target in tuple(self.wishes.items()):
            tree = trees.get(root)
            if tree is None or target == here.me:
                del self.wishes[root]
            elif target in here.members:
                self._migration.start(root, target)
        if self.wishes:
            self._retry_s = here.now_s + self._patience_s
            self._patience_s = min(2 * self._patience_s, _LONGEST_RETRY_S)
            here.wake(self._retry_s)

    def _taken(self, tree: Tree) -> None:
        """A pinned tree has come here on its way to another node."""
        if tree.pinned and tree.pinned != self._here.me:
            self.wishes[tree.root] = tree.pinned
            self._retry_s = self._here.now_s
            self._here.wake(self._here.now_s)

    # -- leaving ---------------------------------------------------------------------------------

    def _send_away(self) -> None:
        here, mastery = self._here, self._mastery
        for root, tree in tuple(mastery.trees.items()):
            if len(mastery.departures) >= AT_ONCE_LEAVING:
                break
            if root not in mastery.departures and not tree.owners() <= {here.me}:
                self._migration.start(root, self._heir(tree))
        if not self.drained:
            here.wake(here.now_s + _RETRY_S)

    def _heir(self, tree: Tree) -> int:
        """Return who is to have the tree: whoever asks most, else whoever has most locks there."""
        here = self._here
        if tree.pinned != here.me and tree.pinned in here.members:
            return tree.pinned
        weights: dict[int, float] = {}
        for resource in tree.resources.values():
            for copy in resource.copies():
                weights[copy.node] = weights.get(copy.node, 0.0) + 1.0
        for node, rate in self.rates.get(tree.root, {}).items():
            weights[node] = weights.get(node, 0.0) + rate * 1000
        candidates = [node for node in weights if node in here.members and node != here.me]
        return max(candidates, key=lambda node: (weights[node], node), default=here.me)

    def lose(self) -> None:
        """Forget all."""
        self.rates.clear()
        self.wishes.clear()

    def validate(self) -> None:
        """Assert the invariants."""
        here, traffic = self._here, self._mastery.traffic
        assert not self.wishes or here.deadline_s <= max(self._retry_s, here.now_s)
        if traffic.counts or self.rates:
            assert here.deadline_s <= max(traffic.since_s + PERIOD_S, here.now_s)
