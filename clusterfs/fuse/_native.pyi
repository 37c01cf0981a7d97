from typing import TypedDict

LIBFUSE_VERSION: int
KNOWN_LIBFUSE: int
UNLOOKED: int

class Negotiated(TypedDict):
    protocol_minor: int
    init_completed: bool
    allow_mmap: bool

def current_is_page_io() -> bool: ...
def session_fd() -> int: ...
def hooked() -> bool: ...
def negotiated() -> Negotiated: ...
