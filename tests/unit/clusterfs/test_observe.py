import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import structlog

from clusterfs.errors import SetupError
from clusterfs.observe import LogFile, set_up_logs


@pytest.fixture(autouse=True)
def defaults_afterwards() -> Iterator[None]:
    yield
    structlog.reset_defaults()


def test_a_line_is_json_with_its_context(tmp_path: Path) -> None:
    file = set_up_logs(tmp_path / "log", "info", node="n1")
    log = structlog.get_logger(package="cluster")
    log.info("joined", epoch=7, name=b"\xff", path=Path("x"))
    log.debug("noise")
    try:
        int("two\nlines")
    except ValueError:
        log.exception("failed")
    file.close()
    first, second = (json.loads(line) for line in (tmp_path / "log").read_text().splitlines())
    assert first["node"] == "n1"
    assert first["package"] == "cluster"
    assert (first["level"], first["event"], first["epoch"]) == ("info", "joined", 7)
    assert first["time"].endswith("Z")
    assert "ValueError" in second["exception"]


def test_a_file_that_is_cut_goes_on_at_its_beginning(tmp_path: Path) -> None:
    path = tmp_path / "log"
    file = set_up_logs(path, "debug")
    log = structlog.get_logger()
    log.info("one")
    log.info("two")
    os.truncate(path, 0)
    log.info("three")
    file.close()
    assert [json.loads(line)["event"] for line in path.read_text().splitlines()] == ["three"]


def test_logging_survives_a_full_disk() -> None:
    file = LogFile(Path("/dev/full"))
    file.msg("lost")
    assert file.lost == 1
    file.close()


def test_without_a_file_lines_go_to_standard_error(capfd: pytest.CaptureFixture[str]) -> None:
    set_up_logs(None, "warning").msg("hello")
    assert capfd.readouterr().err == "hello\n"


def test_a_missing_folder_is_said_so(tmp_path: Path) -> None:
    with pytest.raises(SetupError, match="No such file"):
        set_up_logs(tmp_path / "none" / "log", "info")
    assert list(tmp_path.iterdir()) == []
