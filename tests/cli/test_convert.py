"""``van convert``: public weights become a checkpoint with the same outputs, or no file is left."""

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
from torch import Tensor

from datasets import synthetic
from parity import distance_from_recorded, filled, filled_b0, image, recorded
from van import CenterCropPreprocess, load_checkpoint
from van.model import Model
from van.predict import Predictor
from van.preprocess import IMAGENET_MEAN, IMAGENET_STD, ResizePreprocess
from van.weights.ade20k import ADE20K_LABELS
from weights.test_weights import FILES

SAVED = {  # file name and content around the tensors, for each source
    "official": (
        "van_tiny_754.pth.tar",
        lambda t: {"state_dict": t, "epoch": 310, "args": argparse.Namespace(lr=1e-3)},
    ),
    "Hugging Face": ("pytorch_model.bin", lambda t: t),
    "mmpretrain": ("van-tiny.pth", lambda t: {"state_dict": t, "meta": {"epoch": 300}}),
}


def write_file(folder: Path, file: str) -> Path:
    name, wrap = SAVED[file]
    torch.save(wrap(FILES[file][1]()), folder / name)
    return folder / name


@pytest.mark.parametrize("file", SAVED)
def test_every_format_is_converted_to_a_checkpoint_with_the_recorded_outputs(van, tmp_path, file):
    source, out = write_file(tmp_path, file), tmp_path / "out" / "van_b0.safetensors"
    ran = van("convert", source, out)
    assert ran.status == 0, ran.err
    assert f"{source.name}: {FILES[file][0]} weights of van_b0" in ran.err
    stored = load_checkpoint(out)
    assert (stored.model, stored.task, stored.source) == ("van_b0", "classify", source.name)
    official = filled_b0()
    assert stored.state.keys() == official.keys()
    assert all(tensor.equal(official[name]) for name, tensor in stored.state.items())
    assert f"{out}: van_b0, 1000 classes, resize 248 px, center crop 224 px, mean (0.5, 0.5, 0.5)" in ran.out
    assert (stored.preprocess, stored.model_options) == (CenterCropPreprocess(), {})
    assert len(stored.class_names) == 1000
    assert stored.class_names[1].startswith("goldfish")
    model: Any = Model.load(out).network.double()
    with torch.no_grad():
        assert distance_from_recorded("van_b0", model(image())) < 2e-6  # the weights were rounded to float32


SEGMENTERS = {"semantic_fpn": "fpn_van_b0_150", "upernet": "upernet_van_b0_150"}


def segmenter_tensors(head: str, version: int = 0) -> dict[str, Tensor]:
    """Return mmsegmentation's segmenter under the names of its version 0 or 1."""
    tensors = filled(recorded("mmseg_b0")[SEGMENTERS[head]]["names"])
    shorter = {name.replace("mlp.dwconv.dwconv.", "mlp.dwconv."): tensor for name, tensor in tensors.items()}
    assert shorter.keys() != tensors.keys()
    return shorter if version else tensors


def write_segmenter(folder: Path, tensors: dict[str, Tensor]) -> Path:
    """Write the file as training does: with the state of the optimizer."""
    momenta = {"state": {0: {"step": 3, "exp_avg": torch.zeros(2)}}, "param_groups": [{"lr": 6e-5}]}
    meta = {"iter": 160_000, "CLASSES": ["wall"]}
    torch.save({"state_dict": tensors, "optimizer": momenta, "meta": meta}, folder / "van-b0.pth")
    return folder / "van-b0.pth"


