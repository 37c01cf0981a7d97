"""The lock manager without clusterfs: the program of docs/dlm.md, as it stands on the page."""

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[3]
PAGE = (ROOT / "docs" / "dlm.md").read_text()
LINES = 20  # without imports and blank lines


def program() -> str:
    [found] = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    assert isinstance(found, str)
    return found


def test_the_program_on_the_page_runs_and_says_what_the_page_says() -> None:
    done = subprocess.run(
        [sys.executable, "-W", "error", "-"],
        input=program(), cwd=ROOT, capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, ""), done
    assert f"it prints `{done.stdout.splitlines()[-1]}`" in PAGE


def test_the_program_is_short_and_uses_nothing_of_clusterfs() -> None:
    lines = [line for line in program().splitlines() if line.strip()]
    assert len([line for line in lines if not line.startswith(("import", "from"))]) <= LINES
    assert "clusterfs" not in program()


def test_the_page_names_what_exists() -> None:
    from dlm import errors  # noqa: PLC0415
    from dlm.node import Lockspace  # noqa: PLC0415

    [table] = re.findall(r"\| call \| meaning \|\n(.*?)\n\n", PAGE, re.DOTALL)
    cells = [line.split("|")[1] for line in table.splitlines()[1:]]
    calls = [call for cell in cells for call in re.findall(r"`(?:await )?(\w+)\(", cell)]
    assert {"lock", "lock_new", "lock_many", "convert", "dump"} <= set(calls)
    for call in calls:
        assert callable(getattr(Lockspace, call)), call
    [listed] = re.findall(r"dlm/errors.py`: (.*?)\.\n", PAGE, re.DOTALL)
    for name in re.findall(r"[A-Z]\w+[a-z][A-Z]\w+", listed):
        assert hasattr(errors, name), name
