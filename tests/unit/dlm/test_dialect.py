"""Each row of docs/protocols/dialects.md; the tests are named there."""

import errno
from functools import partial

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from dlm.dialect import Dialect, StatusBlock
from dlm.errors import NotOffered
from dlm.events import Owner
from dlm.modes import Flags, Mode
from dlm.node import Lockspace
from dlm.profiles import ECANCEL, EUNLOCK, FSDLM, NATIVE, O2DLM, PROFILES

NL, CR, CW, PR, PW, EX = Mode

# As the headers of Linux have them.
LKF_NOQUEUE, LKF_CANCEL, LKF_CONVERT, LKF_VALBLK = 0x1, 0x2, 0x4, 0x8
LKF_QUECVT, LKF_IVVALBLK, LKF_CONVDEADLK, LKF_PERSISTENT = 0x10, 0x20, 0x40, 0x80
LKF_NODLCKWT, LKF_EXPEDITE, LKF_ORPHAN, LKF_ALTPR = 0x100, 0x400, 0x4000, 0x8000
LKF_FORCEUNLOCK, LKF_TIMEOUT = 0x20000, 0x40000
LKM_LOCAL, LKM_VALBLK, LKM_NOQUEUE, LKM_CONVERT = 0x80, 0x100, 0x200, 0x400
LKM_CANCEL, LKM_INVVALBLK, LKM_FORCE = 0x2000, 0x8000, 0x800000
DLM_NORMAL, DLM_DENIED, DLM_CANCELGRANT, DLM_BADARGS = 0, 2, 10, 19
DLM_NOTQUEUED, DLM_CANCEL, DLM_DEADLOCK = 21, 28, 30
SBF_DEMOTED, SBF_VALNOTVALID, SBF_ALTMODE = 1, 2, 4


class Node:
    """One node alone, with a dialect."""

    def __init__(self, profile: str, nursery: trio.Nursery) -> None:
        self.space = Lockspace(1, 1, lambda *_: None, lambda: 0.0, profile=profile)
        self.space.enter(1, {1: 1})
        self.dialect = Dialect(self.space)
        self.convert_flag = self.space.profile.to_number(Flags.CONVERT)
        self._nursery = nursery

    async def take(self, mode: Mode, flags: int = 0, name: bytes = b"r") -> StatusBlock:
        block = StatusBlock(bytes(self.space.value_bytes))
        await self.dialect.lock(block, mode, flags, name)
        return block

    async def convert(self, block: StatusBlock, mode: Mode, flags: int = 0) -> int:
        return await self.dialect.lock(block, mode, flags | self.convert_flag)

    async def begin(self, mode: Mode, flags: int = 0) -> StatusBlock:
        """Ask for a lock that has to wait."""
        block = StatusBlock(bytes(self.space.value_bytes))
        self._nursery.start_soon(self.dialect.lock, block, mode, flags, b"r")
        await wait_all_tasks_blocked()
        return block

    async def begin_conversion(self, block: StatusBlock, mode: Mode, flags: int = 0) -> None:
        self._nursery.start_soon(self.convert, block, mode, flags)
        await wait_all_tasks_blocked()


@pytest.fixture
async def fsdlm(nursery: trio.Nursery) -> Node:
    return Node("fsdlm", nursery)


@pytest.fixture
async def o2dlm(nursery: trio.Nursery) -> Node:
    return Node("o2dlm", nursery)


async def test_modes(fsdlm: Node, o2dlm: Node) -> None:
    for mode in Mode:
        assert (await fsdlm.take(mode, name=b"%d" % mode)).mode is mode
        block = await o2dlm.take(mode, name=b"%d" % mode)
        assert block.mode is (mode if mode in (NL, PR, EX) else None)
    assert await fsdlm.dialect.lock(StatusBlock(), 6, 0, b"r") == -errno.EINVAL
    assert await o2dlm.dialect.lock(StatusBlock(), CW, 0, b"r") == DLM_BADARGS


@pytest.mark.parametrize(("profile", "longest"), [("fsdlm", 64), ("o2dlm", 31)])
async def test_names(profile: str, longest: int, nursery: trio.Nursery) -> None:
    node = Node(profile, nursery)
    assert (await node.take(PR, name=bytes(longest))).mode is PR
    assert (await node.take(PR, name=bytes(longest + 1))).mode is None
    assert (await node.take(PR, name=b"")).mode is None


def make(profile: str, length: int) -> Lockspace:
    return Lockspace(1, 1, lambda *_: None, lambda: 0.0, profile=profile, lvb_bytes=length)


