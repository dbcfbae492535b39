"""Explanations are correct for any image, alone, in batches and in threads, without side effects on the network."""

import copy
import dataclasses
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from datasets.synthetic_annotated import HEADS, task_class_names
from explain.small_models import LABELS, SMALL_SWIN, SMALL_VAN, dense, image, in_double, small
from van.errors import ImageError, UsageError
from van.explain.cam import METHODS
from van.explain.explainer import Explainer
from van.explain.targets import resolve_class_indices
from van.model import Model, imagenet_class_names
from van.predictions import Classification, Detections, Segmentation

SIZES = ((160, 120), (97, 301), (128, 128), (53, 40))


@pytest.fixture(scope="module")
def explainer() -> Explainer:
    return Explainer(small())


def hooks_of(network: nn.Module) -> list[int]:
    return [
        len(module._forward_hooks) + len(module._forward_pre_hooks) + len(module._backward_hooks)
        for module in network.modules()
    ]


def assert_same(one, other) -> None:
    assert [heatmap.label for heatmap in one.maps] == [heatmap.label for heatmap in other.maps]
    for actual, expected in zip(one.maps, other.maps, strict=True):
        scale = expected.values.max() or 1.0
        # float32 sums depend on the batch size: measured below 1e-5 of the maximum
        np.testing.assert_allclose(actual.values / scale, expected.values / scale, rtol=0, atol=1e-4)
        assert actual.extent == expected.extent


def test_the_map_is_grad_cam_of_the_preprocessed_image():
    loaded = in_double(small())
    shown = image(300, 200)
    explanation = Explainer(loaded)(shown)
    model: Any = loaded.network
    x = loaded.preprocess(shown)[None].double()
    for stage in (1, 2, 3):
        block = getattr(model, f"block{stage}")(getattr(model, f"patch_embed{stage}")(x))
        x = getattr(model, f"norm{stage}")(block)
    maps = model.block4(model.patch_embed4(x)).detach().requires_grad_()
    logits = model.head(model.norm4(maps).mean((2, 3)))[0]
    (gradients,) = torch.autograd.grad(logits.max(), maps)
    logits = logits.detach()
    expected = (gradients.mean((2, 3), keepdim=True) * maps).sum(1).clamp(min=0)[0].detach().numpy()
    heatmap = explanation.maps[0]
    np.testing.assert_allclose(heatmap.values, expected, rtol=1e-4, atol=1e-6 * expected.max())
    assert expected.max() > 0
    assert heatmap.label == LABELS[int(logits.argmax())] == explanation.prediction.top(1)[0].label
    assert heatmap.score == pytest.approx(float(logits.softmax(0).max()), abs=1e-6)
    assert heatmap.crop_box == heatmap.extent == loaded.preprocess.crop_box((200, 300))


@pytest.mark.parametrize("size", SIZES)
def test_the_map_has_the_image_s_size_and_is_finite_in_the_crop(explainer, size):
    shown = image(*size)
    heatmap = explainer(shown).maps[0]
    values = heatmap.to_image_size()
    assert values.shape == (size[1], size[0])
    left, top, right, bottom = heatmap.crop_box
    fraction = (right - left) * (bottom - top) / (size[0] * size[1])
    assert np.isfinite(values).mean() == pytest.approx(fraction, abs=0.03)
    drawn = explainer(shown).draw(shown)
    assert drawn.width >= size[0]


def test_a_shifted_crop_shifts_the_map():
    """The same center crop: the map has the same values at another position."""
    explainer = Explainer(small())
    wide = image(256, 128)
    square = wide.crop((64, 0, 192, 128))
    one, other = explainer(wide).maps[0], explainer(square).maps[0]
    np.testing.assert_allclose(one.values, other.values, rtol=1e-3, atol=1e-5)
    assert one.extent[0] == pytest.approx(other.extent[0] + 64, abs=0.5)


@pytest.mark.parametrize("method", METHODS)
def test_a_batch_equals_its_images_one_by_one(explainer, method):
    shown = [image(*size, seed=place) for place, size in enumerate(SIZES)]
    together = explainer(shown, method=method, top=2)
    assert [one.name for one in together] == [f"image {place}" for place in range(4)]
    for one, alone in zip(together, shown, strict=True):
        assert_same(one, explainer(alone, method=method, top=2))
    if method != "eigen-cam":  # which is independent of the class
        with pytest.raises(AssertionError):
            assert_same(together[0], together[1])


