import os
from pathlib import Path

import pytest

from dlm.sim.script import main, replay

TRANSCRIPTS = sorted(Path(__file__).parents[2].joinpath("transcripts").glob("*.txt"))


@pytest.mark.parametrize("path", TRANSCRIPTS, ids=lambda path: path.stem)
def test_locks_do_what_the_transcript_says(path: Path) -> None:
    if os.environ.get("CLUSTERFS_REWRITE_TRANSCRIPTS"):
        main([str(path)])
    lines = path.read_text().splitlines()
    assert replay(lines) == lines, "if it is meant: make transcripts"


def test_there_are_transcripts() -> None:
    assert TRANSCRIPTS