@pytest.mark.parametrize("version", [0, 1])
@pytest.mark.parametrize("head", SEGMENTERS)
def test_a_segmenter_is_converted_to_a_checkpoint_with_mmsegmentations_outputs(van, tmp_path, head, version):
    source, out = write_segmenter(tmp_path, segmenter_tensors(head, version)), tmp_path / "ours.safetensors"
    ran = van("convert", source, out)
    assert ran.status == 0, ran.err
    assert "skipped" not in ran.err
    assert f"{out}: van_b0 with {head}, 150 classes, resize 512 to 2048 px, mean {IMAGENET_MEAN}" in ran.out
    stored = load_checkpoint(out)
    assert (stored.task, stored.model, stored.source) == ("segment", "van_b0", "van-b0.pth")
    assert stored.model_options == {"head": head, "norm_eps": 1e-5}
    assert (stored.class_names, stored.task_options) == (ADE20K_LABELS, {})
    assert stored.preprocess == ResizePreprocess(min_size=512, max_size=2048, mean=IMAGENET_MEAN, std=IMAGENET_STD)
    official = segmenter_tensors(head)
    assert stored.state.keys() == official.keys()
    assert all(tensor.equal(official[name]) for name, tensor in stored.state.items())
    if version == 1:  # the same tensors as for version 0
        return
    model: Any = Model.load(out).network.double()
    expected = recorded("mmseg_b0")[SEGMENTERS[head]]["1x3x97x131"]
    with torch.no_grad():
        logits, _ = model.forward_head(image())
    assert logits.mean().item() == pytest.approx(expected["mean"], abs=1e-6)
    assert logits[0, :8, 0, 0].tolist() == pytest.approx(expected["first"], abs=1e-6)


@pytest.mark.parametrize("version", [0, 1])
def test_num_classes_0_keeps_only_the_backbone_of_a_segmenter(van, tmp_path, version):
    source, out = write_segmenter(tmp_path, segmenter_tensors("upernet", version)), tmp_path / "ours.safetensors"
    ran = van("convert", source, out, "--num-classes", "0")
    assert ran.status == 0, ran.err
    assert "82 tensors of auxiliary_head, decode_head" in ran.err
    assert f"{out}: van_b0, no classifier, resize 248 px, center crop 224 px, mean {IMAGENET_MEAN}" in ran.out
    stored = load_checkpoint(out)
    assert (stored.task, stored.class_names, stored.model_options) == ("classify", (), {"norm_eps": 1e-5})
    official = filled_b0()
    assert official.keys() - stored.state.keys() == {"head.weight", "head.bias"}
    assert stored.preprocess.mean == IMAGENET_MEAN


def test_a_segmenter_for_other_classes_keeps_all_but_the_last_layers(van, tmp_path):
    tensors = segmenter_tensors("upernet")
    source, out = write_segmenter(tmp_path, tensors), tmp_path / "ours.safetensors"
    ran = van("convert", source, out, "--num-classes", "3")
    assert ran.status == 0, ran.err
    assert all(fact in ran.err for fact in (str(source), "150 classes", "3"))
    stored = load_checkpoint(out)
    assert stored.class_names == ("class 0", "class 1", "class 2")
    changed = {name for name, tensor in stored.state.items() if not tensor.equal(tensors[name])}
    assert changed == {
        f"{head}.conv_seg.{kind}" for head in ("decode_head", "auxiliary_head") for kind in ("weight", "bias")
    }


def test_a_segmenter_with_wrong_tensors_is_rejected_with_the_tensors_name(subtests, van, tmp_path):
    for head, change, fact in [
        ("semantic_fpn", {"decode_head.scale_heads.2.2.conv.weight": None}, "missing (1): {name}"),
        ("semantic_fpn", {"neck.lateral_convs.1.conv.bias": None}, "missing (1): {name}"),
        ("upernet", {"auxiliary_head.convs.0.bn.weight": None}, "missing (1): {name}"),
        ("upernet", {"decode_head.psp_modules.0.1.bn.running_var": None}, "missing (1): {name}"),
        ("upernet", {"decode_head.psp_modules.4.1.conv.weight": torch.zeros(1)}, "unexpected (1): {name}"),
        ("semantic_fpn", {"auxiliary_head.convs.0.conv.weight": torch.zeros(1)}, "unexpected (1): {name}"),
        ("upernet", {"optimizer_step": torch.zeros(1)}, "unexpected (1): backbone.{name}"),
        ("upernet", {"decode_head.bottleneck.conv.weight": torch.zeros(1, 9, 3, 3)}, "shape mismatch (1): {name}"),
        ("upernet", {"backbone.norm3.bias": None}, "missing (1): {name}"),
        ("upernet", {"decode_head.conv_seg.weight": None}, "van-b0.pth"),
    ]:
        with subtests.test(head=head, change=change, fact=fact):
            tensors = {**segmenter_tensors(head), **change}
            source = write_segmenter(tmp_path, {name: tensor for name, tensor in tensors.items() if tensor is not None})
            ran = van("convert", source, tmp_path / "x.safetensors")
            assert (ran.status, ran.out) == (1, "")
            assert fact.format(name=next(iter(change))) in ran.err
            assert [path.name for path in tmp_path.iterdir()] == ["van-b0.pth"]


