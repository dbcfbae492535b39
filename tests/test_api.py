"""The verbs as Python functions: the options of the command line, results as objects, any input."""

import dataclasses
import inspect
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import van
from datasets.synthetic import COLORS, make_image, write_checkpoint, write_classes
from van import api
from van.cli.commands import list_commands
from van.errors import CheckpointError, ImageError, UsageError
from van.model import Model
from van.serving.launch import write_models


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("run") / "best.safetensors")


@pytest.fixture(scope="module")
def model(checkpoint) -> Model:
    return Model.load(checkpoint)


@pytest.fixture(scope="module")
def colors(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("data") / "colors"
    return write_classes(root, dict.fromkeys(COLORS, 3), first_seed=500)


OUTPUT_FLAGS = {"json", "csv", "draw", "masks", "coco", "annotations", "top"}
"""Flags of ``van predict`` and others that concern what is printed."""


def test_functions_have_the_options_of_their_commands(subtests):
    commands = list_commands()
    for verb, function in (("eval", api.evaluate), ("predict", api.predict), ("convert", api.convert),
                           ("export", api.export), ("report", api.report)):  # fmt: skip
        with subtests.test(verb):
            flags = {flag.name for flag in commands[verb].flags()} - OUTPUT_FLAGS - {"checkpoint"}
            assert flags <= set(inspect.signature(function).parameters)


def test_every_function_and_its_arguments_are_documented(subtests):
    for name in ("train", "evaluate", "predict", "explain", "report", "export", "serve", "benchmark", "convert",
                 "check_dataset"):  # fmt: skip
        with subtests.test(name):
            function = getattr(api, name)
            assert [each for each in inspect.signature(function).parameters if each not in function.__doc__] == []


def test_evaluate_returns_what_the_command_prints(model, checkpoint, colors, tmp_path, capsys):
    from van.cli.main import main

    result = model.evaluate(colors, device="cpu", confusion=tmp_path / "c.png", charts=str(tmp_path / "charts"))
    assert main(["eval", str(checkpoint), "--data", str(colors), "--device", "cpu", "--json"]) == 0
    assert result.to_dict() == json.loads(capsys.readouterr().out)
    assert (result.samples, result.is_finite, result["top1"]) == (9, True, result.metrics["top1"])
    assert result.confusion.sum() == 9
    assert {*result.charts} == {path.name for path in (tmp_path / "charts").iterdir()}
    assert (tmp_path / "c.png").exists()
    assert isinstance(result, van.Metrics)
    infinite = dataclasses.replace(result, metrics={"loss": float("nan")})
    assert (infinite.is_finite, infinite.to_dict()["metrics"]) == (False, {"loss": None})


def test_one_image_gives_one_prediction_and_several_a_list_or_an_iterator(model, checkpoint, colors):
    path = next(colors.rglob("*.png"))
    one = model.predict(path)
    assert isinstance(one, van.Classification)
    assert van.predict(str(checkpoint), path).scores == one.scores
    assert [each.name for each in model.predict([path])] == [str(path)]
    folder = model.predict(colors)
    assert [each.name for each in folder] == sorted(str(found) for found in colors.rglob("*.png"))
    assert [each.name for each in model.predict(str(colors / "*" / "*.png"))] == [each.name for each in folder]
    assert len(model.predict([colors / "red", path, np.asarray(Image.open(path))])) == 5
    stream = model.predict(iter([path, path]), stream=True)
    assert iter(stream) is stream
    assert [each.name for each in stream] == [str(path)] * 2
    assert model.predict([]) == []


def test_unreadable_images_raise_or_are_returned(model, colors):
    good = next(colors.rglob("*.png"))
    for verb in (model.predict, model.explain):
        with pytest.raises(ImageError, match="missing"):
            verb([good, "missing.png"])
        found = verb([good, "missing.png", good], errors="return")
        assert [isinstance(each, ImageError) for each in found] == [False, True, False]
        assert isinstance(verb("missing.png", errors="return"), ImageError)
    with pytest.raises(UsageError, match=r"errors.*'ignore'"):
        model.predict(good, errors="ignore")


def test_explain_takes_several_methods_and_any_input(model):
    image = make_image(COLORS["red"], 1)
    one = model.explain(image, method=["grad-cam", "layer-cam"], layer="stage1")
    assert [heatmap.method for heatmap in one.maps] == ["grad-cam", "layer-cam"]
    tensor = torch.from_numpy(np.asarray(image).copy()).permute(2, 0, 1)
    again = van.explain(model, [tensor, image], layer="stage1")
    np.testing.assert_allclose(again[0].maps[0].values, again[1].maps[0].values, atol=1e-6)


def test_convert_export_and_predict_follow_each_other(checkpoint, tmp_path):
    converted = van.convert(checkpoint, tmp_path / "a.safetensors")
    assert converted.class_names == tuple(COLORS)
    with pytest.raises(UsageError, match=r"out: .*a\.safetensors exists"):
        van.convert(checkpoint, tmp_path / "a.safetensors")
    image = make_image(COLORS["green"], 3)
    exported = van.export(tmp_path / "a.safetensors", tmp_path / "a.onnx")
    assert exported.verification.max_abs_diff < 1e-4
    assert exported.to_dict()["out"] == str(tmp_path / "a.onnx")
    np.testing.assert_allclose(
        van.predict(tmp_path / "a.onnx", image).scores, converted.predict(image).scores, atol=1e-5
    )
    with pytest.raises(CheckpointError, match=r"a\.onnx"):
        Model.load(tmp_path / "a.onnx").explain(image)
    with pytest.raises(UsageError, match=r"out: .*\.onnx, .*got"):
        van.export(checkpoint, tmp_path / "a.tflite")


def test_train_takes_the_settings_by_name_and_returns_a_run_that_loads_its_model(colors, tmp_path):
    settings = {"data": str(colors), "out": tmp_path / "run", "init_from": "scratch", "image_size": 32}
    run = van.train("finetune", model="van_b0", epochs=1, batch_size=4, val_fraction=0.34, **settings)  # an alias
    assert isinstance(run, van.Run)
    assert run.checkpoint == tmp_path / "run" / "best.safetensors"
    assert run.load().class_names == tuple(sorted(COLORS))
    assert run.metrics["top1"] == run.load().metrics["top1"]
    report = van.report(run, speed=False, num_errors=0)
    assert report.page == tmp_path / "run" / "report.html"
    assert report.data.to_dict()["metrics"]["top1"] == pytest.approx(run.metrics["top1"])
    assert Model.load(tmp_path / "run").report(tmp_path / "r.html", speed=False, num_errors=0).page.exists()


def test_wrong_settings_of_train_are_named(tmp_path):
    for settings, fact in (({"epoch": 1}, "epoch: .*epochs"), ({"epochs": 0}, r"epochs.*at least 1.*0")):
        with pytest.raises(UsageError, match=fact):
            van.train("digits", out=tmp_path, **settings)
    with pytest.raises(UsageError, match="out"):
        van.train("digits")
    with pytest.raises(UsageError, match=r"recipe.*digits.*'mnist'"):
        van.train("mnist")


def test_options_are_checked_before_anything_is_loaded(subtests, tmp_path):
    (tmp_path / "file").touch()
    missing = tmp_path / "missing.safetensors"
    for call, fact in (
        (lambda: van.evaluate(missing, "x", batch_size=0), "batch_size: expected at least 1, got 0"),
        (lambda: van.evaluate(missing, "x", workers=-1), "workers: expected at least 0"),
        (lambda: van.evaluate(missing, "x", confusion="c.pdf"), r"confusion: .*\.png.*c\.pdf"),
        (lambda: van.evaluate(missing, "x", charts=tmp_path / "file" / "charts"), "charts: .*file"),
        (lambda: van.predict(missing, "x", min_score=2), "min_score: expected 0 to 1, got 2"),
        (lambda: van.predict(missing, "x", batch_size=0), "batch_size"),
        (lambda: van.export(missing, "a.onnx", tolerance=0), "tolerance"),
        (lambda: van.export(missing, "a.onnx", int8=True), "calibration"),
        (lambda: van.report(missing, "page.pdf"), r"out: .*\.html"),
        (lambda: van.report(missing, limit=-1), "limit"),
        (lambda: van.convert(missing, "a.pth"), r"out: .*\.safetensors"),
        (lambda: van.serve([]), "models: expected at least 1"),
        (lambda: van.serve("van_b0", speed=9), "speed: "),
        (lambda: van.serve("van_b0", host="0.0.0.0"), "API key"),
        (lambda: van.benchmark("phones"), r"subject: .*models, ops, sessions.*'phones'"),
        (lambda: van.train("detect", data=".", out="x", head="upernet"), "head: expected .*fcos.*'upernet'"),
        (lambda: van.benchmark("ops", rounds=0), "rounds"),
        (lambda: van.benchmark("ops", speed=1), "van bench ops: .*speed"),
        (lambda: van.benchmark("models", speed=1), "van bench models: .*speed"),
        (lambda: van.benchmark("sessions", speed=1), "van bench sessions: .*speed"),
        (lambda: van.check_dataset("x", preview="p.jpg"), r"preview: .*\.png"),
    ):
        with subtests.test(fact), pytest.raises(UsageError, match=fact):
            call()


def test_a_model_of_your_own_is_evaluated_under_its_name_and_has_no_report(model, colors):
    own = Model(model.network, class_names=model.class_names, preprocess=model.preprocess, name="mine")
    assert own.evaluate(colors, device="cpu").to_dict()["checkpoint"] == "mine"
    with pytest.raises(UsageError, match=r"run: .*run folder"):
        own.report()


def test_check_dataset_returns_the_issues(colors, tmp_path):
    assert van.check_dataset(colors, preview=tmp_path / "p.png").issues == ()
    assert (tmp_path / "p.png").exists()


HEAVY = ("timm", "torchvision", "torchmetrics", "torch._dynamo", "torch._inductor", "transformers", "matplotlib",
         "sklearn", "accelerate", "scipy", "sympy", "huggingface_hub", "rich", "pandas")  # fmt: skip


def test_a_prediction_imports_torch_and_none_of_the_heavy_packages(run_python, checkpoint, tmp_path):
    """They take several times as long to import as the prediction itself."""
    make_image(COLORS["red"], 1).save(tmp_path / "a.png")
    code = f"""
import sys
from van.cli.main import main
main(["predict", {str(checkpoint)!r}, {str(tmp_path / "a.png")!r}, "--json"])
print([name for name in {(*HEAVY, "torch")} if name in sys.modules])
import timm  # the control
print([name for name in {HEAVY} if name in sys.modules][:2])
"""
    *_, loaded, control = run_python(code).splitlines()
    assert (loaded, control) == ("['torch']", "['timm', 'torchvision']")


def test_a_model_that_was_changed_is_served_as_it_is(model, checkpoint, tmp_path):
    changed = model.replace(class_names=[f"new {name}" for name in model.class_names])
    exported = van.export(checkpoint, tmp_path / "a.onnx").path
    written, kept, name = write_models([changed, Model.load(exported), "own=a.safetensors"], tmp_path / "served")
    assert Model.load(written).class_names == changed.class_names
    assert (kept, name) == (str(exported), "own=a.safetensors")
