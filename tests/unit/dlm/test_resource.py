from dlm.core.master_copy import Copy
from dlm.core.resource import Resource
from dlm.messages import Blocking, Denied, Granted, Message, Queued, Status
from dlm.modes import Flags, Mode

NL, CR, CW, PR, PW, EX = Mode
NO_FLAGS = Flags(0)


class Bench:
    """One resource, and what it said since last asked."""

    def __init__(self) -> None:
        self.resource = Resource(b"r", b"", term=1)
        self.said: list[Message] = []
        self._locks = 0

    def send(self, _node: int, message: Message) -> None:
        self.said.append(message)

    def ask(self, mode: Mode, flags: Flags = NO_FLAGS) -> Copy:
        self._locks += 1
        copy = Copy(1, self._locks, self.resource)
        copy.requested, copy.flags = mode, int(flags)
        self.resource.request(copy, self.send)
        self.resource.validate()
        return copy

    def convert(
        self, copy: Copy, mode: Mode, flags: Flags = NO_FLAGS, lvb: bytes | None = None
    ) -> list[Message]:
        self.said.clear()
        self.resource.convert(copy, mode, int(flags), lvb, self.send)
        self.resource.validate()
        return self.said

    def demote(self, copy: Copy, mode: Mode, lvb: bytes | None = None) -> list[Message]:
        self.said.clear()
        flags = int(Flags.VALBLK) if lvb is not None else 0
        self.resource.demote(copy, mode, flags, lvb, self.send)
        self.resource.validate()
        return self.said

    def unlock(
        self, copy: Copy, flags: Flags = NO_FLAGS, lvb: bytes | None = None
    ) -> list[Message]:
        self.said.clear()
        self.resource.unlock(copy, int(flags), lvb, self.send)
        self.resource.validate()
        return self.said


def granted(messages: list[Message]) -> list[int]:
    return [message.lock for message in messages if isinstance(message, Granted)]


def blocked(messages: list[Message]) -> list[tuple[int, Mode]]:
    return [(m.lock, m.mode) for m in messages if isinstance(m, Blocking)]


def test_a_compatible_request_does_not_overtake_a_waiter() -> None:
    bench = Bench()
    reader, writer, late = bench.ask(PR), bench.ask(EX), bench.ask(PR)
    assert writer.granted is late.granted is None
    assert granted(bench.unlock(reader)) == [writer.lock]
    assert granted(bench.demote(writer, NL)) == [late.lock]


def test_headque_waits_in_front_and_expedite_not_at_all() -> None:
    bench = Bench()
    holder, first = bench.ask(EX), bench.ask(EX)
    pushy = bench.ask(EX, Flags.HEADQUE)
    assert bench.ask(NL, Flags.EXPEDITE).granted is NL
    assert bench.ask(NL).granted is None
    assert granted(bench.unlock(holder)) == [pushy.lock]
    assert granted(bench.unlock(pushy))[0] == first.lock


def test_a_headque_request_that_fits_is_granted_in_front_of_those_that_wait() -> None:
    bench = Bench()
    reader, writer = bench.ask(PR), bench.ask(EX)
    assert bench.ask(PR, Flags.HEADQUE).granted is PR
    assert bench.ask(CW, Flags.HEADQUE).granted is writer.granted is None
    assert reader.granted is PR


def test_noorder_passes_those_who_wait_if_it_fits() -> None:
    bench = Bench()
    bench.ask(PR)
    writer = bench.ask(EX)
    assert bench.ask(PR, Flags.NOORDER).granted is PR
    assert bench.ask(PR).granted is None
    assert bench.ask(CW, Flags.NOORDER).granted is writer.granted is None


def test_noqueue_is_refused_and_tells_holders_only_with_noqueuebast() -> None:
    bench = Bench()
    holder = bench.ask(PR)
    bench.said.clear()
    bench.ask(EX, Flags.NOQUEUE)
    assert [type(m) for m in bench.said] == [Denied]
    bench.said.clear()
    bench.ask(EX, Flags.NOQUEUE | Flags.NOQUEUEBAST)
    assert blocked(bench.said) == [(holder.lock, EX)]


def test_a_holder_is_told_once_per_rising_mode() -> None:
    bench = Bench()
    holder = bench.ask(EX)
    bench.said.clear()
    for mode in (PR, PR, CR, EX, EX):
        bench.ask(mode)
    assert blocked(bench.said) == [(holder.lock, PR), (holder.lock, EX)]


def test_pr_and_cw_tell_each_other_although_neither_is_stronger() -> None:
    bench = Bench()
    reader = bench.ask(PR)
    bench.ask(PW)
    bench.said.clear()
    bench.ask(CW)
    assert blocked(bench.said) == [(reader.lock, CW)]


def test_a_conversion_overtakes_waiting_conversions_unless_quecvt() -> None:
    bench = Bench()
    a, b, c = bench.ask(PR), bench.ask(NL), bench.ask(NL)
    d = bench.ask(NL)
    bench.convert(b, EX)
    assert b.granted is NL
    bench.convert(c, CR, Flags.QUECVT)
    assert c.granted is NL
    bench.convert(d, CR)
    assert d.granted is CR
    assert granted(bench.unlock(a)) == []
    assert granted(bench.demote(d, NL)) == [b.lock]
    assert granted(bench.demote(b, NL)) == [c.lock]


