r"""Flow: what the user holds. A field, the path it was trained on, a source and a solver.

The flow map from the source to the data is the solution of :math:`\dot x = v(t, x, c)` over the path's regular
interval; its inverse is the same equation solved backwards. So one object samples, encodes and scores.
"""

from __future__ import annotations

from collections.abc import Callable
from numbers import Integral
from pathlib import Path as FilePath
from typing import Any, cast

import torch
from torch import Tensor, nn

from flowmatch.fields import Bridge, MarginalSDE
from flowmatch.fields.stochastic import Diffusion
from flowmatch.likelihood import Divergence, Exact, Likelihood, log_likelihood
from flowmatch.paths import AffinePath, Path
from flowmatch.persist import load_flow, save_flow
from flowmatch.randomness import randint
from flowmatch.solvers import ODE, SDE, EulerMaruyama, ExponentialSDE, Learned, Solution, Solver, solve, tune
from flowmatch.solvers.learned import tuned_for
from flowmatch.sources import Normal
from flowmatch.tensors import check_event, check_finite, take
from flowmatch.typing import Cond, Field, Source

__all__ = ["Flow", "GivenFlow"]

#: Tolerance of a solve when the caller chooses none; the paper's own setting for likelihoods and NFE.
TOLERANCE = 1e-5