def test_value_lengths() -> None:
    assert make("fsdlm", 24).value_bytes == 24
    for profile, length in (("fsdlm", 20), ("o2dlm", 32)):
        with pytest.raises(NotOffered, match="value block"):
            make(profile, length)
    spaces = {
        name: Lockspace(1, 1, lambda *_: None, lambda: 0.0, profile=name) for name in PROFILES
    }
    assert {name: s.value_bytes for name, s in spaces.items()} == {
        "native": 64,
        "fsdlm": 32,
        "o2dlm": 64,
    }


async def test_a_lost_value(fsdlm: Node, o2dlm: Node) -> None:
    blocks = {}
    for node, flag, invalid in (
        (fsdlm, LKF_VALBLK, LKF_IVVALBLK),
        (o2dlm, LKM_VALBLK, LKM_INVVALBLK),
    ):
        keeper, writer = await node.take(NL), await node.take(EX)
        writer.value = b"v" * node.space.value_bytes
        await node.convert(writer, NL, flag)
        assert await node.convert(keeper, PR, flag) == 0
        assert keeper.value == writer.value
        assert keeper.flags == 0
        await node.convert(keeper, NL)
        await node.convert(writer, EX)
        await node.dialect.unlock(writer, invalid)
        await node.convert(keeper, PR, flag)
        blocks[node] = keeper
    assert (blocks[fsdlm].value, blocks[fsdlm].flags) == (b"v" * 32, SBF_VALNOTVALID)
    assert (blocks[o2dlm].value, blocks[o2dlm].flags) == (bytes(64), 0)


async def test_a_value_that_was_never_written(fsdlm: Node, o2dlm: Node) -> None:
    kept = StatusBlock(b"k" * 32)
    await fsdlm.dialect.lock(kept, PR, LKF_VALBLK, b"r")
    assert (kept.value, kept.flags) == (b"k" * 32, 0)
    zeroed = StatusBlock(b"k" * 64)
    await o2dlm.dialect.lock(zeroed, PR, LKM_VALBLK, b"r")
    assert zeroed.value == bytes(64)


async def test_a_value_at_null(fsdlm: Node, o2dlm: Node) -> None:
    for node, flag, read in ((fsdlm, LKF_VALBLK, True), (o2dlm, LKM_VALBLK, False)):
        keeper, writer = await node.take(NL), await node.take(EX)
        writer.value = b"v" * node.space.value_bytes
        await node.convert(writer, NL, flag)
        assert await node.convert(keeper, NL, flag) == 0
        assert (keeper.value == writer.value) == read


async def test_overtaking(fsdlm: Node, o2dlm: Node) -> None:
    for node, overtakes in ((fsdlm, False), (o2dlm, True)):
        await node.take(PR)
        writer = await node.begin(EX)
        reader = await node.begin(PR)
        assert (writer.mode, reader.mode) == (None, PR if overtakes else None)


async def test_a_request_against_what_a_converting_lock_wants(fsdlm: Node, o2dlm: Node) -> None:
    for node, granted in ((fsdlm, None), (o2dlm, PR)):
        first, second = await node.take(PR), await node.take(NL)
        assert first.mode is PR
        await node.begin_conversion(second, EX)
        assert (await node.begin(NL)).mode is (None if granted is None else NL)
        assert (await node.take(PR, node.space.profile.to_number(Flags.NOQUEUE))).mode is None
        assert (await node.begin(PR)).mode is granted


async def test_conversion_deadlock(fsdlm: Node, o2dlm: Node) -> None:
    a, b = await fsdlm.take(PR), await fsdlm.take(PR)
    await fsdlm.begin_conversion(a, EX)
    assert await fsdlm.convert(b, EX) == -errno.EDEADLK
    assert b.mode is PR
    a, b = await o2dlm.take(PR), await o2dlm.take(PR)
    told: list[tuple[str, Mode]] = []
    a.blocking = lambda mode: told.append(("a", mode))
    b.blocking = lambda mode: told.append(("b", mode))
    await o2dlm.begin_conversion(a, EX)
    await o2dlm.begin_conversion(b, EX)
    assert told == [("b", EX), ("a", EX)]
    assert (a.mode, b.mode, a.done is None, b.done is None) == (PR, PR, False, False)
    assert await o2dlm.dialect.unlock(b, LKM_CANCEL) == DLM_NORMAL
    assert await o2dlm.dialect.unlock(b) == DLM_NORMAL
    await wait_all_tasks_blocked()
    assert a.mode is EX


