import base64
import io
from typing import Any

from rich.console import Console

from clusterfs.cli.lockdump import decoded, show


def name(raw: bytes) -> str:
    return base64.b64encode(raw).decode()


def copy(node: int, granted: str | None, requested: str | None = None) -> dict[str, Any]:
    entry = {"node": node, "id": 17, "owner": "", "granted": granted, "requested": requested}
    return entry | {"wait_s": 1.5 if requested else 0.0}


def reply() -> dict[str, Any]:
    quiet = {"root": name(b"plain"), "leaf": name(b""), "converting": [], "waiting": []}
    fought = {"root": name((0x2A).to_bytes(8, "big")), "leaf": name(b"o"), "converting": []}
    own = {"id": 3, "root": name(b"plain"), "leaf": name(b"o"), "master": 2, "mode": "PR"}
    return {
        "node": 1,
        "incarnation": 9,
        "epoch": 4,
        "frozen": False,
        "members": {"1": 9, "2": 8},
        "resources": [
            {**quiet, "granted": [copy(1, "PR")]},
            {**fought, "granted": [copy(1, "EX")], "waiting": [copy(2, None, "EX")]},
        ],
        "locks": [{**own, "requested": None, "blocked_for": None, "owner": "me"}],
        "directory": [],
    }


def shown(*, only_waiting: bool) -> str:
    console = Console(file=io.StringIO(), width=200)
    show(decoded(reply()), console, only_waiting=only_waiting)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_names_that_are_text_stay_text_and_others_become_hexadecimal() -> None:
    dump = decoded(reply())
    assert [resource["name"] for resource in dump["resources"]] == ["plain", "000000000000002a/o"]
    assert dump["locks"][0]["name"] == "plain/o"


def test_everything_is_shown_with_who_waits_for_whom() -> None:
    text = shown(only_waiting=False)
    for part in ("plain/o", "000000000000002a/o", "Granted", "Waiting", "1.500 s", "members 1 (9)"):
        assert part in text
    assert "node 2 waits for EX on 000000000000002a/o: node 1 holds it" in text


def test_only_what_somebody_waits_for() -> None:
    text = shown(only_waiting=True)
    assert "000000000000002a/o" in text
    assert "plain" not in text
