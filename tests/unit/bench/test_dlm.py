"""What the lock manager's operations cost in messages, and that the measurement measures."""

import json
import math
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
sys.path.insert(0, str(ROOT))

from bench.dlm import messages, report  # noqa: E402

COSTS = messages.measure()

PROMISED = {  # operation: messages, round trips before it is done
    "local": (0, 0),
    "made_here": (2, 0),
    "unknown": (2, 1),
    "directory_here": (2, 1),
    "directory_is_master": (2, 1),
    "all_differ": (3, 1.5),
    "remembered": (2, 1),
    "remembered_wrongly": (4, 2),
    "converted_up": (2, 1),
    "converted_down": (1, 0),
    "unlocked": (1, 0),
    "contended": (5, 2),
    "forgotten": (2, 0),
    "a_page": (2, 1),
}


@pytest.mark.parametrize(("row", "cost"), list(zip(messages.ROWS, COSTS, strict=True)))
def test_an_operation_costs_no_more_messages_than_promised(
    row: messages.Scenario, cost: messages.Cost
) -> None:
    if row is messages.storm:
        assert cost.round_trips == 0
        assert cost.messages <= 0.05
        return
    most, trips = PROMISED[row.__name__]
    assert cost.messages <= most
    assert cost.round_trips <= trips + 1e-9


def test_the_documents_table_promises_nothing_that_is_not_so() -> None:
    document = (ROOT / "docs" / "performance.md").read_text()
    for cost in COSTS:
        [line] = [
            line for line in document.splitlines() if line.startswith(f"| {cost.operation} |")
        ]
        said, trips = (float(number) for number in line.split(" | ")[1].split(" / "))
        assert cost.messages <= said
        assert cost.round_trips <= trips


def test_the_whole_measurement_runs_and_judges_its_budgets(tmp_path: Path) -> None:
    output = tmp_path / "dlm.json"
    command = [sys.executable, "-m", "bench", "dlm", "--rounds", "1", "--seconds", "0.05"]
    done = subprocess.run(
        [*command, "--locks", "2000", "--json", "--output", output],
        cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    result = json.loads(done.stdout)
    assert result == json.loads(output.read_text())
    rows = result["rows"]
    for count in (2, 3, 5):
        assert rows[f"deadlock of {count}"]["victims"] == 1
        assert rows[f"deadlock of {count}"]["found_us"] > 0
    for row in ("remote master", "contended by 4 nodes", "etcd, disk", "etcd, memory"):
        assert rows[row]["p50_us"] > 0
        assert rows[row]["samples"] > 0
    assert rows["create storm"]["waited_for"] == 0
    assert result["budgets"]["create storm, messages on the path"]["met"] is True
    assert len(result["recovery"]["nodes"]) == 2
    assert "| 2,000 |" in report.markdown(result)
    assert result["migration"]["frozen_s"] > 0
    assert "| 200, 6 moves |" in report.markdown(result)
    assert "| remote master |" in report.markdown(result)


def test_a_missed_budget_is_called_missed() -> None:
    rows = {
        "transition: x": {"us": 5.1},
        "create storm": {"waited_for": 1.0},
        "remote master": {"pair_p50_us": 100.0},
        "etcd, disk": {"pair_p50_us": 999.0},
    }
    recovered = {"locks": 100_000, "settled_s": 2.1}
    moved = {"locks": 10_000, "frozen_s": 0.6}
    judged = report.budgets(rows, COSTS, recovered, moved)
    assert [budget["met"] for budget in judged.values()] == [False] * 5
    rows["etcd, disk"]["pair_p50_us"] = 1000.0
    rows["transition: x"]["us"] = 5.0
    rows["create storm"]["waited_for"] = 0.0
    recovered["settled_s"], moved["frozen_s"] = 2.0, 0.5
    judged = report.budgets(rows, COSTS, recovered, moved)
    assert [budget["met"] for budget in judged.values()] == [True] * 5
    assert math.isclose(judged["core transition, us"]["is"], 5.0)
