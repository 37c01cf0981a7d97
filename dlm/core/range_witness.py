"""Whether anybody may have had what a node held that was removed and is back. PURE.

Who is back asks for its ranges again, like anybody; once it has one, nobody else can get it. Then
it asks all members, as witnesses, what their parties were granted since the last epoch that it knew
(`since`). Its claim stands if none of them tells of a clash, and together they have seen it all:
one of them was a member at that time, and nobody who was a member later is gone. It stands, too,
if nobody can have come or gone since: this node is back in the next epoch.

A range can only be granted to a node that is a member in the epoch that its keeper is in, and a
keeper decides only once all members have told: so whoever has entered no epoch after `since` has
got nothing since, and who has come and gone in epochs that a witness skipped got nothing either.

Invariant: a hearing ends once, with the answers of one epoch to all its questions.
"""

from collections.abc import Mapping

from dlm.core.range_table import Span
from dlm.core.range_user import RangeUser
from dlm.core.situation import Situation
from dlm.effects import Heard
from dlm.events import AskWitnesses, Hearing, Name
from dlm.range_messages import Held, RangeWitness, RangeWitnessed

_PAGE = 200  # ranges in one question


class Witnesses:
    """One node's part in telling those who come back."""

    def __init__(self, here: Situation, ranges: RangeUser) -> None:
        self._here = here
        self._ranges = ranges
        self._hearings: dict[int, Hearing] = {}
        self._open: dict[int, int] = {}  # questions without an answer, by hearing
        self._earliest: dict[int, int] = {}  # by hearing: since when somebody has seen it all
        self._first = 0  # the first epoch that we entered
        self._before_first = 0  # and the one before that
        self._present: dict[int, int] = {}  # incarnation to node, also of those that are leaving
        self._gone: dict[int, tuple[int, int]] = {}  # incarnation to node and last epoch

    def ask(self, event: AskWitnesses) -> None:
        """Begin a hearing; all that it asks for must be held."""
        hearing = event.hearing
        hearing.number = self._here.waits.next_stamp()
        self._hearings[hearing.number] = hearing
        if not self._here.frozen:
            self._begin(hearing)

    def witness(self, sender: int, message: RangeWitness) -> None:
        """Say what we know."""
        here, past = self._here, self._ranges.past
        if message.epoch != here.epoch:
            return
        clashing = {
            held.holder
            for held in message.held
            if past.clashes(
                Name(held.root, held.leaf), Span(held.start, held.last, held.mode), message.since
            )
        }
        left = [last for node, last in self._gone.values() if node != sender]
        left += [here.epoch for node in here.leaving if node != sender]
        answer = RangeWitnessed(
            here.epoch, message.number, self._first, max(left, default=0), tuple(sorted(clashing))
        )
        here.send(sender, answer)

    def witnessed(self, _sender: int, message: RangeWitnessed) -> None:
        """Hear a witness."""
        hearing = self._hearings.get(message.number)
        if hearing is None or message.epoch != self._here.epoch:
            return
        number = message.number
        hearing.clashing.update(message.clashing)
        hearing.unsure |= message.left > hearing.since
        self._earliest[number] = min(self._earliest[number], message.first)
        self._open[number] -= 1
        self._conclude(hearing)

    def enter(self, before: int) -> None:
        """Note who is gone since `before`, the epoch before this one, and ask anew."""
        here = self._here
        if not self._first:
            self._first, self._before_first = here.epoch, before
        both: tuple[Mapping[int, int], ...] = (here.members, here.leaving)
        present = {start: node for nodes in both for node, start in nodes.items()}
        for start, node in self._present.items():
            if start not in present:
                self._gone[start] = node, before
        self._present = present
        for hearing in list(self._hearings.values()):
            self._begin(hearing)

    def lose(self) -> None:
        """End all hearings: this node is out once more."""
        for hearing in list(self._hearings.values()):
            hearing.lost = True
            self._end(hearing)

    def _begin(self, hearing: Hearing) -> None:
        here = self._here
        held = [
            Held(*party.name, party.number, start, last, mode, party.pid, party.who, party.freed)
            for party in hearing.parties
            for start, last, mode in self._ranges.held(party)
        ]
        pages = [tuple(held[first : first + _PAGE]) for first in range(0, len(held), _PAGE)] or [()]
        others = [node for node in here.members if node != here.me]
        hearing.clashing.clear()
        hearing.unsure = False
        back_at_once = here.epoch == self._first
        self._earliest[hearing.number] = self._before_first if back_at_once else here.epoch
        self._open[hearing.number] = len(others) * len(pages)
        for node in others:
            for page in pages:
                here.send(node, RangeWitness(here.epoch, hearing.number, hearing.since, page))
        self._conclude(hearing)

    def _conclude(self, hearing: Hearing) -> None:
        if not self._open[hearing.number]:
            hearing.unsure |= self._earliest[hearing.number] > hearing.since
            self._end(hearing)

    def _end(self, hearing: Hearing) -> None:
        number = hearing.number
        del self._hearings[number], self._open[number], self._earliest[number]
        hearing.ended = True
        self._here.effects.append(Heard(hearing))
