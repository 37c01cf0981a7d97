"""When a client hears of its space credits: not with every answer, but before it runs short."""

from clusterfs.volume.credits import MAX_SHARE_BYTES, Ledger, Purse
from clusterfs.volume.ports import SpaceLike

MIB = 1 << 20


class Space:
    total = 1 << 40
    free = 1 << 39


def space() -> SpaceLike:
    return Space()


def test_a_client_with_plenty_is_told_once_for_a_mebibyte() -> None:
    ledger, purse, told = Ledger(space), Purse(), 0
    written = 0
    while written < 2 * MAX_SHARE_BYTES:
        if ledger.is_due(7):
            purse.granted(1, ledger.grant(7))
            told += 1
        assert purse.available([1]) >= MAX_SHARE_BYTES - 2 * MIB, "it never runs short"
        purse.spend([1], 4096)
        ledger.consumed(7, 4096)
        written += 4096
    assert told == written // MIB


def test_a_client_with_little_is_told_each_time() -> None:
    small = Space()
    small.total, small.free = 64 * MIB, 20 * MIB
    ledger = Ledger(lambda: small)
    assert ledger.is_due(7)
    ledger.grant(7)
    assert ledger.is_due(7)
    ledger.consumed(7, 4096)
    assert ledger.is_due(7)


def test_a_client_that_was_out_is_told_anew() -> None:
    ledger = Ledger(space)
    ledger.grant(7)
    assert not ledger.is_due(7)
    ledger.keep([])
    assert ledger.is_due(7)