async def test_conversion_deadlock_by_flag(fsdlm: Node) -> None:
    a, b = await fsdlm.take(PR), await fsdlm.take(PR)
    await fsdlm.begin_conversion(a, EX)
    await fsdlm.begin_conversion(b, EX, LKF_CONVDEADLK)
    assert a.mode is EX
    await fsdlm.convert(a, NL)
    await wait_all_tasks_blocked()
    assert (b.mode, b.flags) == (EX, SBF_DEMOTED)
    await fsdlm.convert(b, PR)
    await fsdlm.convert(a, PR)
    told: list[Mode] = []
    await fsdlm.begin_conversion(a, EX)
    b.blocking = told.append
    await fsdlm.begin_conversion(b, EX, LKF_NODLCKWT)
    assert (a.done is None, b.done is None) == (False, False)


async def test_cancel(fsdlm: Node, o2dlm: Node) -> None:
    await fsdlm.take(EX)
    waiter = await fsdlm.begin(PR)
    assert await fsdlm.dialect.unlock(waiter, LKF_CANCEL) == 0
    await wait_all_tasks_blocked()
    assert waiter.status == -ECANCEL == -0x10001
    await o2dlm.take(EX)
    waiter = await o2dlm.begin(PR)
    assert await o2dlm.dialect.unlock(waiter, LKM_CANCEL) == DLM_NORMAL
    assert waiter.status == DLM_CANCEL
    assert waiter.lock is None


async def test_cancel_of_nothing(fsdlm: Node, o2dlm: Node) -> None:
    assert await fsdlm.dialect.unlock(await fsdlm.take(EX), LKF_CANCEL) == -errno.EBUSY
    assert await o2dlm.dialect.unlock(await o2dlm.take(EX), LKM_CANCEL) == DLM_CANCELGRANT


async def test_unlock(fsdlm: Node, o2dlm: Node) -> None:
    holder = await fsdlm.take(EX)
    waiter = await fsdlm.begin(EX)
    assert await fsdlm.dialect.unlock(waiter) == -errno.EBUSY
    assert await fsdlm.dialect.unlock(waiter, LKF_FORCEUNLOCK) == -errno.EINVAL
    assert await fsdlm.dialect.unlock(holder) == -EUNLOCK == -0x10002
    holder = await o2dlm.take(EX)
    waiter = await o2dlm.begin(EX)
    assert await o2dlm.dialect.unlock(waiter) == DLM_DENIED
    assert await o2dlm.dialect.unlock(waiter, LKM_FORCE) == DLM_BADARGS
    assert await o2dlm.dialect.unlock(holder) == DLM_NORMAL


async def test_noqueue(fsdlm: Node, o2dlm: Node) -> None:
    await fsdlm.take(EX)
    assert (await fsdlm.take(PR, LKF_NOQUEUE)).status == -errno.EAGAIN
    await o2dlm.take(EX)
    assert (await o2dlm.take(PR, LKM_NOQUEUE)).status == DLM_NOTQUEUED
    assert O2DLM.errno_of(DLM_NOTQUEUED) == -errno.EAGAIN


def test_statuses_as_errno() -> None:
    assert {code: O2DLM.errno_of(code) for code in (0, 2, 10, 19, 21, 28, 30)} == {
        DLM_NORMAL: 0,
        DLM_DENIED: -errno.EACCES,
        DLM_CANCELGRANT: -errno.EBUSY,
        DLM_BADARGS: -errno.EINVAL,
        DLM_NOTQUEUED: -errno.EAGAIN,
        DLM_CANCEL: -ECANCEL,
        DLM_DEADLOCK: -errno.EDEADLK,
    }
    assert FSDLM.errno_of(-errno.EAGAIN) == -errno.EAGAIN


def test_flag_numbers() -> None:
    everything = LKF_NOQUEUE | LKF_CONVERT | LKF_VALBLK | LKF_QUECVT | LKF_CONVDEADLK | LKF_ALTPR
    assert FSDLM.to_number(FSDLM.to_flags(everything)) == everything
    assert O2DLM.to_flags(LKM_VALBLK | LKM_NOQUEUE) == Flags.VALBLK | Flags.NOQUEUE
    for profile, number in ((FSDLM, LKF_TIMEOUT), (FSDLM, LKF_FORCEUNLOCK), (O2DLM, 0x20000)):
        with pytest.raises(NotOffered, match="not offered"):
            profile.to_flags(number)
    with pytest.raises(NotOffered):
        O2DLM.to_number(Flags.QUECVT)


