"""The paper's recipe: every setting it states, and a run of it on a folder laid out as ImageNet is."""

import dataclasses
import json
from pathlib import Path

import pytest

from data.made import write_classes
from van import load_checkpoint
from van.errors import DataError, UsageError
from van.models.catalogue import VARIANTS
from van.recipes.begin import flat
from van.recipes.imagenet1k import Imagenet1kSettings, run

STATED = {
    "lr": 5e-4, "batch_size": 1024, "weight_decay": 0.05,
    "epochs": 310, "warmup_epochs": 5, "cooldown_epochs": 10,  # 300 of warm-up and cosine, then the cool-down
    "scale": [0.08, 1.0], "flip": 0.5, "rand_augment": "rand-m9-mstd0.5-inc1", "random_erasing": 0.25,
    "mixup": 0.8, "cutmix": 1.0, "label_smoothing": 0.1,
    "size_px": 224, "layer_decay": 1.0, "clip_grad": 0.0, "batch_norm": "train", "ema_decay": 0.9998,
}  # fmt: skip
"""arXiv:2202.09741, section 4.1; what it leaves open is the released script's."""

SYNSETS = {"n01440764": 6, "n01443537": 6, "n01484850": 6}


def test_the_settings_are_the_paper_s():
    resolved = json.loads(json.dumps(flat(Imagenet1kSettings(data=Path(), out=Path()))))
    assert {name: resolved[name] for name in STATED} == STATED


def test_the_drop_path_rates_are_the_paper_s_and_grow_with_the_network():
    rates = [VARIANTS[f"van_b{size}"].drop_path_rate for size in range(7)]
    assert rates[:4] == [0.1, 0.1, 0.1, 0.2]
    assert rates == sorted(rates)


def test_a_run_on_synset_folders_keeps_every_setting_that_was_not_changed(tmp_path):
    write_classes(tmp_path / "data" / "train", SYNSETS)
    write_classes(tmp_path / "data" / "val", dict.fromkeys(SYNSETS, 1), first_seed=500)
    given = Imagenet1kSettings(data=tmp_path / "data", out=tmp_path / "run", size_px=32)
    changed = {"epochs": 1, "batch_size": 6, "workers": 0, "precision": "fp32", "device": "cpu"}
    summary = run(dataclasses.replace(given, train=dataclasses.replace(given.train, **changed)))
    assert summary.updates == 3
    stored = json.loads((tmp_path / "run" / "settings.json").read_text())["recipe"]
    assert {name: stored[name] for name in STATED} == STATED | {"epochs": 1, "batch_size": 6, "size_px": 32}
    assert stored["recipe"] == "imagenet1k"
    assert (stored["model"], stored["drop_path_rate"]) == ("van_b0", 0.1)
    best = load_checkpoint(tmp_path / "run" / "best.safetensors")
    assert best.labels == tuple(SYNSETS)
    last = load_checkpoint(tmp_path / "run" / "last.safetensors", with_training=True)
    assert any(name.startswith("ema/") for name in last.training)
    again = dataclasses.replace(given, train=dataclasses.replace(given.train, **changed), resume=True)
    assert run(again).updates == 3  # the rate of -1 is resolved to the same one


def test_a_network_that_the_paper_does_not_have_needs_a_rate(tmp_path):
    given = Imagenet1kSettings(data=tmp_path, out=tmp_path / "run", model="resnet18")
    with pytest.raises(UsageError, match="--drop-path-rate: the paper has none for resnet18; give one"):
        run(given)
    with pytest.raises(DataError, match="no sub-folders"):  # with one it gets as far as the pictures
        run(dataclasses.replace(given, drop_path_rate=0.0))


@pytest.mark.parametrize(("name", "value"), [("drop_path_rate", -2.0), ("drop_path_rate", 1.5), ("size_px", 0)])
def test_a_setting_that_cannot_be_is_named(name, value):
    with pytest.raises(UsageError, match=f"--{name.replace('_', '-')} is {value}; wanted"):
        Imagenet1kSettings(data=Path(), out=Path(), **{name: value})
