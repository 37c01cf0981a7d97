import socket
from pathlib import Path

import pytest

from clusterfs.cli.control import find_socket, mount_at, mounts, resolved
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


def test_what_lies_on_a_mount_names_its_daemon_and_is_not_looked_at(
    tmp_path: Path, config: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    listed = table(tmp_path, ("fuse.clusterfs", tmp_path / "mnt", config))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(Path, "resolve", lambda path: pytest.fail(f"{path} was looked at"))
    for word in (f"{tmp_path}/mnt/a/b", "mnt/a", f"{tmp_path}/x/../mnt/a"):
        assert find_socket(word, listed) == tmp_path / "b" / "control.sock"


def test_without_a_target_there_must_be_one_mount(tmp_path: Path, config: Path) -> None:
    with pytest.raises(SetupError, match="no clusterfs is mounted"):
        find_socket(None, table(tmp_path))
    two = table(tmp_path, *(("fuse.clusterfs", f"/m{number}", config) for number in (1, 2)))
    with pytest.raises(SetupError, match="/m1, /m2"):
        find_socket(None, two)


def test_what_is_none_of_these_is_said(tmp_path: Path) -> None:
    listed = table(tmp_path)
    with pytest.raises(SetupError, match="on no clusterfs mount"):
        find_socket(str(tmp_path), listed)
    with pytest.raises(SetupError, match="No such file"):
        find_socket(str(tmp_path / "none"), listed)


def test_the_last_part_of_a_path_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "way").symlink_to("real")
    assert resolved(tmp_path / "way" / "mount") == tmp_path / "real" / "mount"
    assert resolved(tmp_path / "way") == tmp_path / "way"
