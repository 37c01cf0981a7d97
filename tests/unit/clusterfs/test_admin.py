"""Reports of locks, gathered from peers that answer, refuse, or do not."""

import itertools
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
import trio

from clusterfs.admin import Description, LockReports, command_of, with_processes
from dlm.errors import PeerLost
from dlm.net import Malformed, Refused


class Peers:
    """A mesh on which each node does what the test says."""

    def __init__(self, **answers: Any) -> None:
        self.answers = {int(node.removeprefix("n")): answer for node, answer in answers.items()}
        self.asked: list[Any] = []

    def register(self, channel: int, handler: Any) -> None:
        assert channel == 4
        assert handler

    async def call(self, node: int, _channel: int, body: bytes) -> tuple[bytes, bytes]:
        self.asked.append(msgspec.json.decode(body))
        answer = self.answers[node]
        if answer is None:
            await trio.sleep_forever()
        if isinstance(answer, Exception):
            raise answer
        return b"", msgspec.json.encode(answer)


def reports(peers: Any) -> LockReports:
    names = {node: f"n{node}" for node in peers.answers}
    return LockReports(peers, lambda only_busy: ({"node": 1, "busy": only_busy}, {}), lambda: names)


@pytest.mark.usefixtures("autojump_clock")
async def test_all_who_answer_are_in_the_picture_and_the_others_are_named() -> None:
    peers = Peers(n2={"node": 2}, n3=None, n4=PeerLost(4), n5=Refused(1, b"too many"))
    picture = msgspec.json.decode(
        msgspec.json.encode(await reports(peers).all({"only_busy": True}))
    )
    assert picture["nodes"] == [{"node": 1, "busy": True}, {"node": 2}]
    assert {entry["name"]: entry["reason"] for entry in picture["silent"]} == {
        "n3": "no answer within 5 s",
        "n4": "it is not connected",
        "n5": "too many",
    }
    assert peers.asked == [{"only_busy": True}] * 4


async def test_a_peer_is_answered_and_garbage_is_refused() -> None:
    report = reports(Peers())
    _, payload = await report.begin_call(2, 7, 1, b"{}", b"")
    assert msgspec.json.decode(payload) == {"node": 1, "busy": False}
    for garbage in (b"", b"[]", b'{"only_busy": 3}'):
        with pytest.raises(Malformed):
            report.begin_call(2, 7, 1, garbage, b"")
    with pytest.raises(Malformed):
        report.message(2, 7, 1, b"", b"")


async def test_what_is_too_large_for_one_answer_is_refused_with_the_way_out(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("clusterfs.admin._MOST_BYTES", 10)
    with pytest.raises(Refused) as refused:
        await reports(Peers()).begin_call(2, 7, 1, b"{}", b"")
    assert b"only for those that somebody waits for" in refused.value.detail


async def test_however_many_locks_there_are_others_go_on_while_they_are_described() -> None:
    pages, described = 50, 0

    def locks() -> Iterator[list[dict[str, Any]]]:
        nonlocal described
        for _ in range(pages):
            described += 1
            yield [{"id": 2 * described}, {"id": 2 * described + 1}] if described % 2 else []

    def describe(_: bool) -> Description:  # noqa: FBT001
        return {}, {"locks": locks(), "none": iter(())}

    steps = []

    async def watch() -> None:
        while described < pages:
            steps.append(described)
            await trio.lowlevel.checkpoint()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(watch)
        reply = await LockReports(Peers(), describe, dict).own({})  # type: ignore[arg-type]
    value = msgspec.json.decode(msgspec.json.encode(reply))["locks"]
    assert [lock["id"] for lock in value["locks"]] == [
        number for page in range(1, pages + 1, 2) for number in (2 * page, 2 * page + 1)
    ]
    assert value["none"] == []
    assert max(after - before for before, after in itertools.pairwise(steps)) <= 2


def test_a_process_has_a_name_while_it_lives() -> None:
    assert command_of(os.getpid()) == Path("/proc/self/comm").read_text().strip()
    assert command_of(0) == command_of(-1) == command_of(2**22 + 1) == ""


def test_a_missing_path_is_found_in_what_a_waiting_process_has_open(tmp_path: Path) -> None:
    path = tmp_path / "open"
    with path.open("w") as file:
        inode = os.fstat(file.fileno()).st_ino
        waiting = {"pid": os.getpid(), "operation": "write"}
        use = {"root": inode.to_bytes(8, "big"), "path": "", "using": [], "waiting": [waiting]}
        [[known]] = with_processes(iter([[use]]), str(tmp_path))
        assert known["path"] == "/open"
        assert known["waiting"][0]["command"]
        [[elsewhere]] = with_processes(iter([[use]]), str(tmp_path / "other"))
        assert elsewhere["path"] == ""
        [[named]] = with_processes(iter([[use | {"path": "/known"}]]), str(tmp_path))
        assert named["path"] == "/known"
