"""One process of test_opposite_order: does something to two places, over and over, in its order."""

import os
import sys
from collections.abc import Callable
from pathlib import Path


def rename(first: Path, second: Path, own: str, _number: int) -> None:
    (first / own).rename(second / own)
    (second / own).rename(first / own)


def rename_directory(first: Path, second: Path, own: str, number: int) -> None:
    folder = f"{own}-folder"
    if not number:
        (first / folder).mkdir()
        (first / folder / "inside").touch()
    (first / folder).rename(second / folder)
    (second / folder).rename(first / folder)


def replace(first: Path, second: Path, own: str, number: int) -> None:
    (first / f"{own}-new").write_text(str(number))
    (first / f"{own}-new").rename(second / own)
    (second / own).rename(first / own)


def link(first: Path, second: Path, own: str, number: int) -> None:
    name = f"{own}-{number % 3}"
    (second / name).hardlink_to(first / own)
    (second / name).unlink()


def copy(first: Path, second: Path, _own: str, number: int) -> None:
    """Copy a part of one file into the other, while the other process does the reverse."""
    with (first / "shared").open("r+b") as source, (second / "shared").open("r+b") as target:
        part = os.pread(source.fileno(), 4096, 4096 * (number % 4))
        os.pwrite(target.fileno(), part, 4096 * (number % 4))
        if number % 10 == 0:
            os.fsync(target.fileno())


DEEDS: dict[str, Callable[[Path, Path, str, int], None]] = {
    deed.__name__: deed for deed in (rename, rename_directory, replace, link, copy)
}


def main() -> None:
    deed, first, second, own, rounds = sys.argv[1:]
    for number in range(int(rounds)):
        DEEDS[deed](Path(first), Path(second), own, number)


if __name__ == "__main__":
    main()
