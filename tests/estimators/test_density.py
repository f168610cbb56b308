"""FlowDensity: scikit-learn's own contract, and the density itself."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.base import clone
from sklearn.utils.estimator_checks import parametrize_with_checks

from flowmatch.errors import InputError
from flowmatch.estimators import FlowDensity


@parametrize_with_checks([FlowDensity(max_steps=3, hidden=8, depth=1, tol=1e-2)])
def test_keeps_scikit_learns_contract(estimator: FlowDensity, check) -> None:
    check(estimator)


@pytest.fixture(scope="module")
def normal() -> tuple[np.ndarray, FlowDensity]:
    rng = np.random.default_rng(0)
    X = rng.normal(size=(4000, 2)) @ np.array([[2.0, 0.0], [1.5, 0.5]]).T + [5.0, -3.0]
    return X, FlowDensity(max_steps=600, batch_size=512, random_state=0).fit(X)


def test_density_is_near_the_true_one_and_integrates_to_one(normal) -> None:
    X, model = normal
    cov = np.array([[2.0, 0.0], [1.5, 0.5]]) @ np.array([[2.0, 0.0], [1.5, 0.5]]).T
    fresh = np.random.default_rng(1).multivariate_normal([5.0, -3.0], cov, size=300)
    offset = fresh - [5.0, -3.0]
    true = -0.5 * np.einsum("ni,ij,nj->n", offset, np.linalg.inv(cov), offset)
    true -= np.log(2 * np.pi) + 0.5 * np.log(np.linalg.det(cov))
    # The mean difference is a divergence: not negative beyond sampling noise, and small after training.
    gap = (true - model.score_samples(fresh)).mean()
    assert -0.02 < gap < 0.06
    side = np.linspace(-8, 8, 41)
    grid = np.stack(np.meshgrid(side, side), -1).reshape(-1, 2) + [5.0, -3.0]
    assert np.exp(model.score_samples(grid)).sum() * (side[1] - side[0]) ** 2 == pytest.approx(1, abs=0.01)


def test_samples_have_the_datas_moments(normal) -> None:
    X, model = normal
    drawn = model.sample(4000, random_state=0)
    assert np.allclose(drawn.mean(0), X.mean(0), atol=0.15)
    assert np.allclose(np.cov(drawn.T), np.cov(X.T), rtol=0.15, atol=0.1)
    assert np.array_equal(drawn, model.sample(4000, random_state=0))
    assert not np.array_equal(drawn, model.sample(4000, random_state=1))


def test_a_rescaled_column_shifts_the_log_density_by_its_logarithm(normal) -> None:
    X, model = normal
    scaled = clone(model).fit(X * 1000)
    assert np.allclose(scaled.score_samples(X[:50] * 1000), model.score_samples(X[:50]) - 2 * np.log(1000), atol=1e-3)


def test_bad_options_are_named() -> None:
    X = np.random.default_rng(0).normal(size=(20, 2))
    with pytest.raises(ValueError, match="validation_fraction must lie in"):
        FlowDensity(validation_fraction=1.0).fit(X)
    with pytest.raises(InputError, match="steps"):
        FlowDensity(max_steps=0).fit(X)
