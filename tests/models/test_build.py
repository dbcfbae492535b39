"""Networks by name and from files, with heads and without: what a checkpoint says is what is built again."""

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
from van.errors import CheckpointError, MissingExtra, NamesMismatch, UsageError
from van.models.build import create
from van.models.catalogue import HEADS
from van.models.load import Loaded, full_name, load, start_backbone
from van.models.van import VAN
from van.preprocess import IMAGENET_MEAN, IMAGENET_STD, Preprocess, WholePreprocess

WHOLE = WholePreprocess(short_px=64, long_px=96, mean=IMAGENET_MEAN, std=IMAGENET_STD)
OPTIONS = {  # small ones, as a checkpoint's header holds them
    "semantic_fpn": {"drop_path_rate": 0.1},
    "upernet": {"norm_eps": 1e-6},
    "retinanet": {"channels": 32, "anchor_sizes_px": [8, 16, 24, 32, 64], "score_thresh": 0.01},
    "fcos": {"channels": 64, "first_level": 4},
    "faster_rcnn": {"channels": 32, "drop_path_rate": 0.1},
    "mask_rcnn": {"channels": 32, "first_level": 8},
    "d_fine": {"channels": 64, "queries": 20, "decoder_layers": 2},
    "rt_detr_v2": {"channels": 64, "queries": 20, "decoder_layers": 2},
    "deformable_detr": {"channels": 64, "queries": 20, "decoder_layers": 2},
    "mask2former": {},
}
OWN = ("semantic_fpn", "upernet", "retinanet", "fcos", "faster_rcnn", "mask_rcnn")


def network(head: str, num_classes: int = 3) -> Any:
    return create("van_b0", num_classes=num_classes, options={"head": head, **OPTIONS[head]})


def saved(folder: Path, head: str, **changes: Any) -> tuple[Any, Path]:
    """A network with a head whose tensors are all different, and our file of it."""
    torch.manual_seed(3)
    model = network(head).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.01 * torch.randn_like(parameter))
    given = Checkpoint(
        task=HEADS[head],
        model="van_b0",
        model_options={"head": head, **OPTIONS[head]},
        task_options={"things": [True, False, True]},
        labels=("cat", "dog", "ground"),
        preprocess=WHOLE,
        state=model.state_dict(),
        metrics={"mean_iou": 0.5},
        source="trained here",
    )
    dataclasses.replace(given, **changes).save(folder / "a.safetensors")
    return model, folder / "a.safetensors"


def same(left: nn.Module, right: nn.Module) -> bool:
    ours, theirs = left.state_dict(), right.state_dict()
    return ours.keys() == theirs.keys() and all(tensor.equal(theirs[name]) for name, tensor in ours.items())


def answers(model: Any) -> list[Any]:
    torch.manual_seed(0)
    pictures = [torch.randn(3, 64, 96), torch.randn(3, 50, 64)]
    with torch.no_grad():
        found = model(pictures)
    return [each if isinstance(each, torch.Tensor) else list(each.values()) for each in found]


@pytest.mark.parametrize("head", HEADS)
def test_every_head_is_built_on_a_van(head):
    model = network(head)
    assert isinstance(model.backbone, VAN)
    assert model.backbone.num_classes == 0
    assert model.num_classes == 3


@pytest.mark.parametrize("head", HEADS)
def test_a_network_with_a_head_comes_back_from_its_file_and_answers_the_same(head, tmp_path):
    model, path = saved(tmp_path, head)
    loaded = load(path)
    assert same(loaded.model, model)
    assert not loaded.model.training
    assert (loaded.task, loaded.labels, loaded.preprocess) == (HEADS[head], ("cat", "dog", "ground"), WHOLE)
    assert loaded.task_options == {"things": [True, False, True]}
    assert (loaded.metrics, loaded.origin, loaded.new_head) == ({"mean_iou": 0.5}, "trained here", False)
    torch.testing.assert_close(answers(loaded.model), answers(model), rtol=0, atol=0)