def test_the_second_of_two_readers_who_want_to_write_is_refused() -> None:
    bench = Bench()
    a, b = bench.ask(PR), bench.ask(PR)
    bench.convert(a, EX)
    bench.convert(b, EX)
    [denied] = bench.said
    assert isinstance(denied, Denied)
    assert (denied.lock, denied.status, denied.granted) == (b.lock, Status.DEADLOCK, PR)
    assert denied.story == (
        "lock 2 on node 1 holds PR and wants EX on r; lock 1 on node 1 holds PR and wants EX on r; "
        "each waits for the other"
    )
    assert granted(bench.unlock(b)) == [a.lock]


def test_convdeadlk_gives_up_the_held_mode_instead() -> None:
    bench = Bench()
    a, b = bench.ask(PR), bench.ask(PR)
    bench.convert(a, EX)
    bench.convert(b, EX, Flags.CONVDEADLK)
    assert granted(bench.said) == [a.lock]
    assert (b.granted, b.requested) == (NL, EX)
    bench.demote(a, NL)
    assert next(m for m in bench.said if isinstance(m, Granted)).demoted


def test_nodlckwt_waits_all_the_same_until_one_gives_in() -> None:
    bench = Bench()
    a, b = bench.ask(PR), bench.ask(PR)
    bench.convert(a, EX)
    bench.convert(b, EX, Flags.NODLCKWT)
    assert [type(message) for message in bench.said[:1]] == [Queued]
    bench.said.clear()
    assert not bench.resource.cancel(b, bench.send)
    assert bench.said[0] == Denied(1, b.lock, Status.CANCELLED, PR)
    assert granted(bench.unlock(b)) == [a.lock]


def test_a_headque_conversion_that_would_wait_for_those_behind_it_is_refused() -> None:
    bench = Bench()
    reader, a, b = bench.ask(CR), bench.ask(CW), bench.ask(NL)
    bench.convert(a, EX)
    bench.convert(b, PW, Flags.HEADQUE)
    assert [type(said) for said in bench.said] == [Denied]
    assert b.requested is None
    assert granted(bench.unlock(reader)) == [a.lock]


def test_cancelling_a_waiter_lets_those_behind_pass_and_a_grant_stays() -> None:
    bench = Bench()
    holder, writer, reader = bench.ask(PR), bench.ask(EX), bench.ask(PR)
    assert bench.resource.cancel(writer, bench.send)
    assert reader.granted is PR
    assert not bench.resource.cancel(holder, bench.send)
    assert holder.granted is PR


def test_the_value_block_follows_writers_and_is_read_only_on_demand() -> None:
    bench = Bench()
    writer = bench.ask(EX, Flags.VALBLK)
    bench.demote(writer, PR, b"one")
    bench.ask(PR, Flags.VALBLK)
    assert isinstance(answer := bench.said[-1], Granted)
    assert (answer.lvb, answer.lvb_sequence, answer.lvb_valid) == (b"one", 1, True)
    bench.ask(PR)
    assert isinstance(answer := bench.said[-1], Granted)
    assert answer.lvb is None
    bench.unlock(writer, Flags.VALBLK, b"readers do not write")
    assert bench.resource.lvb == b"one"


def test_an_invalidated_value_block_is_doubtful_until_the_next_write() -> None:
    bench = Bench()
    anchor, writer = bench.ask(NL), bench.ask(EX)
    bench.unlock(writer, Flags.VALBLK | Flags.IVVALBLK)
    again = bench.ask(PW, Flags.VALBLK)
    assert isinstance(answer := bench.said[-1], Granted)
    assert not answer.lvb_valid
    bench.convert(again, PW, Flags.VALBLK, b"two")
    assert isinstance(answer := bench.said[0], Granted)
    assert answer.lvb_valid
    assert (bench.resource.lvb, bench.resource.lvb_sequence) == (b"two", 1)
    assert anchor.granted is NL


def test_what_a_demotion_in_a_deadlock_frees_goes_to_those_that_wait_out_of_order() -> None:
    bench = Bench()
    a, b = bench.ask(CR), bench.ask(PR)
    waiter = bench.ask(CW, Flags.NOORDER)
    bench.convert(a, CW)
    bench.convert(b, EX, Flags.CONVDEADLK)
    assert (b.granted, b.requested) == (NL, EX)
    assert granted(bench.said) == [a.lock, waiter.lock]


def test_one_that_gave_up_its_mode_waits_behind_those_it_would_jam() -> None:
    bench = Bench()
    reader, a, b = bench.ask(PR), bench.ask(PR), bench.ask(PR)
    bench.convert(a, EX)
    bench.convert(b, EX, Flags.CONVDEADLK | Flags.HEADQUE)
    assert (b.granted, b.requested) == (NL, EX)
    assert granted(bench.unlock(reader)) == [a.lock]
    assert granted(bench.unlock(a)) == [b.lock]


def test_one_at_the_head_is_in_no_deadlock_and_takes_its_other_mode() -> None:
    bench = Bench()
    _, a, b = bench.ask(CW), bench.ask(NL), bench.ask(CR)
    bench.convert(a, EX)
    bench.convert(b, PR, Flags.ALTCW | Flags.HEADQUE | Flags.NODLCKWT)
    assert b.granted is CW
