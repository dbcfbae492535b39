"""Models are created by name and loaded from files, with and without heads, as the checkpoint describes them."""

import dataclasses
import importlib.util
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from torch import nn

from models.test_weights import decoder, to_mmsegmentation_0, without_head
from parity import filled_b0
from van.checkpoint import Checkpoint, load_checkpoint
from van.errors import CheckpointError, MissingExtra, StateDictMismatch, UsageError
from van.models.build import create_model
from van.models.load import LoadedModel, load, load_backbone_weights, resolve_model_name
from van.models.registry import HEADS
from van.models.van import VAN
from van.preprocess import IMAGENET_MEAN, IMAGENET_STD, CenterCropPreprocess, ResizePreprocess

WHOLE = ResizePreprocess(min_size=64, max_size=96, mean=IMAGENET_MEAN, std=IMAGENET_STD)
OPTIONS = {  # small networks, as in the header of a checkpoint
    "semantic_fpn": {"drop_path_rate": 0.1},
    "upernet": {"norm_eps": 1e-6},
    "retinanet": {"channels": 32, "anchor_sizes": [8, 16, 24, 32, 64], "score_thresh": 0.01},
    "fcos": {"channels": 64, "first_level": 4},
    "faster_rcnn": {"channels": 32, "drop_path_rate": 0.1},
    "mask_rcnn": {"channels": 32, "first_level": 8},
    "d_fine": {"channels": 64, "queries": 20, "decoder_layers": 2},
    "rt_detr_v2": {"channels": 64, "queries": 20, "decoder_layers": 2},
    "deformable_detr": {"channels": 64, "queries": 20, "decoder_layers": 2},
    "mask2former": {},
}
TORCHVISION_AND_SEGMENTATION_HEADS = ("semantic_fpn", "upernet", "retinanet", "fcos", "faster_rcnn", "mask_rcnn")


def network(head: str, num_classes: int = 3) -> Any:
    return create_model("van_b0", num_classes=num_classes, options={"head": head, **OPTIONS[head]})


def save_network(folder: Path, head: str, **changes: Any) -> tuple[Any, Path]:
    """Save a network with a head whose tensors are all different as a checkpoint; return both."""
    torch.manual_seed(3)
    model = network(head).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.01 * torch.randn_like(parameter))
    checkpoint = Checkpoint(
        task=HEADS[head],
        model="van_b0",
        model_options={"head": head, **OPTIONS[head]},
        task_options={"things": [True, False, True]},
        class_names=("cat", "dog", "ground"),
        preprocess=WHOLE,
        state=model.state_dict(),
        metrics={"mean_iou": 0.5},
        source="trained here",
    )
    dataclasses.replace(checkpoint, **changes).save(folder / "a.safetensors")
    return model, folder / "a.safetensors"


def have_equal_state(left: nn.Module, right: nn.Module) -> bool:
    first, second = left.state_dict(), right.state_dict()
    return first.keys() == second.keys() and all(tensor.equal(second[name]) for name, tensor in first.items())


def outputs(model: Any) -> list[Any]:
    torch.manual_seed(0)
    images = [torch.randn(3, 64, 96), torch.randn(3, 50, 64)]
    with torch.no_grad():
        results = model(images)
    return [each if isinstance(each, torch.Tensor) else list(each.values()) for each in results]


@pytest.mark.parametrize("head", HEADS)
def test_every_head_has_a_van_as_backbone(head):
    model = network(head)
    assert isinstance(model.backbone, VAN)
    assert model.backbone.num_classes == 0
    assert model.num_classes == 3


@pytest.mark.parametrize("head", HEADS)
def test_a_network_with_a_head_round_trips_through_a_checkpoint(head, tmp_path):
    model, path = save_network(tmp_path, head)
    loaded = load(path)
    assert have_equal_state(loaded.model, model)
    assert not loaded.model.training
    assert (loaded.task, loaded.class_names, loaded.preprocess) == (HEADS[head], ("cat", "dog", "ground"), WHOLE)
    assert loaded.task_options == {"things": [True, False, True]}
    assert (loaded.metrics, loaded.origin, loaded.new_head) == ({"mean_iou": 0.5}, "trained here", False)
    torch.testing.assert_close(outputs(loaded.model), outputs(model), rtol=0, atol=0)


