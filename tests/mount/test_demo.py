"""`make demo` does what it says, each time, and leaves nothing behind."""

import subprocess
import sys
from pathlib import Path

import pytest

DEMO = Path(__file__).parents[2] / "scripts" / "demo.py"


@pytest.mark.timeout(1200)
def test_the_demonstration_is_as_said(tmp_path: Path) -> None:
    words = [sys.executable, str(DEMO)]
    shown = subprocess.run(
        words, capture_output=True, text=True, timeout=900, check=False, cwd=tmp_path
    )
    assert shown.returncode == 0, shown.stdout + shown.stderr
    assert "Everything was as said" in shown.stdout
    assert "clusterfs-demo-" not in Path("/proc/self/mountinfo").read_text()
