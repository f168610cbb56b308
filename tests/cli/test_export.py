"""``flowmatch export``: a run goes in, a folder that others open comes out."""

from __future__ import annotations

import json

import pytest
import torch

import flowmatch as fm
from tests.export.worlds import SHAPE, image_flow
from tests.problems import seeded


@pytest.fixture
def images(tmp_path):
    """What a run on images has, with a small network."""
    folder = tmp_path / "clothes"
    image_flow("dit", "labels").save(folder)
    (folder / "data.json").write_text(json.dumps({"shape": SHAPE, "counts": {"shirt": 5, "boot": 4, "bag": 3}}))
    return folder


def test_a_run_on_images_goes_to_diffusers(flowmatch, images):
    pytest.importorskip("diffusers", reason="needs the extra networks")
    from flowmatch.export import load_diffusers

    result = flowmatch("export", images, "--to", "diffusers", "--license", "apache-2.0")
    assert result.code == 0, result.err
    out = images / "diffusers"
    assert f"written to {out}" in result.out
    assert "velocities differ by at most" in result.out
    assert "licence" not in result.out
    card = (out / "README.md").read_text()
    assert "license: apache-2.0" in card
    assert "Classes: 0 shirt, 1 boot, 2 bag." in card
    flow, back = fm.Flow.load(images), load_diffusers(out)
    options = {"solver": fm.Euler(), "steps": 4}
    ours, theirs = (f.sample(3, torch.tensor([0, 1, 3]), generator=seeded(0), **options) for f in (flow, back))
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)


def test_a_run_on_a_table_goes_to_onnx(flowmatch, run, tmp_path):
    onnxruntime = pytest.importorskip("onnxruntime", reason="needs the extra onnx")
    pytest.importorskip("onnxscript", reason="needs the extra onnx")
    result = flowmatch("export", run, "--to", "onnx", "--out", tmp_path / "new", "--quiet")
    assert (result.code, result.out) == (0, ""), result.err
    session = onnxruntime.InferenceSession(str(tmp_path / "new" / "model.onnx"), providers=["CPUExecutionProvider"])
    meta = session.get_modelmeta().custom_metadata_map
    assert [column["name"] for column in json.loads(meta["columns"])] == ["weight", "age"]
    assert json.loads(meta["class_names"]) == ["cat", "dog"]
    flow, x, label = fm.Flow.load(run), torch.randn(5, 2, generator=seeded(0)), torch.tensor([0, 1, 0, 1, 1])
    t = torch.linspace(0, 1, 5)
    (theirs,) = session.run(None, {"t": t.numpy(), "x": x.numpy(), "label": label.numpy()})
    with torch.no_grad():
        torch.testing.assert_close(torch.from_numpy(theirs), flow.field(t, x, label), rtol=0, atol=1e-5)


def test_without_a_licence_it_says_so(flowmatch, images):
    pytest.importorskip("diffusers", reason="needs the extra networks")
    result = flowmatch("export", images, "--to", "diffusers")
    assert "names no licence; give one with --license" in result.out


def test_an_export_is_replaced_only_when_told(flowmatch, images):
    pytest.importorskip("diffusers", reason="needs the extra networks")
    assert flowmatch("export", images, "--to", "diffusers", "--quiet").code == 0
    again = flowmatch("export", images, "--to", "diffusers")
    assert again.code == 2
    assert "--overwrite" in again.err
    assert flowmatch("export", images, "--to", "diffusers", "--overwrite").code == 0
    # The run itself is no export.
    foreign = flowmatch("export", images, "--to", "diffusers", "--out", images, "--overwrite")
    assert foreign.code == 2
    assert "is no export of a flow" in foreign.err
    assert (images / "model.safetensors").is_file()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--to", "keras"), "no export to keras; known are diffusers, onnx"),
        (("--to", "diffusers"), "no network like MLP"),
        (("--to", "onnx", "--license", "my own"), "an identifier such as apache-2.0"),
    ],
)
def test_what_cannot_be_exported_is_told(flowmatch, run, options, message):
    result = flowmatch("export", run, *options)
    assert result.code == 2
    assert message in result.err
    assert not (run / "onnx").exists()


def test_a_folder_without_a_run_is_told(flowmatch, tmp_path):
    for folder, message in ((tmp_path / "nothing", "no run folder"), (tmp_path, "flow.json is missing")):
        result = flowmatch("export", folder, "--to", "onnx")
        assert result.code == 2
        assert message in result.err


def test_to_is_needed(flowmatch, tmp_path):
    result = flowmatch("export", tmp_path)
    assert result.code == 2
    assert "--to" in result.err


def test_a_missing_library_is_one_line(flowmatch, images, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "onnxscript", None)
    result = flowmatch("export", images, "--to", "onnx")
    assert result.code == 1
    assert 'pip install "flowmatch[onnx]"' in result.err
