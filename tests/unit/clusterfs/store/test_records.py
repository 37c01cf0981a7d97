from array import array

import pytest

from clusterfs.store.objects import Delete, Discard, Put, Remove, Version, stripe_object
from clusterfs.store.records import (
    Abort,
    Changes,
    Commit,
    Fact,
    ForgetClient,
    ForgetOutcomes,
    Placed,
    Prepared,
    Record,
    Relocate,
    Replaced,
    ResolvedChange,
    SharedMap,
    SharedPages,
    Stable,
    decode,
    encode,
)

BIG = 2**63 - 1
CHANGES = [
    ResolvedChange(
        stripe_object(BIG, 3),
        65535,
        Version(1, 2),
        Version(BIG, BIG),
        [
            Put(b"k", b""),
            Put(b"k" * 320, b"v" * 70000),
            Remove(b"gone"),
            Placed(7, array("Q", [0, 5, BIG]), b"i" * 16),
            Placed(7, array("Q"), b""),
            Discard(0, 2**32 - 1),
            SharedPages(2**24, array("Q", [0, 9, BIG]), stripe_object(BIG, 8), 2**32 - 1),
            SharedMap(BIG, stripe_object(BIG, 8)),
        ],
    ),
    ResolvedChange(stripe_object(1, 0), 0, Version(0, 0), Version(0, 1), [Delete()]),
]
ONE_WRITE = ResolvedChange(
    stripe_object(1, 5), 7, Version(1, 2), Version(1, 3), [Placed(9, array("Q", [4, 0]), b"i" * 16)]
)


@pytest.mark.parametrize(
    "record",
    [
        Changes(BIG, 2, 3, CHANGES),
        Changes(1, 2, 3, []),
        Changes(1, BIG, 3, [ONE_WRITE]),
        Replaced(1, 2, 3, [ONE_WRITE]),
        Prepared(1, BIG, 3, CHANGES),
        Replaced(0, 0, 0, CHANGES[:1]),
        Commit(1, 2),
        Abort(BIG, BIG),
        Stable(3, 4),
        ForgetClient(9),
        ForgetOutcomes(1, 1 << 63),
        Fact("epoch", BIG),
        Fact("näme", b"\0\xff"),
        Fact("gone", b""),
        Relocate(array("Q", [1, 2]), array("Q", [3, BIG]), bytes((64, 7))),
    ],
)
def test_a_record_reads_back(record: Record) -> None:
    found = decode(encode(record))
    assert type(found) is type(record)
    assert found == record


def test_what_follows_a_body_is_not_swallowed() -> None:
    with pytest.raises(AssertionError):
        decode(encode(Changes(1, 2, 3, CHANGES)) + b"x")
