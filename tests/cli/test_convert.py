"""``van convert``: every public family becomes one safe file that answers the same, or nothing is left."""

import argparse
import dataclasses
import json
import os
import pickle
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

from data import made
from models.test_weights import FILES
from parity import distance_from_recorded, filled_b0, picture
from van import Predictor, Preprocess, load_checkpoint
from van.models.load import load
from van.preprocess import IMAGENET_MEAN, IMAGENET_STD

SAVED = {  # how each family's files come: the name, and what lies around the tensors
    "official": (
        "van_tiny_754.pth.tar",
        lambda t: {"state_dict": t, "epoch": 310, "args": argparse.Namespace(lr=1e-3)},
    ),
    "Hugging Face": ("pytorch_model.bin", lambda t: t),
    "mmpretrain": ("van-tiny.pth", lambda t: {"state_dict": t, "meta": {"epoch": 300}}),
    "mmsegmentation 1": ("van-b0_fpn.pth", lambda t: {"state_dict": t, "meta": {"iter": 160_000}}),
}


def write_file(folder: Path, file: str) -> Path:
    name, around = SAVED[file]
    torch.save(around(FILES[file][1]()), folder / name)
    return folder / name


@pytest.mark.parametrize("file", SAVED)
def test_every_family_becomes_a_checkpoint_that_answers_as_recorded(van, tmp_path, file):
    source, out = write_file(tmp_path, file), tmp_path / "out" / "van_b0.safetensors"
    ran = van("convert", source, out)
    assert ran.status == 0, ran.err
    family, _, classes = FILES[file]
    assert f"{source.name}: {family} weights of van_b0" in ran.err
    stored = load_checkpoint(out)
    assert (stored.model, stored.task, stored.source, len(stored.labels)) == (
        "van_b0",
        "classify",
        source.name,
        classes,
    )
    official = filled_b0()
    assert all(tensor.equal(official[name]) for name, tensor in stored.state.items())
    assert official.keys() - stored.state.keys() == (set() if classes else {"head.weight", "head.bias"})
    if classes:
        assert f"{out}: van_b0, 1000 classes, 248 -> 224 px, mean (0.5, 0.5, 0.5)" in ran.out
        assert (stored.preprocess, stored.model_options) == (Preprocess(), {})
        assert stored.labels[1].startswith("goldfish")
        model: Any = load(out).model.double()
        with torch.no_grad():
            assert distance_from_recorded("van_b0", model(picture())) < 2e-6  # the weights were rounded to float32
    else:
        assert "no classifier" in ran.out
        assert "left out 4 tensors of auxiliary_head, decode_head, neck: only the backbone is used" in ran.err
        assert (stored.preprocess.mean, stored.preprocess.std) == (IMAGENET_MEAN, IMAGENET_STD)
        assert stored.model_options == {"norm_eps": 1e-5}


def test_a_safetensors_file_of_others_is_taken_too(van, tmp_path):
    safetensors.torch.save_file(filled_b0(), tmp_path / "theirs.safetensors")
    assert van("convert", tmp_path / "theirs.safetensors", tmp_path / "ours.safetensors").status == 0
    assert len(Predictor.load(tmp_path / "ours.safetensors").labels) == 1000


def test_the_classifier_is_replaced_or_removed_on_request(van, tmp_path):
    source = write_file(tmp_path, "official")
    for classes, labels in (("3", ("class 0", "class 1", "class 2")), ("0", ())):
        out = tmp_path / f"{classes}.safetensors"
        ran = van("convert", source, out, "--num-classes", classes)
        assert ran.status == 0, ran.err
        assert f"(1000 classes) was left out: {classes} were asked for" in ran.err
        stored = load_checkpoint(out)
        assert stored.labels == labels
        assert ("head.weight" in stored.state) == bool(labels)


