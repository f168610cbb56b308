"""An ONNX file that onnxruntime runs: outputs and Euler samples are ours, whatever the batch."""

from __future__ import annotations

import json
import logging
import re
import sys

import numpy as np
import pytest
import torch

import flowmatch as fm
from flowmatch.export import Facts, to_onnx
from tests.export.worlds import SHAPE, guided_flow, image_flow, table_flow, told
from tests.problems import seeded

pytest.importorskip("onnxscript", reason="needs the extra onnx")
onnxruntime = pytest.importorskip("onnxruntime", reason="needs the extra onnx")

BATCHES = (1, 3, 100)


def _session(path):
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def _arrays(cond):
    named = cond if isinstance(cond, dict) else {} if cond is None else {"label": cond}
    if isinstance(cond, torch.Tensor) and cond.is_floating_point():
        named = {"cond": cond}
    return {name: value.numpy() for name, value in named.items()}


def _draw(flow, size, seed):
    return flow.source.sample((size, *flow.event_shape), generator=seeded(seed))


def _same(flow, session, make_cond):
    """Velocities at every batch, and twenty Euler steps in numpy."""
    for size in BATCHES:
        t, x, cond = torch.rand(size, generator=seeded(size)), _draw(flow, size, size), make_cond(size)
        told_ = _arrays(cond)
        (theirs,) = session.run(["velocity"], {"t": t.numpy(), "x": x.numpy(), **told_})
        with torch.no_grad():
            ours = flow.field(t, x, *(() if cond is None else (cond,)))
        assert ours.abs().max() > 0.05  # not the zeros that networks start with
        torch.testing.assert_close(torch.from_numpy(theirs), ours, rtol=1e-5, atol=1e-5)
    x = start = _draw(flow, 3, 8)
    state, cond = x.numpy(), make_cond(3)
    times = np.linspace(*flow.path.interval, 21)
    for t, until in zip(times, times[1:], strict=False):
        inputs = {"t": np.full(3, t, np.float32), "x": state, **_arrays(cond)}
        state = state + np.float32(until - t) * session.run(["velocity"], inputs)[0]
    ours = flow.decode(start, cond, solver=fm.Euler(), steps=20)
    torch.testing.assert_close(torch.from_numpy(state), ours, rtol=0, atol=1e-5)


TABLES = {
    "plain": (lambda: table_flow(), lambda size: None),
    "classes": (lambda: table_flow(classes=3), lambda size: torch.randint(3, (size,), generator=seeded(size))),
    "number": (lambda: table_flow(cond_dim=2), lambda size: torch.randn(size, 2, generator=seeded(size))),
}


@pytest.mark.parametrize("kind", TABLES)
def test_a_flow_on_rows_runs_in_onnxruntime(tmp_path, capfd, kind):
    """And the exporter says nothing, and leaves the flow and the logging as they were."""
    make, cond = TABLES[kind]
    flow, level = make().double().train(), logging.getLogger("torch.onnx").level
    done = to_onnx(flow, tmp_path / "rows.onnx")
    assert done.path == tmp_path / "rows.onnx"
    assert max(done.velocity, done.sample) < 1e-5
    assert flow.training
    assert next(flow.parameters()).dtype == torch.float64
    assert logging.getLogger("torch.onnx").level == level
    said = capfd.readouterr()
    assert (said.out, said.err) == ("", "")
    _same(make(), _session(done.path), cond)
    assert [path.name for path in tmp_path.iterdir()] == ["rows.onnx"]


@pytest.mark.slow
@pytest.mark.parametrize("cond", ["plain", "labels"])
def test_a_transformer_runs_in_onnxruntime(tmp_path, cond):
    flow = image_flow("dit", cond)
    to_onnx(flow, tmp_path / "net.onnx")
    _same(flow, _session(tmp_path / "net.onnx"), lambda size: told(cond, size))


