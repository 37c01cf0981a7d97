"""The cases of posix_cases.py: in a local directory, and each step on the next of three nodes."""

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.mount.posix_calls import Actors, check
from tests.mount.posix_cases import CASES


@pytest.fixture(scope="module")
def actors() -> Iterator[Actors]:
    """Three users."""
    made = Actors()
    yield made
    made.close()


@pytest.mark.parametrize("name", list(CASES))
def test_each_step_on_another_node(name: str, folders: list[Path], actors: Actors) -> None:
    folders[0].chmod(0o755)
    check(actors, folders, CASES[name])


def test_a_local_filesystem_passes_too(actors: Actors) -> None:
    with tempfile.TemporaryDirectory() as top:
        Path(top).chmod(0o755)
        for number, (name, steps) in enumerate(CASES.items()):
            folder = Path(top) / str(number)
            folder.mkdir(mode=0o755)
            try:
                check(actors, [folder], steps)
            except AssertionError as failure:
                raise AssertionError(f"{name}: {failure}") from failure
