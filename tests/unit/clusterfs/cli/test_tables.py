import io
from typing import Any

from rich.console import Console

from clusterfs.cli import tables


def status(**changes: Any) -> dict[str, Any]:
    member = {"node": 1, "name": "n1", "incarnation": 7, "address": "h:1", "state": "up"}
    return {
        "name": "n1",
        "node": 1,
        "epoch": 12,
        "lease_left_s": 3.21,
        "synced": False,
        "groups": 256,
        "stopped_groups": 3,
        "absent": [2],
        "members": [{**member, "in_sync": 200, "syncing": 56}],
        "space": {"total": 10**9, "free": 10**8},
        "health": ["the brick is read-only: it burns"],
        "store": {"unique_bytes": 5_000_000, "hits": 7},
        **changes,
    }


def printed(render: Any, reply: dict[str, Any]) -> str:
    console = Console(file=io.StringIO(), width=120)
    render(reply, console)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_a_status_names_what_matters() -> None:
    text = printed(tables.status, status())
    for part in (
        "3.2 s",
        "200 of 256, 56 syncing",
        "5.0 MB",
        "3 groups wait",
        "node 2",
        "no",
        "it burns",
    ):
        assert part in text


def test_a_cluster_shows_nodes_that_do_not_answer() -> None:
    silent = {"name": "n2", "state": "gone", "mounted": False, "daemon": None}
    speaking = {"name": "n1", "state": "running", "mounted": True, "pid": 4, "daemon": status()}
    text = printed(tables.cluster, {"folder": "/x", "nodes": [speaking, silent]})
    assert "running" in text
    assert "gone" in text
