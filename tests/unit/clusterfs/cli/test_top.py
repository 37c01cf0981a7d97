"""Rates are differences over time; a node without a brick has none of its numbers."""

from clusterfs.cli.top import rates


def statistics(reads: int, dirty: int) -> dict[str, dict[str, int]]:
    filesystem = {"reads_fast": reads, "dirty_bytes": dirty}
    return {"filesystem": filesystem, "volume": {}, "store": {}}


def test_counters_become_rates_and_levels_stay() -> None:
    picture = rates(statistics(100, 7), statistics(300, 4096), 2.0)
    assert picture["per_second"]["filesystem.reads_fast"] == 100.0
    assert picture["per_second"]["store.syncs"] == 0
    assert picture["now"]["filesystem.dirty_bytes"] == 4096


def test_a_daemon_that_was_replaced_meanwhile_counts_from_nothing() -> None:
    picture = rates(statistics(300, 0), statistics(5, 0), 1.0)
    assert picture["per_second"]["filesystem.reads_fast"] == 0
