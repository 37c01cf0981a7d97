"""A node whose root is nobody special; its other users are who they are."""

import errno
import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from clusterfs.cli.dev import Cluster

SQUASHED = '[exports]\nroot_squash = ["n2"]\n'
NOBODY = 65534


@pytest.fixture(scope="module")
def cluster(make_cluster: Callable[..., Cluster]) -> Cluster:
    """A node with the data, and a client that is not trusted with root."""
    cluster = make_cluster(0)
    cluster.configure(1, 1)
    cluster.up()
    cluster.configure(2, 1)
    second = cluster.node("n2").config
    second.write_text("storage = false\n" + second.read_text() + SQUASHED)
    cluster.up()
    return cluster


@pytest.fixture
def tree(cluster: Cluster) -> Path:
    """What the first node's root has made, as the second node sees it."""
    first, second = (node.mount for node in cluster.nodes)
    here = first / "tree"
    if not here.exists():
        for name, mode in (("private", 0o700), ("public", 0o777), ("ours", 0o755)):
            (here / name).mkdir(parents=True)
            (here / name / "file").write_bytes(b"of root")
            (here / name).chmod(mode)
        (here / "ours" / "secret").write_bytes(b"secret")
        (here / "ours" / "secret").chmod(0o600)
    return second / "tree"


def refused(code: int, call: Callable[..., Any], *words: Any) -> None:
    with pytest.raises(OSError, match=r".") as failure:
        call(*words)
    assert failure.value.errno == code, (call, words)


def test_root_may_do_what_anybody_may(tree: Path) -> None:
    assert (tree / "ours" / "file").read_bytes() == b"of root"
    assert sorted(os.listdir(tree / "ours")) == ["file", "secret"]
    made = tree / "public" / "made"
    made.write_bytes(b"by nobody")
    assert (made.stat().st_uid, made.stat().st_gid) == (NOBODY, NOBODY)
    made.chmod(0o640)
    os.setxattr(made, "user.note", b"1")
    assert os.getxattr(made, "user.note") == b"1"
    os.truncate(made, 2)
    os.utime(made)
    (tree / "public" / "folder").mkdir()
    made.rename(tree / "public" / "folder" / "moved")
    (tree / "public" / "folder" / "moved").unlink()
    (tree / "public" / "folder").rmdir()


def test_root_may_do_nothing_else(tree: Path, cluster: Cluster) -> None:
    file, public = tree / "ours" / "file", tree / "public"
    no = errno.EACCES
    refused(no, (tree / "private" / "file").read_bytes)
    refused(no, os.listdir, tree / "private")
    refused(no, (tree / "ours" / "secret").read_bytes)
    refused(no, file.write_bytes, b"x")
    refused(no, os.truncate, file, 0)
    refused(no, (tree / "ours" / "new").touch)
    refused(no, (tree / "ours" / "new").mkdir)
    refused(no, (tree / "ours" / "new").symlink_to, "x")
    refused(no, os.mkfifo, tree / "ours" / "new")
    refused(no, os.link, file, public / "link")
    refused(no, file.unlink)
    refused(no, file.rename, public / "stolen")
    refused(no, os.setxattr, file, "user.note", b"1")
    refused(errno.EPERM, os.setxattr, file, "trusted.note", b"1")
    refused(errno.EPERM, os.chown, file, NOBODY, NOBODY)
    refused(errno.EPERM, file.chmod, 0o777)
    first = cluster.node("n1").mount / "tree"
    assert (first / "ours" / "file").read_bytes() == b"of root"
    assert sorted(os.listdir(first / "ours")) == ["file", "secret"]


def test_other_users_are_who_they_are(tree: Path, cluster: Cluster) -> None:
    owned = cluster.node("n1").mount / "tree" / "public" / "owned"
    owned.write_bytes(b"of 1234")
    owned.chmod(0o600)
    os.chown(owned, 1234, 1234)
    there = tree / "public" / "owned"
    refused(errno.EACCES, there.read_bytes)
    as_user = ("setpriv", "--reuid=1234", "--regid=1234", "--clear-groups", "--inh-caps=-all")
    done = subprocess.run([*as_user, "cat", there], capture_output=True, check=True)
    assert done.stdout == b"of 1234"
    assert owned.read_bytes() == b"of 1234"
