"""Buffers that come and go cost page faults once."""

import subprocess
import sys

ROUNDS = """
import resource
from clusterfs.heap import keep_buffers

def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt

def rounds(count):
    before = faults()
    for _ in range(count):
        buffers = [b"x" * (8 << 20) for _ in range(3)]
        del buffers
    return faults() - before

keep_buffers()
rounds(2)
print(rounds(100))
"""


def test_a_freed_buffer_is_used_again() -> None:
    done = subprocess.run(
        [sys.executable, "-c", ROUNDS], capture_output=True, check=True, text=True
    )
    assert int(done.stdout) < 100, "some pages for each buffer: it was given back meanwhile"
