"""Schedules: whole curves against formulas, durations in ticks and in shares, and mistakes."""

import math
import pickle
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import lightning_reg
from lightning_reg import (
    Constant,
    Cosine,
    Exponential,
    Linear,
    Piecewise,
    Sequence,
    curriculum_dropout,
    early_dropout,
    late_dropout,
)
from lightning_reg.schedules import Schedule, resolve

TICKS = np.arange(60)


def curve(schedule: Callable[[int], float], ticks: np.ndarray = TICKS) -> np.ndarray:
    return np.array([schedule(int(tick)) for tick in ticks])


# Each over 40 ticks, and its formula before the end.
CURVES = {
    "constant": (Constant(0.7), lambda t: np.full(len(t), 0.7)),
    "linear up": (Linear(-1.0, 3.0, 40), lambda t: np.interp(t, [0, 40], [-1.0, 3.0])),
    "linear down": (Linear(0.1, 0.0, 40), lambda t: np.interp(t, [0, 40], [0.1, 0.0])),
    "cosine down": (Cosine(2.0, 0.5, 40), lambda t: 0.5 + 1.5 * np.cos(np.pi * np.minimum(t, 40) / 80) ** 2),
    "cosine up": (Cosine(0.0, 1.0, 40), lambda t: np.sin(np.pi * np.minimum(t, 40) / 80) ** 2),
    "exponential down": (Exponential(1.0, 1e-4, 40), lambda t: np.geomspace(1.0, 1e-4, 41)[np.minimum(t, 40)]),
    "exponential below zero": (Exponential(-0.1, -10.0, 40), lambda t: -np.geomspace(0.1, 10, 41)[np.minimum(t, 40)]),
    "piecewise": (
        Piecewise((1.0, 0.5, 0.25), (10, 30)),
        lambda t: np.select([t < 10, t < 40], [1.0, 0.5], 0.25),
    ),
    "sequence": (
        Sequence((Linear(0.0, 1.0, 10), Constant(1.0), Exponential(1.0, 0.1, 10)), (10, 20)),
        lambda t: np.interp(t, [0, 10], [0.0, 1.0]) * 0.1 ** np.clip((t - 30) / 10, 0, 1),
    ),
    "early dropout": (early_dropout(0.3, 40), lambda t: 0.3 * np.clip(1 - t / 40, 0, None)),
    "late dropout": (late_dropout(0.3, 40), lambda t: 0.3 * (t >= 40)),
    # Morerio et al., equation 3: the rate at which units are *kept*, with gamma = 10 / T and theta-bar = 1 - rate.
    "curriculum dropout": (curriculum_dropout(0.3, 40), lambda t: 1 - ((1 - 0.7) * np.exp(-10 * t / 40) + 0.7)),
}
every_schedule = pytest.mark.parametrize("schedule", [schedule for schedule, _ in CURVES.values()], ids=list(CURVES))


