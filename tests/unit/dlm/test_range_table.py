"""The table of ranges beside a map of bytes, which says who has each byte and how."""

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from dlm.core.range_table import Ask, Holder, Span, Table
from dlm.modes import Mode
from dlm.range_messages import How, Verdict

PR, EX = Mode.PR, Mode.EX
BYTES = 12
TO_THE_END = 2**63 - 1


class Whom:
    """Asks one after the other, in short."""

    def __init__(self) -> None:
        self.table = Table()
        self.number = 0

    def ask(self, holder: int, start: int, last: int, mode: Mode = EX, how: How = How.WAIT) -> Ask:
        self.number += 1
        return Ask((1, holder), self.number, Span(start, last, mode), how)

    def request(
        self, holder: int, start: int, last: int, mode: Mode = EX, how: How = How.WAIT
    ) -> Verdict | None:
        return self.table.request(self.ask(holder, start, last, mode, how))

    def free(self, holder: int, start: int = 0, last: int = TO_THE_END) -> list[int]:
        self.table.free((1, holder), start, last)
        return [ask.holder[1] for ask in self.table.settle()]

    def spans(self, holder: int) -> list[tuple[int, int, Mode]]:
        found = self.table.holders.get((1, holder))
        return [] if found is None else [tuple(segment.span()) for segment in found.segments]


@pytest.fixture
def whom() -> Whom:
    return Whom()


class Bytes(RuleBasedStateMachine):
    """The table as adversary's victim, a dict of (holder, byte) to mode as its model."""

    @initialize()
    def begin(self) -> None:
        self.whom = Whom()
        self.model: dict[tuple[int, int], Mode] = {}
        self.waiting: list[Ask] = []

    def _grant(self, ask: Ask) -> None:
        for byte in range(ask.start, ask.last + 1):
            self.model[ask.holder[1], byte] = ask.mode

    def _settle(self) -> None:
        for ask in self.whom.table.settle():
            self.waiting.remove(ask)
            self._grant(ask)

    def _excluded(self, ask: Ask) -> bool:
        return any(
            holder != ask.holder[1] and ask.start <= byte <= ask.last and EX in (mode, ask.mode)
            for (holder, byte), mode in self.model.items()
        )

    @rule(
        holder=st.integers(1, 4),
        ends=st.tuples(st.integers(0, BYTES - 1), st.integers(0, BYTES - 1)),
        mode=st.sampled_from((PR, EX)),
        how=st.sampled_from(How),
    )
    def ask(self, holder: int, ends: tuple[int, int], mode: Mode, how: How) -> None:
        if any(ask.holder[1] == holder for ask in self.waiting):
            return
        ask = self.whom.ask(holder, min(ends), max(ends), mode, how)
        excluded = self._excluded(ask)
        verdict = self.whom.table.request(ask)
        if how is How.TEST:
            assert (verdict is Verdict.WOULD_BLOCK) == excluded
        elif how is How.TRY:
            assert (verdict is Verdict.WOULD_BLOCK) == excluded
            if not excluded:
                self._grant(ask)
        elif verdict is None:
            self.waiting.append(ask)
        else:
            assert verdict is Verdict.GRANTED
            assert not excluded
            self._grant(ask)
        self._settle()

    @rule(holder=st.integers(1, 4), start=st.integers(0, BYTES), length=st.integers(1, BYTES))
    def free(self, holder: int, start: int, length: int) -> None:
        last = start + length - 1
        had = any((holder, byte) in self.model for byte in range(start, last + 1))
        assert self.whom.table.free((1, holder), start, last) == had
        for byte in range(start, last + 1):
            self.model.pop((holder, byte), None)
        self._settle()

    @rule(data=st.data())
    def withdraw(self, data: st.DataObject) -> None:
        if self.waiting:
            ask = data.draw(st.sampled_from(self.waiting))
            assert self.whom.table.withdraw(ask.number, 1) is ask
            assert self.whom.table.withdraw(ask.number, 1) is None
            self.waiting.remove(ask)
            self._settle()

    @rule(holder=st.integers(1, 4))
    def hear(self, holder: int) -> None:
        """The holder has heard of all its grants."""
        found = self.whom.table.holders.get((1, holder))
        if found is not None:
            found.saw(())

    @invariant()
    def agree(self) -> None:
        if not hasattr(self, "whom"):
            return
        self.whom.table.validate()
        held = {
            (key[1], byte): segment.mode
            for key, holder in self.whom.table.holders.items()
            for segment in holder.segments
            for byte in range(segment.start, segment.last + 1)
        }
        assert held == self.model
        assert self.whom.table.waiting == self.waiting


