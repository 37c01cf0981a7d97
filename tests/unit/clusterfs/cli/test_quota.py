import os
from pathlib import Path

import pytest

from clusterfs.cli import quota
from clusterfs.errors import SetupError


def test_a_directory_of_another_filesystem_is_refused_and_gets_no_attribute(tmp_path: Path) -> None:
    for verb in (lambda: quota.set_(tmp_path, size="1G"), lambda: quota.show(tmp_path)):
        with pytest.raises(SetupError, match="is on no clusterfs"):
            verb()
    assert os.listxattr(tmp_path) == []


@pytest.mark.parametrize("text", ["", "k", "5X", "-1", "1.5G", "9" * 23, "4194305T"])
def test_what_is_no_limit_is_said(tmp_path: Path, text: str) -> None:
    with pytest.raises(SetupError, match=f"'{text}' is "):
        quota.set_(tmp_path, size=text)
