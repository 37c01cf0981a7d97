"""Two processes on two nodes lock the same two things in opposite order, and never hang."""

import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).with_name("opposite_order.py")
ROUNDS = 40
LIMIT_S = 300.0


@pytest.mark.parametrize("deed", ["rename", "rename_directory", "replace", "link", "copy"])
def test_opposite_orders_do_not_hang(folders: list[Path], deed: str) -> None:
    for folder, own in (("a", "one"), ("b", "two")):
        (folders[0] / folder).mkdir()
        (folders[0] / folder / own).write_text(own)
        (folders[0] / folder / "shared").write_bytes(bytes(4 * 4096))
    orders = [(folders[0], "a", "b", "one"), (folders[1], "b", "a", "two")]
    processes = [
        subprocess.Popen(
            [sys.executable, SCRIPT, deed, mount / first, mount / second, own, str(ROUNDS)],
            stderr=subprocess.PIPE,
            text=True,
        )
        for mount, first, second, own in orders
    ]
    try:
        for process in processes:
            _, complaint = process.communicate(timeout=LIMIT_S)
            assert process.returncode == 0, complaint
    finally:
        for process in processes:
            process.kill()
            process.wait()
    for mount in folders:
        for folder, own in (("a", "one"), ("b", "two")):
            extra = {f"{own}-folder"} if deed == "rename_directory" else set()
            assert {path.name for path in (mount / folder).iterdir()} == {own, "shared"} | extra
