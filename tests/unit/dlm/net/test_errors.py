"""Refusals keep what they say."""

import pytest

from dlm.net.errors import CODE_LIMIT, CODE_LOCK_ERROR, CODE_MALFORMED, CODE_NO_HANDLER, Refused


def test_a_refusal_has_a_code_of_two_bytes_and_a_detail() -> None:
    refusal = Refused(7, b"why")
    assert (refusal.code, refusal.detail) == (7, b"why")
    for code in (-1, 0x10000):
        with pytest.raises(AssertionError):
            Refused(code)


def test_the_codes_of_the_mesh_are_above_those_of_handlers() -> None:
    codes = {CODE_LOCK_ERROR, CODE_MALFORMED, CODE_NO_HANDLER}
    assert len(codes) == 3
    assert min(codes) >= CODE_LIMIT
