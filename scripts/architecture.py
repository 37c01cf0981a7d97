"""Rewrites the module tables of docs/architecture.md from the modules' own first lines.

Everything above the marker is written by hand; everything below comes from here. The tests fail
when a module is missing; then run this and review the difference.
"""

import ast
from pathlib import Path

ROOT = Path(__file__).parents[1]
DOCUMENT = ROOT / "docs" / "architecture.md"
MARKER = "## Module by module\n"
PACKAGES = [
    *("clusterfs", "clusterfs/cli", "clusterfs/cli/locks"),
    *("clusterfs/fuse", "clusterfs/fs", "clusterfs/volume"),
    *("clusterfs/store", "clusterfs/cluster", "clusterfs/cluster/providers", "clusterfs/sim"),
    *("dlm", "dlm/core", "dlm/net", "dlm/sim"),
]


def first_line(path: Path) -> str:
    """Return the first line of a module's docstring."""
    return (ast.get_docstring(ast.parse(path.read_text())) or "").partition("\n")[0]


def table(package: str) -> str:
    """Return one package: what it is, and a line for each module."""
    folder = ROOT / package
    lines = [
        f"### {package}",
        "",
        first_line(folder / "__init__.py"),
        "",
        "| module | |",
        "|---|---|",
    ]
    for path in sorted(folder.glob("*.py")):
        if not path.name.startswith("__"):
            says = first_line(path).replace("|", "\\|")
            lines.append(f"| `{path.relative_to(ROOT)}` | {says} |")
    return "\n".join(lines)


def main() -> None:
    """Rewrite the document."""
    written, marker, _ = DOCUMENT.read_text().partition(MARKER)
    assert marker, f"{DOCUMENT} has no {MARKER!r}"
    tables = "\n\n".join(table(package) for package in PACKAGES)
    DOCUMENT.write_text(f"{written}{marker}\n{tables}\n")


if __name__ == "__main__":
    main()
