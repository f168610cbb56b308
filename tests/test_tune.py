"""Tuned flows: ``tune`` makes a solver, ``nfe=`` uses it, a folder keeps it, and what makes no sense is refused."""

from __future__ import annotations

import json

import pytest
import torch

import flowmatch as fm
from flowmatch.errors import InputError
from flowmatch.solvers import BNS, LearnedGrid, Midpoint, PathAdams, ScaleTime, path_grid, uniform_grid
from tests.problems import seeded

QUICK = {"trajectories": 16, "steps": 2}
#: A straight path without a schedule: fewer general methods to try.
STRAIGHT = fm.FunctionPath(lambda t, x0, x1: (1 - t) * x0 + t * x1)


class Turning(torch.nn.Module):
    """A field with a weight, and labels that set its speed."""

    def __init__(self) -> None:
        super().__init__()
        self.speed = torch.nn.Parameter(torch.tensor(1.5))

    def forward(self, t, x, cond=None):
        speed = self.speed if cond is None else self.speed * (0.5 + cond[:, None].to(x))
        return torch.tanh(2 * x * speed) * (1 - 0.5 * t.to(x)[:, None])


@pytest.fixture
def flow():
    return fm.Flow(Turning(), STRAIGHT, event_shape=(2,))


def test_a_tuned_flow_samples_at_its_number_of_calls(flow):
    solver = flow.tune(4, trajectories=64, steps=10, generator=seeded())
    assert isinstance(solver, BNS)
    assert isinstance(solver, torch.nn.Module)
    assert flow.tuned == {4: solver}
    x0 = flow.start(200, seeded(5))
    truth = flow.decode(x0, rtol=1e-6, atol=1e-6)
    error = lambda x: (x - truth).square().mean().sqrt().item()  # noqa: E731
    assert error(flow.decode(x0, nfe=4)) < 0.5 * error(flow.decode(x0, steps=4, solver=fm.AdamsBashforth(2)))
    assert torch.equal(flow.sample(200, nfe=4, generator=seeded(5)), flow.decode(x0, nfe=4))
    assert torch.equal(flow.decode(x0, solver=solver), flow.decode(x0, nfe=4))
    assert flow.solve(x0, nfe=4).nfe == 4
    assert flow.trajectory(x0, nfe=4).trajectory.shape == (2, 200, 2)
    assert not flow.sample(3, nfe=4).requires_grad


def test_the_seed_decides_and_the_global_generator_is_left_alone(flow):
    before = torch.get_rng_state()
    a, b, c = (flow.tune(2, generator=seeded(seed), **QUICK).vector() for seed in (0, 0, 1))
    assert torch.equal(a, b)
    assert not torch.equal(a, c)
    assert torch.equal(torch.get_rng_state(), before)


def test_tuning_leaves_the_field_alone_and_replaces_what_was_tuned(flow):
    before = flow.field.speed.detach().clone()
    first = flow.tune(2, generator=seeded(), **QUICK)
    second = flow.tune(2, generator=seeded(1), **QUICK)
    flow.tune(3, generator=seeded(), **QUICK)
    assert flow.tuned[2] is second is not first
    assert sorted(flow.tuned) == [2, 3]
    assert torch.equal(flow.field.speed, before)
    assert flow.field.speed.grad is None
    assert flow.field.speed.requires_grad


def test_conditions_are_drawn_from_those_given(flow):
    seen = set()
    flow.field.register_forward_pre_hook(lambda module, arguments: seen.update(arguments[2].tolist()))
    flow.tune(3, torch.tensor([0, 2]), generator=seeded(), **QUICK)
    assert seen == {0, 2}
    x = flow.sample(6, torch.tensor([0, 1, 2, 0, 1, 2]), nfe=3, generator=seeded())
    given = flow.given(torch.tensor(1)).sample(6, nfe=3, generator=seeded())
    torch.testing.assert_close(x[1::3], given[1::3])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_a_tuned_solver_serves_every_type(flow, dtype):
    flow.tune(3, generator=seeded(), **QUICK)
    vector = flow.tuned[3].vector()
    x0 = flow.start(50, seeded())
    expected = flow.decode(x0, nfe=3)
    x = flow.to(dtype).decode(x0.to(dtype), nfe=3)
    assert x.dtype == dtype
    assert torch.equal(flow.tuned[3].vector(), vector)
    torch.testing.assert_close(x.float(), expected, rtol=0.05, atol=0.05 if dtype == torch.bfloat16 else 1e-5)


def test_a_learned_solver_may_be_the_flow_s_own():
    solver = LearnedGrid(Midpoint(), uniform_grid(3))
    flow = fm.Flow(lambda t, x: -x, event_shape=(2,), solver=solver)
    x0 = flow.start(5, seeded())
    assert x0.dtype == torch.float32  # and not that of the solver's times
    assert torch.equal(flow.decode(x0), flow.decode(x0, solver=Midpoint(), steps=3))
    with pytest.raises(ValueError, match="was learned for the way from 0 to 1, not from 1 to 0"):
        flow.encode(x0)
    torch.testing.assert_close(flow.encode(x0, solver=fm.RK4(), steps=8).mean(), torch.e * x0.mean(), rtol=1e-3, atol=0)


