"""Flows on disc: they come back as they were, nothing else can be built from a file, and no save loses the old one."""

from __future__ import annotations

import contextlib
import errno
import json
import os

import pytest
import torch
from torch import nn

import flowmatch as fm
from flowmatch import persist
from flowmatch.errors import InputError
from flowmatch.persist import write_atomically
from tests.problems import SCHEDULES, SOLVERS, Quadratic, pair, random_mlp, seeded

FILES = {"flow.json", "model.safetensors"}


def _flow(**options) -> fm.Flow:
    return fm.Flow(random_mlp(2, seed=1), event_shape=(2,), **options)


def _same(one: fm.Flow, other: fm.Flow, cond=None) -> None:
    x, y = (flow.sample(5, cond, steps=3, solver=fm.Midpoint(), generator=seeded()) for flow in (one, other))
    assert x.dtype == y.dtype
    assert torch.equal(x, y)


def _edit(folder, **changes) -> None:
    path = folder / "flow.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


# --- round trips --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [name for name in SCHEDULES if name not in ("own", "learned")])
def test_every_schedule_comes_back(name, tmp_path):
    flow = _flow(path=fm.AffinePath(SCHEDULES[name]))
    flow.save(tmp_path)
    again = fm.Flow.load(tmp_path)
    assert again.path.schedule == flow.path.schedule
    assert again.path.interval == flow.path.interval
    assert again.source == flow.source
    _same(flow, again)
    assert {f.name for f in tmp_path.iterdir()} == FILES


def test_a_learned_schedule_comes_back_with_its_weights(tmp_path):
    flow = _flow(path=fm.AffinePath(SCHEDULES["learned"]))
    flow.save(tmp_path)
    again = fm.Flow.load(tmp_path).path.schedule
    assert again.config() == SCHEDULES["learned"].config()
    assert torch.equal(again.weights, SCHEDULES["learned"].weights)


@pytest.mark.parametrize("wrap", ["velocity", "target", "noise", "score", "rescheduled", "bridge", "both", "guided"])
def test_a_wrapped_network_comes_back(wrap, tmp_path):
    straight, curved = fm.AffinePath(fm.Linear(0.1)), fm.AffinePath(fm.Cosine())
    net, mean = random_mlp(2), torch.tensor([0.3, -0.2])
    weak = fm.Rescheduled(random_mlp(2, seed=3), straight, curved)
    field, path = {
        "rescheduled": (fm.Rescheduled(net, straight, curved), curved),
        "bridge": (fm.Bridge(fm.nn.Pair(net, random_mlp(2, seed=1)), fm.BrownianBridge(0.5)), fm.BrownianBridge(0.5)),
        "guided": (fm.AutoGuided(net, weak, 1.5), curved),
        "both": (fm.Rescheduled(fm.Predicts(net, straight, "noise"), straight, curved), curved),
    }.get(wrap) or (fm.Predicts(net, straight, wrap, mean), straight)
    flow = fm.Flow(field, path, (2,))
    flow.save(tmp_path)
    again = fm.Flow.load(tmp_path)
    assert repr(again.field) == repr(field)
    t, x = torch.linspace(0.1, 0.9, 5, dtype=torch.float64), pair(5, 2)[0]
    assert torch.equal(again.field(t, x), field(t, x))


def test_a_wrapper_around_the_user_s_own_network_names_it(tmp_path):
    class Own(torch.nn.Linear):
        def forward(self, t, x):
            return super().forward(x)

    path, own = fm.AffinePath(), Own(2, 2)
    fm.Flow(fm.Predicts(own, path, "target"), path, (2,)).save(tmp_path)
    with pytest.raises(InputError, match=r"Own' as the field.*give it with Flow.load\(folder, field=...\)"):
        fm.Flow.load(tmp_path)
    again = fm.Flow.load(tmp_path, field=fm.Predicts(Own(2, 2), path, "target"))
    own_schedule = fm.AffinePath(Quadratic())
    fm.Flow(fm.Predicts(random_mlp(2), own_schedule, "noise"), path, (2,)).save(tmp_path / "two")
    with pytest.raises(InputError, match=r"Quadratic' as the schedule.*Flow.load\(folder, field=...\)"):
        fm.Flow.load(tmp_path / "two")
    assert torch.equal(again.field.net.weight, own.weight)


