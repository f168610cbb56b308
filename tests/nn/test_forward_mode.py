"""Forward mode in networks: when a transform is seen, and that the fast ways are kept outside of one."""

from __future__ import annotations

import pytest
import torch
from torch.autograd import forward_ad
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from flowmatch.nn.forward_mode import checkpointed, differentiable, transforming
from tests.nn.networks import image_inputs, image_net
from tests.problems import pair, seeded

TRANSFORMS = {
    "jvp": lambda f, x: torch.func.jvp(f, (x,), (x,)),
    "vmap": lambda f, x: torch.func.vmap(f)(x[None]),
    "grad": lambda f, x: torch.func.grad(lambda y: f(y).sum())(x),
    "vmap-jvp": lambda f, x: torch.func.vmap(lambda v: torch.func.jvp(f, (x,), (v,))[1])(x[None]),
    "jacfwd": lambda f, x: torch.func.jacfwd(f)(x),
    "jacrev": lambda f, x: torch.func.jacrev(f)(x),
    "hessian": lambda f, x: torch.func.hessian(lambda y: f(y).sum())(x),
}


class _Calls(TorchFunctionMode):
    """Names of the functions of torch that are called."""

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_function__(self, func, types, args=(), kwargs=None):
        self.names.append(func.__name__)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("name", TRANSFORMS)
def test_every_transform_is_seen_and_none_outside(name):
    seen = []
    TRANSFORMS[name](lambda x: seen.append(transforming()) or x.sin(), torch.ones(2))
    assert seen
    assert all(seen)
    assert not transforming()


def test_plain_dual_numbers_are_seen_too():
    with forward_ad.dual_level():
        assert transforming()
    assert not transforming()


@pytest.mark.parametrize("name", TRANSFORMS)
@pytest.mark.parametrize("kind", ["unet", "dit"])
def test_every_transform_goes_through_a_network(kind, name):
    """Warnings are errors here, so nothing falls back to a slow loop either."""
    net, (t, x) = image_net(kind, shape=(1, 2, 2), **TINY[kind]), image_inputs(2, shape=(1, 2, 2))
    found = TRANSFORMS[name](lambda point: net(t, point.expand_as(x)), x)
    assert all(part.isfinite().all() for part in (found if isinstance(found, tuple) else [found]))


TINY = {"unet": {"mults": (1,), "attention": (2,)}, "dit": {"patch": 1}}


def test_a_derivative_by_the_parameters_goes_through_attention():
    """There nothing of the input has a tangent, so it is the transform that has to be seen, not a tensor."""
    net, (t, x) = image_net("dit"), image_inputs(2)
    values = {name: value.detach() for name, value in net.named_parameters()}

    def run(parameters):
        return torch.func.functional_call(net, parameters, (t, x))

    _, slope = torch.func.jvp(run, (values,), (values,))
    h = 1e-6
    up, down = ({name: value * (1 + sign * h) for name, value in values.items()} for sign in (1, -1))
    torch.testing.assert_close(slope, (run(up) - run(down)) / (2 * h), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("affine", [True, False])
def test_group_normalisation_has_the_derivative_of_its_value(layout, affine):
    norm = torch.nn.GroupNorm(2, 6, affine=affine).double()
    if affine:
        torch.nn.init.normal_(norm.weight, generator=seeded(1))
        torch.nn.init.normal_(norm.bias, generator=seeded(2))
    x, direction = (part.to(memory_format=layout) for part in pair(3, 6, 4, 2))

    def run(point):
        with differentiable():
            return norm(point)

    value, slope = torch.func.jvp(run, (x,), (direction,))
    quotient = (norm(x + 1e-6 * direction) - norm(x - 1e-6 * direction)) / 2e-6
    torch.testing.assert_close(value, norm(x))
    torch.testing.assert_close(slope, quotient, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("kind", ["unet", "dit"])
def test_outside_of_a_transform_attention_is_fused(kind):
    from torch.profiler import ProfilerActivity, profile

    net, (t, x) = image_net(kind), image_inputs(2)
    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        net(t, x).sum().backward()
    fused = {event.name for event in profiler.events() if "_scaled_dot_product_flash" in event.name}
    assert any("backward" in name for name in fused)


def test_outside_of_a_transform_nothing_is_changed():
    with _Calls() as calls, differentiable():
        functional.group_norm(torch.ones(1, 2, 2), 2)
    assert calls.names.count("group_norm") >= 1
    assert "var_mean" not in calls.names


def test_a_module_is_run_again_in_the_backward_pass_outside_of_a_transform_only():
    runs = []

    class Module(torch.nn.Module):
        def forward(self, x):
            runs.append(1)
            return x.sin()

    x = torch.ones(2, requires_grad=True)
    checkpointed(Module(), x).sum().backward()
    assert len(runs) == 2
    torch.func.grad(lambda y: checkpointed(Module(), y).sum())(x.detach())
    assert len(runs) == 3


@pytest.mark.parametrize("kind", ["unet", "dit"])
def test_a_network_can_be_compiled(kind):
    net, (t, x) = image_net(kind), image_inputs(2)
    compiled = torch.compile(net, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(t, x), net(t, x))
    torch.compiler.reset()
