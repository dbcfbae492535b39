"""What every registered head must do: train, predict, change its classes or refuse to, and export.

The heads are those of the registry, and ``toy``, which tests register from outside of the package.
"""

import io
from typing import Any

import pytest
import timm
import torch
from PIL import Image
from torch import Tensor, nn

from van.backbones.van import VAN
from van.errors import UsageError, VanError
from van.heads import HEADS, create_model
from van.heads.network import sizes_of, stack_padded
from van.heads.registry import find_export_part
from van.model import Model
from van.preprocess import ResizePreprocess
from van.tasks.base import ImageMeta

CLASS_NAMES = ("cat", "dog", "ground")
SMALL: dict[str, dict[str, Any]] = {
    "d_fine": {"queries": 20, "decoder_layers": 2},
    "rt_detr_v2": {"queries": 20, "decoder_layers": 2},
    "deformable_detr": {"queries": 20, "decoder_layers": 2},
    "mask2former": {"queries": 10, "encoder_layers": 1, "decoder_layers": 2, "points": 64},
}
"""Options that make a head small, beside ``channels``."""
THRESHOLDS = {"score_thresh": 0.0, "box_score_thresh": 0.0}
"""Options that keep the low scores of untrained detectors, of the heads that have them."""
UNTRAINED = {"d_fine": ("detector.model.decoder.reg_scale", "detector.model.decoder.up")}
"""Parameters that are constants: D-FINE's authors do not train them either."""
TASK_OPTIONS = {
    "panoptic": {"things": [True, True, False]},
    "detect": {"min_score": 0.0},
    "instances": {"min_score": 0.0},
}
SIZES = ((64, 96), (50, 64), (64, 90), (1, 1))


@pytest.fixture(params=[*HEADS, "toy"])
def head(request: pytest.FixtureRequest) -> str:
    if request.param == "toy":
        request.getfixturevalue("toy")
    return request.param


def options_of(head: str, **more: Any) -> dict[str, Any]:
    """Return the options of a small network on a VAN-B0 with one block per stage."""
    return {"head": head, "channels": 64, "depths": (1, 1, 1, 1), **SMALL.get(head, {}), **more}


def build(head: str, **more: Any) -> Model:
    """Return a model whose outputs differ between images, positions and classes."""
    torch.manual_seed(0)
    network = create_model("van_b0", num_classes=len(CLASS_NAMES), options=options_of(head, **more))
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            parameter.add_((1.0 if "layer_scale" in name else 0.02) * torch.randn_like(parameter))
    task = HEADS[head].task
    return Model(
        network,
        name="van_b0",
        options=options_of(head, **more),
        task=task,
        class_names=CLASS_NAMES,
        preprocess=ResizePreprocess(min_size=64, max_size=96),
        task_options=TASK_OPTIONS.get(task, {}),
    )


def build_sensitive(head: str) -> Model:
    """Return ``build(head)``, with the thresholds of its detections, if it has any, at 0."""
    for name, value in THRESHOLDS.items():
        try:
            return build(head, **{name: value})
        except UsageError:
            continue
    return build(head)


def batch_of(model: Model, *sizes: tuple[int, int]) -> Any:
    """Return a batch of the task with two objects, of classes 0 and 1, on each image; stuff is of class 2."""
    samples = []
    for rows, columns in sizes:
        masks = torch.zeros(3, rows, columns, dtype=torch.bool)
        boxes = torch.tensor([[4.0, 6.0, 30.0, 40.0], [34.0, 8.0, 60.0, 44.0]])
        for index, (x1, y1, x2, y2) in enumerate(boxes.int().tolist()):
            masks[index, y1:y2, x1:x2] = True
        masks[2] = ~masks.any(0)
        image = 0.2 * torch.rand(3, rows, columns) + masks
        target: Any = {"boxes": boxes, "labels": torch.tensor([0, 1]), "masks": masks[:2].to(torch.uint8)}
        if model.task == "segment":
            target = masks.int().argmax(0)
        elif model.task == "panoptic":
            target = {"labels": torch.tensor([0, 1, 2]), "masks": masks}
        samples.append({"name": "x", "image": image, "target": target, "original_size": (rows, columns)})
    return model.make_task().collate(samples)