@pytest.mark.parametrize("solver", [None, *SOLVERS.values()])
def test_every_solver_and_source_comes_back(solver, tmp_path):
    flow = _flow(solver=solver, source=fm.Normal(0.1 + 0.2))
    flow.save(tmp_path)
    again = fm.Flow.load(tmp_path)
    assert again.solver == solver
    assert type(again.solver) is type(solver)
    assert again.source == flow.source


@pytest.mark.parametrize("options", [{}, {"classes": 3}, {"cond_dim": 2}, {"hidden": 5, "depth": 3}])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_every_network_comes_back_bit_for_bit_in_its_type(options, dtype, tmp_path):
    flow = fm.Flow(random_mlp(2, seed=3, **options).to(dtype), event_shape=(2,)).train()
    flow.save(tmp_path)
    again = fm.Flow.load(tmp_path)
    assert type(again.field) is fm.nn.MLP
    assert again.field.config() == flow.field.config()
    for (name, one), (other_name, other) in zip(flow.state_dict().items(), again.state_dict().items(), strict=True):
        assert name == other_name
        assert one.dtype == other.dtype == dtype
        assert torch.equal(one, other)
    assert not again.training
    cond = {"classes": torch.tensor([0, 1, 2, 0, 1]), "cond_dim": torch.ones(5, 2, dtype=dtype)}
    _same(flow, again, cond.get(next(iter(options), "")))


def test_an_image_flow_keeps_its_shape(tmp_path):
    flow = fm.Flow(nn.Identity(), event_shape=(3, 8, 8))
    flow.save(tmp_path)
    assert fm.Flow.load(tmp_path, field=nn.Identity()).event_shape == (3, 8, 8)


def test_a_saved_flow_names_its_parts_by_their_public_names(tmp_path):
    _flow(solver=fm.Heun()).save(tmp_path)
    description = json.loads((tmp_path / "flow.json").read_text())
    names = [description[part]["class"] for part in ("field", "path", "source", "solver")]
    assert names == [
        "flowmatch.nn.MLP",
        "flowmatch.paths.AffinePath",
        "flowmatch.sources.Normal",
        "flowmatch.solvers.Heun",
    ]
    assert description["path"]["arguments"]["schedule"]["class"] == "flowmatch.schedules.Linear"


# --- parts of the user's own --------------------------------------------------------------------------------------


class OwnNet(nn.Module):
    """A network of the user's own, with one tensor under two names, a buffer, and a ``config`` that is no function."""

    def __init__(self):
        super().__init__()
        self.config = {"width": 2}
        self.inlet = nn.Linear(2, 2)
        self.outlet = nn.Linear(2, 2)
        self.outlet.weight = self.inlet.weight
        self.register_buffer("scale", torch.tensor(0.0))

    def forward(self, t, x):
        return self.scale * self.outlet(self.inlet(x).T.T)


class OwnSource:
    """Not a dataclass, and it holds a tensor."""

    def __init__(self):
        self.mean = torch.ones(2)

    def sample(self, shape, generator=None, device=None, dtype=None):
        return torch.randn(shape, generator=generator, dtype=dtype) + self.mean.to(dtype)

    def log_prob(self, x):
        return fm.Normal().log_prob(x - self.mean)


class OwnSolver(fm.Euler):
    pass


OWN_PARTS = {
    "field": lambda: OwnNet(),
    "path": lambda: fm.FunctionPath(lambda t, x0, x1: (1 - t) * x0 + t * x1),
    "source": lambda: OwnSource(),
    "solver": lambda: OwnSolver(),
}
OWN_PATHS = {
    "function": OWN_PARTS["path"],
    "gaussian": lambda: fm.GaussianPath(lambda t, x1: t * x1, lambda t, x1: 1 - 0.9 * t),
    "schedule": lambda: fm.AffinePath(Quadratic()),
}


