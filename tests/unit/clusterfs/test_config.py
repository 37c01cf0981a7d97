from pathlib import Path

import pytest

from clusterfs import config
from clusterfs.errors import SetupError


def written(folder: Path, text: str) -> Path:
    path = folder / "n1.toml"
    path.write_text(text)
    return path


def test_only_name_and_brick_are_needed_and_paths_are_taken_from_the_files_folder(
    tmp_path: Path,
) -> None:
    path = written(tmp_path, 'name = "n1"\nbrick = "brick"\nprovider = "local:c.db"\n')
    loaded = config.load(path)
    assert loaded.brick == str(tmp_path / "brick")
    assert loaded.provider_path == tmp_path / "c.db"
    assert loaded.public_address == loaded.listen
    assert loaded.control_socket == tmp_path / "brick" / "control.sock"


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ('brick = "b"', "name"),
        ('name = "n1"', "brick"),
        ('name = "n1"\nbrick = "b"\nreplicas = "three"', "replicas"),
        ('name = "n1"\nbrick = "b"\nreplicas = 0', "replicas"),
        ('name = "n1"\nbrick = "b"\ncolour = "red"', "colour"),
        ('name = "n/1"\nbrick = "b"', "name"),
        ('name = "n1"\nbrick = "b"\nlisten = "nowhere"', "listen"),
        ('name = "n1"\nbrick = "b"\nlisten = "h:70000"', "listen"),
        ('name = "n1"\nbrick = "b"\nprovider = "paper:x"', "provider"),
        ('name = "n1"\nbrick = "b"\non_lost = "panic"', "on_lost"),
        ('name = "n1"\nbrick = "b"\nlisten = "0.0.0.0:7400"', "listen"),
        ('name = "n1"\nbrick = "b"\nlisten = "[::]:7400"', "listen"),
        ('name = "n1"\nbrick = "b"\n[tls]\nca = "ca.pem"', "tls"),
        ('name = "n1"\nbrick = "b"\nprovider = "etcd:h:2379"', "provider"),
        ('name = "n1"\nbrick = "b"\n[etcd]\nvolume = "a/b"', "etcd.volume"),
        ("name = ", "TOML"),
        ("[name]\nx = 1\n", "name"),
    ],
)
def test_what_is_wrong_is_one_line_that_names_the_key(tmp_path: Path, text: str, key: str) -> None:
    path = written(tmp_path, text)
    with pytest.raises(SetupError) as caught:
        config.load(path)
    message = str(caught.value)
    assert str(path) in message
    assert f"{key}:" in message or key == "TOML"
    assert "\n" not in message


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ('name = "n/1"', "expected letters, digits"),
        ('listen = "nowhere"', "expected HOST:PORT"),
        ('provider = "paper:x"', "expected local:FILE, or etcd:URL,URL"),
        ('on_lost = "panic"', "on_lost: 'panic' is none of: stall, eio"),
        ("replcas = 2", "replcas: no such key; is replicas meant?"),
        ("[exports]\nread_onyl = []", "exports.read_onyl: no such key; is read_only meant?"),
        ("colour = 3", "colour: no such key"),
    ],
)
def test_what_would_be_right_is_said_in_words(tmp_path: Path, line: str, words: str) -> None:
    name = "" if line.startswith("name") else 'name = "n1"\n'
    with pytest.raises(SetupError) as caught:
        config.load(written(tmp_path, f'brick = "b"\n{name}{line}\n'))
    assert words in str(caught.value)
    assert "regex" not in str(caught.value)


def test_a_missing_file_says_so(tmp_path: Path) -> None:
    with pytest.raises(SetupError, match="No such file"):
        config.load(tmp_path / "none.toml")


def test_mount_options_win_and_are_checked(tmp_path: Path) -> None:
    path = written(tmp_path, 'name = "n1"\nbrick = "b"\non_lost = "stall"\n')
    assert config.load(path, {"on_lost": "eio"}).on_lost == "eio"
    with pytest.raises(SetupError, match="on_lost"):
        config.load(path, {"on_lost": "sometimes"})


@pytest.mark.parametrize("listen", ["127.0.0.1:1", "[::1]:1", "localhost:1", "127.9.9.9:1"])
def test_over_loopback_nodes_need_no_certificates(tmp_path: Path, listen: str) -> None:
    path = written(tmp_path, f'name = "n1"\nbrick = "b"\nlisten = "{listen}"\n')
    assert config.load(path).tls.ca is None


def test_files_of_etcd_and_tls_are_taken_from_the_configs_folder(tmp_path: Path) -> None:
    path = written(
        tmp_path,
        'name = "n1"\nbrick = "b"\nlisten = "10.0.0.1:7400"\n'
        'provider = "etcd:https://a:2379,https://b:2379"\n'
        '[etcd]\nca = "e.pem"\n[tls]\nca = "ca.pem"\ncertificate = "/n1.pem"\nkey = "n1.key"\n',
    )
    loaded = config.load(path)
    assert loaded.etcd_endpoints == ("https://a:2379", "https://b:2379")
    assert loaded.provider_path is None
    assert loaded.etcd.ca == str(tmp_path / "e.pem")
    assert (loaded.tls.ca, loaded.tls.certificate) == (str(tmp_path / "ca.pem"), "/n1.pem")


def test_tls_can_be_left_off_but_only_on_purpose(tmp_path: Path) -> None:
    text = 'name = "n1"\nbrick = "b"\nlisten = "10.0.0.1:7400"\n[tls]\noff = true\n'
    assert config.load(written(tmp_path, text)).tls.off
