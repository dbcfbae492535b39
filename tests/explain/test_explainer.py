"""Pictures in, maps out: right on any picture, one by one or together, from several threads, nothing left behind."""

import copy
import dataclasses
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from data.made_marked import HEADS, labels_of
from explain.small import LABELS, SMALL_SWIN, SMALL_VAN, dense, in_double, picture, small
from van.errors import PictureError, UsageError
from van.explain.cam import METHODS
from van.explain.explainer import Explainer
from van.explain.targets import class_indices
from van.models.load import Loaded, imagenet_labels
from van.results import Boxes, Classes, Masks

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
    assert [heat.label for heat in one.maps] == [heat.label for heat in other.maps]
    for mine, yours in zip(one.maps, other.maps, strict=True):
        scale = yours.cells.max() or 1.0
        # float32 through another batch size sums in another order: seen below 1e-5 of the highest
        np.testing.assert_allclose(mine.cells / scale, yours.cells / scale, rtol=0, atol=1e-4)
        assert mine.covers == yours.covers


def test_on_a_picture_it_is_grad_cam_of_what_the_network_sees():
    loaded = in_double(small())
    shown = picture(300, 200)
    found = Explainer(loaded)(shown)
    model: Any = loaded.model
    x = loaded.preprocess(shown)[None].double()
    for stage in (1, 2, 3):
        block = getattr(model, f"block{stage}")(getattr(model, f"patch_embed{stage}")(x))
        x = getattr(model, f"norm{stage}")(block)
    maps = model.block4(model.patch_embed4(x)).detach().requires_grad_()
    logits = model.head(model.norm4(maps).mean((2, 3)))[0]
    (gradients,) = torch.autograd.grad(logits.max(), maps)
    logits = logits.detach()
    wanted = (gradients.mean((2, 3), keepdim=True) * maps).sum(1).clamp(min=0)[0].detach().numpy()
    heat = found.maps[0]
    np.testing.assert_allclose(heat.cells, wanted, rtol=1e-4, atol=1e-6 * wanted.max())
    assert wanted.max() > 0
    assert heat.label == LABELS[int(logits.argmax())] == found.answer.top(1)[0].label
    assert heat.score == pytest.approx(float(logits.softmax(0).max()), abs=1e-6)
    assert heat.seen == heat.covers == loaded.preprocess.window((200, 300))


@pytest.mark.parametrize("size", SIZES)
def test_the_map_has_the_picture_s_own_pixels_and_lies_in_the_crop(explainer, size):
    shown = picture(*size)
    heat = explainer(shown).maps[0]
    values = heat.on_picture()
    assert values.shape == (size[1], size[0])
    left, top, right, bottom = heat.seen
    share = (right - left) * (bottom - top) / (size[0] * size[1])
    assert np.isfinite(values).mean() == pytest.approx(share, abs=0.03)
    drawn = explainer(shown).draw(shown)
    assert drawn.width >= size[0]


def test_a_picture_moved_within_a_larger_one_moves_its_map():
    """The same square in the middle, seen by the same crop: the map is the same, at another place."""
    explainer = Explainer(small())
    wide = picture(256, 128)
    square = wide.crop((64, 0, 192, 128))
    one, other = explainer(wide).maps[0], explainer(square).maps[0]
    np.testing.assert_allclose(one.cells, other.cells, rtol=1e-3, atol=1e-5)
    assert one.covers[0] == pytest.approx(other.covers[0] + 64, abs=0.5)


@pytest.mark.parametrize("method", METHODS)
def test_a_batch_gives_what_its_pictures_give_one_by_one(explainer, method):
    shown = [picture(*size, seed=place) for place, size in enumerate(SIZES)]
    together = explainer(shown, method=method, top=2)
    assert [one.name for one in together] == [f"picture {place}" for place in range(4)]
    for one, alone in zip(together, shown, strict=True):
        assert_same(one, explainer(alone, method=method, top=2))
    if method != "eigen-cam":  # which knows no classes
        with pytest.raises(AssertionError):
            assert_same(together[0], together[1])


