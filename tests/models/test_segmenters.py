"""The outputs of the paper's segmentation heads equal the recorded outputs of mmsegmentation's modules."""

import pytest
import timm
import torch

from parity import filled, image, recorded
from van.errors import ShapeError, UsageError
from van.models.segmenters import HEADS, SegmentationOutput, Segmenter, create_segmenter

RECORDED = {"upernet": "upernet_van_b0_150", "semantic_fpn": "fpn_van_b0_150"}
SHAPES = ["1x3x128x160", "1x3x97x131"]


@pytest.fixture(scope="module", params=HEADS)
def filled_segmenter(request: pytest.FixtureRequest) -> tuple[Segmenter, dict]:
    """VAN-B0 with 150 classes in float64 with every tensor filled by rule, and mmsegmentation's recorded outputs."""
    expected = recorded("mmseg_b0")[RECORDED[request.param]]
    model = create_segmenter("van_b0", head=request.param, num_classes=150).double().eval()
    model.load_state_dict(filled(expected["names"], torch.float64))
    return model, expected


def test_names_shapes_and_parameters_equal_mmsegmentations(filled_segmenter):
    model, expected = filled_segmenter
    assert {name: list(value.shape) for name, value in model.state_dict().items()} == expected["names"]
    assert sum(parameter.numel() for parameter in model.parameters()) == expected["parameters"]


@pytest.mark.parametrize("shape", SHAPES)
def test_outputs_equal_mmsegmentations(filled_segmenter, shape):
    model, expected = filled_segmenter
    record = expected[shape]
    x = image(tuple(map(int, shape.split("x"))))
    with torch.no_grad():
        logits, full = model.forward_head(x)[0], model(x)
    rows, columns = logits.shape[2:]
    assert list(logits.shape) == record["shape"]
    assert logits.mean().item() == pytest.approx(record["mean"], abs=1e-6)
    assert logits.std().item() == pytest.approx(record["std"], abs=1e-6)
    for values, name in (
        (logits[0, :8, 0, 0], "first"),
        (logits[0, :8, rows // 2, columns // 2], "middle"),
        (full[0, :8, x.shape[2] // 2, x.shape[3] // 2], "full_size_middle"),
    ):
        assert values.tolist() == pytest.approx(record[name], abs=1e-6)
    counts = full.argmax(1).flatten().bincount(minlength=150).sort(descending=True).values
    assert counts[:5].tolist() == record["label_counts_top5"]


def test_another_layer_norm_eps_is_outside_the_tolerance(filled_segmenter):
    """Negative control: the classification networks' 1e-6 is outside the tolerance."""
    model, expected = filled_segmenter
    head = "upernet" if model.auxiliary_head is not None else "semantic_fpn"
    other = create_segmenter("van_b0", head=head, num_classes=150, norm_eps=1e-6).double().eval()
    other.load_state_dict(model.state_dict())
    x = image((1, 3, 97, 131))
    with torch.no_grad():
        assert other.forward_head(x)[0].mean().item() != pytest.approx(expected["1x3x97x131"]["mean"], abs=1e-7)


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("size", [(64, 64), (33, 47), (1, 1)])
def test_training_gives_logits_of_the_images_size_and_gradients_for_every_parameter(head, size):
    torch.manual_seed(0)
    model = create_segmenter("van_b0", head=head, num_classes=3).train()
    out = model(torch.randn(2, 3, *size))
    assert isinstance(out, SegmentationOutput)
    assert out.logits.shape == (2, 3, *size)
    assert (out.auxiliary is None) == (head == "semantic_fpn")
    sum(logits.square().mean() for logits in out if logits is not None).backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
    assert model.eval()(torch.randn(1, 3, *size)).shape == (1, 3, *size)


@pytest.mark.parametrize("head", HEADS)
def test_the_logits_of_each_image_of_a_list_equal_those_of_the_image_alone(head):
    torch.manual_seed(0)
    model = create_segmenter("van_b0", head=head, num_classes=3).double().eval()
    images = [torch.randn(3, *size).double() for size in ((40, 52), (64, 33), (40, 52), (1, 1))]
    with torch.no_grad():
        outputs = model(images)
        assert [logits.shape for logits in outputs] == [(3, 40, 52), (3, 64, 33), (3, 40, 52), (3, 1, 1)]
        for logits, image in zip(outputs, images, strict=True):
            assert torch.allclose(logits, model(image[None])[0], atol=1e-9)
        assert model([]) == []


def test_training_takes_a_list_of_images_of_one_size():
    torch.manual_seed(0)
    model = create_segmenter("van_b0", head="semantic_fpn", num_classes=3).train()
    assert model([torch.randn(3, 40, 52)] * 2).logits.shape == (2, 3, 40, 52)
    with pytest.raises(ShapeError, match=r"images.*40x52, 64x33"):
        model([torch.randn(3, 40, 52), torch.randn(3, 64, 33)])


@pytest.mark.parametrize("head", HEADS)
def test_get_classifier_returns_everything_but_the_backbone(head):
    model = create_segmenter("van_b0", head=head, num_classes=3)
    parameters = [*model.backbone.parameters(), *model.get_classifier().parameters()]
    assert {id(x) for x in parameters} == {id(x) for x in model.parameters()}
    assert len(parameters) == len(list(model.parameters()))
    names = dict(model.named_parameters())
    assert model.no_weight_decay() == {name for name in names if ".layer_scale_" in name} != set()
    other = dict(create_segmenter("van_b0", head=head, num_classes=4).named_parameters())
    changed = {name for name in names if names[name].shape != other[name].shape}
    assert changed == {name for name in names if name.startswith(tuple(f"{x}." for x in model.class_layers))}


def test_a_classification_network_can_be_the_backbone():
    trained = timm.create_model("van_b0", num_classes=7)
    model = Segmenter(trained, head="semantic_fpn", num_classes=2)
    assert model.backbone is trained
    assert not any("head" in name for name in model.backbone.state_dict())


@pytest.mark.parametrize(
    ("model", "head", "classes", "message"),
    [
        ("van_b0", "deeplab", 2, "head.*semantic_fpn, upernet.*'deeplab'"),
        ("resnet50", "upernet", 2, "backbone.*van_b0.*'resnet50'"),
        ("van_b0", "upernet", 0, "num_classes.* 0"),
    ],
)
def test_unknown_names_and_invalid_sizes_are_refused(model, head, classes, message):
    with pytest.raises(UsageError, match=message):
        create_segmenter(model, head=head, num_classes=classes)


@pytest.mark.parametrize(("head", "channels"), [("semantic_fpn", 6), ("upernet", 8)])
def test_a_head_of_few_channels_trains(head, channels):
    network = create_segmenter("van_b0", head=head, num_classes=3, channels=channels)
    assert network.decode_head.conv_seg.in_channels == channels
    output = network(torch.randn(2, 3, 64, 64))
    losses = [logits.square().mean() for logits in output if logits is not None]
    sum(losses).backward()
    assert all(parameter.grad is not None for parameter in network.get_classifier().parameters())
    with pytest.raises(UsageError, match=r"channels.*2.* 1"):
        create_segmenter("van_b0", head=head, num_classes=3, channels=1)
