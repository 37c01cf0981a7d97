"""Each health code is found when it is so, is documented, and nothing is found when all is well."""

import re
from pathlib import Path
from typing import Any

import msgspec
import pytest

from clusterfs.health import CODES, ERROR, Facts, judge

DOCUMENT = Path(__file__).parents[3] / "docs" / "health.md"


def healthy() -> Facts:
    member = {"name": "n1", "state": "up", "in_sync": 4, "wanted": 4}
    return Facts(
        status={
            "lost": False,
            "lease_left_s": 4.5,
            "stopped_groups": 0,
            "absent": [],
            "away": [],
            "members": [member, {**member, "name": "n2"}],
            "space": {"total": 100, "free": 50},
        },
        statistics={
            "mesh": {"peers": {2: {"connected": True}}},
            "filesystem": {"stalled": 0, "dead_handles": 0},
            "store": {"damaged_chunks": 0},
        },
        lease_s=5.0,
        certificate_days=300.0,
    )


def ill(code: str) -> Facts:
    facts = msgspec.to_builtins(healthy(), str_keys=False)
    status, statistics = facts["status"], facts["statistics"]
    change: dict[str, Any] = {
        "NODE_OUT": lambda: status.update(lost=True),
        "LEASE_NOT_RENEWED": lambda: status.update(lease_left_s=1.5),
        "GROUPS_STOPPED": lambda: status.update(stopped_groups=3),
        "COPIES_MISSING": lambda: status["members"][1].update(in_sync=3),
        "COPIES_AWAITED": lambda: status.update(away=[3]),
        "MEMBER_LEAVING": lambda: status["members"][1].update(state="leaving"),
        "PEER_UNREACHABLE": lambda: statistics["mesh"]["peers"][2].update(connected=False),
        "REQUESTS_STALLED": lambda: statistics["filesystem"].update(stalled=2),
        "HANDLES_DEAD": lambda: statistics["filesystem"].update(dead_handles=1),
        "BRICK_READ_ONLY": lambda: facts.update(brick_failure="it burns"),
        "BRICK_DISK_FULL": lambda: facts.update(disk_full=True),
        "BRICK_NEARLY_FULL": lambda: status["space"].update(free=9),
        "BRICK_SET_ASIDE": lambda: facts.update(set_aside=1),
        "DATA_DAMAGED": lambda: statistics["store"].update(damaged_chunks=1),
        "CERTIFICATE_EXPIRES": lambda: facts.update(certificate_days=12.0),
    }
    change[code]()
    return Facts(**facts)


def test_nothing_is_found_when_all_is_well() -> None:
    assert judge(healthy()) == []


@pytest.mark.parametrize("code", sorted(CODES))
def test_each_code_is_found_when_it_is_so(code: str) -> None:
    (finding,) = judge(ill(code))
    assert (finding.code, finding.severity) == (code, CODES[code])
    assert finding.text


def test_a_node_without_a_brick_and_certificate_is_no_ill_one() -> None:
    facts = healthy()
    statistics = {**facts.statistics, "store": {}}
    status = {**facts.status, "space": None}
    assert judge(Facts(status, statistics, 5.0)) == []


def test_every_code_is_documented_with_its_severity_and_every_documented_one_exists() -> None:
    sections = re.findall(r"^## (\S+)\n\n(\w+)\. ", DOCUMENT.read_text(), re.MULTILINE)
    assert {code: severity.lower() for code, severity in sections} == CODES
    assert len(re.findall(r"^## ", DOCUMENT.read_text(), re.MULTILINE)) == len(sections)


def test_errors_come_first() -> None:
    facts = ill("DATA_DAMAGED")
    found = judge(msgspec.structs.replace(facts, set_aside=1))
    assert found[0].severity == ERROR