def test_an_unsupported_head_is_an_error_and_its_backbone_can_be_converted(van, tmp_path):
    tensors = {name.replace("psp_modules", "aspp_modules"): t for name, t in segmenter_tensors("upernet").items()}
    source, out = write_segmenter(tmp_path, tensors), tmp_path / "x.safetensors"
    ran = van("convert", source, out)
    assert ran.status == 1
    assert "decode_head.conv_seg.weight" in ran.err
    assert "num_classes=0" in ran.err
    assert van("convert", source, out, "--num-classes", "0").status == 0


def test_training_state_in_a_segmenters_file_is_skipped_with_a_note(van, tmp_path):
    """Averages under mmcv's names, a preprocessor and wrapped names are skipped; old files lack BatchNorm counters."""
    tensors = {f"module.{name}": t for name, t in segmenter_tensors("semantic_fpn", 1).items()}
    tensors = {name: t for name, t in tensors.items() if not name.endswith("num_batches_tracked")}
    tensors |= {"ema_backbone_norm1_weight": torch.zeros(32), "data_preprocessor.mean": torch.zeros(3, 1, 1)}
    out = tmp_path / "ours.safetensors"
    ran = van("convert", write_segmenter(tmp_path, tensors), out)
    assert ran.status == 0, ran.err
    assert "ema_backbone_norm1_weight, data_preprocessor.mean" in ran.err
    assert "37" in ran.err
    expected = segmenter_tensors("semantic_fpn")
    stored = load_checkpoint(out).state
    assert stored.keys() == expected.keys()
    assert all(tensor.equal(expected[name]) for name, tensor in stored.items())


def test_our_own_segmenter_is_converted_unchanged(van, tmp_path):
    source, ours = write_segmenter(tmp_path, segmenter_tensors("semantic_fpn")), tmp_path / "ours.safetensors"
    assert van("convert", source, ours).status == 0
    stored = dataclasses.replace(load_checkpoint(ours), task_options={"a": 1}, metrics={"mean_iou": 0.5})
    stored.save(ours)
    assert van("convert", ours, tmp_path / "again.safetensors").status == 0
    again = load_checkpoint(tmp_path / "again.safetensors")
    for name in ("task", "class_names", "preprocess", "model_options", "task_options", "metrics", "source"):
        assert getattr(again, name) == getattr(stored, name)
    assert all(tensor.equal(stored.state[name]) for name, tensor in again.state.items())


def test_ade20k_has_150_distinct_classes():
    assert len(set(ADE20K_LABELS)) == len(ADE20K_LABELS) == 150
    indices = {"wall": 0, "person": 12, "chest of drawers": 44, "van": 102, "flag": 149}
    assert {label: ADE20K_LABELS.index(label) for label in indices} == indices


def test_a_safetensors_file_of_another_program_is_converted(van, tmp_path):
    safetensors.torch.save_file(filled_b0(), tmp_path / "theirs.safetensors")
    assert van("convert", tmp_path / "theirs.safetensors", tmp_path / "ours.safetensors").status == 0
    assert len(Predictor(Model.load(tmp_path / "ours.safetensors")).class_names) == 1000


def test_num_classes_replaces_or_removes_the_classifier(van, tmp_path):
    source = write_file(tmp_path, "official")
    for classes, class_names in (("3", ("class 0", "class 1", "class 2")), ("0", ())):
        out = tmp_path / f"{classes}.safetensors"
        ran = van("convert", source, out, "--num-classes", classes)
        assert ran.status == 0, ran.err
        assert "1000 classes" in ran.err
        stored = load_checkpoint(out)
        assert stored.class_names == class_names
        assert ("head.weight" in stored.state) == bool(class_names)