def test_any_learned_solver_can_be_tuned(flow):
    start = ScaleTime(2)
    made = flow.tune(4, solver=start, generator=seeded(), **QUICK)
    assert isinstance(made, ScaleTime)
    assert made is flow.tuned[4]
    assert made is not start


# --- on disc ----------------------------------------------------------------------------------------------------------


def _net_flow(**options):
    """A smooth network, which is solved in few steps."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = fm.nn.MLP(2, hidden=16, depth=1)
        torch.nn.init.normal_(net.outlet.weight, std=0.2)
    return fm.Flow(net, event_shape=(2,), **options)


def test_tuned_solvers_come_back_bit_for_bit(tmp_path):
    flow = _net_flow()
    flow.tune(2, generator=seeded(), **QUICK)
    flow.tune(4, solver=ScaleTime(2), generator=seeded(), **QUICK)
    flow.tuned[5] = LearnedGrid(PathAdams(fm.Linear()), path_grid(5, fm.Linear()))
    flow.save(tmp_path)
    again = fm.Flow.load(tmp_path)
    assert {nfe: type(solver) for nfe, solver in again.tuned.items()} == {2: BNS, 4: ScaleTime, 5: LearnedGrid}
    for nfe in flow.tuned:
        assert torch.equal(flow.sample(9, nfe=nfe, generator=seeded()), again.sample(9, nfe=nfe, generator=seeded()))
    again.tune(2, generator=seeded(1), **QUICK)
    again.save(tmp_path)
    assert torch.equal(fm.Flow.load(tmp_path).tuned[2].vector(), again.tuned[2].vector())
    assert not torch.equal(flow.tuned[2].vector(), again.tuned[2].vector())
    assert not list(tmp_path.glob("*.tmp"))


def test_a_learned_solver_of_the_flow_itself_comes_back(tmp_path):
    flow = _net_flow(solver=BNS.like(fm.RK4(), uniform_grid(2)))
    flow.save(tmp_path)
    assert torch.equal(fm.Flow.load(tmp_path).sample(5, generator=seeded()), flow.sample(5, generator=seeded()))


def test_folders_of_before_still_load(tmp_path):
    _net_flow().save(tmp_path)
    description = json.loads((tmp_path / "flow.json").read_text())
    del description["tuned"]
    (tmp_path / "flow.json").write_text(json.dumps(description))
    assert fm.Flow.load(tmp_path).tuned == {}


@pytest.mark.parametrize(
    ("tuned", "message"),
    [
        ([], "is damaged: what it names as tuned"),
        ({"2": {"class": "flowmatch.solvers.Midpoint", "arguments": {}}}, "is damaged: what it names as tuned to 2"),
        (
            {"2": {"class": "flowmatch.solvers.ScaleTime", "arguments": {"steps": 3}}},
            "is damaged: what it names as tuned to 2",
        ),
        ({"2": {"class": "os.system", "arguments": {}}}, "a tuned solver cannot be read: .* names 'os.system'"),
        ({"2": {"class": "flowmatch.solvers.BNS", "arguments": {"times": [0.0]}}}, "holds wrong arguments for"),
    ],
)
def test_a_damaged_folder_is_told(tuned, message, tmp_path):
    _net_flow().save(tmp_path)
    description = json.loads((tmp_path / "flow.json").read_text())
    (tmp_path / "flow.json").write_text(json.dumps({**description, "tuned": tuned}))
    with pytest.raises(InputError, match=message):
        fm.Flow.load(tmp_path)


# --- refusals ---------------------------------------------------------------------------------------------------------


def test_numbers_of_calls_that_were_not_tuned_are_refused(flow):
    with pytest.raises(ValueError, match=r"no solver tuned to nfe = 8 .*no solver is tuned.*flow.tune\(8\)"):
        flow.sample(3, nfe=8)
    flow.tune(2, generator=seeded(), **QUICK)
    flow.tune(3, generator=seeded(), **QUICK)
    with pytest.raises(ValueError, match=r"nfe = 8 calls \(there are solvers for 2, 3\)"):
        flow.sample(3, nfe=8)


def test_nfe_excludes_other_ways_to_step(flow):
    flow.tune(2, generator=seeded(), **QUICK)
    for options in ({"steps": 2}, {"rtol": 1e-3}, {"grid": uniform_grid(2)}, {"solver": Midpoint()}):
        with pytest.raises(ValueError, match=f"leave out {next(iter(options))}"):
            flow.sample(3, nfe=2, **options)


def test_the_way_back_is_refused(flow):
    flow.tune(2, generator=seeded(), **QUICK)
    for way in (flow.encode, flow.log_prob):
        with pytest.raises(ValueError, match="was learned for the way from 0 to 1, not from 1 to 0"):
            way(torch.zeros(3, 2), nfe=2)


def test_half_precision_is_refused_with_the_way_out(flow):
    with pytest.raises(TypeError, match=r"tune flow.float\(\)"):
        flow.bfloat16().tune(2, **QUICK)
    assert flow.tuned == {}