@pytest.mark.parametrize("part", OWN_PARTS)
def test_a_part_of_ones_own_is_given_again(part, tmp_path):
    flow = fm.Flow(**{"field": random_mlp(2), "event_shape": (2,), part: OWN_PARTS[part]()})
    flow.save(tmp_path)
    with pytest.raises(
        InputError, match=rf"names .* as the {part}, which flowmatch cannot build.*Flow.load\(folder, {part}="
    ) as e:
        fm.Flow.load(tmp_path)
    assert str(tmp_path / "flow.json") in str(e.value)
    given = OWN_PARTS[part]()
    again = fm.Flow.load(tmp_path, **{part: given})
    assert getattr(again, part) is given
    _same(flow, again)


@pytest.mark.parametrize("kind", OWN_PATHS)
def test_a_path_made_of_functions_is_given_again(kind, tmp_path):
    flow = _flow(path=OWN_PATHS[kind]())
    flow.save(tmp_path)
    with pytest.raises(
        InputError, match=r"if it is code of your own, make it and give it with Flow.load\(folder, path=\.\.\.\)"
    ):
        fm.Flow.load(tmp_path)
    path = OWN_PATHS[kind]()
    again = fm.Flow.load(tmp_path, path=path)
    assert again.path is path
    _same(flow, again)


def test_a_field_without_weights_is_given_again(tmp_path):
    flow = fm.Flow(fm.GaussianField(torch.zeros(2), std=2.0), event_shape=(2,))
    flow.save(tmp_path)
    with pytest.raises(InputError, match=r"flowmatch.fields.gaussian.GaussianField.*Flow.load\(folder, field="):
        fm.Flow.load(tmp_path)
    _same(flow, fm.Flow.load(tmp_path, field=flow.field))


def test_tied_weights_come_back_tied(tmp_path):
    net = OwnNet()
    net.scale.fill_(0.7)
    fm.Flow(net, event_shape=(2,)).save(tmp_path)
    again = fm.Flow.load(tmp_path, field=OwnNet()).field
    assert again.inlet.weight is again.outlet.weight
    for name, value in net.state_dict().items():
        assert torch.equal(again.state_dict()[name], value)


@pytest.mark.parametrize(
    "field",
    [fm.nn.MLP(2, hidden=8), fm.nn.MLP(3, hidden=16, depth=2), fm.nn.MLP(2, hidden=16, depth=2, classes=2), OwnNet()],
)
def test_weights_that_do_not_fit_the_given_network_are_refused(field, tmp_path):
    _flow().save(tmp_path)
    with pytest.raises(InputError, match=rf"the weights in .* do not fit {type(field).__name__}: "):
        fm.Flow.load(tmp_path, field=field)


def test_a_given_part_of_the_wrong_kind_is_refused(tmp_path):
    _flow().save(tmp_path)
    with pytest.raises(TypeError, match="path must be a flowmatch Path"):
        fm.Flow.load(tmp_path, path=fm.Linear())


# --- damaged and foreign files ------------------------------------------------------------------------------------


def test_no_flow_there(tmp_path):
    with pytest.raises(InputError, match=r"no flow at .*nowhere: flow.json is missing; give a run folder"):
        fm.Flow.load(tmp_path / "nowhere")
    (tmp_path / "checkpoints").mkdir()
    with pytest.raises(InputError, match="the training may not have finished; resume it"):
        fm.Flow.load(tmp_path)


@pytest.mark.parametrize("keep", [0, 1, 40, -3])
def test_a_truncated_description_is_told(keep, tmp_path):
    _flow().save(tmp_path)
    content = (tmp_path / "flow.json").read_bytes()
    (tmp_path / "flow.json").write_bytes(content[:keep])
    with pytest.raises(InputError, match=r"flow.json is damaged \(.*restore it from a copy or train again"):
        fm.Flow.load(tmp_path)


@pytest.mark.parametrize(
    "content", [b"[]", b"3", b"null", b'"flow"', b"{}", b'{"format": "other"}', b'{"format": "flowmatch.flow"}']
)
def test_a_foreign_description_is_told(content, tmp_path):
    _flow().save(tmp_path)
    (tmp_path / "flow.json").write_bytes(content)
    with pytest.raises(InputError, match="flow.json was not written by flowmatch; give the folder of a flowmatch run"):
        fm.Flow.load(tmp_path)


