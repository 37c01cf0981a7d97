"""Ranges described for people and tools, in plain dicts, lists and numbers. PURE."""

from collections.abc import Iterable

from dlm.core.range_keeper import Keeper, Kept
from dlm.core.range_table import Ask, Holder, Table
from dlm.core.range_user import RangeUser, Used
from dlm.events import RangeRequest

Description = dict[str, object]


def used(user: RangeUser, entry: Used, now_s: float) -> Description:
    """Return how this node uses a name.

    Keys: root, leaf, keeper, borrowed, held (of pid, start, last, mode), waiting (also number, how,
    wait_s, and behind: who is in the way, as far as this node decides).
    """
    asks = {ask.number: ask for ask in entry.table.waiting}
    mine = [r for r in user.requests.values() if r.party.name == entry.name]
    return {
        "root": entry.name.root,
        "leaf": entry.name.leaf,
        "keeper": entry.keeper,
        "borrowed": entry.borrowed,
        "held": _held(entry.table.holders.values()),
        "waiting": [
            {
                **_request(request, now_s),
                "behind": _behind(entry.table, asks.get(request.number)),
            }
            for request in mine
        ],
    }


def kept(keeper: Keeper, entry: Kept, now_s: float) -> Description:
    """Return a table that this node keeps for all; keys as above, and the node of each."""
    return {
        "root": entry.name.root,
        "leaf": entry.name.leaf,
        "borrower": abs(entry.borrower),
        "awaited": sorted(keeper.missing),
        "held": _held(entry.table.holders.values()),
        "waiting": [
            {
                "node": abs(ask.holder[0]),
                "number": ask.number,
                "pid": ask.pid,
                "start": ask.start,
                "last": ask.last,
                "mode": ask.mode.name,
                "how": ask.how.name,
                "wait_s": max(0.0, round(now_s - ask.since_s, 6)),
                "behind": _behind(entry.table, ask if ask in entry.table.waiting else None),
            }
            for ask in (*entry.table.waiting, *entry.pending)
        ],
    }


def _held(holders: Iterable[Holder]) -> list[Description]:
    return [
        {
            "node": abs(holder.key[0]),
            "pid": holder.pid,
            "start": segment.start,
            "last": segment.last,
            "mode": segment.mode.name,
        }
        for holder in holders
        for segment in holder.segments
    ]


def _request(request: RangeRequest, now_s: float) -> Description:
    return {
        "number": request.number,
        "pid": request.party.pid,
        "start": request.start,
        "last": request.last,
        "mode": request.mode.name,
        "how": request.how.name,
        "wait_s": max(0.0, round(now_s - request.asked_s, 6)),
    }


def _behind(table: Table, ask: Ask | None) -> list[Description]:
    """Return who keeps a request waiting, each once."""
    if ask is None:
        return []
    found = {holder.key: holder for holder, _ in table.in_the_way(ask)}
    return [{"node": abs(key[0]), "pid": holder.pid} for key, holder in found.items()]
