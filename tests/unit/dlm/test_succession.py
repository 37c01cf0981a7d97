"""Going on under new masters."""

from types import SimpleNamespace
from typing import Any, cast

from dlm.core.own_lock import Root
from dlm.core.succession import Succession
from dlm.messages import Reign, Reigns

ROOTS = [b"root%d" % number for number in range(12)]


def test_what_came_early_is_heard_in_the_order_of_the_roots_in_every_run() -> None:
    """A seed is a complete bug report only if the hashes of names decide nothing."""
    heard: list[Any] = []
    roots = {root: Root(1, 1, 1) for root in ROOTS}
    for root, known in roots.items():
        known.marks[2] = 0
        known.early.append((3, cast("Any", root)))
    owned = SimpleNamespace(roots=roots, pending={}, hear=heard.extend)
    here = SimpleNamespace(members={3: 3})
    reigns = Reigns(2, 2, tuple(Reign(root, 2) for root in reversed(ROOTS)))
    Succession(cast("Any", here), cast("Any", owned)).reigns(3, reigns)
    assert [root for _, root in heard] == ROOTS[::-1]