def test_a_description_in_another_encoding_is_told(tmp_path):
    _flow().save(tmp_path)
    (tmp_path / "flow.json").write_bytes(b"\xff\xfe\x00{")
    with pytest.raises(InputError, match="flow.json is damaged"):
        fm.Flow.load(tmp_path)


def test_a_newer_version_is_told(tmp_path):
    _flow().save(tmp_path)
    _edit(tmp_path, version=2)
    with pytest.raises(InputError, match="has version 2, this flowmatch reads 1; use the flowmatch that wrote it"):
        fm.Flow.load(tmp_path)


@pytest.mark.parametrize("shape", [2, "2", [2.0], [-1], [True], None, {"a": 1}])
def test_a_shape_that_is_none_is_told(shape, tmp_path):
    _flow().save(tmp_path)
    _edit(tmp_path, event_shape=shape)
    with pytest.raises(InputError, match="flow.json is damaged: event_shape is"):
        fm.Flow.load(tmp_path)


@pytest.mark.parametrize(
    "damage",
    [
        lambda b: b[:-1],
        lambda b: b[: len(b) // 2],
        lambda b: b"",
        lambda b: b[:-1] + b"\0",
        lambda b: b"\x80\x04pickled",
    ],
)
def test_damaged_weights_are_told(damage, tmp_path):
    _flow().save(tmp_path)
    path = tmp_path / "model.safetensors"
    path.write_bytes(damage(path.read_bytes()[:-1] + b"\x01"))
    with pytest.raises(InputError, match=r"model.safetensors is damaged or belongs to another flow: its hash is not"):
        fm.Flow.load(tmp_path)


def test_missing_weights_are_told(tmp_path):
    _flow().save(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(InputError, match=r"model.safetensors is missing beside flow.json"):
        fm.Flow.load(tmp_path)


def test_the_weights_of_another_flow_are_told(tmp_path):
    _flow().save(tmp_path / "a")
    fm.Flow(random_mlp(2, seed=9), event_shape=(2,)).save(tmp_path / "b")
    (tmp_path / "a" / "model.safetensors").write_bytes((tmp_path / "b" / "model.safetensors").read_bytes())
    with pytest.raises(InputError, match="belongs to another flow"):
        fm.Flow.load(tmp_path / "a")


def test_weights_in_another_format_are_told_even_if_their_hash_is_given(tmp_path):
    _flow().save(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"\x80\x04pickled")
    _edit(tmp_path, weights_sha256=persist._hash(b"\x80\x04pickled"))
    with pytest.raises(InputError, match="is no safetensors file"):
        fm.Flow.load(tmp_path)


CALLED = []


@pytest.mark.parametrize("part", ["field", "path", "source", "solver"])
@pytest.mark.parametrize(
    "name",
    [
        "os.system",
        "builtins.eval",
        "subprocess.Popen",
        "torch.nn.Linear",
        "torch.load",
        "flowmatch.persist.save_flow",
        "flowmatch.persist.write_atomically",
        "flowmatch.solvers.solve",
        "flowmatch.solvers.SolveError",
        "flowmatch.flow.Flow",
        "flowmatch.Flow",
        "flowmatch.data.load_table",
        "flowmatch.nn.nn.Linear",
        "flowmatch.nn.mlp.torch.load",
        "flowmatch.nn.__init__",
        "flowmatch.cli.main",
        "tests.test_persist.OwnNet",
        "antigravity",
        "",
        None,
        7,
        ["flowmatch.nn.MLP"],
    ],
)
def test_no_other_name_is_ever_looked_up(part, name, tmp_path, monkeypatch):
    _flow().save(tmp_path)
    _edit(
        tmp_path,
        **{part: {"class": name, "arguments": {"command": "echo", "path": str(tmp_path / "x"), "content": ""}}},
    )
    loaded = persist.importlib.import_module
    monkeypatch.setattr(
        persist.importlib, "import_module", lambda m: loaded(m) if m.startswith("safetensors") else CALLED.append(m)
    )
    with pytest.raises(
        InputError, match=rf"flow.json names .* as the {part}, which flowmatch cannot build from the file"
    ):
        fm.Flow.load(tmp_path)
    assert not CALLED
    assert {f.name for f in tmp_path.iterdir()} == FILES


@pytest.mark.parametrize(
    ("part", "name"),
    [
        ("field", "flowmatch.solvers.Euler"),
        ("path", "flowmatch.schedules.Linear"),
        ("path", "flowmatch.nn.MLP"),
        ("solver", "flowmatch.solvers.ODE"),
        ("source", "flowmatch.nn.MLP"),
    ],
)
def test_a_part_cannot_stand_in_another_s_place(part, name, tmp_path):
    _flow().save(tmp_path)
    _edit(tmp_path, **{part: {"class": name, "arguments": {}}})
    with pytest.raises(InputError, match=f"names '{name}' as the {part}"):
        fm.Flow.load(tmp_path)


@pytest.mark.parametrize(
    ("part", "spec", "message"),
    [
        ("path", [], "names \\[\\] as the path"),
        ("path", "flowmatch.paths.AffinePath", "as the path, which flowmatch cannot build"),
        ("path", None, "names None as the path"),
        ("path", {"class": "flowmatch.paths.AffinePath", "arguments": {}}, "names None as the schedule"),
        (
            "path",
            {"class": "flowmatch.paths.AffinePath", "arguments": {"schedule": {"class": "os.system"}}},
            "'os.system' as the schedule",
        ),
        (
            "path",
            {"class": "flowmatch.paths.FunctionPath", "arguments": {}},
            "holds wrong arguments for flowmatch.paths.FunctionPath",
        ),
        ("path", {"class": "flowmatch.paths.Path", "arguments": {}}, "holds wrong arguments for flowmatch.paths.Path"),
        ("field", {"class": "flowmatch.nn.MLP", "arguments": None}, "names 'flowmatch.nn.MLP' as the field"),
        ("field", {"class": "flowmatch.nn.MLP", "arguments": {"dim": "two"}}, "wrong arguments for flowmatch.nn.MLP"),
        (
            "field",
            {"class": "flowmatch.nn.MLP", "arguments": {"dim": -2}},
            "wrong arguments .* need dim, hidden, depth >= 1",
        ),
        (
            "field",
            {"class": "flowmatch.nn.MLP", "arguments": {"dim": 2, "wide": 3}},
            "unexpected keyword argument 'wide'",
        ),
        ("field", {"class": "flowmatch.nn.MLP", "arguments": {"dim": 2, "hidden": 4, "depth": 1}}, "do not fit MLP"),
        ("source", {"class": "flowmatch.sources.Normal", "arguments": {"std": -1.0}}, "std must be a positive number"),
        ("source", None, "names None as the source"),
    ],
)
def test_a_description_that_was_tampered_with_is_told(part, spec, message, tmp_path):
    _flow().save(tmp_path)
    _edit(tmp_path, **{part: spec})
    with pytest.raises(InputError, match=message):
        fm.Flow.load(tmp_path)


# --- nothing is lost ----------------------------------------------------------------------------------------------


class Killed(BaseException):
    """Stands for a kill: nothing that the code does afterwards counts."""


def _stop_after(monkeypatch, allowed: int, error: BaseException) -> None:
    """Let that many operations on the disc through, then fail at every further one."""
    done = [0]

    def limited(operation):
        def call(*args, **options):
            if done[0] >= allowed:
                raise error
            done[0] += 1
            return operation(*args, **options)

        return call

    monkeypatch.setattr(persist.os, "replace", limited(os.replace))
    monkeypatch.setattr(persist.os, "fsync", limited(os.fsync))
    monkeypatch.setattr(persist.FilePath, "unlink", limited(persist.FilePath.unlink))


@pytest.mark.parametrize("allowed", range(9))
@pytest.mark.parametrize("again", [False, True], ids=["once", "and once more"])
@pytest.mark.parametrize(
    "error", [Killed(), OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))], ids=["killed", "disc full"]
)
def test_whatever_stops_a_save_the_folder_holds_a_whole_flow(allowed, again, error, tmp_path, monkeypatch):
    old, new, newer = (fm.Flow(random_mlp(2, seed=s), event_shape=(2,)) for s in (1, 2, 3))
    old.save(tmp_path)
    finished = True
    with monkeypatch.context() as patched:
        _stop_after(patched, allowed, error)
        try:
            new.save(tmp_path)
        except (Killed, OSError):
            finished = False
    if again:  # a second save after the first was stopped, and stopped at the same place
        with monkeypatch.context() as patched:
            _stop_after(patched, allowed, error)
            with contextlib.suppress(Killed, OSError):
                newer.save(tmp_path)
    found = fm.Flow.load(tmp_path).field.inlet.weight
    whole = [flow.field.inlet.weight for flow in (old, new, newer)]
    assert any(torch.equal(found, weight) for weight in whole)
    if allowed < 2 and not again:
        assert torch.equal(found, whole[0])
    if finished and not again:
        assert torch.equal(found, whole[1])
    newest = fm.Flow(random_mlp(2, seed=4), event_shape=(2,))
    newest.save(tmp_path)
    _same(newest, fm.Flow.load(tmp_path))
    assert {f.name for f in tmp_path.iterdir() if not f.name.endswith(".tmp")} == FILES


