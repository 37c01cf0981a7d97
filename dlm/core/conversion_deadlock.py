"""Two conversions on one resource that wait for each other's held mode: seen when they queue. PURE.

The tests of fs/dlm's conversion_deadlock_detect, and one for HEADQUE that fs/dlm lacks.
"""

from collections.abc import Sequence

from dlm.core.master_copy import Copy
from dlm.modes import Flags

_HEADQUE = int(Flags.HEADQUE)
_NODLCKWT = int(Flags.NODLCKWT)
_NOQUEUE = int(Flags.NOQUEUE)


def opponent(converting: Sequence[Copy], copy: Copy) -> Copy | None:
    """Return a conversion ahead that waits for our held mode (or behind, and we for its)."""
    held, wanted = copy.granted, copy.requested
    assert held is not None
    assert wanted is not None
    ahead = True
    for other in converting:
        if other is copy:
            ahead = False
            continue
        assert other.granted is not None
        assert other.requested is not None
        if not held.compatible(other.requested) and (ahead or not other.granted.compatible(wanted)):
            return other
    return None


def jammed_by(converting: Sequence[Copy], copy: Copy) -> Copy | None:
    """Return one that a HEADQUE conversion would overtake, and wait for.

    fs/dlm does not look for this, and lets both wait for ever.
    """
    if copy.flags & (_HEADQUE | _NODLCKWT | _NOQUEUE) != _HEADQUE:
        return None
    assert copy.requested is not None
    for other in converting:
        assert other.granted is not None
        if not other.granted.compatible(copy.requested):
            return other
    return None


def tell(copy: Copy, other: Copy) -> str:
    """Return the two in words."""
    return f"{_stand(copy)}; {_stand(other)}; each waits for the other"


def _stand(copy: Copy) -> str:
    """Say who holds what and wants what."""
    assert copy.granted is not None
    assert copy.requested is not None
    who = copy.owner or f"lock {copy.lock}"
    return (
        f"{who} on node {copy.node} holds {copy.granted.name} "
        f"and wants {copy.requested.name} on {copy.resource.name.spelt()}"
    )
