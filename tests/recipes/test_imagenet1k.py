"""The ImageNet-1K recipe: the settings of the paper, and a run on a folder in ImageNet's layout."""

import dataclasses
import json
from pathlib import Path

import pytest

from datasets.synthetic import write_classes
from van import load_checkpoint
from van.errors import DataError, UsageError
from van.recipes.imagenet1k import Imagenet1kSettings, run
from van.recipes.validation import flatten_settings
from van.weights.published import VARIANTS

PAPER_SETTINGS = {
    "lr": 5e-4, "batch_size": 1024, "weight_decay": 0.05,
    "epochs": 310, "warmup_epochs": 5, "cooldown_epochs": 10,  # 300 of warm-up and cosine decay, then 10 of cool-down
    "scale": [0.08, 1.0], "hflip": 0.5, "rand_augment": "rand-m9-mstd0.5-inc1", "random_erasing": 0.25,
    "mixup": 0.8, "cutmix": 1.0, "label_smoothing": 0.1,
    "image_size": 224, "layer_decay": 1.0, "clip_grad": 0.0, "batch_norm": "train", "ema_decay": 0.9998,
}  # fmt: skip
"""arXiv:2202.09741, section 4.1; values missing there are those of the released script."""

SYNSETS = {"n01440764": 6, "n01443537": 6, "n01484850": 6}


def test_the_default_settings_are_those_of_the_paper():
    resolved = json.loads(json.dumps(flatten_settings(Imagenet1kSettings(data=Path(), out=Path()))))
    assert {name: resolved[name] for name in PAPER_SETTINGS} == PAPER_SETTINGS


def test_the_drop_path_rates_are_those_of_the_paper_and_increase_with_the_model():
    rates = [VARIANTS[f"van_b{size}"].drop_path_rate for size in range(7)]
    assert rates[:4] == [0.1, 0.1, 0.1, 0.2]
    assert rates == sorted(rates)


def test_a_run_on_synset_folders_stores_the_unchanged_settings(tmp_path):
    write_classes(tmp_path / "data" / "train", SYNSETS)
    write_classes(tmp_path / "data" / "val", dict.fromkeys(SYNSETS, 1), first_seed=500)
    given = Imagenet1kSettings(data=tmp_path / "data", out=tmp_path / "run", image_size=32)
    changed = {"epochs": 1, "batch_size": 6, "workers": 0, "precision": "fp32", "device": "cpu"}
    summary = run(dataclasses.replace(given, train=dataclasses.replace(given.train, **changed)))
    assert summary.updates == 3
    stored = json.loads((tmp_path / "run" / "settings.json").read_text())["recipe"]
    assert {name: stored[name] for name in PAPER_SETTINGS} == PAPER_SETTINGS | {
        "epochs": 1,
        "batch_size": 6,
        "image_size": 32,
    }
    assert stored["recipe"] == "imagenet1k"
    assert (stored["model"], stored["drop_path_rate"]) == ("van_b0", 0.1)
    best = load_checkpoint(tmp_path / "run" / "best.safetensors")
    assert best.class_names == tuple(SYNSETS)
    last = load_checkpoint(tmp_path / "run" / "last.safetensors", with_training=True)
    assert any(name.startswith("ema/") for name in last.training)
    again = dataclasses.replace(given, train=dataclasses.replace(given.train, **changed), resume=True)
    assert run(again).updates == 3  # the rate of -1 is resolved to the same one


def test_a_model_outside_the_paper_needs_a_drop_path_rate(tmp_path):
    given = Imagenet1kSettings(data=tmp_path, out=tmp_path / "run", model="resnet18")
    with pytest.raises(UsageError, match=r"--drop-path-rate.*resnet18"):
        run(given)
    with pytest.raises(DataError, match=tmp_path.name):  # with a rate the dataset is read
        run(dataclasses.replace(given, drop_path_rate=0.0))


@pytest.mark.parametrize(("name", "value"), [("drop_path_rate", -2.0), ("drop_path_rate", 1.5), ("image_size", 0)])
def test_invalid_settings_name_the_flag_and_the_value(name, value):
    with pytest.raises(UsageError, match=f"--{name.replace('_', '-')}.*{value}"):
        Imagenet1kSettings(data=Path(), out=Path(), **{name: value})
