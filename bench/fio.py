"""The data rows: what fio measures, in operations or MiB per second.

Every job runs at queue depth 1 with O_DIRECT, as a guest with cache=none does. The file is laid out
before the first measured job, so that no job pays for another's allocation.
"""

import json
import subprocess
from pathlib import Path

FILE_MIB = 64

JOBS: dict[str, tuple[str, list[str]]] = {
    "4 KiB random read": ("iops", ["--rw=randread", "--bs=4k"]),
    "4 KiB random write": ("iops", ["--rw=randwrite", "--bs=4k"]),
    "4 KiB write + fsync": ("iops", ["--rw=randwrite", "--bs=4k", "--fsync=1"]),
    "1 MiB sequential read": ("MiB/s", ["--rw=read", "--bs=1m"]),
    "1 MiB sequential write": ("MiB/s", ["--rw=write", "--bs=1m"]),
}


def lay_out(path: Path) -> Path:
    """Write the file that the jobs use: random content, so that nothing is deduplicated."""
    _run(path, ["--rw=write", "--bs=1m", "--end_fsync=1"])
    return path


def measure(path: Path, name: str, runtime_s: float) -> float:
    """Run one job; return operations or MiB per second."""
    unit, words = JOBS[name]
    timed = ["--time_based", f"--runtime={runtime_s}s"]
    report = _run(path, [*words, *timed])["jobs"][0]
    side = report["read" if "read" in name else "write"]
    return float(side["iops"]) if unit == "iops" else float(side["bw_bytes"]) / (1 << 20)


def queued(path: Path, words: list[str], depth: int, runtime_s: float) -> tuple[float, float]:
    """Run one job as QEMU does with aio=native (libaio); return operations and MiB per second."""
    timed = ["--time_based", f"--runtime={runtime_s}s"]
    report = _run(path, [*words, *timed], "libaio", depth)["jobs"][0]
    sides = [report["read"], report["write"]]
    rates = [sum(float(side[key]) for side in sides) for key in ("iops", "bw_bytes")]
    return rates[0], rates[1] / (1 << 20)


def _run(
    path: Path, words: list[str], engine: str = "psync", depth: int = 1
) -> dict[str, list[dict[str, dict[str, float]]]]:
    command = [
        *("fio", "--name=job", f"--filename={path}", f"--size={FILE_MIB}m", "--direct=1"),
        *(f"--ioengine={engine}", f"--iodepth={depth}", "--refill_buffers", "--norandommap"),
        *("--output-format=json", *words),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    report: dict[str, list[dict[str, dict[str, float]]]] = json.loads(
        done.stdout[done.stdout.index("{") :]
    )
    return report
