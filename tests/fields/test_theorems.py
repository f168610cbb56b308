"""The paper's Theorems 1 and 2, shown on exact fields: the flow makes the law, the easy loss has the right gradient."""

from __future__ import annotations

import pytest
import torch

import flowmatch as fm
from tests.problems import mixture_world, pair, random_mlp, seeded, z_scores


@pytest.mark.parametrize("schedule", [fm.Linear(1e-3), fm.VarianceExploding(1e-3, 30.0)], ids=["linear", "ve"])
def test_theorem_1_the_flow_of_a_data_set_ends_on_its_points_in_equal_shares(schedule):
    data = torch.tensor([[1.0, 0.5], [-1.0, 0.2], [0.1, -1.2], [0.3, 1.4], [-0.8, -0.9]], dtype=torch.float64)
    flow = fm.Flow(fm.EmpiricalField(data, fm.AffinePath(schedule)), fm.AffinePath(schedule), event_shape=(2,))
    n = 500
    x = flow.double().sample(n, rtol=1e-4, atol=1e-4, generator=seeded())
    distance, nearest = torch.cdist(x, data).min(1)
    # What is left is the path's own spread, of which six standard deviations leave nothing out.
    assert distance.max() < 6e-3
    assert (distance.square().sum() / (2 * n)).sqrt() == pytest.approx(1e-3, rel=0.2)
    shares = nearest.bincount(minlength=5) / n
    assert (shares - 0.2).abs().max() < 5 * (0.2 * 0.8 / n) ** 0.5


def test_theorem_1_the_flow_of_the_mixture_field_has_the_law_of_the_mixture():
    field = mixture_world()
    flow = fm.Flow(field, event_shape=(2,)).double()
    n = 4000
    x, truth = flow.sample(n, rtol=1e-5, atol=1e-5, generator=seeded(1)), field.sample(n, generator=seeded(2))
    # Characteristic functions at 40 frequencies: every difference is a mean of bounded terms.
    frequencies = 2 * torch.randn(2, 40, generator=seeded(3), dtype=torch.float64)
    terms = torch.cat(
        [(x @ frequencies).cos() - (truth @ frequencies).cos(), (x @ frequencies).sin() - (truth @ frequencies).sin()],
        dim=1,
    )
    assert z_scores(terms).abs().max() < 5


def _worlds():
    data = pair(40, 2)[1]
    path = fm.AffinePath(fm.Linear(0.05))
    field = fm.EmpiricalField(data, path)
    yield "data set", path, field, lambda n, g: data[torch.randint(len(data), (n,), generator=g)]
    bent = fm.AffinePath(fm.Cosine())
    mixture = mixture_world(bent)
    yield "mixture", bent, mixture, lambda n, g: mixture.sample(n, generator=g)


@pytest.mark.parametrize(("path", "field", "draw"), [w[1:] for w in _worlds()], ids=[w[0] for w in _worlds()])
def test_theorem_2_the_conditional_loss_has_the_gradient_of_the_marginal_loss(path, field, draw):
    net, generator = random_mlp(2, seed=4), seeded(5)
    objective = fm.FlowMatching(path)
    sample, _ = objective.draw(draw(3000, generator), generator=generator)
    truth = field(sample.t, sample.x_t)
    # The target with the sign of the noise turned, to know that the look is sharp.
    turned = 2 * path.schedule.alpha_dot(sample.t[:, None]) * sample.x1 - sample.u_t

    def loss(parameters, t, x_t, target):
        """The objective's own loss on one sample with a target of choice."""
        rows = (part[None] for part in (t, x_t, target, x_t, x_t))
        model = lambda *given: torch.func.functional_call(net, parameters, given)  # noqa: E731
        return objective.loss(model, fm.Draw(fm.PathSample(*rows), None)).values[0]

    each = torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0, 0, 0))

    def gradients(target):
        tree = each(dict(net.named_parameters()), sample.t, sample.x_t, target)
        return torch.cat([part.flatten(1) for part in tree.values()], dim=1)

    marginal = gradients(truth)
    used = marginal.std(0) > 1e-12
    assert used.sum() > 1500  # all but what nothing reaches
    scores = z_scores((gradients(sample.u_t) - marginal)[:, used])
    # Standard normal scores of some 1800 parameters: the largest, and the mean square (they hang together).
    assert scores.abs().max() < 6
    assert scores.square().mean() < 2
    assert z_scores(marginal[:, used]).square().mean() > 20
    assert z_scores((gradients(turned) - marginal)[:, used]).square().mean() > 20
