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
    if path.name not in ("__init__.py", "__main__.py")
)
MODULE_LINES = 480
FUNCTION_LINES = 60
METHODS = 40
LONG = {  # doors: one short method for each thing that can be asked for
    "clusterfs/fuse/operations.py",
    "clusterfs/fs/filesystem.py",
    "clusterfs/sim/model_store.py",
    "clusterfs/volume/volume.py",
    "dlm/node.py",
}
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
def test_a_module_is_within_reach_of_a_test(path: Path, reached: set[str]) -> None:
    assert ".".join(path.relative_to(ROOT).with_suffix("").parts) in reached


@pytest.fixture(scope="module")
def reached() -> set[str]:
    """Every module that some test imports, or that such a module imports, and so on."""
    tests = [path for path in (ROOT / "tests").rglob("*.py") if path != Path(__file__)]
    left = {name for test in tests for name in imported(test)}
    found: set[str] = set()
    while left:
        name = left.pop()
        path = ROOT.joinpath(*name.split("."))
        file = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
        if name not in found and file.exists():
            found.add(name)
            left |= imported(file)
    return found


def imported(path: Path) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            names |= set(re.findall(r"\b((?:clusterfs|dlm)(?:\.\w+)+)", node.value))
    return names


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
