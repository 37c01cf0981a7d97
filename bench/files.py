"""The metadata rows: small files and an archive, in operations or files per second."""

import os
import subprocess
import sysconfig
import tarfile
import time
from collections.abc import Callable
from pathlib import Path

FILES = 1000
ARCHIVED = 5000
_CONTENT = os.urandom(4096)


def create(folder: Path) -> None:
    """Create 1,000 files of 4 KiB."""
    folder.mkdir()
    for number in range(FILES):
        (folder / f"file-{number}").write_bytes(_CONTENT)


def stat(folder: Path) -> None:
    """Stat each."""
    for number in range(FILES):
        (folder / f"file-{number}").stat()


def read(folder: Path) -> None:
    """Read each."""
    for number in range(FILES):
        (folder / f"file-{number}").read_bytes()


def rename(folder: Path) -> None:
    """Rename each."""
    for number in range(FILES):
        (folder / f"file-{number}").rename(folder / f"renamed-{number}")


def unlink(folder: Path) -> None:
    """Unlink each."""
    for number in range(FILES):
        (folder / f"renamed-{number}").unlink()
    folder.rmdir()


PHASES: dict[str, Callable[[Path], None]] = {
    "create 4 KiB files": create,
    "stat": stat,
    "read 4 KiB files": read,
    "rename": rename,
    "unlink": unlink,
}


def measure(folder: Path) -> dict[str, float]:
    """Run all phases; return files per second of each."""
    rates = {}
    for name, phase in PHASES.items():
        started_s = time.perf_counter()
        phase(folder / "small")
        rates[name] = FILES / (time.perf_counter() - started_s)
    return rates


def make_archive(path: Path) -> int:
    """Pack 5,000 files of the Python installation; return how many there were."""
    roots = [Path(sysconfig.get_path(name)) for name in ("stdlib", "purelib")]
    found = (file for root in roots for file in sorted(root.rglob("*")))
    count = 0
    with tarfile.open(path, "w") as archive:
        for file in found:
            if file.is_file() and not file.is_symlink():
                archive.add(file, f"{count // 100}/{count}-{file.name}")
                count += 1
            if count == ARCHIVED:
                break
    return count


def untar(archive: Path, folder: Path, count: int) -> float:
    """Unpack it; return files per second."""
    target = folder / "unpacked"
    target.mkdir()
    started_s = time.perf_counter()
    subprocess.run(["tar", "-xf", str(archive), "-C", str(target)], check=True)
    rate = count / (time.perf_counter() - started_s)
    subprocess.run(["rm", "-r", str(target)], check=True)
    return rate
