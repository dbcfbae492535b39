"""The outputs of the paper's segmentation heads equal the recorded outputs of mmsegmentation's modules."""

from typing import Any

import pytest
import timm
import torch

from parity import filled, image, recorded
from van.errors import ShapeError, UsageError
from van.heads import create_model, heads_of
from van.heads.segmenter import SegmentationOutput

RECORDED = {"upernet": "upernet_van_b0_150", "semantic_fpn": "fpn_van_b0_150"}
SHAPES = ["1x3x128x160", "1x3x97x131"]


def create(head: str, num_classes: int, **options: Any) -> Any:
    torch.manual_seed(0)
    return create_model("van_b0", num_classes=num_classes, options={"head": head, **options})


@pytest.fixture(scope="module", params=RECORDED)
def filled_segmenter(request: pytest.FixtureRequest) -> tuple[str, Any, dict]:
    """VAN-B0 with 150 classes in float64 with every tensor filled by rule, and mmsegmentation's recorded outputs."""
    expected = recorded("mmseg_b0")[RECORDED[request.param]]
    model = create(request.param, 150).double().eval()
    model.load_state_dict(filled(expected["names"], torch.float64))
    return request.param, model, expected


def test_names_shapes_and_parameters_equal_mmsegmentations(filled_segmenter):
    _, model, expected = filled_segmenter
    assert {name: list(value.shape) for name, value in model.state_dict().items()} == expected["names"]
    assert sum(parameter.numel() for parameter in model.parameters()) == expected["parameters"]


def test_outputs_equal_mmsegmentations_and_another_layer_norm_eps_is_outside_the_tolerance(filled_segmenter):
    head, model, expected = filled_segmenter
    for shape in SHAPES:
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
    # negative control: the classification networks' eps of 1e-6
    other = create(head, 150, norm_eps=1e-6).double().eval()
    other.load_state_dict(model.state_dict())
    with torch.no_grad():
        assert other.forward_head(x)[0].mean().item() != pytest.approx(record["mean"], abs=1e-7)


def test_training_gives_logits_of_the_images_size_for_any_size_and_number_of_channels():
    for head in heads_of("segment"):
        for size, options in (((33, 47), {}), ((1, 1), {"channels": 6}), ((64, 64), {"channels": 2})):
            model = create(head, 3, depths=(1, 1, 1, 1), **options).train()
            out = model(torch.randn(2, 3, *size))
            assert isinstance(out, SegmentationOutput)
            assert out.logits.shape == (2, 3, *size)
            assert (out.auxiliary is None) == (head == "semantic_fpn")
            sum(logits.square().mean() for logits in out if logits is not None).backward()
            assert all(parameter.grad is not None for parameter in model.parameters()), (head, size)
            assert model.eval()(torch.randn(1, 3, *size)).shape == (1, 3, *size)
            assert model([]) == []
        with pytest.raises(UsageError, match=r"channels.*2.* 1"):
            create(head, 3, channels=1)


def test_training_takes_a_list_of_images_of_one_size():
    model = create("semantic_fpn", 3).train()
    assert model([torch.randn(3, 40, 52)] * 2).logits.shape == (2, 3, 40, 52)
    with pytest.raises(ShapeError, match=r"images.*40x52, 64x33"):
        model([torch.randn(3, 40, 52), torch.randn(3, 64, 33)])


def test_a_classification_network_can_be_the_backbone():
    from van.heads.semantic_fpn import create_semantic_fpn

    trained = timm.create_model("van_b0", num_classes=7)
    model: Any = create_semantic_fpn(trained, num_classes=2)
    assert model.backbone is trained
    assert not any("head" in name for name in model.backbone.state_dict())
