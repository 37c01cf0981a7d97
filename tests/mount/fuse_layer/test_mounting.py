"""Mount points that are fit to mount on, and those that are not."""

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from clusterfs.errors import SetupError
from clusterfs.fuse.mount import MountOptions, require_mountable
from clusterfs.fuse.unmounting import connection_at, mounts_at, unmount_lazily


def test_a_plain_directory_is_fit(tmp_path: Path) -> None:
    require_mountable(str(tmp_path))


def test_a_file_or_nothing_is_not(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(SetupError, match="is not a directory"):
        require_mountable(str(tmp_path / "file"))
    with pytest.raises(SetupError, match="No such file"):
        require_mountable(str(tmp_path / "absent"))


def test_a_living_mount_is_left_alone(served: Any) -> None:
    with pytest.raises(SetupError, match=r"\(memory\) is already mounted"):
        require_mountable(str(served.directory))
    assert os.path.ismount(served.directory)


def test_a_dead_mount_is_cleared_away(served: Any, eventually: Callable[..., Any]) -> None:
    directory = str(served.directory)
    os.kill(served.supervisor, signal.SIGKILL)
    os.kill(served.daemon, signal.SIGKILL)
    eventually(lambda: is_dead(directory), "the mount is dead")
    assert len(mounts_at(directory)) == 1
    require_mountable(directory)
    assert not mounts_at(directory)
    Path(directory, "beneath").touch()


def is_dead(directory: str) -> bool:
    try:
        os.statvfs(directory)
    except OSError:
        return True
    return False


def test_only_the_mount_that_was_meant_is_unmounted(served: Any) -> None:
    connection = connection_at(str(served.directory))
    assert connection is not None
    unmount_lazily(connection + 1, str(served.directory))
    assert os.path.ismount(served.directory)


def test_options_for_the_kernel() -> None:
    options = MountOptions(fsname="/etc/a.toml", extra=("noatime", "nosuid")).strings()
    assert {"fsname=/etc/a.toml", "subtype=clusterfs", "allow_other", "default_permissions"} < (
        options
    )
    assert {"dev", "noatime", "nosuid"} < options
    assert "suid" not in options
    with pytest.raises(SetupError, match="comma"):
        MountOptions(fsname="a,b").strings()