@pytest.mark.parametrize(("schedule", "formula"), list(CURVES.values()), ids=list(CURVES))
def test_a_curve_follows_its_formula(schedule, formula):
    np.testing.assert_allclose(curve(schedule), formula(TICKS), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("ramp", [Linear, Cosine, Exponential])
@pytest.mark.parametrize(("start", "end"), [(0.1, 0.3), (7.1, 0.1), (0.7, 1e-9), (1e-9, 0.7)])
def test_a_ramp_has_exact_ends_and_stays_at_the_last(ramp, start, end):
    schedule = ramp(start, end, 3)

    assert schedule(0) == start
    assert [schedule(tick) for tick in (3, 4, 10**12)] == [end] * 3


def test_a_ramp_of_one_tick_is_a_jump():
    assert [Linear(1.0, 2.0, 1)(tick) for tick in range(3)] == [1.0, 2.0, 2.0]


@pytest.mark.parametrize(
    ("ramp", "formula"),
    [
        (Linear(0.1, 0.5), lambda t: np.interp(t, [0, 50], [0.1, 0.5])),
        (Cosine(0.1, 0.5), lambda t: 0.1 + 0.4 * np.sin(np.pi * np.minimum(t, 50) / 100) ** 2),
        (Exponential(0.1, 0.5), lambda t: np.geomspace(0.1, 0.5, 51)[np.minimum(t, 50)]),
    ],
    ids=["linear", "cosine", "exponential"],
)
def test_a_ramp_takes_the_whole_run_by_default(ramp, formula):
    np.testing.assert_allclose(curve(ramp.resolve(50)), formula(TICKS), rtol=1e-12)


def test_early_and_late_dropout_take_the_papers_50_of_300_epochs():
    early, late = early_dropout(0.1).resolve(300), late_dropout(0.4).resolve(300)

    assert [early(epoch) for epoch in (0, 50, 299)] == [0.1, 0.0, 0.0]
    assert early(25) == pytest.approx(0.05)
    assert [late(epoch) for epoch in (0, 49, 50, 299)] == [0.0, 0.0, 0.4, 0.4]


def test_curriculum_dropout_takes_the_whole_run_by_default():
    schedule = curriculum_dropout(0.5).resolve(1000)

    np.testing.assert_allclose(curve(schedule, np.array([0, 100, 1000])), [0, 0.5 * (1 - 1 / math.e), 0.5], rtol=1e-4)


# Durations


@pytest.mark.parametrize(
    ("duration", "total", "ticks"),
    [
        (7, 100, 7),
        (7, math.inf, 7),
        (1, 100, 1),
        (1.0, 100, 100),
        (0.25, 100, 25),
        (0.999, 100, 100),
        (0.334, 100, 33),
        (0.001, 100, 1),
        (1.0, 0, 1),
        (np.float32(0.5), 10, 5),
    ],
)
def test_a_duration_is_ticks_if_an_int_and_a_share_if_a_float(duration, total, ticks):
    schedule = Linear(0.0, 1.0, duration).resolve(total)

    np.testing.assert_allclose(curve(schedule), np.minimum(TICKS / ticks, 1.0))


@pytest.mark.parametrize("total", [2, 9, 10, 15, 24, 25, 300])
def test_pieces_of_equal_shares_fill_the_run_evenly(total):
    parts = min(total, 10)
    schedule = Piecewise(range(parts), [1 / parts] * (parts - 1)).resolve(total)

    lengths = np.bincount([int(schedule(tick)) for tick in range(total)], minlength=parts)

    assert lengths.sum() == total
    assert lengths.min() == total // parts
    assert lengths.max() <= math.ceil(total / parts)


def test_an_int_between_shares_keeps_its_number_of_ticks():
    schedule = Piecewise((0.0, 1.0, 2.0, 3.0), (0.25, 5, 0.25)).resolve(10)

    assert [schedule(tick) for tick in range(11)] == [0, 0, 1, 1, 1, 1, 1, 2, 2, 2, 3]


def test_a_share_within_a_sequence_is_a_share_of_the_whole_run():
    inner = Sequence((Constant(0.0), Linear(0.0, 1.0, 0.25)), (10,))
    schedule = Sequence((inner, Constant(5.0)), (0.5,)).resolve(100)

    np.testing.assert_allclose(
        curve(schedule, np.arange(100)),
        np.where(np.arange(100) < 50, np.interp(np.arange(100), [10, 35], [0.0, 1.0]), 5.0),
    )


def test_a_sequence_takes_plain_functions_and_passes_them_their_own_ticks():
    schedule = Sequence((Constant(1.0), lambda tick: -float(tick)), (0.5,)).resolve(4)

    assert [schedule(tick) for tick in range(5)] == [1.0, 1.0, 0.0, -1.0, -2.0]


SHARED = {
    "linear": Linear(0.0, 1.0, 0.5),
    "float32 share": Cosine(0.0, 1.0, np.float32(0.5)),
    "exponential": Exponential(0.1, 1.0, 0.5),
    "piecewise": Piecewise((0.0, 1.0), (0.5,)),
    "sequence": Sequence((Constant(0.0), Constant(1.0)), (0.5,)),
    "share inside a sequence": Sequence((Linear(0.0, 1.0, 0.5), Constant(1.0)), (3,)),
    "curriculum": curriculum_dropout(0.5, 0.5),
}


@pytest.mark.parametrize("schedule", SHARED.values(), ids=list(SHARED))
def test_a_share_of_a_run_of_unknown_length_cannot_be_called(schedule):
    with pytest.raises(ValueError, match=r"0\.5 is a share of the run.*`schedule\.resolve\(total\)`.*an int \(ticks\)"):
        schedule(0)


@pytest.mark.parametrize("total", [math.inf, math.nan])
@pytest.mark.parametrize("schedule", SHARED.values(), ids=list(SHARED))
def test_a_share_of_an_endless_run_is_an_error(schedule, total):
    with pytest.raises(ValueError, match=r"0\.5 is a share.*an int \(ticks\), or limit the run: `max_epochs`"):
        schedule.resolve(total)


@every_schedule
def test_a_schedule_in_ticks_fits_an_endless_run(schedule):
    assert schedule.resolve(math.inf) == schedule


def test_resolve_leaves_a_plain_callable_alone():
    assert resolve(math.sqrt, 100) is math.sqrt
    assert resolve(Linear(0.0, 1.0, 0.5), 100) == Linear(0.0, 1.0, 50)


def test_a_subclass_of_the_users_own_needs_only_a_value():
    class Sawtooth(Schedule):
        def __call__(self, tick: int) -> float:
            return tick % 3 / 2

    schedule = Sequence((Constant(9.0), Sawtooth()), (0.5,)).resolve(4)

    assert [schedule(tick) for tick in range(6)] == [9.0, 9.0, 0.0, 0.5, 1.0, 0.0]


# Mistakes

RAMPS = [Linear, Cosine, Exponential]


@pytest.mark.parametrize(
    ("value", "error", "message"),
    [
        (0, ValueError, r"at least 1 tick.*got 0\."),
        (-3, ValueError, r"at least 1 tick.*got -3\."),
        (0.0, ValueError, r"an int \(ticks\) or a float in \(0, 1\].*got 0\.0\."),
        (-0.1, ValueError, r"an int \(ticks\) or a float in \(0, 1\].*got -0\.1\."),
        (1.5, ValueError, r"an int \(ticks\) or a float in \(0, 1\].*got 1\.5\."),
        (100.0, ValueError, r"an int .*got 100\.0\. For 100 ticks write an int"),
        (math.nan, ValueError, "a finite number, got nan"),
        (math.inf, ValueError, "a finite number, got inf"),
        (True, TypeError, "a number, got True of type bool"),
        ("10", TypeError, "a number, got '10' of type str"),
        (None, TypeError, "a number, got None"),
        (np.int64(1), TypeError, r"a Python int \(ticks\) or a float, got .*1.* of type int64\. Pass `int\(\.\.\.\)`"),
    ],
)
@pytest.mark.parametrize(
    ("make", "name"),
    [
        *((lambda value, ramp=ramp: ramp(1.0, 2.0, value), "duration") for ramp in RAMPS),
        (lambda value: Piecewise((1.0, 2.0), (value,)), "durations"),
        (lambda value: Sequence((Constant(), Constant()), (value,)), "durations"),
        (lambda value: early_dropout(0.1, value), "duration"),
        (lambda value: late_dropout(0.1, value), "duration"),
        (lambda value: curriculum_dropout(0.1, value), "duration"),
    ],
)
def test_a_bad_duration_is_refused(make, name, value, error, message):
    with pytest.raises(error, match=f"`{name}` must be {message}"):
        make(value)


@pytest.mark.parametrize(
    ("value", "error", "message"),
    [
        (math.nan, ValueError, "a finite number, got nan"),
        (-math.inf, ValueError, "a finite number, got -inf"),
        (True, TypeError, "a number, got True of type bool"),
        ("1", TypeError, "a number, got '1' of type str"),
        (None, TypeError, "a number, got None of type NoneType"),
    ],
)
@pytest.mark.parametrize(
    ("make", "name"),
    [
        (Constant, "value"),
        *((lambda value, ramp=ramp: ramp(value, 1.0, 10), "start") for ramp in RAMPS),
        *((lambda value, ramp=ramp: ramp(1.0, value, 10), "end") for ramp in RAMPS),
        (lambda value: Piecewise((1.0, value), (10,)), "values"),
        (early_dropout, "rate"),
        (late_dropout, "rate"),
        (curriculum_dropout, "rate"),
    ],
)
def test_a_bad_value_is_refused(make, name, value, error, message):
    with pytest.raises(error, match=f"`{name}` must be {message}"):
        make(value)


@pytest.mark.parametrize("recipe", [early_dropout, late_dropout, curriculum_dropout])
@pytest.mark.parametrize("rate", [-0.1, 1, 1.5])
def test_a_dropout_rate_outside_0_to_1_is_refused(recipe, rate):
    with pytest.raises(ValueError, match=rf"`rate` must be in \[0, 1\), got {rate}\."):
        recipe(rate)


@pytest.mark.parametrize(("start", "end"), [(0.0, 1.0), (1.0, 0.0), (-1.0, 1.0), (1e-200, -1e-200)])
def test_an_exponential_through_zero_is_refused(start, end):
    with pytest.raises(ValueError, match=r"`start` and `end` of an Exponential.*same sign.*Use Linear or Cosine"):
        Exponential(start, end, 10)


def test_an_exponential_between_tiny_values_does_not_go_through_zero():
    assert Exponential(1e-200, 1e-202, 2)(1) == pytest.approx(1e-201)


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: Piecewise((1.0, 2.0), ()), ValueError, "`durations`.*one shorter than `values`.*got 0 and 2"),
        (lambda: Piecewise((1.0, 2.0), (1, 2)), ValueError, "`durations`.*one shorter than `values`.*got 2 and 2"),
        (lambda: Piecewise((), ()), ValueError, "`durations`.*one shorter than `values`.*got 0 and 0"),
        (lambda: Sequence((Constant(),), (1,)), ValueError, "`durations`.*one shorter than `schedules`.*got 1 and 1"),
        (lambda: Piecewise((1.0, 2.0), 10), TypeError, "`durations` must be a list or tuple, got 10"),
        (lambda: Piecewise(1.0, ()), TypeError, r"`values` must be a list or tuple, got 1\.0"),
        (lambda: Piecewise("ab", (1,)), TypeError, "`values` must be a list or tuple, got 'ab'"),
        (lambda: Sequence(Constant(), ()), TypeError, r"`schedules` must be a list or tuple, got Constant\("),
        (lambda: Sequence((Constant(), 0.5), (1,)), TypeError, r"`schedules` must hold schedules, got 0\.5"),
    ],
)
def test_pieces_that_do_not_fit_are_refused(make, error, message):
    with pytest.raises(error, match=message):
        make()


