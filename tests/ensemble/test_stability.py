"""Stability selection: shares against a loop in NumPy, with scikit-learn's paths; what is refused."""

import csv

import numpy as np
import pytest
import torch
from sklearn.datasets import load_breast_cancer
from sklearn.linear_model import lasso_path

from lightning_reg.ensemble import stability_selection

CANCER = load_breast_cancer()
INPUTS = (CANCER.data - CANCER.data.mean(0)) / CANCER.data.std(0)
TARGETS = CANCER.target - CANCER.target.mean()
STRENGTHS = np.geomspace(0.4, 0.05, 8)


class Lasso:
    """scikit-learn's path on some rows; keeps what it was asked for and what it found."""

    def __init__(self, inputs=INPUTS, targets=TARGETS):
        self.inputs, self.targets = inputs, targets
        self.halves, self.choices = [], []

    def __call__(self, rows):
        _, coefficients, _ = lasso_path(self.inputs[rows], self.targets[rows], alphas=STRENGTHS)
        self.halves.append(rows)
        self.choices.append(coefficients.T != 0)
        return self.choices[-1]


@pytest.fixture(scope="module")
def cancer():
    model = Lasso()
    names = list(CANCER.feature_names)
    return model, stability_selection(
        model, len(INPUTS), num_halves=20, threshold=0.8, strengths=STRENGTHS, names=names
    )


def test_shares_and_bound_are_those_of_a_loop(cancer):
    model, result = cancer
    shares, sizes = np.zeros((8, 30)), []
    for choice in model.choices:
        for row, column in zip(*np.nonzero(choice), strict=True):
            shares[row, column] += 1 / 20
        sizes.append(len({column for _, column in zip(*np.nonzero(choice), strict=True)}))
    expected = [j for j in np.argsort(-shares.max(0), kind="stable") if round(20 * shares[:, j].max()) >= 16]

    np.testing.assert_allclose(result.frequencies.numpy(), shares, atol=1e-6)
    assert result.selected() == expected
    assert 0 < len(expected) < 30
    assert result.mean_selected == pytest.approx(np.mean(sizes))
    assert result.false_positives_bound == pytest.approx(np.mean(sizes) ** 2 / (0.6 * 30))
    assert len(result.selected(1.0)) < len(result.selected(0.51))


