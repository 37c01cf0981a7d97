"""Founding, inviting and joining, with the local provider; no daemon runs."""

import datetime as dt
import stat
from pathlib import Path

import pytest

from clusterfs import certificates, config
from clusterfs.cli.dev import free_ports
from clusterfs.cli.founding import Place, Provided, config_of, found, invite, join, with_provider
from clusterfs.cli.tls import certificate
from clusterfs.cluster.node import REMOVED
from clusterfs.errors import SetupError

NOW = dt.datetime(2030, 1, 1, tzinfo=dt.UTC)
VOLUME = {"replicas": 2, "groups": 16, "lease_s": 3.0}
HOUR_S = 3600


def place(folder: Path, name: str, *, tls: bool | None = None, storage: bool = True) -> Place:
    (port,) = free_ports(1, set())
    return Place(folder / name, folder / f"brick-{name}", f"127.0.0.1:{port}", None, storage, tls)


def founded(folder: Path, *, tls: bool | None = None) -> Path:
    provided = Provided(f"local:{folder / 'cluster.db'}")
    return found("n1", place(folder, "n1", tls=tls), provided, VOLUME, NOW)


def test_a_founded_and_a_joined_node_agree(tmp_path: Path) -> None:
    first = config.load(founded(tmp_path))
    token = invite(tmp_path / "n1" / "n1.toml", "n2", None, HOUR_S, NOW)
    path = join(token, place(tmp_path, "n2", storage=False), {}, NOW)
    second = config.load(path)
    assert (second.name, second.storage, first.storage) == ("n2", False, True)
    assert (second.replicas, second.groups, second.lease_s) == (2, 16, 3.0)
    assert second.provider == first.provider
    assert second.tls.ca is None


def test_with_tls_the_token_brings_the_certificate(tmp_path: Path) -> None:
    source = founded(tmp_path, tls=True)
    token = invite(source, "n2", None, HOUR_S, NOW)
    loaded = config.load(join(token, place(tmp_path, "n2"), {}, NOW))
    assert loaded.tls.ca
    assert loaded.tls.key
    assert Path(loaded.tls.ca).read_bytes() == (tmp_path / "n1/tls/ca.pem").read_bytes()
    assert stat.S_IMODE(Path(loaded.tls.key).stat().st_mode) == 0o600
    assert not (tmp_path / "n2" / "authority").exists()


def test_a_token_is_good_once(tmp_path: Path) -> None:
    source = founded(tmp_path)
    token = invite(source, "n2", None, HOUR_S, NOW)
    join(token, place(tmp_path, "n2"), {}, NOW)
    with pytest.raises(SetupError, match="used already"):
        join(token, place(tmp_path, "again"), {}, NOW)
    assert not (tmp_path / "again" / "n2.toml").exists()


def test_a_token_expires_and_is_forgotten(tmp_path: Path) -> None:
    source = founded(tmp_path)
    token = invite(source, "n2", None, HOUR_S, NOW)
    late = NOW + dt.timedelta(hours=2)
    with pytest.raises(SetupError, match="expired"):
        join(token, place(tmp_path, "n2"), {}, late)
    invite(source, "n3", None, HOUR_S, late)
    with pytest.raises(SetupError, match="used already, or has expired"):
        join(token, place(tmp_path, "n2"), {}, NOW)


def test_a_mistake_does_not_use_the_token_up(tmp_path: Path) -> None:
    source = founded(tmp_path)
    token = invite(source, "n2", None, HOUR_S, NOW)
    wrong = place(tmp_path, "n2")
    wrong.brick.mkdir()
    (wrong.brick / "something").touch()
    with pytest.raises(SetupError, match="not empty"):
        join(token, wrong, {}, NOW)
    (wrong.brick / "something").unlink()
    with pytest.raises(SetupError, match="advertise"):
        join(token, wrong._replace(listen="0.0.0.0:7400", tls=False), {}, NOW)
    with pytest.raises(SetupError, match="no certificates"):
        join(token, wrong._replace(listen="10.0.0.1:7400"), {}, NOW)
    assert join(token, wrong, {}, NOW).exists()