def test_a_full_disc_leaves_no_half_written_file_and_the_old_flow(tmp_path, monkeypatch):
    old = _flow()
    old.save(tmp_path)

    def full(descriptor):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patched:
        patched.setattr(persist.os, "fsync", full)
        with pytest.raises(OSError, match="No space left on device"):
            fm.Flow(random_mlp(2, seed=9), event_shape=(2,)).save(tmp_path)
    assert {f.name for f in tmp_path.iterdir()} == FILES
    _same(old, fm.Flow.load(tmp_path))


def test_write_atomically_is_all_or_nothing(tmp_path, monkeypatch):
    path = tmp_path / "file.bin"
    write_atomically(path, b"old")
    monkeypatch.setattr(persist.os, "replace", lambda *a: (_ for _ in ()).throw(OSError(errno.EIO, "broken")))
    with pytest.raises(OSError, match="broken"):
        write_atomically(path, b"new")
    assert path.read_bytes() == b"old"
    assert [f.name for f in tmp_path.iterdir()] == ["file.bin"]


def test_saving_over_a_smaller_and_a_larger_flow(tmp_path):
    for dim in (2, 7, 3):
        flow = fm.Flow(random_mlp(dim), event_shape=(dim,))
        flow.save(tmp_path)
        _same(flow, fm.Flow.load(tmp_path))
        assert {f.name for f in tmp_path.iterdir()} == FILES


