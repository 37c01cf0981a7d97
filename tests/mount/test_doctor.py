"""`clusterfs doctor --vm` on real mounts: all is well, and what it says where something is not."""

import fcntl
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from clusterfs.cli import image_checks, rehearsal
from clusterfs.cli.dev import Cluster
from clusterfs.cli.doctor import report
from clusterfs.errors import SetupError

CHECKS = ["one volume", "O_DIRECT", "discard", "QEMU's image locks", "libvirt's locks"]


@pytest.fixture
def settings(folders: list[Path], tmp_path: Path) -> tuple[Path, Path]:
    """Configuration files of libvirt and Proxmox VE that know the first node's mount."""
    mount = folders[0].parent
    libvirt, proxmox = tmp_path / "qemu.conf", tmp_path / "storage.cfg"
    libvirt.write_text(f'# comment\nshared_filesystems = [ "/other", "{mount}" ]\n')
    proxmox.write_text(
        "dir: local\n\tpath /var/lib/vz\n\n"
        f"dir: shared\n\tpath {mount}\n\tshared 1\n\tis_mountpoint yes\n"
    )
    return libvirt, proxmox


def test_two_nodes_that_may_keep_images(folders: list[Path], settings: tuple[Path, Path]) -> None:
    found = list(report(folders[0], folders[1], *settings))
    names = [*CHECKS, "rehearsed migration", "libvirt", "Proxmox VE"]
    assert [finding.check for finding in found] == names
    assert {finding.state for finding in found} == {"ok"}, found
    assert os.listdir(folders[0]) == []


def test_the_command(cluster: Cluster, folders: list[Path]) -> None:
    clusterfs = Path(sys.executable).with_name("clusterfs")
    done = subprocess.run(
        [clusterfs, "doctor", "--vm", "--json", folders[1]], capture_output=True, check=False
    )
    found = {finding["check"]: finding["state"] for finding in json.loads(done.stdout)}
    assert found["two nodes"] == "note", "one mount cannot show what two do"
    assert {found[name] for name in CHECKS} == {"ok"}
    assert found["rehearsed migration"] == "ok"
    del cluster


def test_what_lacks_is_said(folders: list[Path], tmp_path: Path) -> None:
    libvirt, proxmox = tmp_path / "qemu.conf", tmp_path / "storage.cfg"
    mount = folders[0].parent
    libvirt.write_text(f'#shared_filesystems = [ "{mount}" ]\n')
    proxmox.write_text(f"dir: images\n\tpath {mount}\n\tis_mountpoint 1\n")
    found = {finding.check: finding for finding in report(folders[0], None, libvirt, proxmox)}
    assert found["libvirt"].state == found["Proxmox VE"].state == "bad"
    assert f'shared_filesystems = [ "{mount}" ]' in found["libvirt"].detail
    assert found["Proxmox VE"].detail.endswith("lacks shared")


def test_a_folder_elsewhere_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SetupError, match="is not on a clusterfs mount"):
        list(report(tmp_path, None, tmp_path, tmp_path))


def test_two_volumes_are_not_one(folders: list[Path], tmp_path: Path) -> None:
    found = {finding.check: finding for finding in image_checks.findings(folders[0], tmp_path)}
    assert found["one volume"].state == "bad"
    assert "does not have what was made" in found["one volume"].detail


def test_locks_that_are_not_shared_are_found(tmp_path: Path) -> None:
    """Two files stand for one image on two mounts that keep locks to themselves."""
    first, second = tmp_path / "a", tmp_path / "b"
    for path in (first, second):
        path.write_bytes(bytes(image_checks.IMAGE_BYTES))
    with pytest.raises(image_checks.NotSo, match="two QEMUs could open one image"):
        image_checks.image_locks(first, second)
    with pytest.raises(image_checks.NotSo, match="can be locked twice"):
        image_checks.libvirt_locks(first, second)
    with pytest.raises(image_checks.NotSo, match="are read as others"):
        image_checks.direct(first, second)
    second.write_bytes(bytes(image_checks.IMAGE_BYTES))
    with pytest.raises(image_checks.NotSo, match="SEEK_HOLE does not find"):
        image_checks.discard(first, second)


def test_locks_that_stay_are_found(folders: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(image_checks, "_RELEASED_S", 1.0)
    first, second = folders[0] / "image", folders[1] / "image"
    first.write_bytes(bytes(4096))
    with image_checks.opened(first) as leaked:
        image_checks.ofd(leaked, 37, fcntl.F_RDLCK, image_checks.UNSHARED_WRITE)
        with pytest.raises(image_checks.NotSo, match="after their file was closed"):
            image_checks.image_locks(first, second)


def test_a_guest_whose_image_is_in_use_elsewhere_does_not_start(folders: list[Path]) -> None:
    image = folders[0] / "image.qcow2"
    rehearsal.tool("create", "-q", "-f", "qcow2", str(image), "8M")
    with image_checks.opened(folders[1] / "image.qcow2") as other:
        for byte in (image_checks.PERMISSION_WRITE, image_checks.UNSHARED_WRITE):
            image_checks.ofd(other, 37, fcntl.F_RDLCK, byte)
        with pytest.raises(image_checks.NotSo, match=r'does not run.*Failed to get "write" lock'):
            rehearsal.migrate(image, folders[1] / "image.qcow2")
