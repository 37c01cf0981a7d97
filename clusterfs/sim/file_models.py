"""Sequential models of what tests do with shared files, for the check of their histories. PURE.

Each is a step function of `linearizability.check`: (state, action, result) to the next state, or
None if the action cannot give that result. Contents are the unique numbers of whoever wrote them.

Sources of the semantics: POSIX.1-2017, the functions named in the comments.
"""

from typing import Any

from clusterfs.sim.linearizability import UNKNOWN

Action = tuple[Any, ...]
Names = frozenset[tuple[str, int]]  # (name, the file it leads to)

EMPTY_REGISTER = 0
EMPTY_LOG: tuple[int, ...] = ()
EMPTY_TREE: Names = frozenset()
FREE = 0
STRANGER = -1  # the file of some creation whose maker never learned its number
NOTHING = 0  # what a name leads to that does not exist
SOMETHING = -2  # some file that was moved here


def register(state: int, action: Action, result: Any) -> int | None:
    """Answer for a block of a file that is written and read as a whole: pwrite, pread.

    ("write", value) gives nothing; ("read",) gives the value.
    """
    if action[0] == "write":
        return int(action[1])
    return state if result in (state, UNKNOWN) else None


def log(state: tuple[int, ...], action: Action, result: Any) -> tuple[int, ...] | None:
    """Answer for a file of records that is appended to: write with O_APPEND, truncate, stat.

    ("append", value), ("truncate",) to nothing; ("read",) gives all values, ("size",) their number.
    """
    kind = action[0]
    if kind == "append":
        return (*state, action[1])
    if kind == "truncate":
        return ()
    seen: Any = state if kind == "read" else len(state)
    return state if result in (seen, UNKNOWN) else None


def tree(state: Names, action: Action, result: Any) -> Names | None:
    """Answer for names in some directories: open with O_EXCL, unlink, rename, stat, readdir.

    ("create", name, file), ("unlink", name), ("rename", old, new) give True, or False: the name was
    there (create) or was not; ("stat", name) gives the file or None; ("list", directory) gives the
    names. A file is the number of its inode, or negative: that of its creation, whose maker never
    learned the inode.
    """
    if action[0] in ("stat", "list"):
        seen = _looked(state, action)
        strange = result == STRANGER and isinstance(seen, int) and seen < 0
        return state if strange or result in (seen, UNKNOWN) else None
    names = dict(state)
    if action[0] == "create":
        possible = action[1] not in names
        names.setdefault(action[1], action[2])
    else:
        moved = names.pop(action[1], None)
        possible = moved is not None
        if action[0] == "rename" and moved is not None:
            names[action[2]] = moved
    if result is UNKNOWN:
        return frozenset(names.items())
    return frozenset(names.items()) if result == possible else None


def name(state: int, action: Action, result: Any) -> int | None:  # noqa: PLR0911 - one per action
    """Answer for one name alone: what `tree` says of it, whatever a rename brings.

    ("create", file), ("remove",): by unlink, or by a rename to elsewhere, ("arrive",): by a rename,
    ("exists",), ("stat",). The state is the file, NOTHING, or SOMETHING until somebody looks.
    """
    kind = action[0]
    if kind == "stat":
        if state == SOMETHING and result is not None:
            return int(result) if result > 0 else SOMETHING
        strange = result == STRANGER and state < NOTHING
        return state if strange or result == (state or None) else None
    if kind == "exists":
        return state if result == bool(state) else None
    if kind == "arrive":
        return state if result is False else SOMETHING
    possible = bool(state) == (kind == "remove")
    if result is not UNKNOWN and result != possible:
        return None
    if kind == "remove":
        return NOTHING
    return int(action[1]) if possible else state


def _looked(state: Names, action: Action) -> Any:
    if action[0] == "stat":
        return dict(state).get(action[1])
    prefix = f"{action[1]}/"
    return frozenset(name.removeprefix(prefix) for name, _ in state if name.startswith(prefix))


def mutex(state: int, action: Action, result: Any) -> int | None:
    """Answer for an exclusive lock: ("lock", who) gives True or False; ("unlock", who).

    ("end", who): it ended without a word, for the holder's node was lost.

    The state is who holds it, FREE if nobody does.
    """
    kind, who = action
    if kind == "end":
        return FREE if state == who else None
    if kind == "unlock":
        return FREE if state in (who, FREE) else None
    if result is False:
        return state if state not in (who, FREE) else None
    return int(who) if state in (who, FREE) else None
