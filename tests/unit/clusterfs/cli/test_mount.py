import socket
from pathlib import Path

import pytest

from clusterfs.cli.mount import (
    check_address,
    check_device,
    check_files,
    check_mount_point,
    parse_options,
)
from clusterfs.errors import SetupError


def test_options_are_sorted_by_whom_they_are_for() -> None:
    options = parse_options(["rw,_netdev,noatime", "on_lost=eio,log=/l,pidfile=/p,x-systemd.a=b"])
    assert options.settings == {"access_times": "noatime", "on_lost": "eio"}
    assert options.kernel == ("noatime",)
    assert options.log == Path("/l")
    assert options.pidfile == Path("/p")
    assert parse_options([]).kernel == ()


@pytest.mark.parametrize("words", ["colour=red", "rw,loud", "pidfile", "mmap"])
def test_an_unknown_option_is_refused_by_name(words: str) -> None:
    with pytest.raises(SetupError, match=words.rpartition(",")[2]):
        parse_options([words])


def test_only_a_directory_is_mounted_on(tmp_path: Path) -> None:
    assert check_mount_point(tmp_path) == tmp_path
    (tmp_path / "file").touch()
    with pytest.raises(SetupError, match="not a directory"):
        check_mount_point(tmp_path / "file")
    with pytest.raises(SetupError, match="No such file"):
        check_mount_point(tmp_path / "none")


def test_a_busy_or_foreign_address_is_said() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        with pytest.raises(SetupError, match=f"cannot listen on {address}"):
            check_address(address)
    check_address(address)
    with pytest.raises(SetupError, match=r"cannot listen on 192\.0\.2\.1:7400"):
        check_address("192.0.2.1:7400")


def test_files_that_cannot_be_written_are_said_before_anything_starts(tmp_path: Path) -> None:
    check_files(parse_options([]))
    check_files(parse_options([f"log={tmp_path}/log,pidfile={tmp_path}/pid"]))
    for key in ("log", "pidfile"):
        with pytest.raises(SetupError, match=f"-o {key}={tmp_path}/none/file: "):
            check_files(parse_options([f"{key}={tmp_path}/none/file"]))


def test_a_missing_device_is_said(tmp_path: Path) -> None:
    with pytest.raises(SetupError, match="is missing"):
        check_device(tmp_path / "fuse")
