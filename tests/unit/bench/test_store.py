"""The store's benchmark runs, and what it counts (not times) stays within its budgets."""

import json
import subprocess
import sys

import pytest

from bench.store import _appended, _overwritten, against_budgets, markdown


async def test_writes_that_need_no_cleaning_are_hardly_amplified() -> None:
    assert (await _appended(16, synced=False))["log"] <= 1.05
    assert (await _appended(16, synced=True))["log"] <= 1.1
    assert (await _appended(1, synced=True))["log"] <= 2.05


async def test_cold_data_is_moved_less_often_than_hot_data_is_overwritten() -> None:
    """Greedy cleaning into one stream moves 2.3 blocks for each written, at 70 % and 90/10."""
    found = await _overwritten(0.7, 0.9, segments=32)
    assert 0 < found["moved"] <= 1.2
    assert found["log"] <= 2.3


def test_memory_is_measured_in_a_process_of_its_own() -> None:
    command = [sys.executable, "-m", "bench.store", "--memory-of", "1024"]
    rows = json.loads(subprocess.run(command, capture_output=True, check=True).stdout)
    assert rows[1]["unique_gb"] == pytest.approx(2 * rows[0]["unique_gb"])


def test_budgets_are_held_against_what_was_found() -> None:
    fast = {"record": "4 KiB", "delay_ms": 0.0, "records_cpu_s": 61_000.0, "mib_cpu_s": 240.0}
    found = {
        "throughput": [fast, {**fast, "record": "64 KiB", "mib_cpu_s": 480.0}],
        "amplification": [
            {"what": what, "log": 1.0}
            for what in ("64 KiB writes", "64 KiB writes, each synced", "80% full, 90/10")
        ],
        "replay": [{}, {"gb_cpu_s": 1.0}],
        "memory": [{}, {"gib_at_1_tb": 0.1}],
    }
    rows = against_budgets(found)
    assert [row["met"] for row in rows] == [True, False, True, True, True, True, True]
    assert "| False |" in markdown("budgets", rows)
