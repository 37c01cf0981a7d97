import socket
from pathlib import Path
from typing import Any

import pytest

from clusterfs.cli.control import find_socket, mount_at, mounts, resolved, synced
from clusterfs.errors import SetupError

LINE = "36 25 0:{minor} / {point} rw,relatime - {kind} {source} rw,user_id=0\n"


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "n1.toml"
    path.write_text('name = "n1"\nbrick = "b"\n')
    return path


def table(folder: Path, *mounted: tuple[str, object, object]) -> Path:
    path = folder / "mountinfo"
    path.write_text(
        "".join(
            LINE.format(minor=number, kind=kind, point=point, source=source)
            for number, (kind, point, source) in enumerate(mounted)
        )
    )
    return path


def test_mount_points_with_spaces_are_read_as_they_are(tmp_path: Path) -> None:
    listed = table(tmp_path, ("fuse.clusterfs", r"/a\040b\134c", r"/etc/my\040n1.toml"))
    assert [(str(mount.point), mount.source) for mount in mounts(listed)] == [
        ("/a b\\c", "/etc/my n1.toml")
    ]


def test_other_filesystems_are_not_ours_and_the_topmost_mount_counts(tmp_path: Path) -> None:
    listed = table(
        tmp_path,
        ("ext4", "/x", "/dev/vda"),
        ("fuse.clusterfs", "/x", "/lower.toml"),
        ("fuse.clusterfs", "/x", "/upper.toml"),
    )
    found = mount_at(Path("/x"), listed)
    assert found is not None
    assert found.source == "/upper.toml"
    assert mount_at(Path("/y"), listed) is None


def test_a_daemon_is_found_by_mount_config_and_socket(tmp_path: Path, config: Path) -> None:
    expected = tmp_path / "b" / "control.sock"
    listed = table(tmp_path, ("fuse.clusterfs", tmp_path / "mnt", config))
    assert find_socket(str(tmp_path / "mnt"), listed) == expected
    assert find_socket(str(config), listed) == expected
    assert find_socket(None, listed) == expected
    expected.parent.mkdir()
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(expected))
        assert find_socket(str(expected), listed) == expected


def test_without_a_target_there_must_be_one_mount(tmp_path: Path, config: Path) -> None:
    with pytest.raises(SetupError, match="no clusterfs is mounted"):
        find_socket(None, table(tmp_path))
    two = table(tmp_path, *(("fuse.clusterfs", f"/m{number}", config) for number in (1, 2)))
    with pytest.raises(SetupError, match="/m1, /m2"):
        find_socket(None, two)


def test_what_is_none_of_these_is_said(tmp_path: Path) -> None:
    listed = table(tmp_path)
    with pytest.raises(SetupError, match="no clusterfs mount point"):
        find_socket(str(tmp_path), listed)
    with pytest.raises(SetupError, match="No such file"):
        find_socket(str(tmp_path / "none"), listed)


def test_the_last_part_of_a_path_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "way").symlink_to("real")
    assert resolved(tmp_path / "way" / "mount") == tmp_path / "real" / "mount"
    assert resolved(tmp_path / "way") == tmp_path / "way"


def member(node: int, in_sync: int, syncing: int = 0, state: str = "up") -> dict[str, Any]:
    return {"node": node, "in_sync": in_sync, "syncing": syncing, "state": state}


@pytest.mark.parametrize(
    ("members", "changes", "expected"),
    [
        ([member(1, 8), member(2, 8)], {}, True),
        ([member(1, 7), member(2, 8)], {}, False),
        ([member(1, 8, syncing=1), member(2, 8)], {}, False),
        ([member(1, 8, state="leaving")], {}, False),
        ([member(1, 8), member(2, 0, syncing=8)], {}, True),
        ([member(2, 8)], {}, False),
        ([member(1, 8)], {"lost": True}, False),
        ([member(1, 8)], {"stopped_groups": 1}, False),
        ([member(1, 6), member(2, 5), member(3, 5)], {"replicas": 2}, True),
        ([member(1, 6), member(2, 5), member(3, 4)], {"replicas": 2}, False),
    ],
)
def test_in_sync_means_every_group_this_node_is_for(
    members: list[dict[str, Any]], changes: dict[str, Any], *, expected: bool
) -> None:
    status = {"node": 1, "lost": False, "stopped_groups": 0, "groups": 8, "replicas": 3}
    assert synced({**status, "members": members, **changes}) is expected
