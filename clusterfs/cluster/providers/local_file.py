"""The local provider's SQLite file: identity, names, view and heartbeats of one machine's cluster.

Synchronous, and free of trio, because the supervisor process uses it too. Each method is one
transaction or one read. No commit syncs, for it holds the file's write lock meanwhile, and a disk
that stalls would cost every node its lease. What must survive a power cut (all but the beats) is
written by an instance opened `durable`, which syncs the write-ahead log once the lock is free;
and whoever reads a view that it did not know to be on disk syncs before it believes in it.
A process that is stopped while it holds the lock, for microseconds, blocks everybody. Nor does a
renewal move the log into the file, which SQLite would do now and then, with two syncs: `tidy` does.

The file is read and written by its owner only (it holds the cluster's secret), and must be on a
local disk: SQLite's write-ahead log needs memory shared by all users of the file.

Invariants:
  * `view` is written only by `propose`, and its epoch grows by exactly one each time;
  * `members` has one row for each member of the stored view, with the member's state;
  * a view is on disk before any call returns it, or returns that it is agreed;
  * an incarnation is handed out once; a name keeps its node number until it is forgotten.
"""

import contextlib
import os
import secrets
import sqlite3
import stat
import uuid
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from clusterfs.cluster.providers import Identity, Registration, Snapshot, refuse_store_of_another
from clusterfs.cluster.views import State, View, decode_view, encode_view
from clusterfs.errors import ProviderAway, SetupError

_APPLICATION_ID = 0x636C6673  # "clfs"
_FORMAT = 1
LAST_NODE = 62
LAST_INCARNATION = (1 << 24) - 1  # inode numbers have 24 bits for it

_SCHEMA = """
CREATE TABLE identity (cluster TEXT NOT NULL, secret BLOB NOT NULL, lease_s REAL NOT NULL);
CREATE TABLE counter (incarnation INTEGER NOT NULL);
CREATE TABLE nodes (node INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE, store_id TEXT NOT NULL);
CREATE TABLE view (epoch INTEGER NOT NULL, body BLOB NOT NULL);
CREATE TABLE members (
    incarnation INTEGER PRIMARY KEY, node INTEGER NOT NULL, up INTEGER NOT NULL,
    beat INTEGER NOT NULL);
CREATE TABLE caches_dropped (incarnation INTEGER PRIMARY KEY, node INTEGER NOT NULL);
INSERT INTO counter VALUES (0);
"""
_LOG_PAGES = 1000  # a durable commit that finds so many tidies up
_NOTES = "CREATE TABLE IF NOT EXISTS notes (name TEXT PRIMARY KEY, value BLOB NOT NULL)"


