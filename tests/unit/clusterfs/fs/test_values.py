"""The pure parts: records, keys, names, permissions, ranges of blocks."""

import stat

import pytest

from clusterfs.errors import (
    FilesystemError,
    InvalidArgument,
    NameTooLong,
    NoSuchEntry,
    OperationNotPermitted,
    PermissionDenied,
)
from clusterfs.fs.attributes import blocks_of, decode, encode, fresh
from clusterfs.fs.keys import Entry, check_name, decode_entry, encode_entry
from clusterfs.fs.permissions import check_access, check_sticky, inherited, without_privileges
from clusterfs.fs.results import Caller, attributes_of
from clusterfs.fs.truncation import stripes_of
from clusterfs.store.objects import joined


def test_a_record_survives_storing_with_the_size_that_was_given() -> None:
    record = fresh(stat.S_IFREG | 0o4755, 1000, 100, 123456789, size=9000, seed=2**63, blocks=3)
    record.mtime_ns = -5
    again = decode(encode(record, 4096))
    assert again == record.changed(size=4096)
    assert attributes_of(7, again).blocks == 24


def test_times_that_do_not_fit_are_stored_as_the_last_ones_that_do() -> None:
    record = fresh(stat.S_IFREG, 1, 2, 3, size=9)
    record.atime_ns, record.mtime_ns = 2**63, -(2**70)
    again = decode(encode(record, 9))
    assert (again.atime_ns, again.mtime_ns) == (2**63 - 1, 1 - 2**63)
    assert (again.ctime_ns, again.size) == (3, 9)


def test_a_record_is_readable_by_its_documented_offsets() -> None:
    stored = encode(fresh(stat.S_IFDIR | 0o755, 1, 2, 3, parent=9), 0)
    assert len(stored) == 94
    assert stored[0] == 1
    assert int.from_bytes(stored[5:9], "big") == 2
    assert int.from_bytes(stored[77:85], "big") == 9
    assert stored[85] == 0
    assert decode(stored[:85]) == decode(stored), "what an older version stored"


def test_a_longer_record_of_a_later_format_is_read_and_a_short_one_refused() -> None:
    record = fresh(stat.S_IFREG, 0, 0, 1)
    stored = encode(record, 0)
    assert decode(b"\x02" + stored[1:] + b"appended") == record
    with pytest.raises(FilesystemError):
        decode(stored[:84])


@pytest.mark.parametrize(
    ("name", "error"),
    [
        (b"a" * 256, NameTooLong),
        (b"", NoSuchEntry),
        (b"a/b", InvalidArgument),
        (b"a\0", InvalidArgument),
        (b"..", InvalidArgument),
    ],
)
def test_bad_names(name: bytes, error: type[Exception]) -> None:
    with pytest.raises(error):
        check_name(name)


def test_any_other_bytes_are_a_name() -> None:
    check_name(b"\xff" * 255)
    assert decode_entry(encode_entry(Entry(2**63 + 1, 4))) == (2**63 + 1, 4)


def test_only_owners_remove_from_a_sticky_directory() -> None:
    directory = fresh(stat.S_IFDIR | 0o1777, 1, 1, 0)
    victim = fresh(stat.S_IFREG | 0o666, 2, 2, 0)
    for uid in (0, 1, 2):
        check_sticky(directory, victim, Caller(uid=uid))
    with pytest.raises(OperationNotPermitted):
        check_sticky(directory, victim, Caller(uid=3))
    check_sticky(directory.changed(mode=stat.S_IFDIR | 0o777), victim, Caller(uid=3))


@pytest.mark.parametrize(
    ("caller", "mask", "allowed"),
    [
        (Caller(uid=5, gid=9), 6, True),
        (Caller(uid=5, gid=9), 1, False),
        (Caller(uid=6, gid=7), 4, True),
        (Caller(uid=6, gid=9, groups=(7,)), 4, True),
        (Caller(uid=6, gid=9, groups=(7,)), 2, False),
        (Caller(uid=6, gid=9), 4, False),
        (Caller(), 6, True),
        (Caller(), 1, False),
    ],
)
def test_access(*, caller: Caller, mask: int, allowed: bool) -> None:
    record = fresh(stat.S_IFREG | 0o640, 5, 7, 0)
    if allowed:
        check_access(record, mask, caller)
    else:
        with pytest.raises(PermissionDenied):
            check_access(record, mask, caller)


def test_privileged_bits_go_and_setgid_directories_hand_down_their_group() -> None:
    assert without_privileges(stat.S_IFREG | 0o6755) == stat.S_IFREG | 0o755
    assert without_privileges(stat.S_IFREG | 0o2644) == stat.S_IFREG | 0o2644
    assert without_privileges(stat.S_IFDIR | 0o2755) == stat.S_IFDIR | 0o2755
    directory = fresh(stat.S_IFDIR | 0o2755, 0, 50, 0)
    assert inherited(directory, stat.S_IFREG | 0o644, Caller(gid=1)) == (stat.S_IFREG | 0o644, 50)
    made = inherited(directory, stat.S_IFDIR | 0o755, Caller(gid=1))
    assert made == (stat.S_IFDIR | 0o2755, 50)


def test_block_arithmetic() -> None:
    assert [blocks_of(size) for size in (0, 1, 4096, 4097)] == [0, 1, 1, 2]
    assert [stripes_of(size) for size in (0, 1, 64 << 20, (64 << 20) + 1)] == [0, 1, 1, 2]
    assert joined([1, 2, 3, 7, 9, 10]) == [(1, 3), (7, 1), (9, 2)]