def test_cells_keep_their_size_if_the_side_is_no_multiple_of_the_stride():
    """100 pixels are covered by four cells of 32, the last of which reaches over the edge by 28."""
    explainer = Explainer(small(image_size=100))
    heatmap = explainer(image(150, 150), layer="stage4").maps[0]
    left, top, right, bottom = heatmap.crop_box
    assert heatmap.values.shape == (4, 4)
    assert heatmap.extent == pytest.approx((left, top, left + (right - left) * 1.28, top + (bottom - top) * 1.28))
    by_path = explainer(image(150, 150), layer="block4.1").maps[0]
    assert by_path.extent == pytest.approx(heatmap.extent)


def test_classes_are_selected_by_name_index_or_rank(explainer):
    shown = image(130, 140)
    by_name = explainer(shown, classes=["dog", "Bee"])
    assert [heatmap.label for heatmap in by_name.maps] == ["dog", "bee"]
    assert_same(by_name, explainer(shown, classes=[3, "1"]))
    ranked = explainer(shown, top=4)
    assert [heatmap.label for heatmap in ranked.maps] == [one.label for one in ranked.prediction.top(4)]
    assert np.abs(by_name.maps[0].values - by_name.maps[1].values).max() > 0
    with pytest.raises(UsageError, match=r"classes.*ant, bee, cat, dog.*'cow'"):
        explainer(shown, classes=["cow"])
    with pytest.raises(UsageError, match=r"classes.*ant.*4"):
        explainer(shown, classes=[4])


def test_imagenet_classes_have_synonyms_and_similar_names_are_listed():
    class_names = imagenet_class_names(1000)
    assert resolve_class_indices(class_names, ["tench", "great white shark", "tench, Tinca tinca"]) == [0, 2, 0]
    with pytest.raises(UsageError, match=r"1,000 classes \(goldfish.*'goldfsh'"):
        resolve_class_indices(class_names, ["goldfsh"])


def test_other_weights_give_another_map():
    """The sanity check of Adebayo et al. 2018: a map must depend on the weights."""
    shown = image(128, 128)
    one, other = (Explainer(small(seed=seed))(shown, classes=[0], layer="stage3").maps[0] for seed in (0, 1))
    assert abs(np.corrcoef(one.values.ravel(), other.values.ravel())[0, 1]) < 0.9
    same = Explainer(small(seed=0))(shown, classes=[0], layer="stage3").maps[0]
    np.testing.assert_array_equal(one.values, same.values)


@pytest.mark.parametrize("method", [method for method in METHODS if method != "eigen-cam"])
def test_a_constant_network_has_a_constant_map(method):
    loaded = small()
    model: Any = loaded.network
    nn.init.zeros_(model.head.weight)
    heatmap = Explainer(loaded)(image(128, 100), method=method).maps[0]
    assert heatmap.is_constant
    assert heatmap.max_value == 0


