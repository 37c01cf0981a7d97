"""A pytest plugin: what a failed test leaves behind fails no other test.

The traceback of a failure is garbage with cycles in it, and holds what the test had open: programs
that still run, files, sockets. Whenever that is collected there is a warning, and warnings are
errors, of whichever test runs then. So it is collected before the next one begins.
"""

import gc
import sys
import warnings
from collections.abc import Generator

import pytest

_failed = pytest.StashKey[bool]()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item,
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Note that a test failed, in whatever phase."""
    report = yield
    if report.failed:
        item.config.stash[_failed] = True
    return report


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    """Collect what a failure left before the next test, and say nothing of it."""
    result = yield
    if item.config.stash.get(_failed, False):
        item.config.stash[_failed] = False
        for name in ("last_type", "last_value", "last_traceback", "last_exc"):
            vars(sys).pop(name, None)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            gc.collect()
    return result
