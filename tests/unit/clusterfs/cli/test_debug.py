"""A debug bundle has no secrets in it."""

import pytest

from clusterfs.cli.debug import without_secrets


@pytest.mark.parametrize(
    "line",
    ['password = "abc"', 'etcd.password="abc"', '"secret_key" = "abc"', '  Token = "abc"  # it'],
)
def test_values_that_sound_like_secrets_are_left_out(line: str) -> None:
    cleaned = without_secrets(f'name = "n1"\n{line}\nbrick = "b"\n')
    assert "abc" not in cleaned
    assert cleaned.startswith('name = "n1"\n')
    assert cleaned.endswith('brick = "b"\n')