def test_the_network_is_unchanged_even_after_an_error():
    loaded = small()
    model: Any = loaded.network
    explainer = Explainer(loaded)
    for parameter in model.parameters():
        parameter.grad = torch.full_like(parameter, 7)
    state = copy.deepcopy(model.state_dict())
    before = hooks_of(model)
    explainer(image(128, 128))
    handle = model.norm4.register_forward_hook(lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        explainer(image(128, 128))
    handle.remove()
    assert hooks_of(model) == before
    assert not model.training
    assert all((parameter.grad == 7).all() for parameter in model.parameters())
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_frozen_networks_and_inference_mode_give_the_same_map():
    loaded = small()
    expected = Explainer(loaded)(image(128, 128))
    loaded.network.requires_grad_(False)
    assert_same(Explainer(loaded)(image(128, 128)), expected)
    with torch.inference_mode():
        assert_same(Explainer(loaded)(image(128, 128)), expected)


def test_threads_share_one_network():
    """Each thread gets its own maps while others run the same network."""
    loaded = small()
    explainer = Explainer(loaded)
    shown = [image(110 + 7 * seed, 128, seed=seed) for seed in range(6)]
    expected = [explainer(one, top=2) for one in shown]
    noise = torch.randn(1, 3, 128, 128)

    def work(job: int):
        if job % 3 == 2:  # a third of the jobs only run the network
            with torch.no_grad():
                return loaded.network(noise)
        return explainer(shown[job % 6], top=2)

    with ThreadPoolExecutor(max_workers=4) as pool:
        found = list(pool.map(work, range(36)))
    for job, one in enumerate(found):
        if job % 3 != 2:
            assert_same(one, expected[job % 6])
    assert sum(hooks_of(loaded.network)) == 0


def test_bfloat16_gives_nearly_the_same_map():
    shown = image(128, 128)
    expected = Explainer(small())(shown, classes=[1]).maps[0]
    loaded = small()
    loaded.network.bfloat16()
    found = Explainer(loaded)(shown, classes=[1]).maps[0]
    assert found.values.dtype == np.float32
    assert np.corrcoef(found.values.ravel(), expected.values.ravel())[0, 1] > 0.95


def test_swin_has_a_map_with_rows_and_columns():
    """Swin gives (N, h, w, C): the map has 32 x 32 cells only if the channels are moved first."""
    loaded = small("swin_tiny_patch4_window7_224", **SMALL_SWIN)
    heatmap = Explainer(loaded)(image(128, 128), layer="stage1").maps[0]
    assert heatmap.values.shape == (32, 32)
    assert heatmap.layer == "stage1"


@pytest.mark.parametrize("task", HEADS)
def test_a_dense_network_s_map_is_the_gradient_of_its_own_score(task):
    """Reference: the gradient of the same score by the block's output, with a plain hook."""
    loaded = dense(task, {**HEADS[task], **SMALL_VAN} if task != "panoptic" else HEADS[task], task_class_names(task))
    if task in ("detect", "instances"):
        raise_scores(loaded.network, task)
    if task == "panoptic":
        loaded = with_thing_classes(loaded)
    explainer = Explainer(loaded)
    shown = image(120, 80, seed=3)
    found = explainer(shown, method="grad-cam", layer="stage3")
    assert isinstance(found.prediction, Detections if task in ("detect", "instances") else Segmentation)
    assert len(found.maps) == 1
    heatmap = found.maps[0]
    records: list[torch.Tensor] = []
    network: Any = loaded.network
    handle = network.backbone.block3[-1].register_forward_hook(lambda m, a, output: records.append(output))
    output = network([loaded.preprocess(shown)])[0]
    handle.remove()
    if task in ("detect", "instances"):
        best = int(output["scores"].argmax())
        score = output["scores"][best]
        assert heatmap.score == pytest.approx(score.item(), abs=1e-6)
        scale = 120 / 144  # 80 rows are resized to 96
        assert heatmap.box == pytest.approx([side * scale for side in output["boxes"][best].tolist()], rel=0.02)
    else:
        if task == "panoptic":
            probabilities = output["class_logits"].softmax(-1)[:, :-1]
            output = torch.einsum("qk,qhw->khw", probabilities, output["mask_logits"].sigmoid())
        index = task_class_names(task).index(heatmap.label)
        score = output[index][output.argmax(0) == index].sum()
    (gradients,) = torch.autograd.grad(score, records[0])
    expected = (gradients.mean((2, 3), keepdim=True) * records[0]).sum(1).clamp(min=0)[0].detach().numpy()
    assert expected.max() > 0
    np.testing.assert_allclose(heatmap.values / expected.max(), expected / expected.max(), rtol=0, atol=1e-3)
    assert heatmap.to_image_size().shape == (80, 120)
    assert found.draw(shown).width >= 120


def raise_scores(network: Any, task: str) -> None:
    """Let a network with random weights detect objects, by the weights and biases of its last layer."""
    layers = {"detect": "head.classification_head.cls_logits", "instances": "roi_heads.box_predictor.cls_score"}
    layer = network.detector.get_submodule(layers[task])
    with torch.no_grad():
        layer.weight.normal_(std=0.3)
        if task == "detect":
            layer.bias.fill_(-0.5)


def with_thing_classes(loaded: Model) -> Model:
    things = [label != "background" for label in loaded.class_names]
    network: Any = loaded.network
    with torch.no_grad():
        network.segmenter.class_predictor.bias[-1] = -9  # never "no object"
        network.segmenter.class_predictor.weight.normal_(std=0.5)
    return loaded.replace(task_options={"things": things})


def test_a_box_selects_the_detection_with_the_highest_iou():
    loaded = dense("detect", {**HEADS["detect"], **SMALL_VAN}, task_class_names("detect"))
    raise_scores(loaded.network, "detect")
    explainer = Explainer(loaded)
    shown = image(120, 80, seed=3)
    detection = explainer(shown, top=30).prediction[-1]
    heatmap = explainer(shown, box=detection.box).maps[0]
    assert heatmap.box is not None
    np.testing.assert_allclose(heatmap.box, detection.box, atol=6)  # another detection may have nearly the same box
    with pytest.raises(UsageError, match=r"image 0: .*box 0, 0, 0\.5, 0\.5"):
        explainer(shown, box=(0.0, 0.0, 0.5, 0.5))
    with pytest.raises(UsageError, match=r"box.*\(5, 5, 1, 9\)"):
        explainer(shown, box=(5, 5, 1, 9))


def test_no_detections_give_no_map_and_a_drawing_of_the_image():
    loaded = dense("detect", {**HEADS["detect"], **SMALL_VAN}, task_class_names("detect"))
    found = Explainer(loaded)(image(120, 80))
    assert found.maps == ()
    assert found.draw(image(120, 80)).width >= 120


def test_each_method_has_its_default_layer():
    """docs/explainability.md has the measurements: elementwise methods after the norm for classes, else the block."""
    explainer = Explainer(small())
    for size, stage in ((128, 4), (60, 3)):
        explainer.preprocess = dataclasses.replace(explainer.preprocess, image_size=size)
        expected = {"grad-cam": f"stage{stage}", "eigen-cam": f"stage{stage}", "layer-cam": f"norm{stage}"}
        for method, layer in expected.items():
            assert explainer(image(128, 128), method=method).maps[0].layer == layer
    assert explainer(image(128, 128), method="layer-cam", layer="stage2").maps[0].layer == "stage2"
    swin = Explainer(small("swin_tiny_patch4_window7_224", **SMALL_SWIN))
    assert swin(image(128, 128), method="layer-cam").maps[0].layer == "stage4"


def test_stream_yields_explanations_in_order_and_errors_of_unreadable_files(explainer, tmp_path):
    paths = []
    for place, size in enumerate(SIZES):
        paths.append(tmp_path / f"{place}.png")
        image(*size, seed=place).save(paths[-1])
    paths.insert(1, tmp_path / "broken.png")
    paths[1].write_text("no image")
    found = list(explainer.stream(paths, batch_size=2, methods=("grad-cam", "layer-cam"), top=2))
    assert isinstance(found[1], ImageError)
    for path, one in zip(paths, found, strict=True):
        if not isinstance(one, ImageError):
            assert one[1].name == str(path)
            assert [heatmap.method for heatmap in one[1].maps] == ["grad-cam"] * 2 + ["layer-cam"] * 2
            assert isinstance(one[1].prediction, Classification)
    with pytest.raises(UsageError, match=r"batch_size.*0"):
        explainer.stream(paths, batch_size=0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"method": "gradcam"}, "method.*grad-cam.*'gradcam'"),
        ({"top": 0}, "top.*0"),
        ({"layer": "stage9"}, "layer.*'stage9'"),
        ({"box": (0, 0, 9, 9)}, "box.*classify"),
        ({"layer": "head"}, r"layer head.*\(1, 4\)"),
    ],
)
def test_invalid_arguments_are_rejected(explainer, options, message):
    with pytest.raises((UsageError, ValueError), match=message):
        explainer(image(128, 128), **options)


def test_empty_input_is_valid_and_arrays_are_rejected():
    explainer = Explainer(small())
    assert explainer([]) == []
    with pytest.raises(UsageError, match=r"expected an RGB array.*float64"):
        explainer([np.zeros((3, 3, 3))])
    with pytest.raises(UsageError, match=r"van_b0.*classes"):
        Explainer(small().replace(class_names=()))
