"""Lock modes: which of them two owners may hold together, which conversions exist, who moves the LVB.

The six modes are the classic VMS ones, with the numbers and matrices of Linux fs/dlm.
"""

import enum


class Mode(enum.IntEnum):
    """How strongly a lock excludes others, weakest first."""

    NL = 0
    CR = 1
    CW = 2
    PR = 3
    PW = 4
    EX = 5

    def compatible(self, other: "Mode") -> bool:
        """Tell whether two owners may hold `self` and `other` on one resource."""
        return bool(_COMPATIBLE[self] >> other & 1)


# Row = held mode, bit n = requested mode n. The matrix is symmetric.
_COMPATIBLE = (0b111111, 0b011111, 0b000111, 0b001011, 0b000011, 0b000001)
