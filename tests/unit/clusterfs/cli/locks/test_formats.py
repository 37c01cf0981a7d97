"""The four files for the tools of fs/dlm and OCFS2; tests/mount gives them to the real tools."""

from typing import Any

import pytest

from clusterfs.cli.locks import fsdlm, ocfs2
from clusterfs.cli.locks.picture import Copy, Node, Own, Resource, printable

FILE = "000000000000002a"


def node_of(spaces: Any, number: int) -> Node:
    [node] = [node for node in spaces.picture().nodes if node.node == number]
    assert isinstance(node, Node)
    return node


async def test_lockdump_has_every_lock_of_a_master_and_its_state(fought: Any) -> None:
    header, *lines = fsdlm.lockdump(node_of(fought, 1)).splitlines()
    assert header.split()[:4] == ["id", "nodeid", "remid", "pid"]
    fields = [line.split(" ") for line in lines]
    # id nodeid remid pid ... flags sts grmode rqmode time r_nodeid
    short = [(f[0], f[1], f[3], f[6], f[7], f[8], f[9], f[10], f[-1]) for f in fields]
    assert short == [
        ("1000001", "0", "41", "0", "2", "5", "-1", "0", f'"{FILE}"'),
        ("2000002", "2", "42", "10000", "1", "-1", "3", "4500000", f'"{FILE}"'),
        ("3000002", "3", "43", "10000", "1", "-1", "1", "3000000", f'"{FILE}"'),
        ("2000001", "2", "0", "10000", "2", "3", "-1", "0", f'"{FILE}/o"'),
        ("3000001", "3", "43", "10000", "3", "3", "5", "1500000", f'"{FILE}/o"'),
    ]


async def test_lockdump_names_the_master_of_what_is_mastered_elsewhere(fought: Any) -> None:
    lines = fsdlm.lockdump(node_of(fought, 2)).splitlines()[1:]
    shown = [(f[1], f[6], f[7], f[11], f[-1]) for f in (line.split(" ") for line in lines)]
    assert shown == [("1", "0", "2", "1", f'"{FILE}/o"'), ("1", "0", "1", "1", f'"{FILE}"')]


async def test_lockdebug_has_the_value_block_and_every_queue(fought: Any) -> None:
    lines = fsdlm.lockdebug(node_of(fought, 1)).splitlines()
    assert lines[0] == "version rsb 1.1 lvb 1.1 lkb 1.1"
    assert lines[1].split(" ")[2:] == ["0", "0", "0", "0", "0", "0", "16", "str", FILE]
    assert lines[2] == f"lvb 1 8 {'78 ' * 8}".rstrip()
    kinds = [line.split(" ")[0] for line in lines[1:]]
    assert kinds == ["rsb", "lvb", "lkb", "lkb", "lkb", "rsb", "lkb", "lkb"]


def test_a_lock_whose_master_is_not_known_yet_is_being_looked_up() -> None:
    node = Node(1, locks=(Own(7, b"new", requested="EX", acknowledged=False),))
    assert fsdlm.lockdebug(node).splitlines()[1:] == [
        "rsb 0000000000000001 -1 1000007 0 0 0 0 3 str new",
        "lkb 1000007 0 0 0 0 0 0 1 -1 5 0 1 1 0 0 0",
    ]


async def test_fs_locks_has_a_line_of_83_fields_for_each_own_lock(fought: Any) -> None:
    lines = [line.split("\t") for line in ocfs2.fs_locks(node_of(fought, 3)).splitlines()]
    assert {len(line) for line in lines} == {83}
    open_lock, file = lines
    assert open_lock[:5] == ["0x3", "O000000000000000000002a00000000", "3", "0x43", "0x2"]
    assert open_lock[8:10] == ["5", "-1"]
    assert file[:5] == ["0x3", "M000000000000000000002a00000000", "-1", "0x42", "0x1"]


async def test_dlm_locks_has_a_record_for_each_resource_mastered_here(fought: Any) -> None:
    first, second, end = ocfs2.dlm_locks(node_of(fought, 1)).split("\n\n")
    assert first.splitlines() == [
        "NAME:M000000000000000000002a00000000",
        "LRES:1,1,0,0,0,0,0,0,0,0,4",
        "RMAP:1 2 3 ",
        f"LVBX:{(b'x' * 8).hex():0<128}",
        "LOCK:1,0,5,-1,1,1:1,0,0,0,1,0,0,0,0,1",
        "LOCK:1,2,3,-1,2,2:2,0,0,0,0,0,0,0,0,1",
        "LOCK:1,2,1,-1,3,3:2,0,0,0,0,0,0,0,0,1",
    ]
    assert second.splitlines()[-1].startswith("LOCK:1,1,3,5,3,3:1,")
    assert end == ""
    assert ocfs2.dlm_locks(node_of(fought, 2)) == ""


def test_names_are_text_where_they_can_be_and_inodes_never() -> None:
    assert printable(b"plain", b"leaf") == "plain/leaf"
    assert printable(b"ABCDEFGH", b"o") == "4142434445464748/o"
    assert printable(b"\0\1", b'"') == "0001/22"


@pytest.mark.parametrize("most", [fsdlm.NAME_BYTES, ocfs2.NAME_BYTES])
def test_long_names_stay_different(most: int) -> None:
    names = {fsdlm.shortened("x" * 100 + str(number), most) for number in range(100)}
    assert len(names) == 100
    assert {len(name) for name in names} == {most}


def test_ocfs2_names_have_no_blanks_and_31_characters_at_most() -> None:
    assert ocfs2.lock_name(bytes(8), b"rename") == "R000000000000000000000000000000"
    assert ocfs2.lock_name(b"with blank", b"") == "with_blank"
    assert len(ocfs2.lock_name(b"y" * 200, b"")) == 31


def test_numbers_keep_to_32_bits() -> None:
    resource = Resource(b"r", granted=(Copy(300, 2**40 + 5, granted="EX"),))
    line = fsdlm.lockdump(Node(1, resources=(resource,))).splitlines()[1]
    assert line.startswith("2c000005 300 2c000005 ")