class Flow(nn.Module):
    r"""A trained flow: sample, encode, decode, log-density, save and load.

    All methods choose their steps alike: ``steps=n`` for equal ones, ``grid=`` for times of your own, ``rtol=`` and
    ``atol=`` for error control; by default error control at 1e-5 with Dormand-Prince steps. On the way to the data
    ``nfe=n`` takes the solver of ``n`` calls that :meth:`tune` has made. They keep no graph.

    Args:
        field: velocity ``(t, x) `` or ``(t, x, cond)``, a module or a function.
        path: the path it was trained on; gives the interval and the default source. Linear by default.
        event_shape: shape of one sample, ``(D,)`` or ``(C, H, W)``.
        source: law of the start; by default the normal that the path starts from.
        solver: default way to integrate; Dormand-Prince under tolerances and the midpoint rule otherwise.
        independent: whether noise and data were paired independently in training; sampling with noise needs it.

    Raises:
        TypeError: ``field`` cannot be called or ``path`` is no path.

    Example:
        >>> import flowmatch as fm
        >>> exact = fm.GaussianField(torch.zeros(2), std=3.0)
        >>> flow = fm.Flow(exact, event_shape=(2,))
        >>> x = flow.sample(1000, generator=torch.Generator().manual_seed(0))
        >>> bool((x.std() - 3).abs() < 0.1)
        True
        >>> flow.log_prob(torch.zeros(1, 2))  # -log(2 pi 9)
        tensor([-4.0351])
    """

    def __init__(
        self,
        field: Field | nn.Module,
        path: Path | None = None,
        event_shape: tuple[int, ...] | int = (),
        source: Source | None = None,
        solver: Solver | None = None,
        independent: bool = True,
    ) -> None:
        super().__init__()
        if not callable(field):
            raise TypeError(f"field must be a module or function (t, x) -> velocity, got {type(field).__name__}")
        if path is not None and not isinstance(path, Path):
            raise TypeError(f"path must be a flowmatch Path such as fm.AffinePath(fm.Linear()), got {path!r}")
        self.field: Any = field
        self.path: Path = AffinePath() if path is None else path
        self.event_shape = (event_shape,) if isinstance(event_shape, int) else tuple(event_shape)
        self.source: Source = Normal(self.path.source_std) if source is None else source
        self.solver = solver
        self.independent = independent
        #: Solvers that :meth:`tune` made, by their number of calls.
        self.tuned: dict[int, Learned] = {}
        # Tells where an empty flow lives, so that sample() needs no device and no dtype.
        self.register_buffer("_home", torch.zeros(()), persistent=False)

    @torch.no_grad()
    def sample(
        self,
        n: int,
        cond: Cond = None,
        *,
        generator: torch.Generator | None = None,
        solver: Solver | None = None,
        diffusion: Diffusion | None = None,
        rate: float = 1.0,
        **steps: Any,
    ) -> Tensor:
        """Draw ``n`` samples, by the flow or, with ``diffusion``, by a process with noise and the same marginals.

        Args:
            n: how many.
            cond: condition of every sample, leading dimension ``n``.
            generator: source of randomness; the same seed gives the same samples.
            solver: how to integrate.
            diffusion: form of the noise, see :class:`~flowmatch.MarginalSDE`; for a :class:`~flowmatch.Bridge` its
                scale. Needs ``steps=`` or ``grid=``; the solver is by default :class:`~flowmatch.ExponentialSDE`.
            rate: how much noise.
            **steps: ``steps=``, ``grid=``, or ``rtol=`` and ``atol=``.

        Returns:
            Samples ``(n, *event_shape)``.

        Raises:
            ValueError: ``diffusion`` where the velocity does not tell the score: pairs that were not independent, a
                source of another law.

        Example:
            >>> import flowmatch as fm
            >>> Flow(fm.nn.MLP(dim=2), event_shape=(2,)).sample(3, steps=4).shape
            torch.Size([3, 2])
        """
        x0 = self.start(n, generator)
        if diffusion is None:
            if rate != 1.0:
                raise ValueError(f"rate={rate} is the amount of noise: say of which form with diffusion=")
            return self.decode(x0, cond, solver=solver, **steps)
        if steps.pop("nfe", None) is not None or all(steps.get(name) is None for name in ("steps", "grid")):
            raise ValueError("sampling with noise takes fixed steps: give steps= or grid=, and no nfe=")
        low, high = self.path.interval
        equation: SDE
        usual: Solver
        if isinstance(self.field, Bridge):
            if not isinstance(diffusion, int | float):
                raise ValueError(f"the noise of a bridge is a number, its scale, got {diffusion!r}")
            equation, usual = self.field.sde(cond, scale=diffusion * rate**0.5), EulerMaruyama()
        else:
            if not self.independent:
                raise ValueError(
                    "this flow was trained with pairs of a coupling, or its file does not say: its velocity then does "
                    "not tell the score, and noise would change the samples' law; train with independent pairs or with "
                    "ScoreAndFlow, or set flow.independent = True if they were"
                )
            equation = MarginalSDE(
                self.field, cond, path=cast(AffinePath, self.path), diffusion=diffusion, rate=rate, source=self.source
            )
            usual = ExponentialSDE(order=2)
        chosen = usual if solver is None else solver
        # The exponential step never asks for the end, so it may go to where the path itself is singular.
        span = (low, 1.0 if isinstance(chosen, ExponentialSDE) else high)
        return solve(equation, x0, chosen, generator=generator, **{"span": span, **steps}).whole().x

    @torch.no_grad()
    def decode(self, x0: Tensor, cond: Cond = None, *, solver: Solver | None = None, **steps: Any) -> Tensor:
        """Carry source points ``(B, *event)`` to the data's end."""
        return self.solve(x0, cond, solver=solver, **steps).whole().x

    @torch.no_grad()
    def encode(self, x: Tensor, cond: Cond = None, *, solver: Solver | None = None, **steps: Any) -> Tensor:
        """Carry data ``(B, *event)`` back to the source: the inverse of :meth:`decode`."""
        check_finite(x, "x")
        return self.solve(x, cond, reverse=True, solver=solver, **steps).whole().x

    @torch.no_grad()
    def trajectory(
        self,
        x0: Tensor | int,
        cond: Cond = None,
        *,
        generator: torch.Generator | None = None,
        solver: Solver | None = None,
        **steps: Any,
    ) -> Solution:
        """Solve from source points, or from that many fresh ones, and keep the states at all times of the grid."""
        start = x0 if isinstance(x0, Tensor) else self.start(x0, generator)
        return self.solve(start, cond, solver=solver, save=True, **steps)

    def log_prob(
        self,
        x: Tensor,
        cond: Cond = None,
        *,
        divergence: Divergence | None = None,
        generator: torch.Generator | None = None,
        solver: Solver | None = None,
        differentiable: bool = False,
        **steps: Any,
    ) -> Tensor:
        """Log-density of data in nats, ``(B, *event) -> (B,)``.

        Args:
            x: data ``(B, *event)``.
            cond: condition of every row.
            divergence: :class:`~flowmatch.Exact` by default, or :class:`~flowmatch.Hutchinson` for large events.
            generator: randomness of the probes.
            solver: how to integrate.
            differentiable: keep the graph, for gradients with respect to ``x`` or the parameters.
            **steps: ``steps=``, ``grid=``, or ``rtol=`` and ``atol=``.

        Returns:
            Log-density ``(B,)``.
        """
        with torch.set_grad_enabled(differentiable):
            return self.likelihood(x, cond, divergence=divergence, generator=generator, solver=solver, **steps).log_prob

    def likelihood(
        self,
        x: Tensor,
        cond: Cond = None,
        *,
        divergence: Divergence | None = None,
        generator: torch.Generator | None = None,
        solver: Solver | None = None,
        **steps: Any,
    ) -> Likelihood:
        """Log-density with its standard error, the codes and the number of calls; keeps a graph if gradients are on."""
        self._check_event(x)
        check_finite(x, "x")
        start, end = self.path.interval
        return log_likelihood(
            self.field,
            x,
            self.source,
            cond,
            method=Exact() if divergence is None else divergence,
            generator=generator,
            **self._steps(solver, steps, (end, start)),
        )

    def solve(
        self, x: Tensor, cond: Cond = None, *, reverse: bool = False, solver: Solver | None = None, **steps: Any
    ) -> Solution:
        """Solve the flow's equation over the path's interval; see :func:`flowmatch.solve` for ``steps``."""
        self._check_event(x)
        start, end = self.path.interval
        span = (end, start) if reverse else (start, end)
        return solve(ODE(self.field, cond), x, **self._steps(solver, steps, span))

    def tune(
        self,
        nfe: int,
        cond: Cond = None,
        *,
        solver: Learned | None = None,
        trajectories: int = 512,
        steps: int = 40,
        generator: torch.Generator | None = None,
        rows: int | None = None,
        progress: Callable[[float, str], Any] | None = None,
    ) -> Learned:
        """Fit a solver of ``nfe`` calls to this flow, and keep it for ``sample(n, nfe=nfe)``.

        The field has to stay as it is: after more training tune again. :meth:`save` writes the solver with the flow.

        Args:
            nfe: number of field calls.
            cond: conditions to draw from with replacement, any number of rows.
            solver: what to fit; by default a :class:`~flowmatch.solvers.BNS` from the best of the general methods.
            trajectories: number of the flow's own trajectories, a quarter of which is held out.
            steps: steps of the fit.
            generator: randomness of the starts; the same seed gives the same solver.
            rows: trajectories solved at a time, to bound the memory.
            progress: told the share that is done and what is being done.

        Returns:
            The solver, an ``nn.Module``; its ``fitted`` says how far it errs beside general ones.

        Example:
            >>> import flowmatch as fm
            >>> flow = fm.Flow(fm.GaussianField(torch.zeros(1), std=3.0), event_shape=(1,)).double()
            >>> solver = flow.tune(2, trajectories=32, steps=5, generator=torch.Generator().manual_seed(0))
            >>> flow.sample(4, nfe=2).shape
            torch.Size([4, 1])
        """

        def draw(n: int) -> tuple[Tensor, Cond]:
            if cond is None:
                return self.start(n, generator), None
            first = next((leaf for leaf in torch.utils._pytree.tree_leaves(cond) if isinstance(leaf, Tensor)), None)
            if first is None:
                raise TypeError(f"cond must be a tensor or a tree of tensors to draw conditions from, got {cond!r}")
            return self.start(n, generator), take(cond, randint(len(first), (n,), generator, first.device))

        self.tuned[int(nfe)] = solver = tune(
            self.field,
            draw,
            nfe,
            span=self.path.interval,
            schedule=self.path.schedule if isinstance(self.path, AffinePath) else None,
            solver=solver,
            trajectories=trajectories,
            steps=steps,
            generator=generator,
            rows=rows,
            progress=progress,
        )
        return solver

    def start(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        """Draw ``n`` points of the source, on the device and in the type of the parameters."""
        if not isinstance(n, Integral) or n < 0:
            raise ValueError(f"n must be a whole number, at least 0, got {n!r}")
        home = self.home
        return self.source.sample((int(n), *self.event_shape), generator, home.device, home.dtype)

    @property
    def home(self) -> Tensor:
        """A tensor on the device and of the type of the parameters, where a solver's own, in float64, do not count."""
        own = (p for name, p in self.named_parameters() if not name.startswith("solver."))
        return next((p for p in own if p.is_floating_point()), cast(Tensor, self._home))

    def given(self, cond: Cond) -> GivenFlow:
        """The flow under one condition, as a distribution of ``sample`` and ``log_prob``.

        Args:
            cond: one condition without a batch dimension: a tensor, or a tuple, list or dict of them.
        """
        return GivenFlow(self, cond)

    def save(self, folder: str | FilePath) -> None:
        """Write ``flow.json`` and ``model.safetensors`` into ``folder``, each atomically.

        Needs ``pip install "flowmatch[train]"`` for safetensors.
        """
        save_flow(self, FilePath(folder))

    @classmethod
    def load(
        cls,
        folder: str | FilePath,
        field: Field | nn.Module | None = None,
        path: Path | None = None,
        source: Source | None = None,
        solver: Solver | None = None,
    ) -> Flow:
        """Read a flow back; nothing is unpickled.

        Parts that are code of your own are not in the file and are given again; a part given stands in for the
        one in the file.

        Args:
            folder: where :meth:`save` wrote, for instance a run folder.
            field: the network to fill, when it is not one of :mod:`flowmatch.nn`.
            path: the path, when it is made of functions or uses a schedule of your own.
            source: the source, when it is a class of your own.
            solver: the solver, when it is a class of your own.

        Raises:
            InputError: no flow there, a damaged or foreign file, or weights that do not fit.
        """
        return load_flow(cls, FilePath(folder), field=field, path=path, source=source, solver=solver)

    def forward(self, t: Tensor, x: Tensor, *cond: Any) -> Tensor:
        """The field itself."""
        velocity: Tensor = self.field(t, x, *cond)
        return velocity

    def _check_event(self, x: Tensor) -> None:
        check_event(x)
        if tuple(x.shape[1:]) != self.event_shape:
            raise ValueError(
                f"this flow takes x of shape (B, {', '.join(map(str, self.event_shape))}), got {tuple(x.shape)}"
            )

    def _steps(self, solver: Solver | None, steps: dict[str, Any], span: tuple[float, float]) -> dict[str, Any]:
        """Fill in what the caller left open."""
        ways = [name for name in ("steps", "grid", "rtol", "atol") if steps.get(name) is not None]
        nfe, steps = steps.get("nfe"), {name: value for name, value in steps.items() if name != "nfe"}
        if nfe is not None:
            solver = tuned_for(self.tuned, nfe, ways if solver is None else [*ways, "solver"])
        chosen = solver if solver is not None else self.solver
        if isinstance(chosen, Learned) and not ways:
            return {"solver": chosen, **steps, "grid": chosen.along(span)}
        if not ways:
            if chosen is not None and not chosen.adaptive:
                raise ValueError(
                    f"{type(chosen).__name__} takes fixed steps: say how many with steps=, or where with grid="
                )
            steps = {**steps, "rtol": TOLERANCE, "atol": TOLERANCE}
        return {"solver": chosen, "span": span, **steps}


class GivenFlow:
    """A flow under one condition: a distribution.

    Example:
        >>> import flowmatch as fm
        >>> flow = fm.Flow(fm.nn.MLP(dim=2, classes=3), event_shape=(2,))
        >>> flow.given(torch.tensor(1)).sample(5, steps=2).shape
        torch.Size([5, 2])
    """

    def __init__(self, flow: Flow, cond: Cond) -> None:
        self.flow, self.cond = flow, cond

    def sample(self, n: int, **options: Any) -> Tensor:
        """Draw ``n`` samples under the condition; options as :meth:`Flow.sample`."""
        return self.flow.sample(n, _repeat(self.cond, n), **options)

    def log_prob(self, x: Tensor, **options: Any) -> Tensor:
        """Log-density under the condition; options as :meth:`Flow.log_prob`."""
        return self.flow.log_prob(x, _repeat(self.cond, x.shape[0]), **options)


def _repeat(cond: Cond, n: int) -> Cond:
    spread: Callable[[Any], Any] = lambda leaf: leaf.expand(n, *leaf.shape) if isinstance(leaf, Tensor) else leaf  # noqa: E731
    return torch.utils._pytree.tree_map(spread, cond)
