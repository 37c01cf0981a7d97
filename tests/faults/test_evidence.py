"""What a failing round says first: few operations, and those that cannot all be true."""

import json
from pathlib import Path

import pytest

from clusterfs.sim import file_models, histories
from clusterfs.sim.histories import Record
from tests.faults import evidence

SECOND = 10**9


def note(node: int, begin: float, end: float, *action: object, result: object) -> Record:
    times = round(begin * SECOND), round(end * SECOND)
    return Record(node, node * 10, "tree", action, *times, result)


MADE_TWICE = note(1, 200, 208, "create", "a/z", 5, result=77)
REMOVED = note(2, 206, 206.1, "unlink", "a/z", result=True)
THERE_AGAIN = note(3, 209, 209.1, "stat", "a/z", result=77)
NOISE = [
    record
    for n in range(100)
    for record in (
        note(1, n, n + 0.1, "create", f"b/{n}", n, result=1000 + n),
        note(2, n + 0.2, n + 0.3, "stat", f"b/{n}", result=1000 + n),
        note(3, n + 0.4, n + 0.5, "stat", "a/x", result=None),
    )
]


def test_of_a_long_history_the_few_lines_are_shown_that_cannot_be() -> None:
    later = note(3, 300, 301, "stat", "a/z", result=77)
    records = [*NOISE, MADE_TWICE, REMOVED, THERE_AGAIN, later]
    operations = histories.of_names(records, {})
    core = evidence.core(operations, file_models.EMPTY_TREE, file_models.tree)
    lines = evidence.told("tree", core)
    assert [line.split("'")[1] for line in lines[1:]] == ["create", "unlink", "stat"]
    assert "-0.1000..0.0000 ('stat', 'a/z') -> 77" in lines[-1]


def test_a_history_that_can_be_explained_has_no_core() -> None:
    operations = histories.of_names([*NOISE, MADE_TWICE, REMOVED], {})
    assert evidence.core(operations, file_models.EMPTY_TREE, file_models.tree) == []


def test_everything_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evidence, "ROOT", tmp_path / "kept")
    log = tmp_path / "n1.log"
    log.write_text("joined\n")
    folder = evidence.keep("round", [REMOVED, MADE_TWICE], ["wrong"], [log, tmp_path / "none"])
    kept = [json.loads(line) for line in (folder / "history.jsonl").read_text().splitlines()]
    assert [Record(**fields)._replace(action=tuple(fields["action"])) for fields in kept] == [
        MADE_TWICE,
        REMOVED,
    ]
    assert (folder / "wrong.txt").read_text() == "wrong\n"
    assert (folder / "n1.log").read_text() == "joined\n"
