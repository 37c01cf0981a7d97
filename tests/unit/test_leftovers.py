"""A test that fails takes no other test with it."""

import subprocess
import sys
from pathlib import Path

_TESTS = """
import gc, subprocess

class Player:
    def __init__(self):
        self.process = subprocess.Popen(["sleep", "0"], stdin=subprocess.PIPE)
        self.me = self

def test_fails():
    player = Player()
    assert player is None

def test_passes():
    gc.collect()
"""


def test_what_a_failed_test_left_open_fails_no_other_test(tmp_path: Path) -> None:
    (tmp_path / "test_two.py").write_text(_TESTS)
    options = ["-p", "tests.leftovers", "-p", "no:cacheprovider", "-W", "error", "-c", "/dev/null"]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *options, "--rootdir", tmp_path, tmp_path / "test_two.py"],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        check=False,
    )
    assert "1 failed, 1 passed" in done.stdout, done.stdout + done.stderr