def flat(outputs: Any) -> list[Tensor]:
    """Return the tensors of one image's output."""
    return [outputs] if isinstance(outputs, Tensor) else [outputs[name] for name in sorted(outputs)]


def test_a_head_has_a_van_as_backbone_and_names_the_layers_that_depend_on_the_classes(head):
    registered = HEADS[head]
    assert registered.name == head
    assert registered.title
    network = build(head).network
    assert isinstance(network.backbone, VAN)
    assert (network.backbone.num_classes, network.num_classes) == (0, 3)
    norms = [module for module in network.backbone.modules() if isinstance(module, nn.BatchNorm2d)]
    plain = timm.create_model("van_b0", num_classes=0, depths=(1, 1, 1, 1))
    assert len(norms) == sum(isinstance(module, nn.BatchNorm2d) for module in plain.modules())
    network.backbone.load_state_dict(plain.state_dict(), strict=True)  # a classifier's weights fit
    names = {name: parameter.shape for name, parameter in network.named_parameters()}
    assert network.no_weight_decay() == {name for name in names if ".layer_scale_" in name} != set()
    other = create_model("van_b0", num_classes=5, options=options_of(head))
    changed = {name for name, parameter in other.named_parameters() if parameter.shape != names[name]}
    if network.class_layers:
        layers = tuple(f"{layer}." for layer in network.class_layers)
        assert changed == {name for name in names if name.startswith(layers)} != set()


def test_a_training_step_reaches_every_parameter_and_the_statistics_of_the_backbone(head):
    model = build(head)
    network = model.network.train()
    norms = [module for module in network.backbone.modules() if isinstance(module, nn.BatchNorm2d)]
    before = [norm.running_mean.clone() for norm in norms]
    sizes = ((64, 96), (64, 96)) if model.task == "segment" else ((64, 96), (50, 64))
    loss = model.make_task().loss(network, batch_of(model, *sizes))
    assert loss.isfinite()
    assert loss > 0
    loss.backward()
    untouched = [name for name, parameter in network.named_parameters() if parameter.grad is None]
    assert untouched == list(UNTRAINED.get(head, ()))
    assert all(parameter.grad.abs().max() > 0 for parameter in network.backbone.parameters())
    assert all((norm.running_mean != mean).any() for norm, mean in zip(norms, before, strict=True))


def test_a_prediction_is_in_pixels_of_its_image_and_does_not_depend_on_the_others(head):
    """Up to rounding, because larger batches add in another order."""
    model = build_sensitive(head)
    images = [torch.randn(3, *size, generator=torch.Generator().manual_seed(4)) for size in SIZES]
    with torch.inference_mode():
        together = model.network(images)
        for image, output in zip(images, together, strict=True):
            (alone,) = model.network([image])
            for ours, theirs in zip(flat(output), flat(alone), strict=True):
                torch.testing.assert_close(ours, theirs, rtol=0, atol=2e-3)
    predictions = model.make_task().decode(together, [ImageMeta("x", size, size) for size in SIZES])
    for prediction, (rows, columns) in zip(predictions, SIZES, strict=True):
        assert prediction.class_names == CLASS_NAMES
        if model.task in ("segment", "panoptic"):
            assert prediction.segment_ids.shape == (rows, columns)
            continue
        for detection in prediction.detections:
            x1, y1, x2, y2 = detection.box
            assert 0 <= x1 <= x2 <= columns + 1e-3
            assert 0 <= y1 <= y2 <= rows + 1e-3
            assert (detection.mask is None) == (model.task == "detect")
    if model.task in ("detect", "instances"):
        assert len(predictions[0].detections) > 1