def test_the_options_of_the_backbone_arrive_there():
    assert network("upernet").backbone.norm1.eps == 1e-6
    for head in ("semantic_fpn", "faster_rcnn"):
        assert network(head).backbone.block4[-1].drop_path.drop_prob == pytest.approx(0.1)


@pytest.mark.parametrize("head", OWN)
def test_other_classes_bring_fresh_layers_and_keep_all_others(head, tmp_path):
    model, path = saved(tmp_path, head)
    loaded = load(path, num_classes=5)
    assert loaded.new_head
    assert loaded.labels == tuple(f"class {index}" for index in range(5))
    assert (loaded.metrics, loaded.task_options) == ({}, {})
    assert loaded.notes == (f"the classifier of {path} (3 classes) was left out: 5 were asked for",)
    layers = tuple(f"{name}." for name in model.class_layers)
    stored, fresh = model.state_dict(), loaded.model.state_dict()
    assert all(fresh[name].equal(tensor) for name, tensor in stored.items() if not name.startswith(layers))
    assert all(not fresh[name].equal(tensor) for name, tensor in stored.items() if name.startswith(layers))


@pytest.mark.parametrize("head", ["d_fine", "mask2former"])
def test_a_head_whose_classes_cannot_change_says_so(head, tmp_path):
    _, path = saved(tmp_path, head)
    with pytest.raises(
        UsageError, match=r"num_classes is 5 and .* has 3, which this head cannot change; build a fresh"
    ):
        load(path, num_classes=5)


def test_a_missing_package_is_not_blamed_on_the_file(tmp_path, monkeypatch):
    _, path = saved(tmp_path, "d_fine")
    found = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *a: None if name == "transformers" else found(name, *a)
    )
    with pytest.raises(MissingExtra, match="transformers"):
        load(path)


@pytest.mark.parametrize("head", HEADS)
def test_no_classes_leave_the_backbone(head, tmp_path):
    model, path = saved(tmp_path, head)
    loaded = load(path, num_classes=0)
    assert (loaded.task, loaded.labels, loaded.name) == ("classify", (), "van_b0")
    assert same(loaded.model, model.backbone)
    assert any(head in note and "only the backbone is used" in note for note in loaded.notes)
    assert loaded.preprocess == Preprocess(interpolation="bilinear", mean=IMAGENET_MEAN, std=IMAGENET_STD)
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        assert loaded.model.forward_features(x).equal(model.backbone.forward_features(x))


def test_a_classifier_can_be_started_from_a_network_with_a_head(tmp_path):
    model, path = saved(tmp_path, "semantic_fpn")
    loaded = load(path, num_classes=7, backbone_only=True, options={"drop_path_rate": 0.2})
    assert (loaded.task, len(loaded.labels), loaded.new_head) == ("classify", 7, True)
    assert loaded.options == {"norm_eps": 1e-5, "drop_path_rate": 0.2}
    assert loaded.model.norm4.weight.equal(model.backbone.norm4.weight)
    loaded.want_classifier()
    with pytest.raises(UsageError, match="was trained to segment; wanted a network that classifies"):
        load(path).want_classifier()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"decode_head.conv_seg.bias": None}, r"missing \(1\): decode_head.conv_seg.bias"),
        ({"decode_head.extra": torch.zeros(1)}, r"left over \(1\): decode_head.extra"),
        (
            {"neck.fpn_convs.0.conv.bias": torch.zeros(3)},
            r"of another shape \(1\): neck.fpn_convs.0.conv.bias \(3,\) instead of \(256,\)",
        ),
    ],
)
def test_a_file_that_does_not_fit_its_own_network_is_refused(change, message, tmp_path):
    model, path = saved(tmp_path, "semantic_fpn")
    state = {name: tensor for name, tensor in {**model.state_dict(), **change}.items() if tensor is not None}
    dataclasses.replace(load_checkpoint(path), state=state).save(path)
    for classes in (None, 0):
        with pytest.raises(NamesMismatch, match=message):
            load(path, num_classes=classes)


