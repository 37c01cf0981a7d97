import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from clusterfs.fuse.unmounting import connection_at, mounts_at, unmount, unmount_lazily


@pytest.fixture
def mounted(tmp_path: Path) -> Iterator[Path]:
    directory = tmp_path / "with space\tand tab"
    directory.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "source", directory], check=True)
    yield directory
    subprocess.run(["umount", "-l", directory], check=False, capture_output=True)


pytestmark = pytest.mark.skipif(os.getuid() != 0, reason="mounts something")


def test_a_mount_is_found_by_its_place(mounted: Path) -> None:
    (entry,) = mounts_at(str(mounted))
    assert (entry.kind, entry.source, entry.mountpoint) == ("tmpfs", "source", str(mounted))
    assert entry.minor == connection_at(str(mounted)) == os.minor(mounted.stat().st_dev)
    assert mounts_at(str(mounted.parent)) == []


def test_a_busy_mount_is_only_unmounted_lazily(mounted: Path) -> None:
    with (mounted / "file").open("w"):
        assert not unmount(str(mounted))
        connection = connection_at(str(mounted))
        assert connection is not None
        unmount_lazily(connection + 1, str(mounted))
        assert connection_at(str(mounted)) == connection
        unmount_lazily(connection, str(mounted))
        assert connection_at(str(mounted)) is None
    unmount_lazily(connection, str(mounted))  # once more does nothing


def test_an_idle_mount_is_unmounted(mounted: Path) -> None:
    assert unmount(str(mounted))
    assert connection_at(str(mounted)) is None