def test_a_token_of_another_cluster_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    token = invite(founded(tmp_path / "a"), "n2", None, HOUR_S, NOW)
    (tmp_path / "a" / "cluster.db").unlink()
    (tmp_path / "a" / "n1" / "n1.toml").unlink()
    (tmp_path / "a" / "brick-n1").rmdir()
    founded(tmp_path / "a")
    with pytest.raises(SetupError, match="the token is for cluster"):
        join(token, place(tmp_path, "n2"), {}, NOW)


def test_a_cluster_is_founded_once(tmp_path: Path) -> None:
    founded(tmp_path)
    provided = Provided(f"local:{tmp_path / 'cluster.db'}")
    with pytest.raises(SetupError, match=r"has cluster .* already"):
        found("n2", place(tmp_path, "n2"), provided, VOLUME, NOW)
    with pytest.raises(SetupError, match="is there already; nothing was changed"):
        founded(tmp_path)


def test_what_cannot_be_founded_leaves_nothing_and_may_be_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise SetupError("cannot write: no space left on device")

    for name in ("install", "make_authority"):
        with monkeypatch.context() as broken:
            broken.setattr(certificates, name, full)
            with pytest.raises(SetupError, match="no space"):
                founded(tmp_path, tls=True)
        assert list((tmp_path / "n1").iterdir()) == []
    assert founded(tmp_path, tls=True).exists()
    taken = place(tmp_path, "n2", tls=True)
    with pytest.raises(SetupError, match=r"has cluster .* already"):
        found("n2", taken, Provided(f"local:{tmp_path / 'cluster.db'}"), VOLUME, NOW)
    assert list(taken.folder.iterdir()) == []


def test_a_foreign_authority_is_not_taken_over(tmp_path: Path) -> None:
    source = founded(tmp_path, tls=True)
    token = invite(source, "n2", None, HOUR_S, NOW)
    foreign = tmp_path / "foreign"
    certificates.make_authority(foreign, NOW)
    ours = place(tmp_path, "n2")
    certificates.issue(foreign, "other", ours.folder / "tls", NOW)
    with pytest.raises(SetupError, match="another authority"):
        join(token, ours, {}, NOW)


def test_only_the_authority_of_the_cluster_invites(tmp_path: Path) -> None:
    source = founded(tmp_path, tls=True)
    certificates.make_authority(tmp_path / "foreign", NOW)
    with pytest.raises(SetupError, match="not the authority"):
        invite(source, "n2", tmp_path / "foreign", HOUR_S, NOW)


def test_a_removed_name_may_join_again(tmp_path: Path) -> None:
    source = founded(tmp_path)
    assert with_provider(source, lambda p: p.set_note(REMOVED + "n2", b"1", None))
    join(invite(source, "n2", None, HOUR_S, NOW), place(tmp_path, "n2"), {}, NOW)
    assert with_provider(source, lambda p: p.notes(REMOVED)) == {}


def test_the_only_config_file_is_meant(tmp_path: Path) -> None:
    with pytest.raises(SetupError, match="none in"):
        config_of(None, tmp_path)
    (tmp_path / "n1.toml").touch()
    assert config_of(None, tmp_path) == tmp_path / "n1.toml"
    (tmp_path / "n2.toml").touch()
    with pytest.raises(SetupError, match=r"n1\.toml"):
        config_of(None, tmp_path)
    assert config_of("x.toml", tmp_path) == Path("x.toml")


def test_nobody_is_invited_under_the_name_of_who_invites(tmp_path: Path) -> None:
    """Before the first mount no view lists it."""
    source = founded(tmp_path)
    with pytest.raises(SetupError, match="n1's own config file"):
        invite(source, "n1", None, HOUR_S, NOW)


@pytest.mark.parametrize("name", ["../n2", "a/b", "", "n 2"])
def test_a_certificate_is_of_a_name_and_lies_where_it_should(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    certificates.make_authority(Path("authority"), NOW)
    with pytest.raises(SetupError, match="node name"):
        certificate(name, Path("out"), Path("authority"), 10)
    assert [path.name for path in tmp_path.iterdir()] == ["authority"]
