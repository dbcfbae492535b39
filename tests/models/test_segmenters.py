"""The paper's segmentation heads against what mmsegmentation's own modules answered, and against the paper's sizes."""

import pytest
import timm
import torch

from parity import filled, picture, recorded
from van.errors import UsageError
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


# PAPER, section 4: millions of parameters of the whole model, as printed
PAPER = {
    "semantic_fpn": {"van_b0": 8, "van_b1": 18, "van_b2": 30, "van_b3": 49},
    "upernet": {"van_b2": 57, "van_b3": 75, "van_b4": 90},
}


@pytest.mark.parametrize(("head", "name"), [(head, name) for head, sizes in PAPER.items() for name in sizes])
def test_the_sizes_are_the_papers(head, name):
    """Printed in whole millions, so within half a one."""
    with torch.device("meta"):
        model = create_segmenter(name, head=head, num_classes=150)
    millions = sum(parameter.numel() for parameter in model.parameters()) / 1e6
    assert millions == pytest.approx(PAPER[head][name], abs=0.55)


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