def test_a_file_of_a_head_that_nobody_knows_is_refused_by_name(tmp_path):
    _, path = saved(tmp_path, "semantic_fpn", model_options={"head": "deeplab"})
    for classes in (None, 0):
        with pytest.raises(CheckpointError, match=r"a.safetensors: there is no head 'deeplab'; known: semantic_fpn"):
            load(path, num_classes=classes)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("van_b9", {}, "'van_b9' is neither a file nor a model"),
        ("resnet18", {"head": "upernet"}, "there is no 'resnet18' to build on; known: van_b0"),
        ("van_b0", {"head": "yolo"}, "there is no head 'yolo'; known: semantic_fpn, upernet, retinanet"),
        ("van_b0", {"head": "upernet", "no_such": 1}, "van_b0 cannot be built with .*no_such"),
        ("van_b0", {"head": "retinanet", "no_such": 1}, "retinanet has no option 'no_such'"),
        ("van_b0", {"no_such": 1}, "van_b0 cannot be built with .*no_such"),
    ],
)
def test_what_cannot_be_built_is_refused(name, options, message):
    with pytest.raises(UsageError, match=message):
        create(name, num_classes=2, options=options)


def filled_files(folder: Path) -> dict[str, tuple[Path, float]]:
    """Files that hold the backbone of ``filled_b0``, and the eps that they say."""
    official, whole = folder / "official.pth", folder / "whole.pth"
    torch.save(filled_b0(), official)
    torch.save({**{to_mmsegmentation_0(n): t for n, t in without_head(filled_b0()).items()}, **decoder()}, whole)
    ours = folder / "ours.safetensors"
    loaded: Loaded = load(official)
    Checkpoint(
        task="classify",
        model="van_b0",
        labels=loaded.labels,
        preprocess=loaded.preprocess,
        state=loaded.model.state_dict(),
    ).save(ours)
    return {"official": (official, 1e-6), "mmsegmentation": (whole, 1e-5), "ours": (ours, 1e-6)}


@pytest.mark.parametrize("kind", ["official", "mmsegmentation", "ours"])
def test_a_backbone_starts_from_any_file_of_its_size(kind, tmp_path):
    path, eps = filled_files(tmp_path)[kind]
    wanted = without_head(filled_b0())
    for head, own_eps in (("semantic_fpn", 1e-5), ("upernet", 1e-6), ("fcos", 1e-6)):
        model = network(head)
        before = {name: tensor.clone() for name, tensor in model.get_classifier().state_dict().items()}
        notes = start_backbone(model, path).notes
        assert all(tensor.equal(wanted[name]) for name, tensor in model.backbone.state_dict().items())
        assert all(tensor.equal(before[name]) for name, tensor in model.get_classifier().state_dict().items())
        assert any("left out" in note for note in notes)
        told = f"the LayerNorms of {path} have an eps of {eps:g}; here it stays {own_eps:g}"
        assert (told in notes) == (eps != own_eps)
        assert model.backbone.norm1.eps == own_eps


def test_a_backbone_starts_from_a_network_with_another_head(tmp_path):
    trained, path = saved(tmp_path, "retinanet")
    model = network("semantic_fpn")
    start_backbone(model, path)
    assert same(model.backbone, trained.backbone)


def test_a_backbone_of_another_size_is_refused_and_nothing_is_changed(tmp_path):
    path = filled_files(tmp_path)["official"][0]
    model = create("van_b1", num_classes=2, options={"head": "semantic_fpn"})
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(NamesMismatch, match="The file holds the weights of van_b0"):
        start_backbone(model, path)
    assert all(model.state_dict()[name].equal(tensor) for name, tensor in before.items())
    with pytest.raises(UsageError, match="VAN has no VAN under 'backbone'"):
        start_backbone(timm.create_model("van_b0"), path)


@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        ("van_b0", "van_b0"),
        ("swin_tiny", "swin_tiny_patch4_window7_224"),
        ("convnext_tiny", "convnext_tiny"),  # others go on from there, but it is one itself
        ("resnet", None),  # many go on
        ("van", None),
        ("nosuch", None),
        ("swin*", None),
        ("", None),
    ],
)
def test_a_name_may_be_cut_short_where_only_one_goes_on_from_there(name, wanted):
    assert full_name(name) == wanted
