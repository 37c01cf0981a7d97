import json
import uuid

import pytest

from clusterfs.errors import SetupError
from clusterfs.sim.disk import SimulatedDisk
from clusterfs.store.superblock import Superblock, enter_epoch, open_superblock

CLUSTER = "11111111-2222-3333-4444-555555555555"
OTHER = "99999999-2222-3333-4444-555555555555"


def opened(disk: SimulatedDisk, cluster: str = CLUSTER, store: str | None = None) -> Superblock:
    return open_superblock(disk, store_id=store, cluster_id=cluster, segment_bytes=1 << 20)


def test_a_new_brick_gets_a_name_and_keeps_it() -> None:
    disk = SimulatedDisk()
    first = enter_epoch(disk, opened(disk), 0)
    second = enter_epoch(disk, opened(disk), 0)
    assert first.store_id == second.store_id
    assert (first.epoch, second.epoch) == (1, 2)
    assert enter_epoch(disk, opened(disk), 40).epoch == 41
    assert second.store_bytes == uuid.UUID(second.store_id).bytes


def test_the_segment_size_is_fixed_once_it_exists() -> None:
    disk = SimulatedDisk()
    enter_epoch(disk, opened(disk), 0)
    found = open_superblock(disk, store_id=None, cluster_id=CLUSTER, segment_bytes=7 << 20)
    assert found.segment_bytes == 1 << 20


def test_a_brick_of_another_cluster_is_refused_by_name() -> None:
    disk = SimulatedDisk()
    enter_epoch(disk, opened(disk), 0)
    with pytest.raises(SetupError, match=f"{CLUSTER}.*{OTHER}"):
        opened(disk, OTHER)
    assert opened(disk, "").cluster_id == CLUSTER


def test_a_brick_without_a_cluster_is_taken_over() -> None:
    disk = SimulatedDisk()
    enter_epoch(disk, opened(disk, ""), 0)
    assert opened(disk, OTHER).cluster_id == OTHER


def test_another_store_is_refused() -> None:
    disk = SimulatedDisk()
    enter_epoch(disk, opened(disk), 0)
    with pytest.raises(SetupError, match="not store"):
        opened(disk, store=OTHER)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": 3}, "format 3.*upgrade"),
        ({"format": 1}, "format 1.*synchronises"),
        ({"magic": "else"}, "not of a clusterfs brick"),
        ({"store_id": "x"}, "damaged"),
        ({"segment_bytes": -1}, "damaged"),
        ({"segment_bytes": 2 << 20}, "checksum is wrong"),
        ({"store_id": OTHER}, "checksum is wrong"),
        ({"epoch": 0}, "checksum is wrong"),
        ({"checksum": ""}, "checksum is wrong"),
    ],
)
def test_what_is_no_brick_of_ours_is_refused(change: dict[str, object], message: str) -> None:
    disk = SimulatedDisk()
    enter_epoch(disk, opened(disk), 0)
    content = disk.read_superblock()
    assert content is not None
    disk.write_superblock(json.dumps({**json.loads(content), **change}).encode())
    with pytest.raises(SetupError, match=message):
        opened(disk)


@pytest.mark.parametrize("content", [b"", b"\xff\xfe", b"[1]", b"{"])
def test_rubbish_is_refused(content: bytes) -> None:
    disk = SimulatedDisk()
    disk.write_superblock(content)
    with pytest.raises(SetupError, match=r"brick\.json"):
        opened(disk)


def test_segments_without_a_superblock_are_not_overwritten() -> None:
    disk = SimulatedDisk()
    disk.create_segment(0, 1 << 20)
    with pytest.raises(SetupError, match="empty directory"):
        opened(disk)
