"""What is checked again under the lock."""

import pytest

from clusterfs.errors import OperationNotPermitted
from clusterfs.fs.attributes import fresh
from clusterfs.fs.permissions import allowed_mode, check_change
from clusterfs.fs.results import Caller, Changes

RECORD = fresh(0o106755, 1000, 2000, 0)
FOWNER, FSETID, CHOWN = 1 << 3, 1 << 4, 1


@pytest.mark.parametrize(
    ("changes", "caller", "allowed"),
    [
        (Changes(mode=0o600), Caller(1000), True),
        (Changes(mode=0o600), Caller(0), True),
        (Changes(mode=0o600), Caller(1), False),
        (Changes(mode=0o600), Caller(1, capabilities=FOWNER), True),
        (Changes(mode=0o100755, size=0), Caller(1), True),  # the kernel clears setuid for a writer
        (Changes(gid=5), Caller(1), False),
        (Changes(gid=5), Caller(1, capabilities=CHOWN), True),
        (Changes(size=0, mtime_ns=5), Caller(1), True),
    ],
)
def test_only_the_owner_of_now_changes_modes_and_owners(
    changes: Changes, caller: Caller, *, allowed: bool
) -> None:
    if allowed:
        check_change(RECORD, changes, caller)
    else:
        with pytest.raises(OperationNotPermitted):
            check_change(RECORD, changes, caller)


@pytest.mark.parametrize(
    ("caller", "mode"),
    [
        (Caller(0), 0o2755),
        (Caller(1000, 2000), 0o2755),
        (Caller(1000, 5, groups=(2000,)), 0o2755),
        (Caller(1000, 5), 0o755),
        (Caller(1000, 5, capabilities=FSETID), 0o2755),
    ],
)
def test_setgid_is_given_by_members_of_the_group(caller: Caller, mode: int) -> None:
    assert allowed_mode(RECORD, 0o2755, caller) == mode
