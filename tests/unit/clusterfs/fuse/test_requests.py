"""What a thread's signals mean to its request."""

import os
import signal
from pathlib import Path

import pytest

from clusterfs.fuse.requests import Pending, pending


def status(
    proc: Path, *, waiting: int = 0, shared: int = 0, blocked: int = 0, caught: int = 0
) -> Path:
    (proc / "17").mkdir()
    lines = ["Name:\tx", f"SigPnd:\t{waiting:016x}", f"ShdPnd:\t{shared:016x}"]
    lines += [f"SigBlk:\t{blocked:016x}", f"SigIgn:\t{0:016x}", f"SigCgt:\t{caught:016x}"]
    (proc / "17" / "status").write_text("\n".join(lines) + "\n")
    return proc


def bit(number: int) -> int:
    return 1 << number - 1


@pytest.mark.parametrize(
    ("number", "caught", "expected"),
    [
        (signal.SIGKILL, False, Pending(dying=True)),
        (signal.SIGINT, False, Pending(dying=True)),
        (signal.SIGINT, True, Pending(asked_to_end=True)),
        (signal.SIGTERM, True, Pending(asked_to_end=True)),
        (signal.SIGALRM, False, Pending(dying=True)),
        (signal.SIGALRM, True, Pending()),
        (signal.SIGCHLD, True, Pending()),
        (signal.SIGCHLD, False, Pending()),
        (signal.SIGTSTP, False, Pending()),
    ],
)
def test_a_request_is_unwanted_if_its_program_dies_or_is_asked_to_end(
    tmp_path: Path, number: int, expected: Pending, *, caught: bool
) -> None:
    caught_mask = bit(number) if caught else 0
    assert pending(17, status(tmp_path, shared=bit(number), caught=caught_mask)) == expected


def test_a_blocked_signal_means_nothing_yet(tmp_path: Path) -> None:
    interrupt = bit(signal.SIGINT)
    assert pending(17, status(tmp_path, waiting=interrupt, blocked=interrupt)) == Pending()


def test_a_thread_that_nobody_knows_has_no_signals(tmp_path: Path) -> None:
    assert pending(0) == Pending()
    assert pending(17, tmp_path) == Pending()
    assert pending(os.getpid()) == Pending()