TestBytes = Bytes.TestCase
TestBytes.settings = settings(max_examples=150, stateful_step_count=40)


def test_a_range_is_split_and_merged_again(whom: Whom) -> None:
    whom.request(1, 0, 99)
    whom.free(1, 40, 59)
    assert whom.spans(1) == [(0, 39, EX), (60, 99, EX)]
    whom.request(1, 50, 69, PR)
    assert whom.spans(1) == [(0, 39, EX), (50, 69, PR), (70, 99, EX)]
    whom.request(1, 0, TO_THE_END)
    whom.table.holders[1, 1].saw(())
    assert whom.spans(1) == [(0, TO_THE_END, EX)]


def test_neighbours_become_one_once_the_holder_knows_of_them(whom: Whom) -> None:
    whom.request(1, 0, 9)
    whom.request(1, 10, 19)
    whom.table.holders[1, 1].saw(())
    assert whom.spans(1) == [(0, 19, EX)]


def test_waiters_are_served_in_the_order_of_asking(whom: Whom) -> None:
    whom.request(1, 0, 9)
    assert [whom.request(holder, 0, 9) for holder in (4, 2, 3)] == [None] * 3
    assert whom.free(1) == [4]
    assert whom.free(4) == [2]
    assert whom.free(2) == [3]


def test_readers_do_not_overtake_a_writer_that_waits(whom: Whom) -> None:
    whom.request(1, 0, 9, PR)
    assert whom.request(2, 0, 9) is None
    assert whom.request(3, 0, 9, PR) is None
    assert whom.free(1) == [2]
    assert whom.free(2) == [3]


def test_a_reader_may_become_a_writer_while_another_writer_waits_for_it(whom: Whom) -> None:
    whom.request(1, 0, 9, PR)
    assert whom.request(2, 0, 9) is None
    assert whom.request(1, 0, 9) is Verdict.GRANTED


def test_weakening_lets_readers_in(whom: Whom) -> None:
    whom.request(1, 0, 9)
    assert whom.request(2, 5, 5, PR) is None
    assert whom.request(1, 0, 9, PR) is Verdict.GRANTED
    assert [ask.holder[1] for ask in whom.table.settle()] == [2]


def test_what_was_granted_behind_a_holders_back_is_not_freed(whom: Whom) -> None:
    """It freed bytes before it heard that another request of its own was granted there."""
    whom.request(1, 0, 9)
    granted = whom.ask(1, 4, 5)
    whom.table.request(granted)
    whom.table.free((1, 1), 0, TO_THE_END, (granted.number,))
    assert whom.spans(1) == [(4, 5, EX)]
    whom.table.free((1, 1), 0, TO_THE_END)
    assert not whom.table


def test_who_waits_behind_somebody_is_kept_by_whom_that_one_waits_for(whom: Whom) -> None:
    whom.request(1, 0, 0)
    second, third = whom.ask(2, 0, 9), whom.ask(3, 9, 9)
    whom.table.request(second)
    whom.table.request(third)
    ((holder, behind),) = whom.table.in_the_way(third)
    assert isinstance(holder, Holder)
    assert (holder.key, behind) == ((1, 1), second)
    third.hurried = True
    assert list(whom.table.in_the_way(third)) == []
    assert whom.table.settle() == [third]


def test_a_test_names_the_lowest_range_in_the_way(whom: Whom) -> None:
    whom.request(1, 20, 29)
    whom.request(2, 10, 15, PR)
    found = whom.table.conflict(whom.ask(3, 0, 99))
    assert found is not None
    assert (found[0].key, tuple(found[1].span())) == ((1, 2), (10, 15, PR))
