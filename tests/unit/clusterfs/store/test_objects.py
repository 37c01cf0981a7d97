"""The small functions beside the vocabulary."""

from hypothesis import given
from hypothesis import strategies as st

from clusterfs.store.objects import joined


@given(st.sets(st.integers(0, 60)))
def test_stretches_cover_exactly_the_numbers_and_are_as_long_as_can_be(numbers: set[int]) -> None:
    found = joined(sorted(numbers))
    covered = [n for first, count in found for n in range(first, first + count)]
    assert covered == sorted(numbers)
    assert all(first + count not in numbers for first, count in found)
