"""A debug bundle has no secrets in it, and is nobody else's."""

import subprocess
from pathlib import Path

import pytest

from clusterfs.cli.debug import _log_end, _private, without_secrets
from clusterfs.errors import SetupError


def test_nobody_else_may_read_it_while_it_is_written(tmp_path: Path) -> None:
    path = tmp_path / "bundle"
    path.write_text("what was there before")
    path.chmod(0o666)
    with _private(path) as file:
        assert (path.stat().st_mode & 0o777, path.stat().st_size) == (0o600, 0)
        file.write(b"x")
    assert path.read_text() == "x"
    with pytest.raises(SetupError, match=r"cannot write .*No such file"):
        _private(tmp_path / "none" / "bundle")


def test_a_log_without_a_name_is_still_its_log(tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.write_text("last words")
    with path.open() as log, subprocess.Popen(["cat"], stdin=subprocess.PIPE, stderr=log) as child:
        path.unlink()
        assert _log_end(child.pid) == b"last words"


@pytest.mark.parametrize(
    "line",
    ['password = "abc"', 'etcd.password="abc"', '"secret_key" = "abc"', '  Token = "abc"  # it'],
)
def test_values_that_sound_like_secrets_are_left_out(line: str) -> None:
    cleaned = without_secrets(f'name = "n1"\n{line}\nbrick = "b"\n')
    assert "abc" not in cleaned
    assert cleaned.startswith('name = "n1"\n')
    assert cleaned.endswith('brick = "b"\n')
