"""A format that another package registers trains, evaluates, predicts and is checked through the command line."""

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from van.cli.main import main
from van.datasets.formats import FORMATS, format_table, load_split
from van.datasets.scenes import generate_digit_scenes
from van.errors import MissingAnnotations

COUNTS = {"train": 4, "val": 2}


@pytest.fixture
def toy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Install a package that names the toy format as entry point, and write a dataset in it."""
    info = tmp_path / "site" / "toy-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: toy\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[van.datasets]\ntoy = datasets.toy_format\n")
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    monkeypatch.setattr(FORMATS, "_entries", dict(FORMATS._entries))
    monkeypatch.setattr(FORMATS, "_loaded", False)
    sys.modules.pop("datasets.toy_format", None)
    root = tmp_path / "boxes"
    root.mkdir()
    for split, count in COUNTS.items():
        lines = []
        for index, scene in enumerate(generate_digit_scenes(split, count=count, image_size=64)):
            scene.image.save(root / f"{split}-{index}.png")
            lines += [f"{split}-{index}.png,{','.join(map(str, each.box))},{each.label}" for each in scene.objects]
        (root / f"boxes_{split}.csv").write_text("\n".join(lines))
    yield root
    sys.modules.pop("datasets.toy_format", None)


def test_a_format_of_another_package_trains_evaluates_and_predicts(toy, tmp_path, capsys):
    out = tmp_path / "run"
    train = [
        "train", "detect", "--data", toy, "--out", out, "--model", "van_b0", "--init-from", "scratch", "--epochs", 1,
        "--batch-size", 2, "--min-size", 64, "--max-size", 64, "--batch-norm", "train", "--device", "cpu",
    ]  # fmt: skip
    assert main([str(argument) for argument in train]) == 0
    capsys.readouterr()
    checkpoint = str(out / "best.safetensors")
    assert main(["eval", checkpoint, "--data", str(toy), "--json", "--device", "cpu"]) == 0
    record = json.loads(capsys.readouterr().out)
    assert (record["task"], record["samples"]) == ("detect", COUNTS["val"])
    assert main(["predict", checkpoint, str(toy / "val-0.png"), "--json", "--device", "cpu"]) == 0
    assert "val-0.png" in capsys.readouterr().out


def test_a_format_of_another_package_is_checked_listed_and_named_in_errors(toy, capsys):
    assert main(["data", "check", str(toy), "--json"]) == 0
    splits = json.loads(capsys.readouterr().out)["splits"]
    assert {(each["split"], each["target_type"]): each["images"] for each in splits} == {
        ("train", "boxes"): 4, ("val", "boxes"): 2,
    }  # fmt: skip
    path = toy / "boxes_train.csv"
    path.write_text(path.read_text() + "\ntrain-0.png,9,9,9,20,1")
    assert main(["data", "check", str(toy)]) == 1
    assert f"{path}: line " in capsys.readouterr().out
    assert format_table().splitlines()[-1] == "| detect | boxes in CSV | `boxes_{train,val}.csv` |"
    (toy / "empty").mkdir()
    with pytest.raises(MissingAnnotations, match=r"boxes_train\.csv"):
        load_split(toy / "empty", "train", target_type="boxes")
