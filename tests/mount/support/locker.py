"""A program that locks as it is told: reads a JSON array a line, and answers each in a line.

["open", LABEL, PATH, FLAGS]                     -> 0 or an errno
["close", LABEL]
["dup", LABEL, NEW_LABEL]
[WORD, LABEL, START, LENGTH, wait]                WORD: read, write, unlock; ofd_read, ...
["test", LABEL, START, LENGTH]                    -> [type, start, length, pid]
["flock", LABEL, shared|exclusive|unlock, wait]
["put", LABEL, OFFSET, TEXT], ["sync", LABEL]
["catch"]                                         from now on SIGALRM ends a wait, and nothing else
["fork"]                                          a child that keeps everything open, for ever
"""

import errno
import fcntl
import json
import os
import signal
import struct
import sys
from typing import Any

_FLOCK = struct.Struct("hhqqi4x")
_KINDS = {"read": fcntl.F_RDLCK, "write": fcntl.F_WRLCK, "unlock": fcntl.F_UNLCK}
_WHOLE = {"shared": fcntl.LOCK_SH, "exclusive": fcntl.LOCK_EX, "unlock": fcntl.LOCK_UN}
_files: dict[str, int] = {}


class _SignalledError(Exception):
    pass


def _caught(*_: object) -> None:
    raise _SignalledError


def _open(label: str, path: str, flags: int = os.O_RDWR | os.O_CREAT) -> None:
    _files[label] = os.open(path, flags, 0o644)


def _close(label: str) -> None:
    os.close(_files.pop(label))


def _dup(label: str, new: str) -> None:
    _files[new] = os.dup(_files[label])


def _lock(word: str, label: str, start: int, length: int, *how: bool) -> None:
    wait = any(how)
    if word.startswith("ofd_"):
        command = fcntl.F_OFD_SETLKW if wait else fcntl.F_OFD_SETLK
    else:
        command = fcntl.F_SETLKW if wait else fcntl.F_SETLK
    kind = _KINDS[word.removeprefix("ofd_")]
    fcntl.fcntl(_files[label], command, _FLOCK.pack(kind, os.SEEK_SET, start, length, 0))


def _test(label: str, start: int, length: int) -> list[Any]:
    asked = _FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, start, length, 0)
    found = _FLOCK.unpack(fcntl.fcntl(_files[label], fcntl.F_GETLK, asked))
    kind = {number: word for word, number in _KINDS.items()}[found[0]]
    return [kind, found[2], found[3], found[4]]


def _flock(label: str, word: str, *how: bool) -> None:
    wait = any(how)
    fcntl.flock(_files[label], _WHOLE[word] | (0 if wait else fcntl.LOCK_NB))


def _put(label: str, offset: int, text: str) -> None:
    os.pwrite(_files[label], text.encode(), offset)


def _sync(label: str) -> None:
    os.fsync(_files[label])


def _catch() -> None:
    signal.signal(signal.SIGALRM, _caught)


def _fork() -> int:
    child = os.fork()
    if not child:
        os.close(0)
        os.close(1)
        signal.pause()
    return child


def _serve(words: list[Any]) -> Any:
    word, *arguments = words
    if word in ("test", "flock", "open", "close", "dup", "put", "sync", "catch", "fork"):
        return globals()[f"_{word}"](*arguments) or 0
    _lock(word, *arguments)
    return 0


for line in sys.stdin:
    try:
        answer = _serve(json.loads(line))
    except OSError as failure:
        answer = failure.errno
    except _SignalledError:
        answer = errno.EINTR
    sys.stdout.write(json.dumps(answer) + "\n")
    sys.stdout.flush()