class LocalFile:
    """One connection to the file. Calls must not overlap; any thread may make them."""

    def __init__(self, path: Path | str, *, durable: bool = True, wait_s: float = 0.25) -> None:
        self._path = str(path)
        self._durable = durable
        self._wait_s = wait_s
        self._db: sqlite3.Connection | None = None
        self._inode: tuple[int, int] | None = None
        self._seen: int | None = None
        self._safe_epoch = 0  # views up to this one are on disk
        self._view: View | None = None  # as read last; an epoch has one view

    def create(self, *, found: bool = True) -> None:
        """Make the file if there is none, and check that it is one of ours. Raises SetupError."""
        try:
            _make_private(self._path, found=found)
            with self._transaction() as db:
                self._create_tables(db)
        except OSError as error:
            raise SetupError(f"cluster file {self._path}: {error.strerror}") from error

    def identity(self, lease_s: float) -> Identity:
        """Return the cluster's identity; the first to ask founds the cluster."""
        with self._transaction() as db:
            row = db.execute("SELECT cluster, secret, lease_s FROM identity").fetchone()
            if row is None:
                row = (str(uuid.uuid4()), secrets.token_bytes(32), lease_s)
                db.execute("INSERT INTO identity VALUES (?, ?, ?)", row)
        return Identity(*row)

    def register(self, name: str, store_id: str = "") -> Registration:
        """Return the node number of that name and a fresh incarnation.

        Raises SetupError if the store is that of another name: what it holds counts only there.
        """
        with self._transaction() as db:
            stores = dict(db.execute("SELECT name, store_id FROM nodes").fetchall())
            refuse_store_of_another(name, store_id, stores)
            db.execute("UPDATE counter SET incarnation = incarnation + 1")
            (incarnation,) = db.execute("SELECT incarnation FROM counter").fetchone()
            if incarnation > LAST_INCARNATION:
                raise SetupError(f"cluster file {self._path}: all incarnations are used up")
            node, store_id = _node_of(db, name)
        return Registration(node, incarnation, store_id)

    def names(self) -> dict[int, str]:
        """Return the name of every node number that was ever handed out."""
        with self._transaction("DEFERRED") as db:
            return dict(db.execute("SELECT node, name FROM nodes").fetchall())

    def renew(self, node: int, incarnation: int) -> int | None:
        """Move the beat if this incarnation is UP, and return the epoch, else None."""
        with self._transaction() as db:
            moved = db.execute(
                "UPDATE members SET beat = beat + 1 WHERE incarnation = ? AND node = ? AND up",
                (incarnation, node),
            ).rowcount
            (epoch,) = db.execute("SELECT max(epoch) FROM view").fetchone()
        return epoch if moved else None

    def read(self) -> Snapshot:
        """Return view, beats and reports as of one instant."""
        with self._transaction("DEFERRED") as db:
            view = self._read_view(db)
            beats = dict(db.execute("SELECT incarnation, beat FROM members").fetchall())
            dropped = db.execute("SELECT incarnation FROM caches_dropped").fetchall()
        if view is not None:
            self._settle(view.epoch)
        return Snapshot(view, beats, frozenset(incarnation for (incarnation,) in dropped))

    def propose(self, view: View, beats: Mapping[int, int]) -> bool:
        """Replace the view before `view` unless another did, or one of `beats` moved."""
        body = encode_view(view)
        with self._transaction() as db:
            (epoch,) = db.execute("SELECT coalesce(max(epoch), 0) FROM view").fetchone()
            now = dict(db.execute("SELECT incarnation, beat FROM members").fetchall())
            if epoch != view.epoch - 1 or any(now.get(i) != beat for i, beat in beats.items()):
                return False
            db.execute("DELETE FROM view")
            db.execute("INSERT INTO view VALUES (?, ?)", (view.epoch, body))
            _write_members(db, view, now)
        self._safe_epoch = max(self._safe_epoch, view.epoch)
        return True

    def changed(self) -> bool:
        """Tell whether another connection wrote anything since the last call."""
        try:
            (version,) = self._connection().execute("PRAGMA data_version").fetchone()
        except sqlite3.Error as error:
            self.close()
            raise ProviderAway(f"cluster file {self._path}: {error}") from error
        changed = bool(version != self._seen)
        self._seen = version
        return changed

    def caches_dropped(self, node: int, incarnation: int) -> None:
        """Note that this incarnation serves nothing any more, nor does its kernel."""
        with self._transaction() as db:
            db.execute("INSERT OR IGNORE INTO caches_dropped VALUES (?, ?)", (incarnation, node))

    def notes(self, prefix: str) -> dict[str, bytes]:
        """Return the notes whose names begin with `prefix`."""
        with self._transaction("DEFERRED") as db:
            found = dict(db.execute("SELECT name, value FROM notes").fetchall())
        return {name: value for name, value in found.items() if name.startswith(prefix)}

    def set_note(self, name: str, value: bytes | None, former: bytes | None) -> bool:
        """Replace a note if it is `former`; None stands for none."""
        with self._transaction() as db:
            row = db.execute("SELECT value FROM notes WHERE name = ?", (name,)).fetchone()
            if (row[0] if row else None) != former:
                return False
            db.execute("DELETE FROM notes WHERE name = ?", (name,))
            if value is not None:
                db.execute("INSERT INTO notes VALUES (?, ?)", (name, value))
        return True

    def forget(self, name: str) -> None:
        """Forget a node's name, number and store."""
        with self._transaction() as db:
            db.execute("DELETE FROM nodes WHERE name = ?", (name,))

    def tidy(self) -> None:
        """Move the log into the file, so that it does not grow: syncs twice, keeps nobody out."""
        try:
            self._connection().execute("PRAGMA wal_checkpoint(PASSIVE)").fetchone()
        except sqlite3.Error as error:
            self.close()
            raise ProviderAway(f"cluster file {self._path}: {error}") from error

    def close(self) -> None:
        """Close the connection; a later call opens it again."""
        if self._db is not None:
            self._db.close()
            self._db = None
            self._view = None

    @contextmanager
    def _transaction(self, kind: str = "IMMEDIATE") -> Iterator[sqlite3.Connection]:
        """All or nothing, on disk if durable; every failure of SQLite's becomes ProviderAway."""
        try:
            db = self._connection()
            before = db.total_changes
            db.execute(f"BEGIN {kind}")
            try:
                yield db
            except BaseException:
                db.rollback()
                raise
            db.commit()
        except sqlite3.Error as error:
            self.close()
            raise ProviderAway(f"cluster file {self._path}: {error}") from error
        if db.total_changes > before:
            self._sync()

    def _settle(self, epoch: int) -> None:
        """Have what was read on disk, whoever wrote it."""
        if epoch > self._safe_epoch:
            self._sync()
            self._safe_epoch = epoch

    def _sync(self) -> None:
        """Sync the write-ahead log, with all that anybody has committed to it. Raises ProviderAway.

        SQLite takes no locks on that file, so it may be closed.
        """
        if not self._durable or self._path == ":memory:":
            return
        try:
            log = os.open(f"{self._path}-wal", os.O_RDWR | os.O_CLOEXEC)
            try:
                os.fdatasync(log)
            finally:
                os.close(log)
        except OSError as error:
            raise ProviderAway(f"cluster file {self._path}: sync: {error.strerror}") from error

    def _connection(self) -> sqlite3.Connection:
        if self._db is None:
            self._db = self._connect()
        elif self._inode is not None and self._inode != self._stat():
            self.close()
            raise ProviderAway(f"cluster file {self._path} was replaced by another")
        return self._db

    def _connect(self) -> sqlite3.Connection:
        inode = self._stat()
        memory = self._path == ":memory:"
        name = self._path if memory else f"{Path(self._path).absolute().as_uri()}?mode=rw"
        try:
            db = sqlite3.connect(
                name,
                uri=not memory,
                timeout=self._wait_s,
                isolation_level=None,
                check_same_thread=False,
            )
            db.execute("PRAGMA journal_mode = WAL")
            db.execute("PRAGMA synchronous = NORMAL")  # no commit syncs, checkpoints do
            db.execute(f"PRAGMA wal_autocheckpoint = {_LOG_PAGES if self._durable else 0}")
        except sqlite3.Error as error:
            if _is_foreign(error):
                raise SetupError(f"{self._path} is not a cluster file: {error}") from error
            raise ProviderAway(f"cluster file {self._path}: {error}") from error
        self._inode = inode
        self._seen = None
        return db

    def _stat(self) -> tuple[int, int] | None:
        if self._path == ":memory:":
            return None
        try:
            found = os.stat(self._path)  # noqa: PTH116  (this runs at every call)
        except OSError as error:
            raise ProviderAway(f"cluster file {self._path}: {error.strerror}") from error
        return found.st_dev, found.st_ino

    def _create_tables(self, db: sqlite3.Connection) -> None:
        (application,) = db.execute("PRAGMA application_id").fetchone()
        (version,) = db.execute("PRAGMA user_version").fetchone()
        (tables,) = db.execute("SELECT count(*) FROM sqlite_master").fetchone()
        if (application, version, tables) == (0, 0, 0):
            for statement in _SCHEMA.split(";"):
                db.execute(statement)
            db.execute(f"PRAGMA application_id = {_APPLICATION_ID}")
            db.execute(f"PRAGMA user_version = {_FORMAT}")
        elif application != _APPLICATION_ID:
            raise SetupError(f"{self._path} is an SQLite file, but not a cluster file")
        elif version != _FORMAT:
            raise SetupError(f"cluster file {self._path} has format {version}, not {_FORMAT}")
        db.execute(_NOTES)

    def _read_view(self, db: sqlite3.Connection) -> View | None:
        row = db.execute("SELECT max(epoch) FROM view").fetchone()
        if row[0] is not None and (self._view is None or self._view.epoch != row[0]):
            (body,) = db.execute("SELECT body FROM view").fetchone()
            try:
                self._view = decode_view(body)
            except ValueError as error:
                raise ProviderAway(f"cluster file {self._path}: {error}") from error
        return self._view


