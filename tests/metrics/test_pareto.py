"""The front against its definition, by hypothesis."""

from hypothesis import given
from hypothesis import strategies as st

from kwsbench.metrics.pareto import front_of

points = st.lists(st.tuples(st.integers(0, 6), st.integers(0, 6)), min_size=1, max_size=12)


@given(points)
def test_every_point_off_the_front_is_beaten_by_one_on_it_and_none_on_it_by_any(found):
    front = front_of(found)

    def beats(a, b):
        return a[0] <= b[0] and a[1] >= b[1] and a != b

    assert front
    for i, point in enumerate(found):
        assert (i in front) == (not any(beats(other, point) for other in found))
        assert i in front or any(beats(found[j], point) for j in front)