def test_our_own_file_keeps_its_metadata_and_drops_its_training_state(van, checkpoint, tmp_path):
    stored = dataclasses.replace(
        load_checkpoint(checkpoint),
        recipe={"recipe": "classify", "lr": 0.1},
        metrics={"top1": 0.5},
        source="somewhere",
        training={"generators/0/torch": torch.zeros(8)},
        training_state={"progress": {"update": 3}},
    )
    stored.save(tmp_path / "last.safetensors")
    assert van("convert", tmp_path / "last.safetensors", tmp_path / "slim.safetensors").status == 0
    slim = load_checkpoint(tmp_path / "slim.safetensors", with_training=True)
    assert (slim.class_names, slim.recipe, slim.metrics, slim.source) == (
        stored.class_names, stored.recipe, stored.metrics, "somewhere",
    )  # fmt: skip
    assert not slim.training
    assert not slim.training_state
    assert (
        van("convert", tmp_path / "last.safetensors", tmp_path / "five.safetensors", "--num-classes", "5").status == 0
    )
    assert load_checkpoint(tmp_path / "five.safetensors").metrics == {}  # they were of the old classifier


def test_an_existing_file_is_kept_without_overwrite(van, tmp_path):
    source, out = write_file(tmp_path, "official"), tmp_path / "out.safetensors"
    out.write_bytes(b"old")
    ran = van("convert", source, out)
    assert (ran.status, str(out) in ran.err, "--overwrite" in ran.err) == (2, True, True)
    assert out.read_bytes() == b"old"
    assert van("convert", source, out, "--overwrite").status == 0
    assert load_checkpoint(out).model == "van_b0"


class Malicious:
    """A pickle that creates a file if it is loaded with ``pickle``."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.target}",)


def test_a_malicious_pickle_is_not_executed_and_leaves_no_output(van, tmp_path):
    content = {"state_dict": filled_b0(), "extra": Malicious(tmp_path / "executed")}
    torch.save(content, tmp_path / "malicious.pth")
    for flags in ([], ["--overwrite"]):
        ran = van("convert", tmp_path / "malicious.pth", tmp_path / "out" / "x.safetensors", *flags)
        assert (ran.status, ran.out) == (1, "")
        assert "malicious.pth" in ran.err
    assert [path.name for path in tmp_path.iterdir()] == ["malicious.pth"]
    pickle.loads(pickle.dumps(content["extra"]))  # negative control: pickle itself executes it
    assert (tmp_path / "executed").exists()


@pytest.mark.parametrize(
    ("name", "content", "fact"),
    [
        ("cut.pth", "cut", "cut.pth"),
        ("empty.pth", b"", "empty.pth"),
        ("page.pth", b"<html>rate limited</html>", "page.pth"),
        ("other.pth", {"fc.weight": torch.zeros(2, 2)}, "other.pth"),
        ("van-b0-00000000.pth", {"fc.weight": torch.zeros(2, 2)}, "00000000"),
        ("less.pth", "less", "missing (1): block2.1.norm1.weight"),
    ],
)
def test_an_unusable_file_is_named_and_leaves_no_output(van, tmp_path, name, content, fact):
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
    assert fact in ran.err
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_an_output_that_is_a_folder_is_rejected(van, tmp_path):
    source, out = write_file(tmp_path, "official"), tmp_path / "out.safetensors"
    out.mkdir()
    assert van("convert", source, out).status == 2
    ran = van("convert", source, out, "--overwrite")
    assert ran.status == 1
    assert f"cannot write {out}: it is not a regular file" in ran.err
    assert not list(out.iterdir())


def test_a_converted_file_predicts_as_json(van, tmp_path):
    """From a public file to a prediction, as a user would do."""
    out = tmp_path / "van_b0.safetensors"
    assert van("convert", write_file(tmp_path, "official"), out).status == 0
    synthetic.make_image(synthetic.COLORS["red"], 1, (64, 64)).save(tmp_path / "a.png")
    ran = van("predict", out, tmp_path / "a.png", "--json")
    assert (ran.status, ran.err) == (0, "")
    assert len(json.loads(ran.out)["classes"]) == 5
