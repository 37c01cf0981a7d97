"""Many lockers of one file: a crowd that queues for a byte, or a program of a storm.

crowd PATH COUNT        so many processes each lock byte 0, and count themselves; prints the sum
storm PATH BOARD NUMBER SECONDS SEED
                        lock and unlock overlapping ranges at random. The board is a file in shared
                        memory outside of the mount: byte by byte, who writes and how many read.
                        What is granted is marked there and checked, and unmarked before it goes.
"""

import errno
import fcntl
import json
import mmap
import os
import random
import signal
import struct
import sys
import time

_FLOCK = struct.Struct("hhqqi4x")
BYTES = 64
PROGRAMS = 8
GIVE_WAY_S = 2.0  # a wait that takes longer is interrupted: others may wait for what we hold


def setlk(descriptor: int, kind: int, start: int, length: int, *, wait: bool) -> None:
    command = fcntl.F_SETLKW if wait else fcntl.F_SETLK
    fcntl.fcntl(descriptor, command, _FLOCK.pack(kind, os.SEEK_SET, start, length, 0))


def interrupt(*_: object) -> None:
    raise InterruptedError(errno.EINTR, "told to give way")


def crowd(path: str, count: int) -> None:
    reading, writing = os.pipe()
    for _ in range(count):
        if not os.fork():
            descriptor = os.open(path, os.O_RDWR)
            setlk(descriptor, fcntl.F_WRLCK, 0, 1, wait=True)
            os.write(writing, b"x")
            os._exit(0)
    os.close(writing)
    seen = 0
    while some := os.read(reading, 4096):
        seen += len(some)
    sys.stdout.write(f"{seen}\n")


class Board:
    """Who has which byte: for each program and byte 0, 1 (reads) or 2 (writes)."""

    def __init__(self, path: str, number: int) -> None:
        with open(path, "r+b") as file:
            self._map = mmap.mmap(file.fileno(), PROGRAMS * BYTES)
        self._number = number

    def mark(self, start: int, length: int, value: int) -> None:
        first = self._number * BYTES + start
        self._map[first : first + length] = bytes([value]) * length

    def mine(self) -> bytes:
        return self._map[self._number * BYTES : (self._number + 1) * BYTES]

    def check(self, start: int, length: int, value: int) -> None:
        for other in range(PROGRAMS):
            if other != self._number:
                first = other * BYTES + start
                theirs = max(self._map[first : first + length])
                assert theirs + value <= 2 or not theirs, (
                    f"{self._number} has {start}+{length} as {value}, {other} as {theirs}"
                )


class Storm:
    def __init__(self, path: str, board: str, number: int, seed: int) -> None:
        self.descriptor = os.open(path, os.O_RDWR)
        self.board = Board(board, number)
        self.random = random.Random(seed)
        self.counts = {"granted": 0, "refused": 0, "interrupted": 0, "deadlocks": 0}

    def run(self, seconds: float) -> None:
        signal.signal(signal.SIGALRM, interrupt)
        until_s = time.monotonic() + seconds
        while time.monotonic() < until_s:
            if self.random.random() < 0.45:
                self.free(*self.some())
            else:
                self.lock(*self.some(), self.random.choice((1, 2)), wait=self.random.random() < 0.7)
        self.free(0, BYTES)

    def some(self) -> tuple[int, int]:
        start = self.random.randrange(BYTES)
        return start, self.random.randrange(1, min(16, BYTES - start) + 1)

    def free(self, start: int, length: int) -> None:
        self.board.mark(start, length, 0)
        setlk(self.descriptor, fcntl.F_UNLCK, start, length, wait=False)

    def lock(self, start: int, length: int, value: int, *, wait: bool) -> None:
        had = self.board.mine()[start : start + length]
        if value == 1:  # what is weakened is free for readers before we hear of it
            self.weaken(start, length)
        kind = fcntl.F_WRLCK if value == 2 else fcntl.F_RDLCK
        try:
            try:
                signal.setitimer(signal.ITIMER_REAL, GIVE_WAY_S if wait else 0)
                setlk(self.descriptor, kind, start, length, wait=wait)
            finally:
                signal.setitimer(signal.ITIMER_REAL, 0)
        except OSError as failure:
            self.refused(failure, start, had)
            return
        self.counts["granted"] += 1
        self.board.mark(start, length, value)
        self.board.check(start, length, value)

    def weaken(self, start: int, length: int) -> None:
        for byte in range(start, start + length):
            if self.board.mine()[byte] == 2:
                self.board.mark(byte, 1, 1)

    def refused(self, failure: OSError, start: int, had: bytes) -> None:
        if failure.errno == errno.EAGAIN:
            self.counts["refused"] += 1
        elif failure.errno == errno.EDEADLK:
            self.counts["deadlocks"] += 1
        elif failure.errno == errno.EINTR:
            self.counts["interrupted"] += 1
        else:
            raise failure
        if failure.errno == errno.EAGAIN:
            for place, value in enumerate(had):  # it is as it was
                self.board.mark(start + place, 1, value)
        else:
            self.free(0, BYTES)


if __name__ == "__main__":
    if sys.argv[1] == "crowd":
        crowd(sys.argv[2], int(sys.argv[3]))
    else:
        _, _, path, board, number, seconds, seed = sys.argv
        storm = Storm(path, board, int(number), int(seed))
        storm.run(float(seconds))
        sys.stdout.write(json.dumps(storm.counts))
