"""`clusterfs locks`: which tree is meant, what is asked, what is said."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from clusterfs.cli import main, trees
from clusterfs.cli.control import Mount

ROOT = "00000000000000aa"
Replies = list[dict[str, Any]]


@pytest.fixture
def daemon(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Replies]:
    """Answer with the masters given, one a request, the last one for ever."""
    asked: Replies = []

    def answer(*masters: int, **fields: Any) -> Replies:
        left = list(masters)

        def ask(_socket: Path, request: str, **order: Any) -> dict[str, Any]:
            assert request == "lock_tree"
            asked.append(order)
            master = left.pop(0) if len(left) > 1 else left[0]
            known = {"locks": 5, "pinned": 0, "moving_to": 0, "rates": {"2": 7.5}}
            return {"names": {"1": "n1", "2": "n2"}, "master": master, **known, **fields}

        monkeypatch.setattr(trees.control, "ask", ask)
        return asked

    monkeypatch.setattr(trees, "find_socket", lambda target: Path(f"socket of {target}"))
    monkeypatch.setattr(trees.time, "sleep", lambda _s: None)
    return answer


def run(*words: str) -> int:
    """Return the exit code."""
    with pytest.raises(SystemExit) as end:
        main.run(lambda: main.app(["locks", *words]), "clusterfs")
    assert isinstance(end.value.code, int)
    return end.value.code


def test_a_root_is_shown(daemon: Any, capsys: pytest.CaptureFixture[str]) -> None:
    daemon(1, pinned=1, moving_to=2)
    assert run("show", ROOT) == 0
    assert capsys.readouterr().out == (
        f"{ROOT}: mastered by n1, 5 locks, pinned to n1, moving to n2; requests a second: n2 7.5\n"
    )


def test_a_path_means_its_inode_and_the_mount_it_is_in(
    daemon: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = daemon(1)
    mount = Mount(tmp_path, "config", "fuse.clusterfs")
    monkeypatch.setattr(trees, "mount_at", lambda place: mount if place == tmp_path else None)
    path = tmp_path / "folder" / "file"
    path.parent.mkdir()
    path.write_text("")
    assert run("show", str(path), "--json") == 0
    root = f"{path.stat().st_ino:016x}"
    assert json.loads(capsys.readouterr().out)["root"] == root
    assert asked[0]["root"] == root


@pytest.mark.parametrize(
    ("path", "complaint"), [("missing", "No such file"), ("/", "not in a clusterfs")]
)
def test_other_paths_are_refused(
    daemon: Any, path: str, complaint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    daemon(1)
    assert run("show", path) == 1
    assert complaint in capsys.readouterr().err


def test_a_move_is_waited_for(daemon: Any, capsys: pytest.CaptureFixture[str]) -> None:
    asked = daemon(1, 1, 1, 2)
    assert run("migrate", ROOT, "--to", "n2") == 0
    assert [order["action"] for order in asked] == ["migrate", "show", "show", "show"]
    assert "mastered by n2" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("fields", "complaint"),
    [
        ({}, "still mastered by n1 after 0.3 s"),
        ({"refused": "pinned", "pinned": 1}, "it is pinned to n1; `clusterfs locks unpin` it"),
        ({"master": 0}, "no node has a lock there"),
    ],
)
def test_why_it_does_not_move_is_said(
    daemon: Any, fields: dict[str, Any], complaint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    daemon(1, **fields)
    assert run("migrate", ROOT, "--to", "n2", "--timeout", "0.3") == 1
    assert complaint in capsys.readouterr().err


def test_a_pin_is_where_it_is_or_elsewhere_and_ends(daemon: Any) -> None:
    asked = daemon(1)
    assert run("pin", ROOT) == 0
    assert "node" not in asked[0]
    asked = daemon(2)
    asked.clear()
    assert run("pin", ROOT, "--to", "n2", "--via", "/mnt") == 0
    assert (asked[0]["action"], asked[0]["node"]) == ("pin", "n2")
    assert run("unpin", ROOT) == 0
    assert asked[-2]["action"] == "unpin"