@pytest.mark.parametrize(
    ("held", "mode", "flags"),
    [
        (None, PR, LKF_QUECVT),
        (None, PR, LKF_CONVDEADLK),
        (None, PR, LKF_EXPEDITE),
        (None, NL, LKF_EXPEDITE | LKF_NOQUEUE),
        (PR, NL, LKF_QUECVT),
        (PR, EX, LKF_CONVDEADLK | LKF_NOQUEUE),
        (NL, NL, LKF_EXPEDITE),
        (PW, EX, LKF_ALTPR),
    ],
)
async def test_flags_that_do_not_go(held: Mode | None, mode: Mode, flags: int, fsdlm: Node) -> None:
    if held is None:
        assert (await fsdlm.take(mode, flags)).status == -errno.EINVAL
    else:
        assert await fsdlm.convert(await fsdlm.take(held), mode, flags) == -errno.EINVAL


async def test_alternate_modes(fsdlm: Node) -> None:
    await fsdlm.take(CR)
    block = await fsdlm.take(EX, LKF_ALTPR)
    assert (block.mode, block.flags) == (PR, SBF_ALTMODE)
    assert (await fsdlm.take(CW, LKF_ALTPR)).mode is PR
    waiting = await fsdlm.begin(CW, 0x10000)  # ALTCW is no alternative
    assert waiting.mode is None


async def test_local_names(o2dlm: Node) -> None:
    assert (await o2dlm.take(EX, LKM_LOCAL)).mode is EX
    with pytest.raises(NotOffered):
        O2DLM.to_flags(LKM_LOCAL)  # it is not for the core


async def test_a_process_that_ends(fsdlm: Node) -> None:
    process, other = Owner("pid 7"), await fsdlm.take(NL)
    held, kept = StatusBlock(bytes(32), process), StatusBlock(bytes(32), process)
    await fsdlm.dialect.lock(held, EX, LKF_VALBLK, b"r")
    await fsdlm.dialect.lock(kept, EX, LKF_PERSISTENT, b"s")
    waiting = StatusBlock(bytes(32), process)
    fsdlm._nursery.start_soon(partial(fsdlm.dialect.lock, waiting, EX, 0, b"r"))
    await wait_all_tasks_blocked()
    await fsdlm.dialect.exited(process)
    assert waiting.status == -ECANCEL
    assert await fsdlm.convert(other, PR, LKF_VALBLK) == 0
    assert other.flags == SBF_VALNOTVALID
    assert (await fsdlm.take(PR, LKF_NOQUEUE, b"s")).status == -errno.EAGAIN
    assert (await fsdlm.take(PR, LKF_ORPHAN, b"s")).status == -errno.EAGAIN
    assert (await fsdlm.take(EX, LKF_ORPHAN, b"none")).status == -errno.EINVAL
    adopted = await fsdlm.take(EX, LKF_ORPHAN, b"s")
    assert adopted.mode is EX
    assert await fsdlm.dialect.unlock(adopted) == -EUNLOCK
    again = StatusBlock(bytes(32), process)
    await fsdlm.dialect.lock(again, EX, LKF_PERSISTENT, b"s")
    await fsdlm.dialect.exited(process)
    fsdlm.dialect.purge()
    assert (await fsdlm.take(PR, LKF_NOQUEUE, b"s")).mode is PR


async def test_busy(fsdlm: Node, o2dlm: Node) -> None:
    for node, busy in ((fsdlm, -errno.EBUSY), (o2dlm, DLM_DENIED)):
        await node.take(EX)
        waiter = await node.begin(PR)
        assert await node.convert(waiter, EX) == busy


@pytest.mark.parametrize(
    ("profile", "victim"), [("fsdlm", -errno.EDEADLK), ("o2dlm", DLM_DEADLOCK)]
)
async def test_deadlock_between_owners(
    profile: str, victim: int, nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    began_s = autojump_clock.current_time()
    space = Lockspace(1, 1, lambda *_: None, trio.current_time, profile=profile)
    space.enter(1, {1: 1})
    nursery.start_soon(space.run)
    dialect, waiting = Dialect(space), []
    owners = [Owner("one"), Owner("two")]
    for owner, name in zip(owners, (b"a", b"b"), strict=True):
        await dialect.lock(StatusBlock(process=owner), EX, 0, name)
    for owner, name in zip(owners, (b"b", b"a"), strict=True):
        waiting.append(StatusBlock(process=owner))
        nursery.start_soon(dialect.lock, waiting[-1], EX, 0, name)
        await wait_all_tasks_blocked()
    while waiting[1].done is not None:
        await trio.sleep(0.1)
    assert [block.done is None for block in waiting] == [False, True]
    assert waiting[1].status == victim
    assert autojump_clock.current_time() < began_s + 1


def test_there_is_a_profile_for_each_name() -> None:
    assert dict(PROFILES) == {"native": NATIVE, "fsdlm": FSDLM, "o2dlm": O2DLM}
