"""What a node remembers of its grants."""

import pytest

from dlm.core import range_past
from dlm.core.range_past import Past
from dlm.core.range_table import Span
from dlm.events import Name
from dlm.modes import Mode

NAME, OTHER = Name(b"a", b"p"), Name(b"b", b"p")
READ, WRITE = Mode.PR, Mode.EX


def test_only_what_meets_excludes_and_is_later_clashes() -> None:
    past = Past()
    past.note(NAME, Span(10, 19, READ), 5)
    assert past.clashes(NAME, Span(19, 30, WRITE), 4)
    assert not past.clashes(NAME, Span(19, 30, WRITE), 5)
    assert not past.clashes(NAME, Span(19, 30, READ), 4)
    assert not past.clashes(NAME, Span(20, 30, WRITE), 4)
    assert not past.clashes(OTHER, Span(10, 19, WRITE), 4)


def test_a_later_grant_of_the_same_counts() -> None:
    past = Past()
    for epoch in (5, 7):
        past.note(NAME, Span(0, 0, WRITE), epoch)
    assert past.clashes(NAME, Span(0, 9, READ), 6)


def test_what_is_forgotten_is_never_denied(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(range_past, "NAMES", 3)
    past = Past()
    for number in range(5):
        past.note(Name(b"%d" % number, b"p"), Span(0, 0, WRITE), number)
    assert past.clashes(Name(b"9", b"p"), Span(0, 0, WRITE), 0)
    assert not past.clashes(Name(b"9", b"p"), Span(0, 0, WRITE), 1)
    assert past.clashes(Name(b"3", b"p"), Span(0, 0, WRITE), 1)


def test_very_many_ranges_of_a_name_count_as_all_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(range_past, "SPANS", 3)
    past = Past()
    for number in range(5):
        past.note(NAME, Span(number, number, READ), 7)
    assert past.clashes(NAME, Span(99, 99, READ), 6)
    assert not past.clashes(NAME, Span(99, 99, READ), 7)
