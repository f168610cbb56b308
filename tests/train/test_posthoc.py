"""Power averages, and averages of any width made of two stored ones after training."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from flowmatch.errors import InputError
from flowmatch.train import Callback, Ema, TrainConfig, posthoc_ema
from flowmatch.train.posthoc import WIDTHS, Posthoc
from flowmatch.train.profiles import WIDEST, Profile, exponent, factors, relative_error
from tests.train.runs import Stop, noisy, trainer


def weights_of(gamma: float, steps: int, length: int) -> np.ndarray:
    """Weight of each of ``length`` steps, unrolled from the running update; an oracle without the closed form."""
    weight = np.zeros(length)
    for k in range(1, steps + 1):
        beta = (1 - 1 / k) ** (gamma + 1)
        weight *= beta
        weight[k - 1] += 1 - beta
    return weight


@pytest.mark.parametrize("sigma", [0.01, 0.05, 0.1, 0.25, WIDEST])
def test_width_is_the_standard_deviation_of_the_profile(sigma: float) -> None:
    gamma, steps = exponent(sigma), 20_000
    weight = np.diff(np.linspace(0, 1, steps + 1) ** (gamma + 1))
    place = (np.arange(steps) + 0.5) / steps
    mean = weight @ place
    assert np.sqrt(weight @ (place - mean) ** 2) == pytest.approx(sigma, rel=1e-3)
    assert gamma >= 0


@pytest.mark.parametrize("sigma", [0.0, -0.1, 0.29, float("nan")])
def test_width_outside_its_interval_is_an_error(sigma: float) -> None:
    with pytest.raises(ValueError, match=r"relative width of an average must lie in \(0, 1 / sqrt\(12\)"):
        exponent(sigma)


def test_weights_of_a_running_average_sum_to_one_and_follow_the_profile() -> None:
    gamma, steps = exponent(0.1), 400
    net = nn.Linear(steps, 1, bias=False).double()
    nn.init.constant_(net.weight, 7.0)  # a start that must leave no trace
    ema = Ema(net, sigma_rel=0.1)
    for step in range(steps):
        with torch.no_grad():
            net.weight.copy_(torch.eye(steps, dtype=torch.float64)[step : step + 1])
        ema.update(step)
    found = ema.module.weight.detach().numpy()[0]
    assert found.sum() == pytest.approx(1, abs=1e-12)
    k = np.arange(1, steps + 1)
    np.testing.assert_allclose(found, (k ** (gamma + 1) - (k - 1.0) ** (gamma + 1)) / steps ** (gamma + 1), atol=1e-12)


def test_a_stored_profile_is_its_own_reconstruction() -> None:
    stored = [Profile(exponent(width), step) for step in range(50, 1001, 50) for width in WIDTHS]
    for place in (0, 7, 38, 39):
        found = factors(stored, stored[place])
        np.testing.assert_allclose(found, np.eye(len(stored))[place], atol=1e-9)


@pytest.mark.parametrize(
    ("sigma", "bound"), [(0.03, 0.03), (0.075, 0.0025), (0.15, 0.0065), (0.2, 0.016), (0.25, 0.062)]
)
def test_another_profile_is_near_the_one_that_is_tracked(sigma: float, bound: float) -> None:
    stored, wanted = (
        [Profile(exponent(w), k) for k in range(50, 1001, 50) for w in WIDTHS],
        Profile(exponent(sigma), 1000),
    )
    found = factors(stored, wanted)
    assert found.sum() == pytest.approx(1, abs=1e-12)
    made = sum(x * weights_of(profile.gamma, profile.steps, 1000) for x, profile in zip(found, stored, strict=True))
    aim = weights_of(wanted.gamma, 1000, 1000)
    error = float(np.linalg.norm(made - aim) / np.linalg.norm(aim))
    assert 1e-4 < error < bound
    assert relative_error(stored, wanted, found) == pytest.approx(error, rel=0.02)


def test_no_other_factors_that_sum_to_one_come_nearer() -> None:
    stored, wanted = [Profile(exponent(w), k) for k in (20, 40) for w in WIDTHS], Profile(exponent(0.15), 40)
    best = factors(stored, wanted)
    for row in np.random.default_rng(0).standard_normal((20, 4)):
        other = best + 1e-3 * (row - row.mean())
        assert relative_error(stored, wanted, other) > relative_error(stored, wanted, best)


class Watch(Callback):
    """Keeps the weights after every step."""

    def __init__(self, net: nn.Module) -> None:
        self.net, self.seen = net, list[Tensor]()

    def on_log(self, step: int, metrics: dict[str, float]) -> None:
        self.seen.append(self.net.state_dict()["outlet.weight"].double().flatten().clone())


def run(out: Path, **options: object) -> tuple[Watch, nn.Module]:
    net = noisy()
    watch = Watch(net)
    defaults = {"steps": 40, "posthoc_every": 4, "log_every": 1, "callbacks": [watch]}
    return watch, trainer(net, out, **{**defaults, **options}).fit().model


@pytest.mark.parametrize("step", [None, 40, 24])
def test_weights_are_reconstructed_from_the_snapshots_of_a_run(tmp_path: Path, step: int | None) -> None:
    watch, _ = run(tmp_path)
    trail = torch.stack(watch.seen)
    for sigma, tolerance in ((0.05, 1e-5), (0.10, 1e-5), (0.12, 0.03)):
        tensors = posthoc_ema(tmp_path, sigma, step)
        aim = torch.from_numpy(weights_of(exponent(sigma), step or 40, 40)) @ trail
        moved = (trail[-1] - trail[0]).norm()
        assert (tensors["outlet.weight"].double().flatten() - aim).norm() < tolerance * moved
    again = noisy()
    again.load_state_dict(tensors)
    assert again.calls == (step or 40)  # a counter is that of the last snapshot
    assert tensors["outlet.weight"].dtype == torch.float32
    assert (posthoc_ema(tmp_path / "posthoc", 0.05, step)["outlet.weight"] != tensors["outlet.weight"]).any()


def test_power_profile_is_the_average_of_the_run(tmp_path: Path) -> None:
    watch, model = run(tmp_path, ema_profile="power", ema_sigma=0.1)
    torch.testing.assert_close(model.state_dict(), posthoc_ema(tmp_path, 0.1), rtol=0, atol=1e-6)
    assert len(watch.seen) == 40


def test_snapshots_of_a_stopped_run_are_those_of_the_whole_one(tmp_path: Path) -> None:
    options = {"checkpoint_every": 7, "steps": 22, "log_every": 5}
    run(tmp_path / "whole", **options)
    with pytest.raises(Stop.Crash):
        run(tmp_path / "stopped", callbacks=[Stop(20)], **options)
    folder = tmp_path / "stopped" / "posthoc"
    assert sorted(path.name for path in folder.iterdir())[-1] == "step_00000016.safetensors"
    # A later life of the run would find wrong weights beyond the checkpoint of step 14, and half a file.
    (folder / "step_00000016.safetensors").write_bytes(b"of another life")
    (folder / "step_00000020.unfinished").write_bytes(b"half")
    net = noisy()
    trainer(net, tmp_path / "stopped", **{"posthoc_every": 4, **options}).fit(resume=True)
    names = sorted(path.name for path in folder.iterdir())
    assert names == sorted(path.name for path in (tmp_path / "whole" / "posthoc").iterdir())
    assert names == [f"step_{step:08d}.safetensors" for step in (4, 8, 12, 16, 20, 22)]
    for name in names:
        assert (folder / name).read_bytes() == (tmp_path / "whole" / "posthoc" / name).read_bytes()


def test_what_lies_beyond_the_checkpoint_is_gone_before_training_goes_on(tmp_path: Path) -> None:
    net = noisy()
    kept = Posthoc(net, [noisy(), noisy()], tmp_path / "posthoc", writes=True)
    for step in (4, 8, 12):
        kept.update(step - 1)
        kept.save(step)
    kept.cut(8)
    assert sorted(path.name for path in (tmp_path / "posthoc").iterdir()) == [
        "step_00000004.safetensors",
        "step_00000008.safetensors",
    ]


def test_failures_say_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no snapshots of averages in .*posthoc; train with posthoc_every"):
        posthoc_ema(tmp_path, 0.1)
    with pytest.raises(
        InputError, match="posthoc_every keeps snapshots in the folder of the run; give the Trainer out="
    ):
        trainer(posthoc_every=5)
    run(tmp_path, steps=8)
    with pytest.raises(InputError, match="one of the 2 snapshots in .*; give step=8, got 7"):
        posthoc_ema(tmp_path, 0.1, step=7)
    with pytest.raises(
        InputError, match="up to step 4 make an average of width 0.25 only up to an error of .*nearer to"
    ):
        posthoc_ema(tmp_path, 0.25, step=4)
    with pytest.raises(ValueError, match="relative width"):
        posthoc_ema(tmp_path, 0.5)
    (tmp_path / "late").mkdir()
    trainer(noisy(), tmp_path / "late", steps=6).fit()
    with pytest.raises(InputError, match="no averages for snapshots, which have to begin with the run; resume it with"):
        trainer(noisy(), tmp_path / "late", steps=9, posthoc_every=2).fit(resume=True)


def test_a_full_disc_is_named(tmp_path: Path) -> None:
    (tmp_path / "posthoc").write_text("a file where the folder should be")
    with pytest.raises(InputError, match=r"could not write .*step_00000002.safetensors: .*posthoc_every, then resume"):
        trainer(noisy(), tmp_path, steps=6, posthoc_every=2).fit()


def test_options_of_the_average() -> None:
    config = TrainConfig(ema_profile="power", ema_sigma=0.05)
    assert trainer(ema_profile="power", ema_sigma=0.05).ema.gamma == pytest.approx(exponent(config.ema_sigma))
    assert trainer().ema.gamma is None
    assert trainer().ema.decay(10_000) == 0.999
