"""What this node's parties have held since when: so that somebody who was out may be told. PURE.

For each name the ranges that were granted, each with the last epoch in which that was. A range that
is still held from before somebody went is in nobody's way: it stood beside what that one held.

What is too much is forgotten, the oldest first, and `floor` says so: of epochs up to that one
nothing is known for sure. A name with very many ranges remembers them as one.
"""

from collections import OrderedDict

from dlm.core.range_table import Span
from dlm.events import Name
from dlm.modes import Mode

NAMES = 16_384
SPANS = 256  # of one name
_END = 2**63 - 1


class Past:
    """The grants of one node, lately."""

    def __init__(self) -> None:
        self.floor = 0
        self._granted: OrderedDict[Name, dict[Span, int]] = OrderedDict()

    def note(self, name: Name, span: Span, epoch: int) -> None:
        """Remember a grant."""
        granted = self._granted.get(name)
        if granted is None:
            granted = self._granted[name] = {}
        else:
            self._granted.move_to_end(name)
        granted[span] = epoch
        if len(granted) > SPANS:
            granted.clear()
            granted[Span(0, _END, Mode.EX)] = epoch
        if len(self._granted) > NAMES:
            _, oldest = self._granted.popitem(last=False)
            self.floor = max(self.floor, *oldest.values())

    def clashes(self, name: Name, span: Span, since: int) -> bool:
        """Tell whether what was granted after an epoch excludes the range, as far as we know."""
        return since < self.floor or any(
            epoch > since
            and start <= span.last
            and span.start <= last
            and not mode.compatible(span.mode)
            for (start, last, mode), epoch in self._granted.get(name, {}).items()
        )
