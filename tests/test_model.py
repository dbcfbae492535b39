"""``Model`` is loaded from every source, wraps a network of one's own, and is saved as the checkpoint describes it."""

import dataclasses
import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import timm
import torch
from PIL import Image
from torch import nn

from parity import distance_from_recorded, filled_b0, image, recorded
from van.checkpoint import Checkpoint, load_checkpoint
from van.errors import CheckpointError, DataError, MissingExtra, StateDictMismatch, UsageError
from van.heads import HEADS, create_model
from van.model import Model
from van.model_sources import load_backbone_weights, resolve_model_name
from van.preprocess import IMAGENET_MEAN, IMAGENET_STD, CenterCropPreprocess, ResizePreprocess
from weights.test_weights import decoder, to_hugging_face, to_mmsegmentation_0, without_head

WHOLE = ResizePreprocess(min_size=64, max_size=96, mean=IMAGENET_MEAN, std=IMAGENET_STD)
TINY = {"dims": (8, 16, 24, 32), "depths": (1, 1, 1, 1)}


def network(head: str, **options: Any) -> Any:
    return create_model("van_b0", num_classes=3, options={"head": head, "channels": 64, **options})


def save_network(folder: Path, head: str, **changes: Any) -> tuple[Any, Path]:
    """Save a network with a head as a checkpoint; return both."""
    torch.manual_seed(3)
    model = network(head).eval()
    checkpoint = Checkpoint(
        task=HEADS[head].task,
        model="van_b0",
        model_options={"head": head, "channels": 64},
        class_names=("cat", "dog", "ground"),
        preprocess=WHOLE,
        state=model.state_dict(),
    )
    dataclasses.replace(checkpoint, **changes).save(folder / "a.safetensors")
    return model, folder / "a.safetensors"


def have_equal_state(left: nn.Module, right: nn.Module) -> bool:
    first, second = left.state_dict(), right.state_dict()
    return first.keys() == second.keys() and all(tensor.equal(second[name]) for name, tensor in first.items())


