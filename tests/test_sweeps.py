"""The share of a long sweep that a run of the suite takes."""

from types import SimpleNamespace

import pytest

from tests.sweeps import left_out, named

SWEEP = pytest.mark.sweep(share=0.25).mark


class Item(SimpleNamespace):
    """The part of a test that a sweep reads."""

    __hash__ = object.__hash__

    def get_closest_marker(self, name):
        return self.marker


def items(name, count, marker=SWEEP):
    return [Item(nodeid=f"tests/test_x.py::{name}[{case}]", marker=marker) for case in range(count)]


def test_a_share_of_each_sweep_stays_and_of_other_tests_all():
    first, second, others = items("first", 80), items("second", 6), items("other", 10, marker=None)
    out = left_out([*first, *others, *second], seed=3)

    assert [sum(item not in out for item in part) for part in (first, second, others)] == [20, 2, 10]


def test_a_seed_draws_the_same_cases_again_and_others_draw_others_until_none_is_left():
    cases = items("first", 80)
    draws = [{item.nodeid for item in cases} - {item.nodeid for item in left_out(cases, seed)} for seed in range(40)]

    assert {item.nodeid for item in items("first", 80)} - {item.nodeid for item in left_out(cases, 5)} == draws[5]
    assert len({frozenset(draw) for draw in draws}) == 40
    assert set().union(*draws) == {item.nodeid for item in cases}


def test_a_case_that_is_asked_for_alone_stays():
    for case in items("first", 80):
        assert not left_out([case], seed=3)


@pytest.mark.parametrize(
    ("argument", "count"),
    [
        ("tests/test_x.py::first[7]", 1),
        ("test_x.py::first", 80),
        ("tests/test_x.py", 0),
        ("tests/test_y.py::first", 0),
        ("tests/test_x.py::fir", 0),
    ],
)
def test_cases_that_the_command_line_names_stay(tmp_path, argument, count):
    cases = items("first", 80) + items("second", 80)
    for item in cases:
        item.path = tmp_path / "tests" / "test_x.py"
    folder = tmp_path if argument.startswith("tests/") else tmp_path / "tests"

    asked = named(cases, ["-q", argument], folder)

    assert len(asked) == count
    assert all("first" in item.nodeid for item in asked)
    assert not asked & left_out(cases, seed=3, named=asked)
    assert len(left_out(cases, seed=3, named=asked)) == (60 if count == 80 else 119 if count == 1 else 120)