def test_a_checkpoint_restores_the_outputs_bit_for_bit(head, tmp_path):
    model = build(head)
    loaded = Model.load(model.save(tmp_path / "best.safetensors"))
    assert (loaded.task, loaded.class_names, loaded.preprocess) == (model.task, CLASS_NAMES, model.preprocess)
    assert loaded.task_options == model.task_options
    images = [torch.randn(3, *size) for size in SIZES]
    with torch.inference_mode():
        outputs = [[flat(each) for each in one.network(images)] for one in (model, loaded)]
    torch.testing.assert_close(*outputs, rtol=0, atol=0)
    buffer = io.BytesIO()
    Image.new("RGB", (70, 50), (200, 30, 60)).save(buffer, "PNG")
    assert str(loaded.predict(buffer.getvalue(), device="cpu")) == str(model.predict(buffer.getvalue(), device="cpu"))


def test_another_number_of_classes_replaces_the_class_layers_or_is_refused(head, tmp_path):
    model = build(head)
    path = model.save(tmp_path / "best.safetensors")
    layers = tuple(f"{layer}." for layer in model.network.class_layers)
    if not layers:
        with pytest.raises(UsageError, match=r"num_classes: expected 3 .*best\.safetensors.* got 5"):
            Model.load(path, num_classes=5)
    else:
        loaded = Model.load(path, num_classes=5)
        assert loaded.new_head
        assert loaded.class_names == tuple(f"class {index}" for index in range(5))
        assert (loaded.metrics, loaded.task_options) == ({}, {})
        assert [str(path) in note and "3 classes" in note for note in loaded.notes] == [True]
        fresh = loaded.network.state_dict()
        for name, tensor in model.network.state_dict().items():
            assert fresh[name].equal(tensor) == (not name.startswith(layers)), name
    backbone = Model.load(path, num_classes=0)
    assert (backbone.task, backbone.class_names, backbone.name) == ("classify", (), "van_b0")
    assert any(head in note and "only the backbone" in note for note in backbone.notes)
    x = torch.randn(1, 3, 64, 64)
    with torch.inference_mode():
        assert backbone.network.forward_features(x).equal(model.network.backbone.forward_features(x))


def test_the_export_part_has_the_declared_outputs_and_decodes_to_those_of_the_network(head):
    model = build_sensitive(head)
    part = find_export_part(model.options)
    if part is None:  # exported whole: logits of one batch
        with torch.inference_mode():
            assert model.network(torch.randn(2, 3, 64, 96)).shape == (2, 3, 64, 96)
        return

    class Header:
        """What a decoder reads from an exported file."""

    header: Any = Header()
    header.model, header.model_options, header.class_names = "van_b0", model.options, CLASS_NAMES
    decoder = part.decoder(header)
    images = [torch.randn(3, *size, generator=torch.Generator().manual_seed(4)) for size in ((64, 96), (50, 70))]
    sizes = sizes_of(images)
    padded_size = decoder.padded_size(sizes)
    assert {decoder.padded_size([size]) for size in sizes} == {padded_size}
    with torch.inference_mode():
        expected = model.network(images)
        traced = part.extract(model.network).eval()
        batch = stack_padded(images, padded_size)
        outputs = traced(batch, torch.tensor(sizes).float()) if part.takes_sizes else traced(batch)
        assert len(outputs) == len(part.outputs)
        for ours, theirs in zip(decoder(list(outputs), sizes, padded_size), expected, strict=True):
            assert ours.keys() == theirs.keys()
            for name, output in ours.items():
                torch.testing.assert_close(output, theirs[name], rtol=0, atol=1e-2 if name == "boxes" else 1e-3)
    assert part.note


def test_wrong_names_sizes_and_options_are_refused(head):
    failures = []
    for model, classes, options, fact in (
        ("resnet50", 2, {}, "'resnet50'"),
        ("van_b0", 0, {}, "num_classes: expected at least 1, got 0"),
        ("van_b0", 2, {"no_such": 1}, "no_such"),
        ("van_b0", 2, {"channels": 0}, "channels: expected"),
    ):
        try:
            create_model(model, num_classes=classes, options={"head": head, **options})
            failures.append(f"{options}: no error")
        except VanError as error:
            if fact not in str(error):
                failures.append(f"{options}: {error}")
    assert failures == []