class Own(nn.Module):
    """A network that timm does not know: the mean color, projected to the classes."""

    def __init__(self, num_classes: int = 2) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.project = nn.Linear(3, num_classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.project(x.mean((2, 3)))


# Sources


def write_transformers_folder(folder: Path, *, suffix: str, labels: dict[str, str] | None) -> Path:
    """Write a folder as transformers 4.57 saves VAN-B0, with the parameters of ``filled_b0``."""
    folder.mkdir()
    tensors = {to_hugging_face(name): tensor.float() for name, tensor in filled_b0().items()}
    tensors |= {"van.layernorm.weight": torch.ones(256), "van.layernorm.bias": torch.zeros(256)}
    assert tensors.keys() == recorded("hf_keys_b0").keys()
    if suffix == "bin":
        torch.save(tensors, folder / "pytorch_model.bin")
    else:
        safetensors.torch.save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    config = {"model_type": "van", "id2label": labels} if labels else {"model_type": "van"}
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    return folder


def test_a_folder_of_transformers_has_the_released_outputs_and_the_class_names_of_its_configuration(tmp_path):
    labels = {str(index): f"thing {index}" for index in range(1000)}
    for suffix in ("bin", "safetensors"):
        model = Model.load(write_transformers_folder(tmp_path / suffix, suffix=suffix, labels=labels))
        assert (model.name, model.task) == ("van_b0", "classify")
        assert model.preprocess == CenterCropPreprocess()
        assert model.class_names == tuple(labels.values())
        assert any("van.layernorm.weight" in note for note in model.notes)
        with torch.inference_mode():
            assert distance_from_recorded("van_b0", model.network.double()(image())) < 1e-5
    unnamed = Model.load(write_transformers_folder(tmp_path / "unnamed", suffix="bin", labels=None))
    assert unnamed.class_names[0].startswith("tench")
    assert Model.load(tmp_path / "bin", num_classes=4).class_names == ("class 0", "class 1", "class 2", "class 3")


def test_a_run_folder_is_its_best_checkpoint(tmp_path):
    _, path = save_network(tmp_path, "semantic_fpn")
    path.rename(tmp_path / "best.safetensors")
    assert Model.load(tmp_path).class_names == ("cat", "dog", "ground")


def test_folders_that_hold_no_model_are_refused(tmp_path):
    folder = write_transformers_folder(tmp_path / "a", suffix="bin", labels=None)
    for content in ("{", "[]", '{"id2label": {"1": "x"}}'):
        (folder / "config.json").write_text(content)
        with pytest.raises(DataError, match=r"config\.json"):
            Model.load(folder)
    (folder / "config.json").unlink()
    with pytest.raises(DataError, match=r"config\.json"):
        Model.load(folder)
    (folder / "pytorch_model.bin").unlink()
    with pytest.raises(CheckpointError, match=r"best\.safetensors.*model\.safetensors or pytorch_model\.bin"):
        Model.load(folder)


def test_a_unique_prefix_of_a_model_name_is_resolved():
    for name, expected in {
        "van_b0": "van_b0",
        "swin_tiny": "swin_tiny_patch4_window7_224",
        "convnext_tiny": "convnext_tiny",  # longer names exist, but it is a model itself
        "resnet": None,  # many longer names exist
        "van": None,
        "nosuch": None,
        "swin*": None,
        "": None,
    }.items():
        assert resolve_model_name(name) == expected, name


# A network of one's own


def test_an_own_network_is_saved_and_loaded_with_its_class_names_and_preprocessing(tmp_path):
    rule = CenterCropPreprocess(image_size=48)
    model = Model(Own(), class_names=("cold", "warm"), preprocess=rule, notes=("mine",))
    assert (model.name, model.task, model.network.training) == ("Own", "classify", False)
    path = model.save(tmp_path / "own.safetensors")
    loaded = Model.load(path, network=Own())
    assert have_equal_state(loaded.network, model.network)
    assert (loaded.class_names, loaded.preprocess, loaded.name) == (("cold", "warm"), rule, "Own")
    picture = Image.new("RGB", (60, 50), (200, 30, 10))
    assert loaded.predict(picture, device="cpu").scores == model.predict(picture, device="cpu").scores
    with pytest.raises(CheckpointError, match=r"own\.safetensors.*Own.*network"):
        Model.load(path)
    with pytest.raises(StateDictMismatch, match="shape mismatch"):
        Model.load(path, network=Own(3))


def test_a_network_of_timm_is_loaded_by_its_name(tmp_path):
    torch.manual_seed(0)
    for name, options in (("van_b0", {"kernel_size": 11, **TINY}), ("resnet18", {})):
        own = timm.create_model(name, num_classes=2, **options)
        model = Model(own, class_names=("cold", "warm"), options=options)
        assert model.name == name
        loaded = Model.load(model.save(tmp_path / f"{name}.safetensors"))
        assert have_equal_state(loaded.network, own)
        assert (loaded.preprocess, loaded.class_names) == (model.preprocess, ("cold", "warm"))


def test_class_names_are_imagenets_or_numbered_by_default():
    assert Model(Own()).class_names == ("class 0", "class 1")
    assert Model(Own(1000)).class_names[0].startswith("tench")


def test_an_own_network_for_another_task_needs_no_head():
    """A network of timm without a head only classifies."""
    Model(Own(), class_names=("a", "b"), task="segment", preprocess=WHOLE).check_can_predict()
    for model, fact in (
        (Model(timm.create_model("van_b0", num_classes=2, **TINY), task="segment"), "semantic_fpn, upernet"),
        (Model(Own(), class_names=()), "classes"),
        (Model(Own(), options={"in_chans": 1}), "3 channels"),
    ):
        with pytest.raises(UsageError, match=fact):
            model.check_can_predict()


def test_the_fused_model_has_the_same_outputs_and_is_computed_once():
    torch.manual_seed(0)
    model = Model(timm.create_model("van_b0", num_classes=2, **TINY), class_names=("a", "b"))
    fused = model.fused()
    assert model.deployed is model.deployed is fused.network is not model.network
    assert not any(isinstance(module, nn.BatchNorm2d) for module in fused.network.modules())
    assert fused.class_names == model.class_names
    x = torch.randn(1, 3, 64, 64)
    with torch.inference_mode():
        torch.testing.assert_close(fused.network(x), model.network(x), rtol=1e-4, atol=1e-5)
    own = Model(Own())
    assert own.deployed is own.network


def test_repr_says_what_the_model_is():
    assert (
        repr(Model(Own(), class_names=("a", "b"))) == "Model(Own, task=classify, 2 classes, 224 px, 0.0 M parameters)"
    )
    model = Model(
        network("upernet"), class_names=("a", "b", "c"), task="segment", name="van_b0", preprocess=WHOLE,
        options={"head": "upernet"},
    )  # fmt: skip
    assert "van_b0 with UPerNet, task=segment, 3 classes, 64-96 px" in repr(model)


# Checkpoints with a head; tests/heads/test_contract.py sends every head through them


def test_backbone_options_reach_the_backbone():
    assert network("upernet").backbone.norm1.eps == 1e-5
    assert network("upernet", norm_eps=1e-6).backbone.norm1.eps == 1e-6
    for head in ("semantic_fpn", "faster_rcnn"):
        assert network(head, drop_path_rate=0.1).backbone.block4[-1].drop_path.drop_prob == pytest.approx(0.1)


def test_a_missing_package_is_not_reported_as_a_checkpoint_error(tmp_path, monkeypatch):
    _, path = save_network(tmp_path, "rt_detr_v2")
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *a: None if name == "transformers" else find_spec(name, *a)
    )
    with pytest.raises(MissingExtra, match="transformers"):
        Model.load(path)


