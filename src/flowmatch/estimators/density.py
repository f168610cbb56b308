r"""A flow as a scikit-learn density estimator: ``fit``, ``sample``, ``score_samples``, ``score``.

Columns are standardised inside, :math:`z = (x - m) / s`, and the density is given in the units of the data:
:math:`\log p(x) = \log p_z(z) - \sum_i \log s_i`. Scoring runs in float64, so that a row's score does not depend on
the rows it is scored with.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from sklearn.base import BaseEstimator, DensityMixin
from sklearn.utils import check_random_state
from sklearn.utils.validation import check_is_fitted, validate_data

from flowmatch.recipes import FlowConfig, fit_flow, suggest
from flowmatch.train import TensorData, TrainConfig

__all__ = ["FlowDensity"]


class FlowDensity(DensityMixin, BaseEstimator):  # type: ignore[misc]  # scikit-learn is untyped
    r"""Density estimation and sampling by flow matching.

    Parameters
    ----------
    max_steps : int or None, default=None
        Number of training steps; chosen from the size of the data if None.
    hidden : int or None, default=None
        Width of the network; chosen from the size of the data if None.
    depth : int or None, default=None
        Number of residual blocks; chosen from the size of the data if None.
    batch_size : int or None, default=None
        Rows per training step; chosen from the size of the data if None.
    learning_rate : float or None, default=None
        Peak learning rate; chosen from the size of the data if None.
    validation_fraction : float, default=0.1
        Share of the rows that is kept out of training to choose the best weights; 0 trains on all rows.
    tol : float, default=1e-4
        Relative and absolute tolerance of the solver when sampling and scoring.
    random_state : int, RandomState instance or None, default=None
        Fixes the split, the first weights and the noise of training.

    Attributes:
    ----------
    flow_ : flowmatch.Flow
        The flow on standardised columns.
    mean_ : ndarray of shape (n_features_in_,)
        Column means.
    scale_ : ndarray of shape (n_features_in_,)
        Column standard deviations; 1 for a constant column.
    history_ : list of dict
        What the training logged.
    n_steps_ : int
        Number of training steps made.
    n_features_in_ : int
        Number of columns seen in ``fit``.
    feature_names_in_ : ndarray of shape (n_features_in_,)
        Names of the columns, if they were all strings.

    Examples:
    --------
    >>> import numpy as np
    >>> from flowmatch.estimators import FlowDensity
    >>> X = np.random.default_rng(0).normal(3.0, 2.0, size=(200, 1))
    >>> model = FlowDensity(max_steps=300, random_state=0).fit(X)
    >>> model.sample(5, random_state=0).shape
    (5, 1)
    >>> bool(model.score_samples([[3.0]])[0] > model.score_samples([[9.0]])[0])
    True
    """

    def __init__(
        self,
        *,
        max_steps: int | None = None,
        hidden: int | None = None,
        depth: int | None = None,
        batch_size: int | None = None,
        learning_rate: float | None = None,
        validation_fraction: float = 0.1,
        tol: float = 1e-4,
        random_state: Any = None,
    ) -> None:
        self.max_steps = max_steps
        self.hidden = hidden
        self.depth = depth
        self.batch_size = batch_size
        self.learning_rate = learning_rate
        self.validation_fraction = validation_fraction
        self.tol = tol
        self.random_state = random_state

    def fit(self, X: Any, y: Any = None) -> FlowDensity:
        """Fit the flow to the rows of ``X``.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)
            The data; finite numbers, at least two rows.
        y : None
            Ignored; here for the interface.

        Returns:
        -------
        self : FlowDensity
            The fitted estimator.
        """
        X = validate_data(self, X, dtype=np.float64, ensure_min_samples=2)
        if not 0 <= self.validation_fraction < 1:
            raise ValueError(f"validation_fraction must lie in [0, 1), got {self.validation_fraction}")
        random = check_random_state(self.random_state)
        self.mean_ = X.mean(axis=0)
        spread = X.std(axis=0)
        self.scale_ = np.where(spread > 1e-12 * np.maximum(1, np.abs(self.mean_)), spread, 1.0)
        rows = torch.as_tensor((X - self.mean_) / self.scale_, dtype=torch.float32)
        order = torch.as_tensor(random.permutation(len(rows)))
        held = int(self.validation_fraction * len(rows))
        flow_options, train_options = suggest(len(rows) - held, rows.shape[1])
        _override(flow_options, hidden=self.hidden, depth=self.depth)
        _override(train_options, steps=self.max_steps, batch_size=self.batch_size, learning_rate=self.learning_rate)
        train_options["seed"] = int(random.randint(2**31 - 1))
        flow, result = fit_flow(
            TensorData(rows[order[held:]]),
            TensorData(rows[order[:held]]) if held else None,
            dim=rows.shape[1],
            flow=FlowConfig(**flow_options),
            train=TrainConfig.parse(train_options),
        )
        self.flow_ = flow.cpu().double()
        self.history_ = result.history
        self.n_steps_ = result.step
        return self

    def sample(self, n_samples: int = 1, random_state: Any = None) -> np.ndarray[Any, Any]:
        """Draw rows from the fitted density.

        Parameters
        ----------
        n_samples : int, default=1
            How many rows.
        random_state : int, RandomState instance or None, default=None
            Fixes the draw.

        Returns:
        -------
        X : ndarray of shape (n_samples, n_features_in_)
            The rows, in the units of the data.
        """
        check_is_fitted(self)
        seed = int(check_random_state(random_state).randint(2**31 - 1))
        generator = torch.Generator().manual_seed(seed)
        z = self.flow_.sample(int(n_samples), generator=generator, rtol=self.tol, atol=self.tol)
        rows: np.ndarray[Any, Any] = z.numpy() * self.scale_ + self.mean_
        return rows

    def score_samples(self, X: Any) -> np.ndarray[Any, Any]:
        """Log-density of each row.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)
            Rows to score.

        Returns:
        -------
        log_density : ndarray of shape (n_samples,)
            Natural logarithm of the density, in the units of the data.
        """
        check_is_fitted(self)
        X = validate_data(self, X, dtype=np.float64, reset=False)
        z = torch.as_tensor((X - self.mean_) / self.scale_)
        log_density: np.ndarray[Any, Any] = self.flow_.log_prob(z, rtol=self.tol, atol=self.tol).numpy()
        log_density -= np.log(self.scale_).sum()
        return log_density

    def score(self, X: Any, y: Any = None) -> float:
        """Mean log-density of the rows, higher is better; as in ``GaussianMixture``.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)
            Rows to score.
        y : None
            Ignored; here for the interface.

        Returns:
        -------
        log_likelihood : float
            Mean of ``score_samples(X)``.
        """
        return float(self.score_samples(X).mean())


def _override(options: dict[str, Any], **given: Any) -> None:
    options.update({name: value for name, value in given.items() if value is not None})
