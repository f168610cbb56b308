"""The recipe for tables: every option makes the parts it names, and a flow of any kind trains, samples and is saved."""

from __future__ import annotations

from typing import get_args

import pytest
import torch

import flowmatch as fm
from flowmatch.errors import InputError
from flowmatch.recipes import FlowConfig, fit_flow, make_objective, make_path
from flowmatch.train import TensorData, TrainConfig


def _choices(name: str) -> tuple[str, ...]:
    return get_args(FlowConfig.model_fields[name].annotation)


@pytest.mark.parametrize("path", _choices("path"))
@pytest.mark.parametrize("times", _choices("times"))
def test_every_path_goes_with_every_law_of_times(path, times):
    config = FlowConfig(path=path, times=times)
    objective = make_objective(config)
    low, high = make_path(config).interval
    t = objective.times(1000, torch.Generator().manual_seed(0))
    assert low <= t.min()
    assert t.max() < high
    # Equal shares of the law: the empirical distribution is within one share of it.
    if times != "uniform":
        law = objective.times.base or fm.Uniform(low, high)
        shares = (torch.arange(1000) + 0.5) / 1000
        assert (t.sort().values - law.quantile(shares)).abs().max() < (0.002 if times == "stratified" else 0.1)


def test_pairs_are_as_named_and_within_conditions_where_there_are_any():
    kinds = {"independent": fm.Independent(), "ot": fm.ExactOT(), "sinkhorn": fm.Sinkhorn()}
    assert set(kinds) == set(_choices("coupling"))
    for name, coupling in kinds.items():
        assert make_objective(FlowConfig(coupling=name)).coupling == coupling
        labelled = make_objective(FlowConfig(coupling=name), classes=3).coupling
        assert labelled == (coupling if name == "independent" else fm.ConditionAware(coupling))
    assert make_objective(FlowConfig(coupling="ot"), cond_dim=2).coupling == fm.ConditionAware(fm.ExactOT())
    with pytest.raises(InputError, match="coupling sinkhorn does not go with a numeric condition; use coupling ot"):
        make_objective(FlowConfig(coupling="sinkhorn"), cond_dim=2)


def test_a_missing_compiler_is_named_before_anything_is_written(monkeypatch):
    monkeypatch.setattr("flowmatch.recipes.matching.find_spec", lambda name: None)
    with pytest.raises(InputError, match=r'coupling ot needs numba; run: pip install "flowmatch\[ot\]"'):
        make_objective(FlowConfig(coupling="ot"))
    assert make_objective(FlowConfig(coupling="sinkhorn")).coupling == fm.Sinkhorn()


@pytest.mark.parametrize("predicts", _choices("predicts"))
def test_a_flow_of_any_kind_trains_samples_scores_and_is_saved(predicts, tmp_path):
    rows = torch.randn(2000, 2, generator=torch.Generator().manual_seed(0))
    config = FlowConfig(predicts=predicts, coupling="ot", hidden=32, depth=2)
    train = TrainConfig(steps=500, batch_size=100, pool=200, ahead=1, learning_rate=3e-3, warmup=20, ema=0.98)
    flow, result = fit_flow(TensorData(rows), None, dim=2, flow=config, train=train)
    assert result.step == 500
    flow.save(tmp_path)
    again = fm.Flow.load(tmp_path)
    assert isinstance(again.field, fm.nn.MLP if predicts == "velocity" else fm.Predicts)
    draws = [f.sample(500, rtol=1e-3, atol=1e-3, generator=torch.Generator().manual_seed(1)) for f in (flow, again)]
    assert torch.equal(*draws)
    assert draws[0].std(0).sub(1).abs().max() < 0.35
    # A normal law has -2.84 nats a point in two dimensions; a field that is wrong has far less.
    assert flow.log_prob(rows[:50], rtol=1e-3, atol=1e-3).mean() > -4.0