def test_the_backbone_of_a_network_with_a_head_becomes_a_classifier(tmp_path):
    model, path = save_network(tmp_path, "semantic_fpn")
    backbone = Model.load(path, num_classes=0)
    assert have_equal_state(backbone.network, model.backbone)
    assert backbone.preprocess == CenterCropPreprocess(interpolation="bilinear", mean=IMAGENET_MEAN, std=IMAGENET_STD)
    loaded = Model.load(path, num_classes=7, backbone_only=True, options={"drop_path_rate": 0.2})
    assert (loaded.task, len(loaded.class_names), loaded.new_head) == ("classify", 7, True)
    assert loaded.options == {"norm_eps": 1e-5, "drop_path_rate": 0.2}
    assert loaded.network.norm4.weight.equal(model.backbone.norm4.weight)
    loaded.check_can_predict()


def test_a_checkpoint_that_does_not_match_its_own_network_is_refused(tmp_path):
    model, path = save_network(tmp_path, "semantic_fpn")
    original = load_checkpoint(path)
    for change, message in (
        ({"decode_head.conv_seg.bias": None}, r"missing \(1\): decode_head.conv_seg.bias"),
        ({"decode_head.extra": torch.zeros(1)}, r"unexpected \(1\): decode_head.extra"),
        (
            {"neck.fpn_convs.0.conv.bias": torch.zeros(3)},
            r"shape mismatch \(1\): neck.fpn_convs.0.conv.bias .*\(128,\), got \(3,\)",
        ),
    ):
        state = {name: tensor for name, tensor in {**model.state_dict(), **change}.items() if tensor is not None}
        dataclasses.replace(original, state=state).save(path)
        for classes in (None, 0):
            with pytest.raises(StateDictMismatch, match=message):
                Model.load(path, num_classes=classes)


def test_unknown_models_heads_and_options_are_refused(tmp_path):
    for name, options, message in (
        ("van_b9", {}, "van_b0.*'van_b9'"),
        ("resnet18", {"head": "upernet"}, "van_b0.*'resnet18'"),
        ("van_b0", {"head": "yolo"}, "head.*semantic_fpn, upernet.*'yolo'"),
        ("van_b0", {"head": "upernet", "no_such": 1}, "van_b0: .*no_such"),
        ("van_b0", {"no_such": 1}, "van_b0: .*no_such"),
    ):
        with pytest.raises(UsageError, match=message):
            create_model(name, num_classes=2, options=options)
    _, path = save_network(tmp_path, "semantic_fpn", model_options={"head": "deeplab"})
    for classes in (None, 0):
        with pytest.raises(CheckpointError, match=r"a.safetensors: .*semantic_fpn.*'deeplab'"):
            Model.load(path, num_classes=classes)


# Weights of a backbone


def filled_files(folder: Path) -> dict[Path, float]:
    """Return files with the backbone of ``filled_b0``, and the eps of their LayerNorms."""
    official, whole, checkpoint = folder / "official.pth", folder / "whole.pth", folder / "checkpoint.safetensors"
    torch.save(filled_b0(), official)
    torch.save({**{to_mmsegmentation_0(n): t for n, t in without_head(filled_b0()).items()}, **decoder()}, whole)
    Model.load(official).save(checkpoint)
    return {official: 1e-6, whole: 1e-5, checkpoint: 1e-6}


def test_backbone_weights_load_from_any_file_of_the_variant(tmp_path):
    expected = without_head(filled_b0())
    for path, eps in filled_files(tmp_path).items():
        for head, own_eps in (("semantic_fpn", 1e-5), ("fcos", 1e-6)):
            model = network(head)
            before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
            notes = load_backbone_weights(model, path).notes
            assert all(tensor.equal(expected[name]) for name, tensor in model.backbone.state_dict().items())
            of_backbone = {id(parameter) for parameter in model.backbone.parameters()}
            of_head = {name: value for name, value in model.named_parameters() if id(value) not in of_backbone}
            assert of_head
            assert all(value.equal(before[name]) for name, value in of_head.items())
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
    path = next(iter(filled_files(tmp_path)))
    model = create_model("van_b1", num_classes=2, options={"head": "semantic_fpn"})
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(StateDictMismatch, match="van_b0"):
        load_backbone_weights(model, path)
    assert all(model.state_dict()[name].equal(tensor) for name, tensor in before.items())
    with pytest.raises(UsageError, match="'backbone'"):
        load_backbone_weights(timm.create_model("van_b0"), path)
