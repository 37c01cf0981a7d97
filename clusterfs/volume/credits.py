"""Space credits: dirty data is accepted only against room that every replica has promised. PURE.

A replica's `Ledger` promises each client bytes; what it has promised and not seen used stays set
aside, so the sum of all promises never exceeds its room. A client's `Purse` holds, per replica,
what was granted less what was used: both count from the session's start and only grow, so answers
that overtake each other do no harm.

Invariant: promises outstanding + the reserve <= free space, at the moment of each new promise.
"""

from collections import Counter
from collections.abc import Callable, Collection, Iterable

from clusterfs.volume.messages import Grant
from clusterfs.volume.ports import SpaceLike

# What one client may hold at most, and what is kept for metadata and deletions.
MAX_SHARE_BYTES = 256 << 20
RESERVE_FRACTION = 20
_PLENTY_BYTES = 16 << 20  # whoever has so much left need not be told with each answer
_NEWS_BYTES = 1 << 20


class Ledger:
    """What one replica has promised."""

    def __init__(self, space: Callable[[], SpaceLike]) -> None:
        self._space = space
        self._granted: dict[int, int] = {}
        self._used: dict[int, int] = {}
        self._returned: dict[int, int] = {}
        self._told: dict[int, int] = {}  # what was used when a client was told last

    def is_due(self, client: int) -> bool:
        """Tell whether a client should hear of its promises now; each second it does anyway."""
        if client not in self._told or self.outstanding(client) < _PLENTY_BYTES:
            return True
        return self._used.get(client, 0) - self._told[client] >= _NEWS_BYTES

    def grant(self, client: int) -> Grant:
        """Promise a client as much as its fair share allows, and tell the sum so far."""
        space = self._space()
        self._granted.setdefault(client, 0)
        self._told[client] = self._used.get(client, 0)
        room = max(0, space.free - space.total // RESERVE_FRACTION)
        share = min(MAX_SHARE_BYTES, room // (len(self._granted) + 1))
        unpromised = room - sum(map(self.outstanding, self._granted))
        more = min(share - self.outstanding(client), unpromised)
        if more > 0:
            self._granted[client] += more
        return Grant(self._granted[client], share, space.total, max(0, space.free))

    def outstanding(self, client: int) -> int:
        """Return what is promised to a client and neither used nor given back."""
        used = self._used.get(client, 0) + self._returned.get(client, 0)
        return max(0, self._granted[client] - used)

    def consumed(self, client: int, nbytes: int) -> None:
        """A client's data arrived."""
        self._used[client] = self._used.get(client, 0) + nbytes

    def returned(self, client: int, total: int) -> None:
        """A client gives promises back; `total` counts from its session's start."""
        self._returned[client] = max(total, self._returned.get(client, 0))

    def keep(self, clients: Collection[int]) -> None:
        """Forget the promises to everybody else: they are out."""
        for book in (self._granted, self._used, self._returned, self._told):
            for client in [client for client in book if client not in clients]:
                del book[client]


class Purse:
    """What replicas have promised this client."""

    def __init__(self) -> None:
        self._grants: dict[int, Grant] = {}
        self._spent: dict[int, int] = {}
        self._returned: dict[int, int] = {}
        self.reserved = 0
        self.answers: Counter[int] = Counter()  # how often each replica has told its promise

    def granted(self, node: int, grant: Grant) -> None:
        """Take a replica's promise."""
        self.answers[node] += 1
        known = self._grants.get(node)
        if known is None or grant.granted >= known.granted:
            self._grants[node] = grant

    def spend(self, nodes: Iterable[int], nbytes: int) -> None:
        """Count data that was sent."""
        for node in nodes:
            self._spent[node] = self._spent.get(node, 0) + nbytes

    def available(self, nodes: Iterable[int]) -> int:
        """Return what may still be reserved, if the data may go to any of these replicas."""
        return min((self._left(node) for node in nodes), default=0) - self.reserved

    def due(self, nodes: Iterable[int], nbytes: int) -> bool:
        """Tell whether that much is within our share everywhere, so that it will come to us."""
        shares = [grant.share for node in nodes if (grant := self._grants.get(node))]
        return bool(shares) and self.reserved + nbytes <= min(shares)

    def give_back(self, node: int) -> int:
        """Give back what exceeds the replica's present share; returns the sum so far."""
        grant = self._grants.get(node)
        if grant is not None:
            surplus = self._left(node) - max(self.reserved, grant.share)
            if surplus > 0:
                self._returned[node] = self._returned.get(node, 0) + surplus
        return self._returned.get(node, 0)

    def keep(self, nodes: Collection[int]) -> None:
        """Forget the promises of everybody else: they are no replicas now."""
        for node in [node for node in self._grants if node not in nodes]:
            for book in (self._grants, self._spent, self._returned):
                book.pop(node, None)

    def room(self, node: int) -> tuple[int, int] | None:
        """Return (total, free) bytes of a replica, as it said last."""
        grant = self._grants.get(node)
        return None if grant is None else (grant.total, grant.free)

    def _left(self, node: int) -> int:
        grant = self._grants.get(node)
        if grant is None:
            return 0
        return grant.granted - self._spent.get(node, 0) - self._returned.get(node, 0)
