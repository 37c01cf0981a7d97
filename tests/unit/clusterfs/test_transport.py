"""What a node refuses to use as its certificate."""

import datetime as dt
from pathlib import Path

import pytest

from clusterfs import certificates
from clusterfs.config import Config, Tls
from clusterfs.errors import SetupError
from clusterfs.transport import mesh_tls


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    certificates.make_authority(tmp_path, dt.datetime.now(dt.UTC))
    certificates.issue(tmp_path, "n1", tmp_path, dt.datetime.now(dt.UTC))
    return tmp_path


def config(folder: Path, ca: str = "ca.pem", certificate: str = "n1.pem") -> Config:
    key = str(folder / "n1.key")
    tls = Tls(ca=str(folder / ca), certificate=str(folder / certificate), key=key)
    return Config(name="n1", brick="b", tls=tls)


def no_name(_node: int) -> None:
    return None


def test_without_a_certificate_nodes_talk_in_the_clear(folder: Path) -> None:
    assert mesh_tls(Config(name="n1", brick="b"), no_name) is None
    assert mesh_tls(config(folder), no_name) is not None


def test_a_key_that_others_may_read_is_refused(folder: Path) -> None:
    (folder / "n1.key").chmod(0o640)
    with pytest.raises(SetupError, match="chmod 600"):
        mesh_tls(config(folder), no_name)


def test_files_that_are_missing_or_wrong_are_named(folder: Path) -> None:
    with pytest.raises(SetupError, match=r"none\.pem|No such file"):
        mesh_tls(config(folder, ca="none.pem"), no_name)
    with pytest.raises(SetupError, match="fit together"):
        mesh_tls(config(folder, certificate="ca.pem"), no_name)
    (folder / "ca.pem").write_text("garbage")
    with pytest.raises(SetupError, match="fit together"):
        mesh_tls(config(folder), no_name)
