"""What is not as it should be at a node, as findings with a name each. PURE.

Every code has its section in docs/health.md: what it means and what to do. A code is never renamed
or used for something else: people's alerts name it.
"""

from collections.abc import Callable, Mapping
from typing import Any, Final

import msgspec

_LEASE_PART = 0.4  # of a lease that is renewed in time, more than this is always left
_NEARLY_FULL = 0.1
_WARN_DAYS = 30

ERROR, WARNING = "error", "warning"

# What a finding is about, and how bad it is: an error means that somebody waits, or that data is in
# danger.
CODES: Final = {
    "NODE_OUT": ERROR,
    "LEASE_NOT_RENEWED": WARNING,
    "GROUPS_STOPPED": ERROR,
    "COPIES_MISSING": WARNING,
    "COPIES_AWAITED": WARNING,
    "MEMBER_LEAVING": WARNING,
    "PEER_UNREACHABLE": WARNING,
    "REQUESTS_STALLED": WARNING,
    "HANDLES_DEAD": WARNING,
    "BRICK_READ_ONLY": ERROR,
    "BRICK_DISK_FULL": ERROR,
    "BRICK_NEARLY_FULL": WARNING,
    "BRICK_SET_ASIDE": WARNING,
    "DATA_DAMAGED": ERROR,
    "CERTIFICATE_EXPIRES": WARNING,
}


class Finding(msgspec.Struct, frozen=True):
    """One thing that somebody should look at."""

    code: str
    severity: str
    text: str


class Facts(msgspec.Struct, frozen=True):
    """What is looked at."""

    status: Mapping[str, Any]  # as `clusterfs status --json` has it
    statistics: Mapping[str, Any]
    lease_s: float
    brick_failure: str | None = None  # why it is read-only
    disk_full: bool = False
    set_aside: int = 0  # folders with former content of the brick
    certificate_days: float | None = None  # until it expires


def judge(facts: Facts) -> list[Finding]:
    """Return what is found, errors first; nothing if all is well."""
    found = [
        Finding(code, CODES[code], text) for check in _CHECKS for code, text in check(facts).items()
    ]
    return sorted(found, key=lambda finding: (finding.severity != ERROR, finding.code))


Found = dict[str, str]  # code -> text


def _node(facts: Facts) -> Found:
    status = facts.status
    if status["lost"]:
        return {"NODE_OUT": "this node was removed by the others, and waits to be let in again"}
    left_s = status["lease_left_s"]
    if left_s < _LEASE_PART * facts.lease_s:
        return {"LEASE_NOT_RENEWED": f"{left_s:.1f} s of the lease are left: the provider is slow"}
    return {}


def _groups(facts: Facts) -> Found:
    status, found = facts.status, {}
    if status["stopped_groups"]:
        found["GROUPS_STOPPED"] = f"{status['stopped_groups']} groups wait for nodes that are away"
    lagging = [m["name"] for m in status["members"] if m["in_sync"] < m["wanted"]]
    if lagging or status["absent"]:
        away = [f"node {node}" for node in status["absent"]]
        found["COPIES_MISSING"] = f"not in sync: {', '.join([*lagging, *away])}"
    if status["away"]:
        kept = ", ".join(f"node {node}" for node in status["away"])
        found["COPIES_AWAITED"] = f"away, and what it had is not copied anew yet: {kept}"
    leaving = [m["name"] for m in status["members"] if m["state"] == "leaving"]
    if leaving:
        found["MEMBER_LEAVING"] = f"does not answer, or leaves: {', '.join(leaving)}"
    return found


def _peers(facts: Facts) -> Found:
    peers = facts.statistics["mesh"]["peers"]
    silent = sorted(str(node) for node, peer in peers.items() if not peer["connected"])
    return {"PEER_UNREACHABLE": f"no connection to node {', '.join(silent)}"} if silent else {}


def _programs(facts: Facts) -> Found:
    filesystem, found = facts.statistics["filesystem"], {}
    if filesystem["stalled"]:
        found["REQUESTS_STALLED"] = f"{filesystem['stalled']} requests wait for this node's return"
    if filesystem["dead_handles"]:
        found["HANDLES_DEAD"] = f"{filesystem['dead_handles']} open files were given up: EIO"
    return found


def _brick(facts: Facts) -> Found:
    found = {}
    if facts.brick_failure is not None:
        found["BRICK_READ_ONLY"] = f"the brick failed and is read-only: {facts.brick_failure}"
    if facts.disk_full:
        found["BRICK_DISK_FULL"] = "no room for a checkpoint on the brick's filesystem"
    if facts.set_aside:
        found["BRICK_SET_ASIDE"] = f"{facts.set_aside} folders with former content are in the brick"
    space = facts.status["space"]
    if space and space["free"] < _NEARLY_FULL * space["total"]:
        found["BRICK_NEARLY_FULL"] = f"{space['free'] * 100 // space['total']} % of it are free"
    damaged = facts.statistics["store"].get("damaged_chunks", 0)
    if damaged:
        found["DATA_DAMAGED"] = f"{damaged} chunks are damaged, and no replica had a good copy yet"
    return found


def _certificate(facts: Facts) -> Found:
    days = facts.certificate_days
    if days is None or days > _WARN_DAYS:
        return {}
    text = "has expired" if days < 0 else f"expires in {days:.0f} days"
    return {"CERTIFICATE_EXPIRES": f"this node's certificate {text}"}


_CHECKS: Final[tuple[Callable[[Facts], Found], ...]] = (
    *(_node, _groups, _peers, _programs, _brick, _certificate),
)
