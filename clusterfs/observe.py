"""Logs: where they go and what a line looks like; set up here and nowhere else.

One JSON object a line, with `time` (UTC, ISO 8601), `level`, `event` and whatever the event
carries; context given at start (the node's name) is in each. Objects call
`structlog.get_logger(package=...)` when they are made, never modules when they are imported.

Invariants:
  * a line is one write to a descriptor opened for appending: lines of several processes in one file
    do not mix, and a file that is cut (logrotate's copytruncate) goes on at its beginning;
  * logging never raises: with the disk full, lines are lost and counted.
"""

import logging
import os
import sys
from pathlib import Path
from typing import Any

import structlog

from clusterfs.errors import SetupError

LEVELS = ("debug", "info", "warning", "error")


class LogFile:
    """A file that lines are appended to; standard error if it has no path."""

    def __init__(self, path: Path | None) -> None:
        self.lost = 0
        self._path = path
        self._descriptor = self._opened()

    def msg(self, line: str) -> None:
        """Append one line."""
        encoded = line.encode("utf-8", "backslashreplace") + b"\n"
        try:
            written = os.write(self._descriptor, encoded)
        except OSError:
            written = 0
        self.lost += written != len(encoded)

    debug = info = warning = error = critical = msg

    def close(self) -> None:
        """Close the file; standard error stays open."""
        if self._path is not None:
            os.close(self._descriptor)

    def _opened(self) -> int:
        if self._path is None:
            return sys.stderr.fileno()
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC
        try:
            return os.open(self._path, flags, 0o640)
        except OSError as error:
            raise SetupError(f"log file {self._path}: {error.strerror}") from error


def set_up_logs(path: Path | None, level: str, **context: Any) -> LogFile:
    """Send all logs of this process to `path` (None: standard error), from `level` up.

    Args:
        path: created if absent; its folder must exist.
        level: one of LEVELS.
        context: in every line.

    Raises:
        SetupError: the file cannot be opened.
    """
    assert level in LEVELS, level
    file = LogFile(path)
    structlog.reset_defaults()
    structlog.configure(
        processors=[
            _with_context(context),
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True, key="time"),
            structlog.processors.format_exc_info,
            structlog.processors.UnicodeDecoder(),
            structlog.processors.JSONRenderer(default=repr),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(getattr(logging, level.upper())),
        logger_factory=_Loggers(file),
        cache_logger_on_first_use=False,
    )
    return file


class _Loggers:
    """Hands the one file to every logger."""

    def __init__(self, file: LogFile) -> None:
        self._file = file

    def __call__(self, *_names: Any) -> LogFile:
        return self._file


def _with_context(context: dict[str, Any]) -> structlog.types.Processor:
    def add(
        _logger: Any, _method: str, event: structlog.types.EventDict
    ) -> structlog.types.EventDict:
        return {**context, **event}

    return add