# Values like numbers


@every_schedule
def test_a_schedule_pickles_prints_and_compares(schedule):
    copies = [pickle.loads(pickle.dumps(schedule)), eval(repr(schedule), dict(vars(lightning_reg)))]

    assert copies == [schedule, schedule]
    assert len({schedule, *copies}) == 1
    np.testing.assert_array_equal(curve(copies[0]), curve(schedule))


@every_schedule
def test_a_schedule_does_not_change(schedule):
    with pytest.raises(AttributeError):
        setattr(schedule, next(iter(vars(schedule))), 1.0)


def test_schedules_with_other_numbers_or_another_shape_differ():
    assert len({Linear(0.0, 1.0, 10), Linear(0.0, 1.0, 11), Cosine(0.0, 1.0, 10), Constant(1.0), Constant(0.5)}) == 5


def test_lists_become_tuples_so_that_schedules_from_yaml_hash():
    assert Piecewise([0.0, 1.0], [10]) == Piecewise((0.0, 1.0), (10,))
    assert hash(Sequence([Constant()], [])) == hash(Sequence((Constant(),), ()))


# Properties

numbers = st.floats(-1e6, 1e6)
positive = st.floats(1e-6, 1e6)
durations = st.integers(1, 200) | st.floats(0, 1, exclude_min=True)
ramps = (
    st.builds(Linear, numbers, numbers, durations)
    | st.builds(Cosine, numbers, numbers, durations)
    | st.builds(Exponential, positive, positive, durations)
)


