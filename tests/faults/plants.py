"""Bugs for daemons under test: what must be found if the checks are worth anything."""


def sow(name: str) -> None:
    """Make this process behave wrongly in the way of that name; `none` does nothing."""
    if name != "none":
        globals()[f"_{name}"]()
