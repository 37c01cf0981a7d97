"""Access control lists against the words of acl(5)."""

import pytest

from clusterfs.errors import InvalidArgument
from clusterfs.fs import acl
from clusterfs.fs.acl import GROUP, GROUP_OBJ, MASK, OTHER, USER, USER_OBJ, Item
from clusterfs.fs.attributes import fresh
from clusterfs.fs.results import Caller

FULL = (
    Item(USER_OBJ, 6),
    Item(USER, 7, 1001),
    Item(GROUP_OBJ, 4),
    Item(GROUP, 6, 2001),
    Item(MASK, 5),
    Item(OTHER, 0),
)
MINIMAL = (Item(USER_OBJ, 7), Item(GROUP_OBJ, 5), Item(OTHER, 1))
RECORD = fresh(0o100650, 1000, 2000, 0)


def test_the_value_is_the_kernels() -> None:
    assert acl.decode(acl.encode(FULL)) == FULL
    assert acl.encode(MINIMAL[:1]) == bytes.fromhex("02000000 0100 0700 ffffffff")


@pytest.mark.parametrize(
    "value",
    [
        b"",
        b"\1\0\0\0",
        acl.encode(FULL)[:-1],
        acl.encode(FULL[1:]),
        acl.encode(FULL[:4] + FULL[5:]),
        acl.encode(FULL[::-1]),
        acl.encode((*MINIMAL, Item(OTHER, 1))),
        acl.encode((Item(USER_OBJ, 8), *MINIMAL[1:])),
    ],
)
def test_what_is_no_acl_is_refused(value: bytes) -> None:
    with pytest.raises(InvalidArgument):
        acl.decode(value)


def test_the_groups_bits_of_the_mode_are_the_mask() -> None:
    assert (acl.mode_of(FULL), acl.mode_of(MINIMAL)) == (0o650, 0o751)
    assert [acl.is_minimal(FULL), acl.is_minimal(MINIMAL)] == [False, True]
    changed = {item.tag: item.allowed for item in acl.with_mode(FULL, 0o724)}
    assert changed == {USER_OBJ: 7, USER: 7, GROUP_OBJ: 4, GROUP: 6, MASK: 2, OTHER: 4}
    assert acl.mode_of(acl.with_mode(MINIMAL, 0o640)) == 0o640


def test_a_default_acl_restricts_what_is_asked_for_and_is_restricted_by_it() -> None:
    mode, found = acl.inherit(FULL, 0o100666)
    assert mode == 0o100640
    assert {item.tag: item.allowed for item in found} == {
        USER_OBJ: 6,
        USER: 7,
        GROUP_OBJ: 4,
        GROUP: 6,
        MASK: 4,
        OTHER: 0,
    }
    assert acl.inherit(MINIMAL, 0o100666) == (
        0o100640,
        (Item(USER_OBJ, 6), Item(GROUP_OBJ, 4), Item(OTHER, 0)),
    )


@pytest.mark.parametrize(
    ("caller", "allowed"),
    [
        (Caller(1000, 9), 6),  # the owner's entry is not masked
        (Caller(1001, 9), 5),
        (Caller(9, 2000), 4),
        (Caller(9, 9, groups=(2001,)), 4),  # write and read, less what is masked
        (Caller(9, 9), 0),
        (Caller(1001, 2001), 5),  # the first that matches counts
    ],
)
def test_who_may_what(caller: Caller, allowed: int) -> None:
    for mask in range(1, 8):
        assert acl.allows(FULL, RECORD, mask, caller) == (not mask & ~allowed), mask


def test_one_of_several_groups_must_allow_all_of_it() -> None:
    both = (Item(USER_OBJ, 7), Item(GROUP_OBJ, 4), Item(GROUP, 2, 2001), Item(MASK, 7))
    caller = Caller(9, 2000, groups=(2001,))
    full = (*both, Item(OTHER, 7))
    assert [acl.allows(full, RECORD, mask, caller) for mask in (4, 2, 6)] == [True, True, False]
