"""One epoch of the digits recipe on images of half the size."""

import dataclasses
import json
from pathlib import Path

import pytest

from datasets.synthetic import write_classes
from van import load_checkpoint
from van.datasets.digits import load_digits
from van.errors import DataError, RunExists, UsageError
from van.model import Model
from van.predict import Predictor
from van.preprocess import CenterCropPreprocess
from van.recipes.digits import DigitsSettings, run
from van.recipes.validation import flatten_settings

SHORT = dataclasses.replace(DigitsSettings(out=Path()).train, epochs=1, batch_size=256, device="cpu", log_every=1)


def settings(out: Path, **more) -> DigitsSettings:
    return DigitsSettings(out=out, image_size=16, train=SHORT, **more)


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    """A run on PNG files, in ``run``, with the files in ``digits``."""
    root = tmp_path_factory.mktemp("finished")
    run(settings(root / "run", images=root / "digits"))
    return root


def test_one_epoch_in_memory_trains_a_network_that_classifies_digits(tmp_path):
    summary = run(settings(tmp_path / "run"))
    assert summary.updates == summary.best_update == 1433 // 256
    assert summary.metrics["top1"] > 0.3  # chance is 0.1; five updates reach about 0.75
    assert not summary.unreadable
    best = load_checkpoint(tmp_path / "run" / "best.safetensors")
    assert best.class_names == tuple("0123456789")
    assert best.preprocess == CenterCropPreprocess(image_size=16, crop_fraction=1.0)
    assert best.metrics == summary.metrics
    predictor = Predictor(Model.load(tmp_path / "run" / "best.safetensors"), device="cpu")
    validation = load_digits().validation
    predictions = predictor([item.source for item in validation])
    correct = sum(
        prediction.top(1)[0].index == item.target for prediction, item in zip(predictions, validation, strict=True)
    )
    assert abs(correct / 364 - summary.metrics["top1"]) < 0.01  # two borderline digits may differ


def test_the_run_folder_stores_every_setting(finished):
    stored = json.loads((finished / "run" / "settings.json").read_text())["recipe"]
    given = settings(finished / "run", images=finished / "digits")
    assert stored == json.loads(json.dumps(flatten_settings(given))) | {
        "classes": 10, "training_images": 1433, "validation_images": 364,
    }  # fmt: skip
    names = {path.name for path in (finished / "run").iterdir()}
    assert {"log.jsonl", "curves.png", "tensorboard", "best.safetensors", "last.safetensors"} < names


def test_digit_files_are_reused_by_other_and_resumed_runs(finished, tmp_path):
    assert len(list((finished / "digits").rglob("*.png"))) == 1797
    dates = {path: path.stat().st_mtime_ns for path in (finished / "digits").rglob("*.png")}
    again = run(settings(finished / "run", images=finished / "digits", resume=True))
    assert again.images_per_s == 0  # the run was finished
    other = run(settings(tmp_path / "other", images=finished / "digits"))
    assert other.metrics == again.metrics  # same seed, same result
    assert {path: path.stat().st_mtime_ns for path in (finished / "digits").rglob("*.png")} == dates


def test_an_existing_run_raises_before_digits_are_written(finished, tmp_path):
    with pytest.raises(RunExists, match="--resume"):
        run(settings(finished / "run", images=tmp_path / "new"))
    assert not (tmp_path / "new").exists()


def test_a_folder_of_other_images_raises(tmp_path):
    write_classes(tmp_path / "mine", {"0": 2, "1": 2})
    with pytest.raises(DataError, match="mine"):
        run(settings(tmp_path / "run", images=tmp_path / "mine"))
    assert not (tmp_path / "run").exists()


def test_resuming_without_the_digit_files_raises(tmp_path, finished):
    before = (finished / "run" / "last.safetensors").read_bytes()
    with pytest.raises(UsageError, match=r"--resume.*images.*None"):
        run(settings(finished / "run", resume=True))
    assert (finished / "run" / "last.safetensors").read_bytes() == before


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"model": "van_b9"}, "van_b9"),
        ({"image_size": 0}, "--image-size.*1.*0"),
        ({"drop_path_rate": 1.0}, "--drop-path-rate.*1.0"),
        ({"drop_path_rate": float("nan")}, "--drop-path-rate.*nan"),
        ({"train": dataclasses.replace(SHORT, batch_size=1)}, "--batch-size 1.*BatchNorm"),
        ({"train": dataclasses.replace(SHORT, batch_size=5000)}, "--batch-size.*1433.*5000"),
        ({"train": dataclasses.replace(SHORT, device="tpu")}, "--device.*tpu"),
    ],
)
def test_invalid_settings_raise_and_create_no_run_folder(tmp_path, values, message):
    with pytest.raises(UsageError, match=message):
        run(DigitsSettings(**{"out": tmp_path / "run", "train": SHORT, **values}))
    assert not (tmp_path / "run").exists()