def test_saving_does_not_change_the_flow(tmp_path):
    flow = _flow().train()
    before = {name: value.clone() for name, value in flow.state_dict().items()}
    flow.save(tmp_path)
    assert flow.training
    assert all(torch.equal(value, before[name]) for name, value in flow.state_dict().items())
    assert all(p.requires_grad for p in flow.parameters())


def test_without_safetensors_the_extra_is_named(tmp_path, monkeypatch):
    def missing(name):
        raise ImportError(name)

    monkeypatch.setattr(persist.importlib, "import_module", missing)
    with pytest.raises(ImportError, match=r'pip install "flowmatch\[train\]"'):
        _flow().save(tmp_path)


def test_nothing_is_unpickled(tmp_path, monkeypatch):
    _flow().save(tmp_path)
    for name in ("load", "loads", "Unpickler"):
        monkeypatch.setattr(f"pickle.{name}", None)
    monkeypatch.setattr(torch, "load", None)
    assert fm.Flow.load(tmp_path).event_shape == (2,)


@pytest.mark.parametrize("kind", [str, lambda p: p])
def test_a_folder_may_be_a_string_and_is_made(kind, tmp_path):
    folder = tmp_path / "deep" / "run"
    _flow().save(kind(folder))
    assert fm.Flow.load(kind(folder)).event_shape == (2,)


def test_the_density_comes_back_too(tmp_path):
    flow = _flow()
    flow.save(tmp_path)
    x = pair(4, 2)[0]
    assert torch.equal(flow.log_prob(x, steps=4), fm.Flow.load(tmp_path).log_prob(x, steps=4))