def test_backbone_options_reach_the_backbone():
    assert network("upernet").backbone.norm1.eps == 1e-6
    for head in ("semantic_fpn", "faster_rcnn"):
        assert network(head).backbone.block4[-1].drop_path.drop_prob == pytest.approx(0.1)


@pytest.mark.parametrize("head", TORCHVISION_AND_SEGMENTATION_HEADS)
def test_another_number_of_classes_replaces_only_the_class_layers(head, tmp_path):
    model, path = save_network(tmp_path, head)
    loaded = load(path, num_classes=5)
    assert loaded.new_head
    assert loaded.class_names == tuple(f"class {index}" for index in range(5))
    assert (loaded.metrics, loaded.task_options) == ({}, {})
    assert [str(path) in note and "3 classes" in note for note in loaded.notes] == [True]
    layers = tuple(f"{name}." for name in model.class_layers)
    stored, fresh = model.state_dict(), loaded.model.state_dict()
    assert all(fresh[name].equal(tensor) for name, tensor in stored.items() if not name.startswith(layers))
    assert all(not fresh[name].equal(tensor) for name, tensor in stored.items() if name.startswith(layers))


@pytest.mark.parametrize("head", ["d_fine", "mask2former"])
def test_another_number_of_classes_is_refused_by_heads_that_cannot_change_it(head, tmp_path):
    _, path = save_network(tmp_path, head)
    with pytest.raises(UsageError, match=r"num_classes: expected 3 .*a\.safetensors.* got 5"):
        load(path, num_classes=5)


def test_a_missing_package_is_not_reported_as_a_checkpoint_error(tmp_path, monkeypatch):
    _, path = save_network(tmp_path, "d_fine")
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *a: None if name == "transformers" else find_spec(name, *a)
    )
    with pytest.raises(MissingExtra, match="transformers"):
        load(path)


@pytest.mark.parametrize("head", HEADS)
def test_num_classes_0_loads_the_backbone(head, tmp_path):
    model, path = save_network(tmp_path, head)
    loaded = load(path, num_classes=0)
    assert (loaded.task, loaded.class_names, loaded.name) == ("classify", (), "van_b0")
    assert have_equal_state(loaded.model, model.backbone)
    assert any(head in note and "only the backbone" in note for note in loaded.notes)
    assert loaded.preprocess == CenterCropPreprocess(interpolation="bilinear", mean=IMAGENET_MEAN, std=IMAGENET_STD)
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        assert loaded.model.forward_features(x).equal(model.backbone.forward_features(x))


def test_backbone_only_creates_a_classifier_from_a_network_with_a_head(tmp_path):
    model, path = save_network(tmp_path, "semantic_fpn")
    loaded = load(path, num_classes=7, backbone_only=True, options={"drop_path_rate": 0.2})
    assert (loaded.task, len(loaded.class_names), loaded.new_head) == ("classify", 7, True)
    assert loaded.options == {"norm_eps": 1e-5, "drop_path_rate": 0.2}
    assert loaded.model.norm4.weight.equal(model.backbone.norm4.weight)
    loaded.check_is_classifier()
    with pytest.raises(UsageError, match=r"van_b0: .*'classify'.*'segment'"):
        load(path).check_is_classifier()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"decode_head.conv_seg.bias": None}, r"missing \(1\): decode_head.conv_seg.bias"),
        ({"decode_head.extra": torch.zeros(1)}, r"unexpected \(1\): decode_head.extra"),
        (
            {"neck.fpn_convs.0.conv.bias": torch.zeros(3)},
            r"shape mismatch \(1\): neck.fpn_convs.0.conv.bias .*\(256,\), got \(3,\)",
        ),
    ],
)
def test_a_checkpoint_that_does_not_match_its_own_network_is_refused(change, message, tmp_path):
    model, path = save_network(tmp_path, "semantic_fpn")
    state = {name: tensor for name, tensor in {**model.state_dict(), **change}.items() if tensor is not None}
    dataclasses.replace(load_checkpoint(path), state=state).save(path)
    for classes in (None, 0):
        with pytest.raises(StateDictMismatch, match=message):
            load(path, num_classes=classes)


