"""What no linter checks: every module is explained, placed, tested, and of a size to be read."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
MODULES = sorted(
    path
    for package in ("dlm", "clusterfs")
    for path in (ROOT / package).rglob("*.py")
    if path.name != "__init__.py"
)
MODULE_LINES = 420
FUNCTION_LINES = 60
METHODS = 40
LONG = {"clusterfs/fuse/operations.py"}  # one method for each kind of request
VAGUE = {"utils", "util", "helpers", "helper", "manager", "common", "misc", "stuff"}
LEFT_OVER = re.compile(r"#\s*(TODO|FIXME|XXX|HACK)\b|\bbreakpoint\(\)|\bpdb\b")

everywhere = pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))


@everywhere
def test_a_module_says_what_it_is(path: Path) -> None:
    docstring = ast.get_docstring(ast.parse(path.read_text()))
    assert docstring, "no docstring"
    first = docstring.splitlines()[0]
    assert first.rstrip().endswith((".", ":", "?")), f"the first line is no sentence: {first}"


@everywhere
def test_a_module_has_its_line_in_the_architecture(path: Path) -> None:
    architecture = (ROOT / "docs" / "architecture.md").read_text()
    assert f"`{path.relative_to(ROOT)}`" in architecture


@everywhere
def test_a_module_is_used_by_a_test(path: Path) -> None:
    dotted = ".".join(path.relative_to(ROOT).with_suffix("").parts)
    package, _, name = dotted.rpartition(".")
    ways = (f"from {dotted} import", f"import {dotted}", dotted)
    grouped = re.compile(rf"from {re.escape(package)} import [^\n]*\b{name}\b")
    tests = "\n".join(test.read_text() for test in (ROOT / "tests").rglob("*.py"))
    assert any(way in tests for way in ways) or grouped.search(tests)


@everywhere
def test_sizes_stay_readable(path: Path) -> None:
    text = path.read_text()
    name = str(path.relative_to(ROOT))
    if name not in LONG:
        assert len(text.splitlines()) <= MODULE_LINES
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            lines = (node.end_lineno or node.lineno) - node.lineno + 1
            assert lines <= FUNCTION_LINES, f"{node.name} has {lines} lines"
        if isinstance(node, ast.ClassDef) and name not in LONG:
            methods = sum(
                isinstance(part, ast.FunctionDef | ast.AsyncFunctionDef) for part in node.body
            )
            assert methods <= METHODS, f"{node.name} has {methods} methods"


@everywhere
def test_nothing_is_left_over_or_vaguely_named(path: Path) -> None:
    assert path.stem not in VAGUE
    found = LEFT_OVER.search(path.read_text())
    assert found is None, found


def test_the_architecture_names_no_module_that_is_gone() -> None:
    text = (ROOT / "docs" / "architecture.md").read_text()
    named = re.findall(r"`((?:dlm|clusterfs)/[\w/]+\.py)`", text)
    gone = [name for name in named if not (ROOT / name).exists()]
    assert gone == []


def test_every_guarantee_names_tests_that_exist() -> None:
    text = (ROOT / "docs" / "guarantees.md").read_text()
    tests = "\n".join(test.read_text() for test in (ROOT / "tests").rglob("test_*.py"))
    named = re.findall(r"`(test_\w+)`", text)
    files = {test.stem for test in (ROOT / "tests").rglob("test_*.py")}
    missing = [name for name in named if f"def {name}(" not in tests and name not in files]
    assert named
    assert missing == []


@pytest.mark.parametrize(
    "document", sorted((ROOT / "docs").rglob("*.md")), ids=lambda path: path.name
)
def test_links_between_documents_lead_somewhere(document: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+?)(?:#[^)]*)?\)", document.read_text()):
        if "://" not in target:
            assert (document.parent / target).exists(), f"{document.name} links to {target}"
