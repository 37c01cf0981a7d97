"""What operations on real mounts cost in lock messages, counted by the daemons themselves."""

import os
from collections import Counter
from pathlib import Path

from clusterfs import control
from clusterfs.cli.dev import Cluster

ON_THE_PATH = {"Request", "Convert", "Granted", "Queued", "Denied", "Mastered", "Blocking"}
OF_A_HAND_OVER = ON_THE_PATH | {"Demote", "Unlock"}


def sent(cluster: Cluster, *nodes: int) -> Counter[str]:
    """Return how many lock messages of each kind these nodes (all, by default) have sent."""
    total: Counter[str] = Counter()
    for node in nodes or range(len(cluster.nodes)):
        total.update(dump(cluster, node)["sent"])
    return total


def cost(spent: Counter[str]) -> int:
    """Return how many messages passed the locks on.

    On a slow machine there are others: a wait is long enough for a search for deadlocks, and trees
    that were idle for a second go.
    """
    return sum(spent[kind] for kind in OF_A_HAND_OVER)


def dump(cluster: Cluster, node: int) -> dict[str, dict[str, int]]:
    locks: dict[str, dict[str, int]] = control.ask(
        cluster.nodes[node].brick / "control.sock", "locks"
    )["locks"]
    return locks


def test_creating_files_in_an_owned_directory_waits_for_no_lock_message(
    cluster: Cluster, folders: list[Path]
) -> None:
    (folders[0] / "first").touch()  # now the directory's lock is here
    before = sent(cluster, 0)
    for number in range(300):
        with (folders[0] / f"f{number}").open("xb") as file:
            file.write(b"data")
    spent = sent(cluster, 0) - before
    assert not ON_THE_PATH & set(spent), spent
    assert spent["Claim"] < 300
    assert {path.name for path in folders[1].iterdir()} >= {f"f{n}" for n in range(300)}
    assert all(path.read_bytes() == b"data" for path in folders[2].glob("f[0-9]*"))


def test_directories_and_links_cost_no_lock_message_either(
    cluster: Cluster, folders: list[Path]
) -> None:
    (folders[0] / "first").touch()
    before = sent(cluster, 0)
    for number in range(50):
        folder = folders[0] / f"d{number}"
        folder.mkdir()
        (folder / "file").touch()
        (folder / "symlink").symlink_to("file")
    assert not ON_THE_PATH & set(sent(cluster, 0) - before)
    assert (folders[1] / "d49" / "symlink").resolve().name == "file"


def test_a_hand_over_costs_five_messages(cluster: Cluster, folders: list[Path]) -> None:
    """Node 3 made the file and is its lock's master; nodes 1 and 2 write in turn."""
    (folders[2] / "f").write_bytes(bytes(4096))
    writers = [os.open(path / "f", os.O_RDWR) for path in folders[:2]]
    try:
        for writer in writers:
            os.pwrite(writer, b"first", 0)
        before, turns = sent(cluster), 20
        for turn in range(turns):
            os.pwrite(writers[turn % 2], b"%d" % turn, 0)
        spent = sent(cluster) - before
    finally:
        for writer in writers:
            os.close(writer)
    assert turns * 3 <= cost(spent) <= turns * 5, spent
    assert not spent["Claim"]


def test_the_first_lock_of_a_file_of_another_node_costs_three_messages(
    cluster: Cluster, folders: list[Path]
) -> None:
    names = [f"f{number}" for number in range(12)]
    for name in names:
        (folders[0] / name).write_bytes(b"data")
        assert (folders[1] / name).stat().st_size == 4  # node 1 keeps its lock for reading
    (folders[2] / "no such file").exists()  # node 3 has the directory's lock
    costs = []
    for name in names:
        before = sent(cluster)
        assert (folders[2] / name).stat().st_size == 4
        costs.append(cost(sent(cluster) - before))
    assert set(costs) <= {2, 3}, costs
    assert 3 in costs, costs


def test_listing_with_attributes_asks_for_all_locks_of_a_page_at_once(
    cluster: Cluster, folders: list[Path]
) -> None:
    names = {f"f{number}" for number in range(100)}
    for name in names:
        (folders[0] / name).write_bytes(b"data")
        (folders[1] / name).stat()
    before = dump(cluster, 2)["batches"]["sent"]
    with os.scandir(folders[2]) as entries:
        sizes = {entry.name: entry.stat().st_size for entry in entries}
    assert sizes == dict.fromkeys(names, 4)
    assert dump(cluster, 2)["batches"]["sent"] - before < 20