def test_a_checkpoint_of_an_unknown_head_is_refused(tmp_path):
    _, path = save_network(tmp_path, "semantic_fpn", model_options={"head": "deeplab"})
    for classes in (None, 0):
        with pytest.raises(CheckpointError, match=r"a.safetensors: .*semantic_fpn.*'deeplab'"):
            load(path, num_classes=classes)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("van_b9", {}, "van_b0.*'van_b9'"),
        ("resnet18", {"head": "upernet"}, "van_b0.*'resnet18'"),
        ("van_b0", {"head": "yolo"}, "head.*semantic_fpn, upernet, retinanet.*'yolo'"),
        ("van_b0", {"head": "upernet", "no_such": 1}, "van_b0: .*no_such"),
        ("van_b0", {"head": "retinanet", "no_such": 1}, "retinanet.*'no_such'"),
        ("van_b0", {"no_such": 1}, "van_b0: .*no_such"),
    ],
)
def test_unknown_models_heads_and_options_are_refused(name, options, message):
    with pytest.raises(UsageError, match=message):
        create_model(name, num_classes=2, options=options)


def filled_files(folder: Path) -> dict[str, tuple[Path, float]]:
    """Return files with the backbone of ``filled_b0``, and the eps of their LayerNorms."""
    official, whole = folder / "official.pth", folder / "whole.pth"
    torch.save(filled_b0(), official)
    torch.save({**{to_mmsegmentation_0(n): t for n, t in without_head(filled_b0()).items()}, **decoder()}, whole)
    checkpoint = folder / "checkpoint.safetensors"
    loaded: LoadedModel = load(official)
    Checkpoint(
        task="classify",
        model="van_b0",
        class_names=loaded.class_names,
        preprocess=loaded.preprocess,
        state=loaded.model.state_dict(),
    ).save(checkpoint)
    return {"official": (official, 1e-6), "mmsegmentation": (whole, 1e-5), "checkpoint": (checkpoint, 1e-6)}


@pytest.mark.parametrize("kind", ["official", "mmsegmentation", "checkpoint"])
def test_backbone_weights_load_from_any_file_of_the_variant(kind, tmp_path):
    path, eps = filled_files(tmp_path)[kind]
    expected = without_head(filled_b0())
    for head, own_eps in (("semantic_fpn", 1e-5), ("upernet", 1e-6), ("fcos", 1e-6)):
        model = network(head)
        before = {name: tensor.clone() for name, tensor in model.get_classifier().state_dict().items()}
        notes = load_backbone_weights(model, path).notes
        assert all(tensor.equal(expected[name]) for name, tensor in model.backbone.state_dict().items())
        assert all(tensor.equal(before[name]) for name, tensor in model.get_classifier().state_dict().items())
        assert any("skipped" in note for note in notes)
        eps_notes = [note for note in notes if str(path) in note and f"{eps:g}" in note and f"{own_eps:g}" in note]
        assert bool(eps_notes) == (eps != own_eps)
        assert model.backbone.norm1.eps == own_eps


def test_backbone_weights_load_from_a_network_with_another_head(tmp_path):
    trained, path = save_network(tmp_path, "retinanet")
    model = network("semantic_fpn")
    load_backbone_weights(model, path)
    assert have_equal_state(model.backbone, trained.backbone)


def test_backbone_weights_of_another_variant_are_refused_and_nothing_is_changed(tmp_path):
    path = filled_files(tmp_path)["official"][0]
    model = create_model("van_b1", num_classes=2, options={"head": "semantic_fpn"})
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(StateDictMismatch, match="van_b0"):
        load_backbone_weights(model, path)
    assert all(model.state_dict()[name].equal(tensor) for name, tensor in before.items())
    with pytest.raises(UsageError, match="'backbone'"):
        load_backbone_weights(timm.create_model("van_b0"), path)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("van_b0", "van_b0"),
        ("swin_tiny", "swin_tiny_patch4_window7_224"),
        ("convnext_tiny", "convnext_tiny"),  # longer names exist, but it is a model itself
        ("resnet", None),  # many longer names exist
        ("van", None),
        ("nosuch", None),
        ("swin*", None),
        ("", None),
    ],
)
def test_a_unique_prefix_of_a_model_name_is_resolved(name, expected):
    assert resolve_model_name(name) == expected
