"""The paper's segmentation heads against what mmsegmentation's own modules answered."""

import pytest
import timm
import torch

from parity import filled, picture, recorded
from van.errors import ShapeError, UsageError
from van.models.segmenters import HEADS, SegmentationOutput, Segmenter, create_segmenter

RECORDED = {"upernet": "upernet_van_b0_150", "semantic_fpn": "fpn_van_b0_150"}
SHAPES = ["1x3x128x160", "1x3x97x131"]


@pytest.fixture(scope="module", params=HEADS)
def filled_segmenter(request: pytest.FixtureRequest) -> tuple[Segmenter, dict]:
    """VAN-B0 with 150 classes in float64, every tensor by rule, and what mmsegmentation's holds and answers."""
    wanted = recorded("mmseg_b0")[RECORDED[request.param]]
    model = create_segmenter("van_b0", head=request.param, num_classes=150).double().eval()
    model.load_state_dict(filled(wanted["names"], torch.float64))
    return model, wanted


def test_names_shapes_and_parameters_are_those_of_mmsegmentation(filled_segmenter):
    model, wanted = filled_segmenter
    assert {name: list(value.shape) for name, value in model.state_dict().items()} == wanted["names"]
    assert sum(parameter.numel() for parameter in model.parameters()) == wanted["parameters"]


@pytest.mark.parametrize("shape", SHAPES)
def test_answers_are_those_of_mmsegmentation(filled_segmenter, shape):
    model, wanted = filled_segmenter
    answer = wanted[shape]
    x = picture(tuple(map(int, shape.split("x"))))
    with torch.no_grad():
        logits, full = model.forward_head(x)[0], model(x)
    rows, columns = logits.shape[2:]
    assert list(logits.shape) == answer["shape"]
    assert logits.mean().item() == pytest.approx(answer["mean"], abs=1e-6)
    assert logits.std().item() == pytest.approx(answer["std"], abs=1e-6)
    for found, name in (
        (logits[0, :8, 0, 0], "first"),
        (logits[0, :8, rows // 2, columns // 2], "middle"),
        (full[0, :8, x.shape[2] // 2, x.shape[3] // 2], "full_size_middle"),
    ):
        assert found.tolist() == pytest.approx(answer[name], abs=1e-6)
    counts = full.argmax(1).flatten().bincount(minlength=150).sort(descending=True).values
    assert counts[:5].tolist() == answer["label_counts_top5"]


def test_a_layer_norm_of_another_eps_would_be_noticed(filled_segmenter):
    """The negative control: the classification networks' 1e-6 is outside the tolerance."""
    model, wanted = filled_segmenter
    head = "upernet" if model.auxiliary_head is not None else "semantic_fpn"
    other = create_segmenter("van_b0", head=head, num_classes=150, norm_eps=1e-6).double().eval()
    other.load_state_dict(model.state_dict())
    x = picture((1, 3, 97, 131))
    with torch.no_grad():
        assert other.forward_head(x)[0].mean().item() != pytest.approx(wanted["1x3x97x131"]["mean"], abs=1e-7)


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("size", [(64, 64), (33, 47), (1, 1)])
def test_training_gives_maps_of_the_pictures_size_and_gradients_everywhere(head, size):
    torch.manual_seed(0)
    model = create_segmenter("van_b0", head=head, num_classes=3).train()
    out = model(torch.randn(2, 3, *size))
    assert isinstance(out, SegmentationOutput)
    assert out.logits.shape == (2, 3, *size)
    assert (out.auxiliary is None) == (head == "semantic_fpn")
    sum(part.square().mean() for part in out if part is not None).backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
    assert model.eval()(torch.randn(1, 3, *size)).shape == (1, 3, *size)


@pytest.mark.parametrize("head", HEADS)
def test_pictures_of_any_sizes_are_answered_each_as_if_alone(head):
    torch.manual_seed(0)
    model = create_segmenter("van_b0", head=head, num_classes=3).double().eval()
    pictures = [torch.randn(3, *size).double() for size in ((40, 52), (64, 33), (40, 52), (1, 1))]
    with torch.no_grad():
        found = model(pictures)
        assert [answer.shape for answer in found] == [(3, 40, 52), (3, 64, 33), (3, 40, 52), (3, 1, 1)]
        for answer, picture in zip(found, pictures, strict=True):
            assert torch.allclose(answer, model(picture[None])[0], atol=1e-9)
        assert model([]) == []


def test_training_takes_a_list_of_pictures_of_one_size():
    torch.manual_seed(0)
    model = create_segmenter("van_b0", head="semantic_fpn", num_classes=3).train()
    assert model([torch.randn(3, 40, 52)] * 2).logits.shape == (2, 3, 40, 52)
    with pytest.raises(ShapeError, match="pictures have the sizes 40x52, 64x33; wanted one size in training"):
        model([torch.randn(3, 40, 52), torch.randn(3, 64, 33)])


@pytest.mark.parametrize("head", HEADS)
def test_the_classifier_is_all_but_the_backbone(head):
    model = create_segmenter("van_b0", head=head, num_classes=3)
    parts = [*model.backbone.parameters(), *model.get_classifier().parameters()]
    assert {id(part) for part in parts} == {id(part) for part in model.parameters()}
    assert len(parts) == len(list(model.parameters()))
    names = dict(model.named_parameters())
    assert model.no_weight_decay() == {name for name in names if ".layer_scale_" in name} != set()
    other = dict(create_segmenter("van_b0", head=head, num_classes=4).named_parameters())
    changed = {name for name in names if names[name].shape != other[name].shape}
    assert changed == {name for name in names if name.startswith(tuple(f"{x}." for x in model.class_layers))}


def test_any_classification_network_can_start_one():
    trained = timm.create_model("van_b0", num_classes=7)
    model = Segmenter(trained, head="semantic_fpn", num_classes=2)
    assert model.backbone is trained
    assert not any("head" in name for name in model.backbone.state_dict())


@pytest.mark.parametrize(
    ("model", "head", "classes", "message"),
    [
        ("van_b0", "deeplab", 2, "there is no segmentation head 'deeplab'; known: semantic_fpn, upernet"),
        ("resnet50", "upernet", 2, "there is no 'resnet50' to build on; known: van_b0"),
        ("van_b0", "upernet", 0, "num_classes is 0; wanted at least 1"),
    ],
)
def test_what_cannot_be_built_is_refused(model, head, classes, message):
    with pytest.raises(UsageError, match=message):
        create_segmenter(model, head=head, num_classes=classes)


@pytest.mark.parametrize(("head", "channels"), [("semantic_fpn", 6), ("upernet", 8)])
def test_a_narrow_head_answers_and_learns(head, channels):
    network = create_segmenter("van_b0", head=head, num_classes=3, channels=channels)
    assert network.decode_head.conv_seg.in_channels == channels
    output = network(torch.randn(2, 3, 64, 64))
    losses = [part.square().mean() for part in output if part is not None]
    sum(losses).backward()
    assert all(parameter.grad is not None for parameter in network.get_classifier().parameters())
    with pytest.raises(UsageError, match="channels is 1; wanted at least 2"):
        create_segmenter("van_b0", head=head, num_classes=3, channels=1)