def report_caches_dropped(path: Path | str, node: int, incarnation: int) -> None:
    """Say for a daemon that has ended that no process and no kernel cache of its serves any more.

    For the supervisor: synchronous, waits at most 5 s for the file's lock. Only for an incarnation
    whose daemon process is gone, or that has stopped serving: others may take its locks at once.

    Raises:
        ProviderAway: the file is missing, damaged, or locked for long.
    """
    file = LocalFile(path, durable=False, wait_s=5.0)  # after a power cut nobody has caches
    try:
        file.caches_dropped(node, incarnation)
    finally:
        file.close()


def _make_private(path: str, *, found: bool) -> None:
    if path == ":memory:":
        return
    # An existing file is never opened here: closing any descriptor of it would drop the locks of
    # our own connections, and the next to close would believe itself the last, and delete the
    # write-ahead log that the others go on to write (sqlite.org/howtocorrupt.html, 2.2).
    if found:
        with contextlib.suppress(FileExistsError, FileNotFoundError):
            os.close(os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_CREAT | os.O_EXCL, 0o600))
    try:
        there = os.stat(path)  # noqa: PTH116
    except FileNotFoundError as error:
        missing = "its folder does not exist" if found else "the brick's cluster is not there"
        raise SetupError(f"cluster file {path}: {missing}") from error
    if not found and not there.st_size:
        raise SetupError(f"cluster file {path} is empty: restore the brick's cluster")
    mode = stat.S_IMODE(there.st_mode)
    if mode & 0o077:
        raise SetupError(f"cluster file {path} holds the secret but has mode {mode:04o}: chmod 600")