def test_cells_of_a_side_that_is_no_multiple_of_the_stride_keep_their_size():
    """100 pixels are seen in four cells of 32, the last of which reaches over the edge by 28."""
    explainer = Explainer(small(size_px=100))
    heat = explainer(picture(150, 150), layer="stage4").maps[0]
    left, top, right, bottom = heat.seen
    assert heat.cells.shape == (4, 4)
    assert heat.covers == pytest.approx((left, top, left + (right - left) * 1.28, top + (bottom - top) * 1.28))
    by_path = explainer(picture(150, 150), layer="block4.1").maps[0]
    assert by_path.covers == pytest.approx(heat.covers)


def test_classes_are_asked_for_by_name_number_or_rank(explainer):
    shown = picture(130, 140)
    by_name = explainer(shown, classes=["dog", "Bee"])
    assert [heat.label for heat in by_name.maps] == ["dog", "bee"]
    assert_same(by_name, explainer(shown, classes=[3, "1"]))
    ranked = explainer(shown, top=4)
    assert [heat.label for heat in ranked.maps] == [one.label for one in ranked.answer.top(4)]
    assert np.abs(by_name.maps[0].cells - by_name.maps[1].cells).max() > 0
    with pytest.raises(UsageError, match="there is no class 'cow'; known: ant, bee, cat, dog"):
        explainer(shown, classes=["cow"])
    with pytest.raises(UsageError, match="there is no class 4"):
        explainer(shown, classes=[4])


def test_imagenet_s_classes_are_found_by_any_of_their_names_and_near_misses_are_listed():
    labels = imagenet_labels(1000)
    assert class_indices(labels, ["tench", "great white shark", "tench, Tinca tinca"]) == [0, 2, 0]
    with pytest.raises(UsageError, match=r"there is no class 'goldfsh'; known: goldfish.*\(1,000 in all\)"):
        class_indices(labels, ["goldfsh"])


def test_random_weights_give_another_map():
    """The sanity check of Adebayo et al. 2018: a map that outlives its network's weights explains nothing."""
    shown = picture(128, 128)
    one, other = (Explainer(small(seed=seed))(shown, classes=[0], layer="stage3").maps[0] for seed in (0, 1))
    assert abs(np.corrcoef(one.cells.ravel(), other.cells.ravel())[0, 1]) < 0.9
    same = Explainer(small(seed=0))(shown, classes=[0], layer="stage3").maps[0]
    np.testing.assert_array_equal(one.cells, same.cells)


@pytest.mark.parametrize("method", [method for method in METHODS if method != "eigen-cam"])
def test_a_network_that_always_says_the_same_has_a_flat_map(method):
    loaded = small()
    model: Any = loaded.model
    nn.init.zeros_(model.head.weight)
    heat = Explainer(loaded)(picture(128, 100), method=method).maps[0]
    assert heat.is_flat
    assert heat.highest == 0


