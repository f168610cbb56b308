from __future__ import annotations

import pytest
from pydantic import ValidationError

from flowmatch.errors import InputError
from flowmatch.train import TrainConfig


def rates(**options: object) -> list[float]:
    config = TrainConfig.parse({"steps": 100, "learning_rate": 1.0, "warmup": 20, **options})
    return [config.rate(step) for step in range(config.steps)]


@pytest.mark.parametrize("decay", ["cosine", "linear", "constant"])
def test_warmup_rises_in_equal_steps_to_the_peak(decay: str) -> None:
    rising = rates(decay=decay)[:21]
    assert rising[:20] == pytest.approx([(k + 1) / 20 for k in range(20)])
    assert rising[19] == rising[20] == 1.0


def test_decay_follows_its_formula() -> None:
    assert rates(decay="constant")[20:] == [1.0] * 80
    assert rates(decay="linear")[60] == pytest.approx(0.5)
    assert rates(decay="cosine")[60] == pytest.approx(0.5)
    assert rates(decay="cosine")[40] == pytest.approx((1 + 2**-0.5) / 2)  # a quarter of the way: cos(pi/4)


@pytest.mark.parametrize("decay", ["cosine", "linear", "constant"])
@pytest.mark.parametrize(("steps", "warmup"), [(1, 0), (1, 200), (2, 1), (7, 200), (100, 0), (100, 100)])
def test_every_update_has_a_positive_rate_and_one_reaches_the_peak(decay: str, steps: int, warmup: int) -> None:
    values = rates(decay=decay, steps=steps, warmup=warmup)
    assert min(values) > 0
    assert max(values) == 1.0


def test_rate_stays_defined_beyond_the_last_step() -> None:
    assert TrainConfig(steps=10, decay="cosine").rate(50) == 0.0


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"steps": 0}, r"steps \(number of optimiser steps\): should be greater than or equal to 1, got 0"),
        ({"stepz": 10}, "no option stepz; did you mean steps"),
        ({"zzzzzz": 1}, "no option zzzzzz; known are steps, batch_size"),
        ({"precision": "fp8"}, "precision .*should be 'fp32', 'bf16' or 'fp16', got 'fp8'"),
        ({"label_dropout": 1.0}, "label_dropout .*less than 1, got 1.0"),
        ({"ema_sigma": 0.3}, "ema_sigma .*less than or equal to 0.288"),
        ({"ema_profile": "power", "ema": 0}, "ema 0 turns averaging off, so there is no ema_profile power"),
        ({"learning_rate": float("nan")}, "learning_rate .*should be a finite number"),
        ({"learning_rate": "fast"}, "learning_rate .*valid number.*got 'fast'"),
        ({"ema": 1.0}, "ema .*less than 1, got 1.0"),
        ({"betas": (0.9, 1.5)}, "betas .*less than 1"),
        ({"batch_size": 10, "accumulate": 3}, "batch_size 10 cannot be computed in 3 equal parts; make batch_size"),
        ({"steps": -1, "clip": -1}, "steps .*; clip .*"),
    ],
)
def test_bad_options_are_named_with_what_is_expected(options: dict[str, object], said: str) -> None:
    with pytest.raises(InputError, match=said) as caught:
        TrainConfig.parse(options)
    assert "\n" not in str(caught.value)


def test_options_as_text_are_read_and_the_config_cannot_change() -> None:
    config = TrainConfig.parse({"steps": "30", "learning_rate": "1e-2", "betas": ["0.9", "0.95"], "tensorboard": "no"})
    assert (config.steps, config.learning_rate, config.betas, config.tensorboard) == (30, 0.01, (0.9, 0.95), False)
    assert TrainConfig.parse(config.model_dump()) == config
    with pytest.raises(ValidationError, match="frozen"):
        config.steps = 1  # type: ignore[misc]


def test_every_option_says_what_it_is() -> None:
    for name, field in TrainConfig.model_fields.items():
        assert field.description, f"{name} has no description"