def test_halves_are_pairs_without_a_sample_in_common(cancer):
    model, _ = cancer

    assert {len(half) for half in model.halves} == {569 // 2}
    for one, other in zip(model.halves[::2], model.halves[1::2], strict=True):
        assert not set(one) & set(other)
        assert set(one) | set(other) < set(range(569))
    assert len({tuple(sorted(half)) for half in model.halves}) == 20


def test_a_seed_draws_the_same_halves_again_and_leaves_the_global_generator_alone():
    state = torch.get_rng_state()
    runs = [Lasso() for _ in range(3)]

    for model, seed in zip(runs, (1, 1, 2), strict=True):
        stability_selection(model, len(INPUTS), num_halves=2, seed=seed)

    assert runs[0].halves == runs[1].halves != runs[2].halves
    assert torch.equal(torch.get_rng_state(), state)


def test_what_matters_is_found_and_the_bound_holds_for_noise():
    generator = np.random.default_rng(0)
    inputs = generator.normal(size=(120, 40))
    targets = inputs[:, [3, 17, 30]] @ [1.0, -1.0, 0.8] + 0.5 * generator.normal(size=120)
    errors, bounds = [], []
    for _ in range(5):
        noise = stability_selection(Lasso(inputs, generator.normal(size=120)), 120, num_halves=20, threshold=0.9)
        errors.append(len(noise.selected()))
        bounds.append(noise.false_positives_bound)

    assert sorted(stability_selection(Lasso(inputs, targets), 120).selected()[:3]) == [3, 17, 30]
    assert np.mean(errors) <= np.mean(bounds)


def test_a_share_equal_to_the_threshold_selects():
    choices = iter(([[True, True]],) * 6 + ([[False, True]],) * 4)

    result = stability_selection(lambda _: torch.tensor(next(choices)), 10, num_halves=10, threshold=0.6)

    assert result.selected() == [1, 0]
    assert result.selected(0.61) == [1]


def test_the_table_has_a_row_for_each_input(cancer, tmp_path):
    _, result = cancer
    result.to_csv(tmp_path / "shares.csv")

    header, *rows = csv.reader((tmp_path / "shares.csv").read_text().splitlines())

    assert header == ["input", "highest", "selected", *map(str, STRENGTHS)]
    assert [row[0] for row in rows] == list(CANCER.feature_names)
    assert [i for i, row in enumerate(rows) if row[2] == "1"] == sorted(result.selected())
    np.testing.assert_allclose(np.array([row[3:] for row in rows], float), result.frequencies.numpy().T)


def test_the_figure_names_what_is_selected(cancer, tmp_path):
    _, result = cancer
    figure = result.plot()

    (axes,) = figure.axes
    assert [text.get_text() for text in axes.get_legend().get_texts()] == [
        CANCER.feature_names[index] for index in result.selected()
    ]
    curves = [line.get_ydata() for line in axes.get_lines() if len(line.get_xdata()) == 8]
    assert sorted(map(tuple, curves)) == sorted(map(tuple, result.frequencies.T.tolist()))
    figure.savefig(tmp_path / "figure.png")


def test_without_strengths_and_names_there_are_numbers(tmp_path):
    result = stability_selection(lambda _: np.ones((2, 3), bool), 10, num_halves=2)

    result.to_csv(tmp_path / "shares.csv")

    assert (tmp_path / "shares.csv").read_text().splitlines()[:2] == ["input,highest,selected,0,1", "0,1.0,1,1.0,1.0"]
    assert result.plot().axes[0].get_xlabel() == "position on the path"


def test_a_path_that_ends_without_a_penalty_is_drawn_on_a_linear_scale():
    result = stability_selection(lambda _: np.ones((2, 3), bool), 10, num_halves=2, strengths=[0.1, 0.0])

    (axes,) = result.plot().axes

    assert axes.get_xscale() == "linear"
    assert axes.get_xlim()[0] > axes.get_xlim()[1]  # in the order of the path


def always(*shape, dtype=bool):
    return lambda _: np.ones(shape, dtype)


@pytest.mark.parametrize(
    ("arguments", "settings", "error", "message"),
    [
        ((None, 10), {}, TypeError, "`fit` must be callable"),
        ((always(1, 2), 3), {}, ValueError, "`num_samples` must be an int >= 4, got 3"),
        (
            (always(1, 2), 10),
            {"num_halves": 3},
            ValueError,
            "`num_halves` must be even, because halves come in pairs, got 3",
        ),
        ((always(1, 2), 10), {"threshold": 0.5}, ValueError, r"must be a share of halves in \(0.5, 1\], got 0.5"),
        ((always(1, 2), 10), {"threshold": "0.6"}, TypeError, "`threshold` must be"),
        ((always(1, 2), 10), {"seed": -1}, ValueError, "`seed` must be an int >= 0, got -1"),
        ((always(1, 2, dtype=float), 10), {}, TypeError, "return `coefficients != 0`"),
        ((always(2), 10), {}, ValueError, r"shape \(strengths, inputs\), got \(2,\)"),
        (
            (always(1, 2), 10),
            {"strengths": [1.0, 0.1]},
            ValueError,
            "one entry for each row that `fit` returns, 1, got 2",
        ),
        ((always(1, 2), 10), {"names": ["a"]}, ValueError, "one entry for each column that `fit` returns, 2, got 1"),
        ((always(1, 2), 10), {"names": "ab"}, TypeError, "`names` must be a list, got a str"),
        ((lambda rows: np.ones((1, 1 + rows[0]), bool), 10), {}, ValueError, "the same strengths and inputs"),
    ],
)
def test_what_is_refused_says_why(arguments, settings, error, message):
    with pytest.raises(error, match=message):
        stability_selection(*arguments, **settings)