def test_our_own_file_keeps_what_it_knows_and_sheds_its_training(van, checkpoint, tmp_path):
    stored = dataclasses.replace(
        load_checkpoint(checkpoint),
        recipe={"recipe": "finetune", "lr": 0.1},
        metrics={"top1": 0.5},
        source="a friend",
        training={"generators/0/torch": torch.zeros(8)},
        training_state={"progress": {"update": 3}},
    )
    stored.save(tmp_path / "last.safetensors")
    assert van("convert", tmp_path / "last.safetensors", tmp_path / "slim.safetensors").status == 0
    slim = load_checkpoint(tmp_path / "slim.safetensors", with_training=True)
    assert (slim.labels, slim.recipe, slim.metrics, slim.source) == (
        stored.labels, stored.recipe, stored.metrics, "a friend",
    )  # fmt: skip
    assert not slim.training
    assert not slim.training_state
    assert (
        van("convert", tmp_path / "last.safetensors", tmp_path / "five.safetensors", "--num-classes", "5").status == 0
    )
    assert load_checkpoint(tmp_path / "five.safetensors").metrics == {}  # they were the old classifier's


def test_an_existing_file_is_kept_unless_told_otherwise(van, tmp_path):
    source, out = write_file(tmp_path, "official"), tmp_path / "out.safetensors"
    out.write_bytes(b"mine")
    ran = van("convert", source, out)
    assert (ran.status, ran.err) == (2, f"van: {out} exists; choose another name or add --overwrite\n")
    assert out.read_bytes() == b"mine"
    assert van("convert", source, out, "--overwrite").status == 0
    assert load_checkpoint(out).model == "van_b0"


class Hostile:
    """A pickle that would leave a file behind if it were opened the ordinary way."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.target}",)


def test_a_hostile_pickle_is_not_run_and_leaves_no_output(van, tmp_path):
    content = {"state_dict": filled_b0(), "extra": Hostile(tmp_path / "owned")}
    torch.save(content, tmp_path / "hostile.pth")
    for flags in ([], ["--overwrite"]):
        ran = van("convert", tmp_path / "hostile.pth", tmp_path / "out" / "x.safetensors", *flags)
        assert (ran.status, ran.out) == (1, "")
        assert "which is not a tensor or a plain value. Nothing of it was run" in ran.err
    assert [path.name for path in tmp_path.iterdir()] == ["hostile.pth"]
    pickle.loads(pickle.dumps(content["extra"]))  # the control: opened carelessly, it does act
    assert (tmp_path / "owned").exists()


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("cut.pth", "cut", "is cut off"),
        ("empty.pth", b"", "is empty"),
        ("page.pth", b"<html>rate limited</html>", "is neither safetensors nor a PyTorch pickle"),
        ("other.pth", {"fc.weight": torch.zeros(2, 2)}, "belong to no known VAN family"),
        ("van-b0-00000000.pth", {"fc.weight": torch.zeros(2, 2)}, "the name says its sha256 starts with 00000000"),
        ("less.pth", "less", "missing (1): block2.1.norm1.weight"),
    ],
)
def test_a_file_that_cannot_be_used_is_named_and_leaves_no_output(van, tmp_path, name, content, message):
    source = tmp_path / name
    if content == "less":
        content = {key: tensor for key, tensor in filled_b0().items() if key != "block2.1.norm1.weight"}
    if content == "cut":
        content = write_file(tmp_path, "official").read_bytes()[:100_000]
        (tmp_path / "van_tiny_754.pth.tar").unlink()
    if isinstance(content, bytes):
        source.write_bytes(content)
    else:
        torch.save(content, source)
    ran = van("convert", source, tmp_path / "x.safetensors")
    assert (ran.status, ran.out) == (1, "")
    assert message in ran.err
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_an_output_that_is_a_folder_is_refused(van, tmp_path):
    source, out = write_file(tmp_path, "official"), tmp_path / "out.safetensors"
    out.mkdir()
    assert van("convert", source, out).status == 2
    ran = van("convert", source, out, "--overwrite")
    assert ran.status == 1
    assert f"cannot write {out}: it is not a file" in ran.err
    assert not list(out.iterdir())


def test_what_was_converted_is_listed_as_json_by_predict(van, tmp_path):
    """From a public file to an answer, as a user would go."""
    out = tmp_path / "van_b0.safetensors"
    assert van("convert", write_file(tmp_path, "official"), out).status == 0
    made.picture(made.COLOURS["red"], 1, (64, 64)).save(tmp_path / "a.png")
    ran = van("predict", out, tmp_path / "a.png", "--json")
    assert (ran.status, ran.err) == (0, "")
    assert len(json.loads(ran.out)["classes"]) == 5
