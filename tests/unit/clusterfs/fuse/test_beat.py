import os
import socket

import pytest

from clusterfs.fuse.beat import (
    BEATS,
    CAPACITY,
    INCARNATION,
    LEASE_END,
    NODE,
    Beat,
    boottime_ns,
    received_attachment,
)


def test_before_the_first_beat_nothing_is_over() -> None:
    assert Beat(4).words[LEASE_END] > boottime_ns() + 10**15


@pytest.mark.parametrize("left_s", [5.0, 0.0, -3.0, float("-inf"), float("inf")])
def test_the_lease_end_is_where_it_was_said_to_be(left_s: float) -> None:
    beat = Beat(4)
    before = boottime_ns()
    beat.renew(left_s)
    after = boottime_ns()
    end = beat.words[LEASE_END]
    if left_s in (float("inf"), float("-inf")):
        assert (end > after) == (left_s > 0)
    else:
        assert before + left_s * 1e9 <= end <= after + left_s * 1e9
    assert beat.words[BEATS] == 1


def test_both_sides_of_a_fork_see_it() -> None:
    beat = Beat(CAPACITY)
    child = os.fork()
    if child == 0:
        beat.identify(3, 2**40)
        os._exit(0)
    os.waitpid(child, 0)
    assert (beat.words[NODE], beat.words[INCARNATION]) == (3, 2**40)


def test_a_descriptor_is_handed_over() -> None:
    beat = Beat(4)
    source, target = os.pipe()
    beat.attach(target, "/mnt", 45)  # nobody supervises: goes nowhere
    upper, lower = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    beat.supervise_through(lower)
    beat.attach(target, "/mnt/with space", 45)
    received = received_attachment(upper)
    assert received is not None
    assert received[1:] == (45, "/mnt/with space", "", "")
    os.close(received.fd)
    beat.attach(target, "/mnt/with space", 45, (b"ask", b"answer"))
    os.close(target)
    received = received_attachment(upper)
    assert received is not None
    descriptor = received.fd
    assert received[1:] == (45, "/mnt/with space", b"ask".hex(), b"answer".hex())
    os.write(descriptor, b"hello")
    assert os.read(source, 5) == b"hello"
    os.close(descriptor)
    os.close(source)
    lower.close()
    assert received_attachment(upper) is None
    upper.close()