@pytest.mark.slow
@pytest.mark.parametrize("cond", ["labels", "mask"])
def test_a_unet_runs_in_onnxruntime(tmp_path, cond):
    """Batches of 64 and more too, which diffusers treats apart."""
    flow = image_flow("unet", cond)
    to_onnx(flow, tmp_path / "net.onnx")
    session = _session(tmp_path / "net.onnx")
    _same(flow, session, lambda size: told(cond, size))
    kinds = {value.name: (value.type, value.shape) for value in session.get_inputs()}
    assert kinds["x"] == ("tensor(float)", ["batch", *SHAPE])
    if cond == "mask":
        assert list(kinds) == ["t", "x", "image", "mask", "label"]
        assert kinds["mask"] == ("tensor(bool)", ["batch", *SHAPE])
    assert session.get_outputs()[0].shape == ["batch", *SHAPE]


@pytest.mark.slow
def test_guidance_is_in_the_file(tmp_path):
    flow = guided_flow("dit", interval=(0.2, 0.7))
    to_onnx(flow, tmp_path / "net.onnx")
    _same(flow, _session(tmp_path / "net.onnx"), lambda size: told("labels", size))


def test_a_change_of_output_is_in_the_file(tmp_path):
    path = fm.AffinePath(fm.VariancePreserving())
    flow = fm.Flow(fm.Predicts(table_flow().field, path, "target"), path, event_shape=(2,))
    to_onnx(flow, tmp_path / "net.onnx")
    session = _session(tmp_path / "net.onnx")
    _same(flow, session, lambda size: None)
    meta = session.get_modelmeta().custom_metadata_map
    assert json.loads(meta["interval"]) == [0.0, 1 - 1e-5]
    assert meta["path"] == repr(path)


class _Own(torch.nn.Module):
    """A user's network, which is told two things."""

    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(4, 2)

    def forward(self, t, x, cond):
        return torch.tanh(self.layer(torch.cat([x, cond["where"], t[:, None]], 1))) * cond["how"].to(x.dtype)[:, None]


def test_a_network_of_the_users_own_is_told_by_an_example(tmp_path):
    flow = fm.Flow(_Own().double(), event_shape=(2,))

    def cond(size):
        return {"where": torch.randn(size, 1, generator=seeded(size)), "how": torch.arange(1, size + 1)}

    to_onnx(flow, tmp_path / "own.onnx", cond={**cond(9), "where": cond(9)["where"].double()})
    assert flow.field.layer.weight.dtype == torch.float64
    _same(flow.float(), _session(tmp_path / "own.onnx"), cond)
    with pytest.raises(fm.InputError, match="of 3 rows at least"):
        to_onnx(flow, tmp_path / "more.onnx", cond=cond(2))


def _card(folder):
    (block,) = re.findall(r"^```python\n(.*?)^```$", (folder / "README.md").read_text(), re.M | re.S)
    left = {}
    exec(block, left)
    return left


def _card_start(*shape):
    return torch.from_numpy(np.random.default_rng(0).standard_normal((16, *shape), np.float32))


def test_a_folder_of_a_transformer(tmp_path, monkeypatch):
    """It runs, its metadata say how to sample, and the lines of its card do."""
    flow, facts = image_flow("dit", "noise", source=fm.Normal(2.0)), Facts("run", classes=("cat", "dog", "hen"))
    to_onnx(flow, tmp_path / "it is", facts=facts)
    assert sorted(path.name for path in (tmp_path / "it is").iterdir()) == ["README.md", "model.onnx"]
    session = _session(tmp_path / "it is" / "model.onnx")
    _same(flow, session, lambda size: told("noise", size))
    assert session.get_modelmeta().custom_metadata_map == {
        "flowmatch": fm.__version__,
        "path": "AffinePath(Linear(sigma_min=0.0))",
        "source": "Normal(std=2.0)",
        "event_shape": "[1, 8, 8]",
        "interval": "[0.0, 1.0]",
        "classes": "3",
        "class_names": '["cat", "dog", "hen"]',
        "null": '{"image": 0.0, "noise": 0.0, "label": 3}',
    }
    monkeypatch.chdir(tmp_path)
    zeros = {name: torch.zeros_like(value) for name, value in told("noise", 16).items()}
    ours = flow.decode(2 * _card_start(*SHAPE), zeros, solver=fm.Euler(), steps=20)
    torch.testing.assert_close(torch.from_numpy(_card(tmp_path / "it is")["x"]), ours, rtol=0, atol=1e-5)


