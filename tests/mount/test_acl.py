"""ACLs, capabilities and the namespaces of extended attributes, on three nodes."""

import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

ALICE, BOB, STAFF = 12001, 12002, 12100


def as_user(uid: int, do: Callable[[], object], groups: tuple[int, ...] = ()) -> str:
    """Do something as another user; returns "" or the name of the OSError."""
    reader, writer = os.pipe()
    child = os.fork()
    if not child:
        try:
            os.setgroups(list(groups))
            os.setresgid(uid, uid, uid)
            os.setresuid(uid, uid, uid)
            do()
        except OSError as failure:
            os.write(writer, type(failure).__name__.encode())
        finally:
            os._exit(0)
    os.close(writer)
    with os.fdopen(reader, "rb") as answers:
        said = answers.read().decode()
    os.waitpid(child, 0)
    return said


def setfacl(*arguments: str | Path) -> None:
    subprocess.run(["setfacl", *arguments], check=True)


def getfacl(path: Path) -> list[str]:
    command = ["getfacl", "--omit-header", "--numeric", "--absolute-names", "--no-effective", path]
    report = subprocess.run(command, check=True, capture_output=True, text=True)
    return report.stdout.split()


@pytest.fixture
def file(folders: list[Path]) -> list[Path]:
    folders[0].chmod(0o755)
    (folders[0] / "file").write_bytes(b"secret")
    (folders[0] / "file").chmod(0o600)
    return [folder / "file" for folder in folders]


def test_an_acl_set_on_one_node_is_enforced_on_all(file: list[Path]) -> None:
    for path in file:
        assert as_user(ALICE, path.read_bytes) == "PermissionError"
    setfacl("-m", f"u:{ALICE}:r,g:{STAFF}:rw", file[0])
    for path in file:
        assert getfacl(path) == [
            "user::rw-",
            f"user:{ALICE}:r--",
            "group::---",
            f"group:{STAFF}:rw-",
            "mask::rw-",
            "other::---",
        ]
        assert path.stat().st_mode & 0o777 == 0o660
        assert as_user(ALICE, path.read_bytes) == ""
        assert as_user(ALICE, lambda p=path: p.open("r+b")) == "PermissionError"
        assert as_user(BOB, lambda p=path: p.open("r+b"), (STAFF,)) == ""
        assert as_user(BOB, path.read_bytes) == "PermissionError"
    file[1].chmod(0o640)  # the mask
    assert "mask::r--" in getfacl(file[2])
    assert as_user(BOB, lambda: file[2].open("r+b"), (STAFF,)) == "PermissionError"
    setfacl("-b", file[2])
    for path in file:
        assert as_user(ALICE, path.read_bytes) == "PermissionError"
        assert os.listxattr(path) == []


def test_only_the_owner_sets_an_acl(file: list[Path]) -> None:
    value = bytes.fromhex("02000000 01000600ffffffff 04000600ffffffff 20000600ffffffff")
    name = "system.posix_acl_access"
    assert as_user(ALICE, lambda: os.setxattr(file[0], name, value)) == "PermissionError"
    os.chown(file[1], ALICE, STAFF)
    file[1].chmod(0o2770)
    assert file[0].stat().st_uid == ALICE  # the kernel checks the owner that it saw last
    assert as_user(ALICE, lambda: os.setxattr(file[0], name, value)) == ""
    assert file[2].stat().st_mode & 0o7777 == 0o666, "setgid goes: alice is not in that group"
    assert os.listxattr(file[2]) == [], "a mode says it all"


def test_a_default_acl_is_handed_down_instead_of_the_umask(folders: list[Path]) -> None:
    folders[0].chmod(0o755)
    setfacl("-d", "-m", f"u::rwx,u:{ALICE}:rwx,g::rx,o::-", folders[0])
    before = os.umask(0o077)
    try:
        (folders[1] / "file").write_bytes(b"x")
        (folders[2] / "folder").mkdir()
        (folders[2] / "folder" / "deeper").write_bytes(b"x")
        (folders[2] / "link").symlink_to("file")
    finally:
        os.umask(before)
    for folder in folders:
        assert getfacl(folder / "file") == [
            "user::rw-",
            f"user:{ALICE}:rwx",
            "group::r-x",
            "mask::rw-",
            "other::---",
        ]
        assert f"default:user:{ALICE}:rwx" in getfacl(folder / "folder")
        assert as_user(ALICE, (folder / "file").read_bytes) == ""
        assert as_user(ALICE, (folder / "folder" / "deeper").read_bytes) == ""
        assert as_user(BOB, (folder / "file").read_bytes) == "PermissionError"
    setfacl("-k", folders[0])
    (folders[2] / "plain").write_bytes(b"")
    assert len(getfacl(folders[1] / "plain")) == 3


def test_the_umask_counts_where_there_is_no_default_acl(folders: list[Path]) -> None:
    before = os.umask(0o027)
    try:
        (folders[0] / "file").touch()
        (folders[0] / "folder").mkdir()
        os.mkfifo(folders[0] / "fifo")
        os.close(os.open(folders[0], os.O_TMPFILE | os.O_RDWR, 0o666))
    finally:
        os.umask(before)
    modes = [(folders[1] / name).stat().st_mode & 0o777 for name in ("file", "folder", "fifo")]
    assert modes == [0o640, 0o750, 0o640]


def test_trusted_attributes_are_roots(file: list[Path]) -> None:
    file[0].chmod(0o666)
    os.setxattr(file[0], "trusted.t", b"1")
    os.setxattr(file[0], "user.u", b"2")
    assert sorted(os.listxattr(file[1])) == ["trusted.t", "user.u"]

    def look() -> None:
        assert os.listxattr(file[1]) == ["user.u"]
        assert os.getxattr(file[1], "user.u") == b"2"
        os.getxattr(file[1], "trusted.t")

    assert as_user(ALICE, look) == "OSError"  # ENODATA
    assert as_user(ALICE, lambda: os.setxattr(file[1], "trusted.x", b"")) == "PermissionError"


def test_a_capability_goes_when_the_file_changes(file: list[Path]) -> None:
    name = "security.capability"
    value = bytes.fromhex("0100000200200000000000000000000000000000")
    for change in (
        lambda: file[1].write_bytes(b"new"),
        lambda: os.truncate(file[2], 1),
        lambda: os.chown(file[1], ALICE, ALICE),
    ):
        os.setxattr(file[0], name, value)
        assert os.getxattr(file[1], name) == value
        change()
        for path in file:
            assert os.listxattr(path) == []