def pieces(children: st.SearchStrategy[Any]) -> st.SearchStrategy[Sequence]:
    return st.lists(st.tuples(children, durations), min_size=1, max_size=4).map(
        lambda items: Sequence([child for child, _ in items], [duration for _, duration in items[1:]])
    )


schedules = st.recursive(ramps | st.builds(Constant, numbers), pieces, max_leaves=5)


@given(ramps, st.integers(0, 300))
def test_a_ramp_stays_between_its_ends_and_never_turns(ramp, total):
    values = curve(ramp.resolve(total), np.arange(210))

    rounding = 1e-12 * max(abs(ramp.start), abs(ramp.end))
    assert values.min() >= min(ramp.start, ramp.end) - rounding
    assert values.max() <= max(ramp.start, ramp.end) + rounding
    assert (np.diff(values) * np.sign(ramp.end - ramp.start) >= -rounding).all()


@given(pieces(ramps), st.integers(1, 300))
def test_a_sequence_equals_each_piece_on_the_ticks_of_its_own(schedule, total):
    resolved = schedule.resolve(total)
    lengths = (*resolved.durations, 20)
    pieces_and_lengths = zip(resolved.schedules, lengths, strict=True)

    expected = [piece(tick) for piece, length in pieces_and_lengths for tick in range(length)]

    assert [resolved(tick) for tick in range(len(expected))] == expected


@given(schedules, st.integers(1, 300), st.integers(1, 300))
def test_resolving_again_changes_nothing(schedule, total, other_total):
    resolved = schedule.resolve(total)

    assert resolved.resolve(other_total) == resolved.resolve(math.inf) == resolved


@given(schedules)
def test_any_schedule_comes_back_from_its_repr_and_from_pickle(schedule):
    assert eval(repr(schedule), dict(vars(lightning_reg))) == pickle.loads(pickle.dumps(schedule)) == schedule


@given(
    schedules | st.sampled_from([Piecewise((0.5, 0.2, 0.9), (3, 5)), curriculum_dropout(0.5, 12)]), st.integers(1, 60)
)
def test_bounds_are_the_least_and_the_largest_value_of_the_run(schedule, total):
    resolved = schedule.resolve(total)
    values = curve(resolved, np.arange(total))

    assert resolved.bounds(total) == pytest.approx((values.min(), values.max()))
    low, high = resolved.bounds(math.inf)
    assert low <= values.min() + 1e-9 * abs(low)
    assert high >= values.max() - 1e-9 * abs(high)


def test_a_function_among_schedules_has_no_bounds():
    assert Sequence((Constant(0.3), lambda tick: 0.5), (2,)).bounds(10) is None
    assert Sequence((Constant(0.3), lambda tick: 0.5), (20,)).bounds(10) == (0.3, 0.3)
