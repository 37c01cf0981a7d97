import io
from pathlib import Path
from typing import Any

import msgspec
import pytest
from rich.console import Console

from clusterfs.cli.lockdump import Format, View, load, render
from clusterfs.cli.locks.picture import read_picture
from clusterfs.errors import SetupError

RECORDED = Path(__file__).parent / "locks" / "recorded" / "three-lockspaces.json"
FILE = "000000000000002a"


def shown(value: dict[str, Any], **view: Any) -> str:
    console = Console(file=io.StringIO(), width=200)
    render(value, View(**view), console)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_everything_is_shown() -> None:
    text = shown(load(RECORDED))
    for part in (f"{FILE}/o", "Granted", "Waiting", "4.500 s", "members 1 (7)", "holds EX"):
        assert part in text


def test_json_is_what_offline_reads(tmp_path: Path) -> None:
    (tmp_path / "again").write_text(shown(load(RECORDED), form=Format.JSON))
    assert load(tmp_path / "again") == load(RECORDED)


def test_waiters_come_worst_first() -> None:
    text = shown(load(RECORDED), waiters=True)
    assert text.index("4.500 s") < text.index("3.000 s") < text.index("1.500 s")
    assert "resources mastered" not in text
    assert "nobody waits" in shown({"node": 1}, waiters=True)


def test_one_node_of_several_can_be_chosen() -> None:
    text = shown(load(RECORDED), form=Format.LOCKDUMP, node=2)
    assert len(text.splitlines()) == 3
    with pytest.raises(SetupError, match="one node; choose one with --node: 1, 2, 3"):
        shown(load(RECORDED), form=Format.LOCKDUMP)
    with pytest.raises(SetupError, match="node 9 is not in the picture; there are: 1, 2, 3"):
        shown(load(RECORDED), node=9)


def test_a_silent_member_is_named() -> None:
    value = {"nodes": [], "silent": [{"node": 3, "name": "n3", "reason": "no answer within 2 s"}]}
    for view in ({}, {"waiters": True}, {"graph": True}, {"statistics": True}):
        assert "n3 is missing here: no answer within 2 s" in shown(value, **view)


def test_statistics_tell_which_trees_moved() -> None:
    moved = {"left": 3, "taken": 1200, "called_off": 2, "longest_s": 0.0456}
    text = shown({"node": 1, "migration": moved}, statistics=True)
    line = (
        "trees: 3 went to other masters, 1,200 came, 2 stayed after all; one was frozen for 0.046 s"
    )
    assert line in " ".join(text.split())


def test_statistics_leave_out_what_a_recovery_sent() -> None:
    text = shown(load(RECORDED), statistics=True)
    assert "messages of operations: 6 sent, 5 received" in text
    assert "messages per operation: 2.000 sent, 1.667 received" in text
    assert "of 2 locks and conversions asked for, 0.0% left this node" in text


def test_a_picture_of_a_newer_daemon_is_read_and_its_json_is_complete() -> None:
    value = load(RECORDED)
    value["nodes"][0]["novelty"] = [1]
    assert read_picture(value).nodes[0].node == 1
    assert msgspec.json.decode(shown(value, form=Format.JSON))["nodes"][0]["novelty"] == [1]


@pytest.mark.parametrize("content", [b"no JSON", b"[1]", b'{"nodes": 5}', b'{"a": 1}'])
def test_a_file_that_is_no_picture_is_refused(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(content)
    with pytest.raises(SetupError, match="not what --format json writes"):
        load(tmp_path / "file")
    with pytest.raises(SetupError, match="No such file"):
        load(tmp_path / "nothing")