def test_a_folder_of_a_table(tmp_path, monkeypatch):
    """The lines of its card give back columns, those of whole numbers from their smallest on."""
    columns = [{"name": "a", "dtype": "float64", "mean": 1.0, "std": 2.0, "span": None}]
    columns.append({"name": "b", "dtype": "int64", "mean": 3.0, "std": 4.0, "span": [10, 20]})
    flow = table_flow(cond_dim=2)
    to_onnx(flow, tmp_path / "out", facts=Facts(codec={"columns": columns}))
    monkeypatch.chdir(tmp_path)
    left = _card(tmp_path / "out")
    ours = flow.decode(_card_start(2), torch.zeros(16, 2), solver=fm.Euler(), steps=20)
    torch.testing.assert_close(torch.from_numpy(left["x"]), ours, rtol=0, atol=1e-5)
    assert set(left["table"]) == {"a", "b"}
    np.testing.assert_allclose(left["table"]["a"], 1 + 2 * left["x"][:, 0])
    np.testing.assert_allclose(left["table"]["b"], 13 + 4 * left["x"][:, 1])


def test_large_weights_lie_beside_the_file(tmp_path, monkeypatch):
    monkeypatch.setattr("flowmatch.export.onnx_file.LARGE", 100)
    flow = table_flow()
    to_onnx(flow, tmp_path / "out")
    files = {path.name: path.stat().st_size for path in (tmp_path / "out").iterdir()}
    assert set(files) == {"README.md", "model.onnx", "model.onnx.data"}
    assert files["model.onnx.data"] > 2 * sum(value.numel() for value in flow.field.state_dict().values())
    _same(flow, _session(tmp_path / "out" / "model.onnx"), lambda size: None)
    with pytest.raises(fm.InputError, match=r"too large for one file.*give a folder"):
        to_onnx(flow, tmp_path / "net.onnx")


# --- refusals ---


class _Looks(torch.nn.Module):
    def forward(self, t, x):
        return x if float(x.sum()) > 0 else -x


def test_a_field_that_cannot_be_followed_is_refused(tmp_path):
    with pytest.raises(fm.InputError, match=r"torch cannot follow _Looks.*looks at the values"):
        to_onnx(fm.Flow(_Looks(), event_shape=(2,)), tmp_path / "net.onnx")
    with pytest.raises(fm.InputError, match="is a function; make it an nn.Module"):
        to_onnx(fm.Flow(lambda t, x: x, event_shape=(2,)), tmp_path / "net.onnx")
    assert not any(tmp_path.iterdir())


def test_a_file_is_replaced_only_when_told_and_a_foreign_folder_never(tmp_path):
    flow = table_flow()
    to_onnx(flow, tmp_path / "net.onnx")
    before = (tmp_path / "net.onnx").read_bytes()
    with pytest.raises(fm.InputError, match="exists already"):
        to_onnx(flow, tmp_path / "net.onnx")
    assert (tmp_path / "net.onnx").read_bytes() == before
    to_onnx(flow, tmp_path / "net.onnx", overwrite=True)
    with pytest.raises(fm.InputError, match=r"no folder .*nowhere to write net.onnx into"):
        to_onnx(flow, tmp_path / "nowhere" / "net.onnx")
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter.tex").write_text("...")
    for overwrite, message in ((False, "already holds something"), (True, "is no export of a flow")):
        with pytest.raises(fm.InputError, match=message):
            to_onnx(flow, tmp_path / "thesis", overwrite=overwrite)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["net.onnx", "thesis"]


def test_an_export_that_is_not_the_flow_is_never_put_in_place(tmp_path, monkeypatch):
    real = onnxruntime.InferenceSession.run
    monkeypatch.setattr(onnxruntime.InferenceSession, "run", lambda *a, **k: [real(*a, **k)[0] + np.float32(0.1)])
    with pytest.raises(RuntimeError, match=r"the export is not the flow: its velocities differ by 0.1"):
        to_onnx(table_flow(), tmp_path / "net.onnx")
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["onnx", "onnxscript", "onnxruntime"])
def test_a_missing_library_says_what_to_install(tmp_path, monkeypatch, name):
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ImportError, match=r"flowmatch\[onnx\]"):
        to_onnx(table_flow(), tmp_path / "net.onnx")


def test_an_old_torch_is_told(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.export, "Dim", object)
    with pytest.raises(ImportError, match=r"needs torch 2.6 or newer"):
        to_onnx(table_flow(), tmp_path / "net.onnx")