def test_the_network_is_left_as_it_was_also_when_it_fails_half_way():
    loaded = small()
    model: Any = loaded.model
    explainer = Explainer(loaded)
    for parameter in model.parameters():
        parameter.grad = torch.full_like(parameter, 7)
    state = copy.deepcopy(model.state_dict())
    before = hooks_of(model)
    explainer(picture(128, 128))
    handle = model.norm4.register_forward_hook(lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        explainer(picture(128, 128))
    handle.remove()
    assert hooks_of(model) == before
    assert not model.training
    assert all((parameter.grad == 7).all() for parameter in model.parameters())
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_a_frozen_network_is_explained_the_same_also_within_inference_mode():
    loaded = small()
    wanted = Explainer(loaded)(picture(128, 128))
    loaded.model.requires_grad_(False)
    assert_same(Explainer(loaded)(picture(128, 128)), wanted)
    with torch.inference_mode():
        assert_same(Explainer(loaded)(picture(128, 128)), wanted)


def test_several_threads_share_one_network():
    """Each thread gets its own maps, while others explain and predict with the same network."""
    loaded = small()
    explainer = Explainer(loaded)
    shown = [picture(110 + 7 * number, 128, seed=number) for number in range(6)]
    wanted = [explainer(one, top=2) for one in shown]
    noise = torch.randn(1, 3, 128, 128)

    def work(number: int):
        if number % 3 == 2:  # one of three only runs the network
            with torch.no_grad():
                return loaded.model(noise)
        return explainer(shown[number % 6], top=2)

    with ThreadPoolExecutor(max_workers=4) as pool:
        found = list(pool.map(work, range(36)))
    for number, one in enumerate(found):
        if number % 3 != 2:
            assert_same(one, wanted[number % 6])
    assert sum(hooks_of(loaded.model)) == 0


def test_bfloat16_gives_nearly_the_same_map():
    shown = picture(128, 128)
    wanted = Explainer(small())(shown, classes=[1]).maps[0]
    loaded = small()
    loaded.model.bfloat16()
    found = Explainer(loaded)(shown, classes=[1]).maps[0]
    assert found.cells.dtype == np.float32
    assert np.corrcoef(found.cells.ravel(), wanted.cells.ravel())[0, 1] > 0.95


def test_swin_is_explained_in_rows_and_columns():
    """A bright spot in one corner: with rows and columns or channels mixed up its map could not follow its mirror."""
    loaded = small("swin_tiny_patch4_window7_224", **SMALL_SWIN)
    heat = Explainer(loaded)(picture(128, 128), layer="stage1").maps[0]
    assert heat.cells.shape == (32, 32)
    assert heat.layer == "stage1"


@pytest.mark.parametrize("task", HEADS)
def test_a_dense_network_s_map_is_derived_from_its_own_answer(task):
    """By hand: the same output run once more, its score derived by the block's output with a plain hook."""
    loaded = dense(task, {**HEADS[task], **SMALL_VAN} if task != "panoptic" else HEADS[task], labels_of(task))
    if task in ("detect", "instances"):
        speak_up(loaded.model, task)
    if task == "panoptic":
        loaded = with_things(loaded)
    explainer = Explainer(loaded)
    shown = picture(120, 80, seed=3)
    found = explainer(shown, method="grad-cam", layer="stage3")
    assert isinstance(found.answer, Boxes if task in ("detect", "instances") else Masks)
    assert len(found.maps) == 1
    heat = found.maps[0]
    records: list[torch.Tensor] = []
    network: Any = loaded.model
    handle = network.backbone.block3[-1].register_forward_hook(lambda m, a, output: records.append(output))
    output = network([loaded.preprocess(shown)])[0]
    handle.remove()
    if task in ("detect", "instances"):
        best = int(output["scores"].argmax())
        score = output["scores"][best]
        assert heat.score == pytest.approx(score.item(), abs=1e-6)
        scale = 120 / 144  # 80 rows are seen as 96
        assert heat.box == pytest.approx([side * scale for side in output["boxes"][best].tolist()], rel=0.02)
    else:
        if task == "panoptic":
            probabilities = output["class_logits"].softmax(-1)[:, :-1]
            output = torch.einsum("qk,qhw->khw", probabilities, output["mask_logits"].sigmoid())
        index = labels_of(task).index(heat.label)
        score = output[index][output.argmax(0) == index].sum()
    (gradients,) = torch.autograd.grad(score, records[0])
    wanted = (gradients.mean((2, 3), keepdim=True) * records[0]).sum(1).clamp(min=0)[0].detach().numpy()
    assert wanted.max() > 0
    np.testing.assert_allclose(heat.cells / wanted.max(), wanted / wanted.max(), rtol=0, atol=1e-3)
    assert heat.on_picture().shape == (80, 120)
    assert found.draw(shown).width >= 120


def speak_up(network: Any, task: str) -> None:
    """Let a network that has learnt nothing find something, by its last layers' biases."""
    layers = {"detect": "head.classification_head.cls_logits", "instances": "roi_heads.box_predictor.cls_score"}
    layer = network.detector.get_submodule(layers[task])
    with torch.no_grad():
        layer.weight.normal_(std=0.3)
        if task == "detect":
            layer.bias.fill_(-0.5)


def with_things(loaded: Loaded) -> Loaded:
    things = [label != "ground" for label in loaded.labels]
    network: Any = loaded.model
    with torch.no_grad():
        network.segmenter.class_predictor.bias[-1] = -9  # never "nothing"
        network.segmenter.class_predictor.weight.normal_(std=0.5)
    return dataclasses.replace(loaded, task_options={"things": things})


def test_a_box_chooses_the_thing_that_lies_there():
    loaded = dense("detect", {**HEADS["detect"], **SMALL_VAN}, labels_of("detect"))
    speak_up(loaded.model, "detect")
    explainer = Explainer(loaded)
    shown = picture(120, 80, seed=3)
    things = explainer(shown, top=30).answer.found
    one = things[-1]
    heat = explainer(shown, box=one.box).maps[0]
    assert heat.box is not None
    np.testing.assert_allclose(heat.box, one.box, atol=6)  # another one may lie at nearly the same place
    with pytest.raises(UsageError, match=r"nothing is found in picture 0 at the box 0, 0, 0\.5, 0\.5"):
        explainer(shown, box=(0.0, 0.0, 0.5, 0.5))
    with pytest.raises(UsageError, match=r"box is \(5, 5, 1, 9\); wanted left, top, right, bottom"):
        explainer(shown, box=(5, 5, 1, 9))


def test_nothing_found_gives_no_map_and_a_drawing_of_the_picture():
    loaded = dense("detect", {**HEADS["detect"], **SMALL_VAN}, labels_of("detect"))
    found = Explainer(loaded)(picture(120, 80))
    assert found.maps == ()
    assert found.draw(picture(120, 80)).width >= 120


def test_without_a_layer_each_method_looks_where_it_tells_most():
    """docs/explain.md has the figures: cell by cell behind the norm for classes, else the block."""
    explainer = Explainer(small())
    for size, stage in ((128, 4), (60, 3)):
        explainer.preprocess = dataclasses.replace(explainer.preprocess, size_px=size)
        wanted = {"grad-cam": f"stage{stage}", "eigen-cam": f"stage{stage}", "layer-cam": f"norm{stage}"}
        for method, layer in wanted.items():
            assert explainer(picture(128, 128), method=method).maps[0].layer == layer
    assert explainer(picture(128, 128), method="layer-cam", layer="stage2").maps[0].layer == "stage2"
    swin = Explainer(small("swin_tiny_patch4_window7_224", **SMALL_SWIN))
    assert swin(picture(128, 128), method="layer-cam").maps[0].layer == "stage4"


def test_files_are_read_in_batches_and_a_broken_one_gives_its_error(explainer, tmp_path):
    paths = []
    for place, size in enumerate(SIZES):
        paths.append(tmp_path / f"{place}.png")
        picture(*size, seed=place).save(paths[-1])
    paths.insert(1, tmp_path / "broken.png")
    paths[1].write_text("no picture")
    found = list(explainer.stream(paths, batch_size=2, methods=("grad-cam", "layer-cam"), top=2))
    assert isinstance(found[1], PictureError)
    for path, one in zip(paths, found, strict=True):
        if not isinstance(one, PictureError):
            assert one[1].name == str(path)
            assert [heat.method for heat in one[1].maps] == ["grad-cam"] * 2 + ["layer-cam"] * 2
            assert isinstance(one[1].answer, Classes)
    with pytest.raises(UsageError, match="batch_size is 0; wanted at least 1"):
        explainer.stream(paths, batch_size=0)


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"method": "gradcam"}, "there is no method 'gradcam'; known: grad-cam"),
        ({"top": 0}, "top is 0; wanted at least 1"),
        ({"layer": "stage9"}, "there is no layer 'stage9'"),
        ({"box": (0, 0, 9, 9)}, "a box is for networks that find things; this one's task is classify"),
        ({"layer": "head"}, r"layer head gives \(1, 4\)"),
    ],
)
def test_what_cannot_be_explained_is_named(explainer, asked, message):
    with pytest.raises((UsageError, ValueError), match=message):
        explainer(picture(128, 128), **asked)


def test_no_pictures_and_no_picture():
    explainer = Explainer(small())
    assert explainer([]) == []
    with pytest.raises(UsageError, match="a ndarray; wanted a path"):
        explainer([np.zeros((3, 3, 3))])
    with pytest.raises(UsageError, match="has no classes"):
        Explainer(dataclasses.replace(small(), labels=()))
