"""What clients that are gone have done, for those of them that come back and ask. PURE.

A client that is thrown out does not know what became of the transactions that it had under way.
When a gate opens again, all replicas in sync have the union of what the gone clients did, so each
of them knows which transactions took place, and that no other ever will. Objects do not tell: who
came later may have changed or deleted them. The last few clients are remembered, in memory only;
who is not answered looks at the objects.

Invariant: "it did not take place" is said only of groups of which this replica was in sync when the
client was rolled forward, and only if the replica was there before the client went.
"""

from collections import OrderedDict
from collections.abc import Collection
from typing import NamedTuple

from dlm.errors import LockLost

_CLIENTS = 32


class Sent(NamedTuple):
    """A transaction whose outcome its client does not know."""

    client: int
    sequence: int
    group: int  # one of its groups


class OutcomeUnknown(LockLost):
    """This node was removed while replicas were applying its transaction."""

    def __init__(self, sent: Sent) -> None:
        super().__init__(f"this node was removed; what became of {sent} is unknown")
        self.sent = sent


class _Past(NamedTuple):
    sequences: frozenset[int]
    stable: int  # all up to here took place
    groups: frozenset[int]  # those of which the above is everything


class Departed:
    """What is remembered of the last clients that went."""

    def __init__(self) -> None:
        self._pasts: OrderedDict[int, _Past] = OrderedDict()

    def note(
        self, client: int, sequences: Collection[int], stable: int, groups: Collection[int]
    ) -> None:
        """Remember what a client that is gone has done in these groups."""
        self._pasts[client] = _Past(frozenset(sequences), stable, frozenset(groups))
        self._pasts.move_to_end(client)
        while len(self._pasts) > _CLIENTS:
            self._pasts.popitem(last=False)

    def took_place(self, sent: Sent) -> bool | None:
        """Tell whether a transaction took place; None: that is not known here."""
        past = self._pasts.get(sent.client)
        if past is None:
            return None
        if sent.sequence <= past.stable or sent.sequence in past.sequences:
            return True
        return False if sent.group in past.groups else None