def _is_foreign(error: sqlite3.Error) -> bool:
    return getattr(error, "sqlite_errorcode", None) == sqlite3.SQLITE_NOTADB


def _node_of(db: sqlite3.Connection, name: str) -> tuple[int, str]:
    row: tuple[int, str] | None = db.execute(
        "SELECT node, store_id FROM nodes WHERE name = ?", (name,)
    ).fetchone()
    if row is not None:
        return row
    node = free_number(name, {node for (node,) in db.execute("SELECT node FROM nodes")})
    db.execute("INSERT INTO nodes VALUES (?, ?, '')", (node, name))
    return node, ""


def free_number(name: str, taken: Collection[int]) -> int:
    """Return a node number for a new name: one never used, if there is one left.

    Raises SetupError when all are taken.
    """
    number = max(taken, default=0) + 1
    free = [n for n in range(1, LAST_NODE + 1) if n not in taken]
    if number <= LAST_NODE:
        return number
    if not free:
        raise SetupError(f"node name {name}: a cluster has at most {LAST_NODE} names")
    return free[0]


def _write_members(db: sqlite3.Connection, view: View, beats: Mapping[int, int]) -> None:
    db.execute("DELETE FROM members")
    db.executemany(
        "INSERT INTO members VALUES (?, ?, ?, ?)",
        [
            (m.incarnation, m.node, m.state is State.UP, beats.get(m.incarnation, 0))
            for m in view.members
        ],
    )
    db.executemany(
        "UPDATE nodes SET store_id = ? WHERE node = ?",
        [(m.store_id, m.node) for m in view.members if m.store_id],
    )
    db.execute(
        "DELETE FROM caches_dropped WHERE incarnation NOT IN (SELECT incarnation FROM members)"
    )
