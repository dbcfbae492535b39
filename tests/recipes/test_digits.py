"""The digits recipe, an epoch of it, on pictures of half its size."""

import dataclasses
import json
from pathlib import Path

import pytest

from data.made import write_classes
from van import Predictor, load_checkpoint
from van.data.digits import load_digits
from van.errors import DataError, RunExists, UsageError
from van.preprocess import Preprocess
from van.recipes.begin import flat
from van.recipes.digits import DigitsSettings, run

SHORT = dataclasses.replace(DigitsSettings(out=Path()).train, epochs=1, batch_size=256, device="cpu", log_every=1)


def settings(out: Path, **more) -> DigitsSettings:
    return DigitsSettings(out=out, size_px=16, train=SHORT, **more)


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    """A run on files, in ``run`` beside the files in ``digits``."""
    root = tmp_path_factory.mktemp("finished")
    run(settings(root / "run", pictures=root / "digits"))
    return root


def test_an_epoch_in_memory_learns_and_leaves_a_network_that_reads_digits(tmp_path):
    summary = run(settings(tmp_path / "run"))
    assert summary.updates == summary.best_update == 1433 // 256
    assert summary.metrics["top1"] > 0.3  # chance is 0.1; five updates reach about 0.75
    assert not summary.unreadable
    best = load_checkpoint(tmp_path / "run" / "best.safetensors")
    assert best.labels == tuple("0123456789")
    assert best.preprocess == Preprocess(size_px=16, crop_fraction=1.0)
    assert best.metrics == summary.metrics
    predictor = Predictor.load(tmp_path / "run" / "best.safetensors", device="cpu")
    held_out = load_digits().validation
    answers = predictor([item.source for item in held_out])
    right = sum(answer.top(1)[0].index == item.target for answer, item in zip(answers, held_out, strict=True))
    assert abs(right / 364 - summary.metrics["top1"]) < 0.01  # two digits on the edge may fall otherwise


def test_the_run_folder_tells_every_setting(finished):
    stored = json.loads((finished / "run" / "settings.json").read_text())["recipe"]
    given = settings(finished / "run", pictures=finished / "digits")
    assert stored == json.loads(json.dumps(flat(given))) | {
        "classes": 10, "training_pictures": 1433, "validation_pictures": 364,
    }  # fmt: skip
    names = {path.name for path in (finished / "run").iterdir()}
    assert {"log.jsonl", "curves.png", "tensorboard", "best.safetensors", "last.safetensors"} < names


def test_files_written_once_serve_another_run_and_a_resumed_one(finished, tmp_path):
    assert len(list((finished / "digits").rglob("*.png"))) == 1797
    dates = {path: path.stat().st_mtime_ns for path in (finished / "digits").rglob("*.png")}
    again = run(settings(finished / "run", pictures=finished / "digits", resume=True))
    assert again.pictures_per_s == 0  # nothing was left to train
    other = run(settings(tmp_path / "other", pictures=finished / "digits"))
    assert other.metrics == again.metrics  # one seed, one order, one result
    assert {path: path.stat().st_mtime_ns for path in (finished / "digits").rglob("*.png")} == dates


def test_an_occupied_run_folder_is_refused_before_any_digit_is_written(finished, tmp_path):
    with pytest.raises(RunExists, match="already holds a run"):
        run(settings(finished / "run", pictures=tmp_path / "new"))
    assert not (tmp_path / "new").exists()


def test_other_pictures_are_not_taken_for_digits(tmp_path):
    write_classes(tmp_path / "mine", {"0": 2, "1": 2})
    with pytest.raises(DataError, match="does not hold the digits"):
        run(settings(tmp_path / "run", pictures=tmp_path / "mine"))
    assert not (tmp_path / "run").exists()


def test_digits_that_went_missing_stop_a_resumed_run(tmp_path, finished):
    before = (finished / "run" / "last.safetensors").read_bytes()
    with pytest.raises(UsageError, match=r"pictures was '.*' and is now None"):
        run(settings(finished / "run", resume=True))
    assert (finished / "run" / "last.safetensors").read_bytes() == before


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"model": "van_b9"}, "'van_b9' is neither a file nor a model"),
        ({"size_px": 0}, "--size-px is 0; wanted at least 1"),
        ({"drop_path_rate": 1.0}, "--drop-path-rate is 1.0"),
        ({"drop_path_rate": float("nan")}, "--drop-path-rate is nan"),
        ({"train": dataclasses.replace(SHORT, batch_size=1)}, "BatchNorm needs two"),
        ({"train": dataclasses.replace(SHORT, batch_size=5000)}, "there are 1433 training pictures; lower it"),
        ({"train": dataclasses.replace(SHORT, device="tpu")}, "--device is 'tpu'"),
    ],
)
def test_a_setting_that_cannot_be_leaves_no_run_behind(tmp_path, values, message):
    with pytest.raises(UsageError, match=message):
        run(DigitsSettings(**{"out": tmp_path / "run", "train": SHORT, **values}))
    assert not (tmp_path / "run").exists()
