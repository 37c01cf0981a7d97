"""What docs/protocols says of the messages of locks is what there is: names, tags, profiles."""

import re
from pathlib import Path
from typing import get_args

import pytest

from dlm.messages import Message

DOCS = Path(__file__).parents[3] / "docs" / "protocols"
PAGES = ("locks.md", "lock-recovery.md", "lock-migration.md", "deadlock.md")
KINDS = [kind for kind in get_args(Message) if not kind.__name__.startswith("Range")]
RANGES = [kind for kind in get_args(Message) if kind.__name__.startswith("Range")]


def rows() -> dict[str, str]:
    """Return the tag that the tables of messages give each name."""
    found: dict[str, str] = {}
    for page in PAGES:
        for line in (DOCS / page).read_text().splitlines():
            row = re.match(r"\| (\d+) \| (\w+) \|", line)
            if row:
                found[row[2]] = row[1]
    return found


def test_every_message_is_in_a_table_under_its_tag_and_nothing_else_is() -> None:
    said = {kind.__name__: str(kind.__struct_config__.tag) for kind in KINDS}
    assert rows() == said


@pytest.mark.parametrize("kind", RANGES, ids=lambda kind: str(kind.__name__))
def test_every_message_of_ranges_is_in_their_table(kind: type) -> None:
    table = (DOCS / "ranges.md").read_text()
    assert re.search(rf"^\| .*\b{kind.__name__}\b", table, re.MULTILINE) or kind.__name__ in table


def test_the_table_of_dialects_names_tests_that_exist() -> None:
    table = (DOCS / "dialects.md").read_text()
    tests = "".join(path.read_text() for path in Path(__file__).parent.glob("test_*.py"))
    rows = [row for row in table.splitlines() if row.startswith("| ")]
    unnamed = [row for row in rows if not re.search(r"`test_\w+`", row)]
    assert [row.split("|")[-2].strip() for row in unnamed] == ["test", "test"]  # the heads
    named = set(re.findall(r"`(test_\w+)`", table))
    assert len(named) > 30
    assert not [name for name in named if f"def {name}(" not in tests]


@pytest.mark.parametrize("page", PAGES)
def test_every_protocol_has_states_messages_and_a_transcript(page: str) -> None:
    text = (DOCS / page).read_text()
    assert "──▶" in text  # a diagram of states
    assert re.search(r"^\| tag \| message \|", text, re.MULTILINE)
    named = re.findall(r"tests/transcripts/([\w-]+\.txt)", text)
    if page == "locks.md":
        assert "tests/transcripts/" in text
    else:
        assert named
    transcripts = Path(__file__).parents[2] / "transcripts"
    assert all((transcripts / name).exists() for name in named)
