import signal
import subprocess
import sys
from pathlib import Path

import pytest

from clusterfs.cli.main import run
from clusterfs.errors import SetupError


def test_a_setup_error_is_one_line_and_exit_code_1(capsys: pytest.CaptureFixture[str]) -> None:
    def command() -> None:
        raise SetupError("it is not so")

    with pytest.raises(SystemExit) as caught:
        run(command, "clusterfs")
    assert caught.value.code == 1
    assert capsys.readouterr().err == "clusterfs: it is not so\n"


def test_what_the_system_refuses_is_one_line_too(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        run(lambda: Path("/nowhere/file").write_text("x") and None, "clusterfs")
    assert caught.value.code == 1
    assert capsys.readouterr().err == "clusterfs: /nowhere/file: No such file or directory\n"


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (["--help"], 0),
        (["--version"], 0),
        (["dev", "kill"], 2),
        (["dev", "up", "--nodes", "0", "--dir", "c"], 2),
        (["dev", "up", "--nodes", "63", "--dir", "c"], 2),
        (["dev", "up", "--replicas", "0", "--dir", "c"], 2),
        (["dev", "status", "--dir", "/nowhere"], 1),
        (["tls", "authority", "new", "--days", "10000000"], 2),
    ],
)
def test_exit_codes_are_as_documented(words: list[str], code: int, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "clusterfs.cli.main", *words]
    done = subprocess.run(command, capture_output=True, cwd=tmp_path, check=False)
    assert done.returncode == code
    assert list(tmp_path.iterdir()) == []


CLONES = """
import sys, time
from clusterfs.cli import main, snapshot

def clone(source, target):
    try:
        print("begun", flush=True)
        time.sleep(600)
    finally:
        print("cleaned", flush=True)

snapshot._clone_file = clone
sys.argv = ["clusterfs", "clone", "/etc/passwd", "/nowhere"]
main.main()
"""


def test_a_clone_that_is_ended_cleans_up() -> None:
    command = [sys.executable, "-c", CLONES]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as clone:
        assert clone.stdout is not None
        assert clone.stdout.readline() == "begun\n"
        clone.terminate()
        assert clone.stdout.read() == "cleaned\n"
    assert clone.returncode == 128 + signal.SIGTERM


def test_the_terminal_library_is_not_needed_to_import_the_protocol() -> None:
    code = (
        "import sys, clusterfs.control; sys.exit('typer' in sys.modules or 'rich' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
