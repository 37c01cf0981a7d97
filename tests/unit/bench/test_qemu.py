"""What `bench qemu` counts: a clone is one, a table has every row, SQLite's ways are told apart."""

import contextlib
import os
import sqlite3
from pathlib import Path

from bench.qemu import WAYS, clone, table, update


def test_tables_have_every_row_and_column() -> None:
    rows = {"a": {"x": 1.234, "y": 1234.5}, "b": {"x": 20, "y": 0}}
    assert table("name", rows).splitlines() == [
        "| name | x | y |",
        "|---|---:|---:|",
        "| a | 1.23 | 1,234 |",
        "| b | 20 | 0.00 |",
    ]


def test_a_clone_has_all_of_the_image(tmp_path: Path) -> None:
    (tmp_path / "image").write_bytes(content := os.urandom(1 << 20))
    assert clone(tmp_path / "image", tmp_path / "clone") > 0
    assert (tmp_path / "clone").read_bytes() == content


def test_a_transaction_changes_the_rows_it_is_about(tmp_path: Path) -> None:
    assert len({way.journal for way in WAYS.values()}) == len(WAYS)
    with contextlib.closing(sqlite3.connect(tmp_path / "data", isolation_level=None)) as data:
        data.execute("CREATE TABLE t (id INTEGER PRIMARY KEY, n INTEGER, pad TEXT)")
        data.executemany("INSERT INTO t VALUES (?, 0, '')", [(n,) for n in range(100)])
        update(data)
        assert data.execute("SELECT id FROM t WHERE n = 1").fetchall() == [(0,), (50,)]
