"""Mask2Former on VAN: everything learns, masks lie where the pictures are, segments merge as worked out by hand."""

import copy
import sys
from types import SimpleNamespace

import pytest
import timm
import torch
from torch import nn

from van.errors import MissingExtra, ShapeError, UsageError
from van.models.panoptic import PanopticSegmenter, cut_to_picture, panoptic_segments
from van.models.van import VAN

CLASSES = 4
THINGS = (True, True, True, False)


def small(**options) -> PanopticSegmenter:
    torch.manual_seed(0)
    sizes = {"queries": 10, "channels": 64, "encoder_layers": 1, "decoder_layers": 2, "points": 512}
    return PanopticSegmenter("van_b0", num_classes=CLASSES, **{**sizes, **options})


def scene(*sizes: tuple[int, int]) -> tuple[list[torch.Tensor], list[dict[str, torch.Tensor]]]:
    """Pictures with bright rectangles of classes 0 and 2 on a ground of class 3."""
    pictures, targets = [], []
    for rows, columns in sizes or ((64, 90), (50, 64)):
        picture = torch.rand(3, rows, columns) * 0.2
        masks = torch.zeros(3, rows, columns, dtype=torch.bool)
        for place, (x1, y1, x2, y2) in enumerate(((4, 6, 30, 40), (34, 8, 60, 44))):
            picture[place, y1:y2, x1:x2] = 1.0
            masks[place, y1:y2, x1:x2] = True
        masks[2] = ~masks.any(0)
        pictures.append(picture)
        targets.append({"masks": masks, "labels": torch.tensor([0, 2, 3])})
    return pictures, targets


def nothing(rows: int, columns: int) -> dict[str, torch.Tensor]:
    return {"masks": torch.zeros(0, rows, columns, dtype=torch.bool), "labels": torch.zeros(0, dtype=torch.int64)}


def test_a_training_step_reaches_every_parameter_and_every_batchnorm_of_van():
    model = small().train()
    norms = [module for module in model.backbone.modules() if isinstance(module, nn.BatchNorm2d)]
    assert len(norms) == sum(isinstance(m, nn.BatchNorm2d) for m in timm.create_model("van_b0").modules()) > 0
    before = [norm.running_mean.clone() for norm in norms]
    losses = model(*scene())
    assert set(losses) == {"cross_entropy", "mask", "dice"}
    assert all(value.isfinite() for value in losses.values())
    sum(losses.values()).backward()
    assert [name for name, parameter in model.named_parameters() if parameter.grad is None] == []
    assert all(parameter.grad.abs().max() > 0 for parameter in model.backbone.parameters())
    assert all((norm.running_mean != mean).any() for norm, mean in zip(norms, before, strict=True))


def test_the_sum_of_the_losses_is_what_transformers_minimises():
    """On pictures without filling, with the same points drawn."""
    pictures, targets = scene((64, 64), (64, 64))
    model = small().train()
    theirs = copy.deepcopy(model).segmenter
    torch.manual_seed(1)
    total = sum(model(pictures, targets).values())
    torch.manual_seed(1)
    masks, labels = [t["masks"].float() for t in targets], [t["labels"] for t in targets]
    found = theirs(pixel_values=torch.stack(pictures), mask_labels=masks, class_labels=labels)
    torch.testing.assert_close(total, found.loss, rtol=1e-5, atol=0)


def test_pictures_without_segments_are_trained_on():
    model = small().train()
    pictures, (target, _) = scene()
    for targets in ([target, nothing(50, 64)], [nothing(64, 90), nothing(50, 64)]):
        losses = model(pictures, targets)
        assert all(value.isfinite() for value in losses.values())
        assert losses["cross_entropy"] > 0  # that there is nothing is learned, too
        sum(losses.values()).backward()


def test_in_a_padded_batch_the_losses_compare_masks_at_the_same_pixels(monkeypatch):
    """A network whose masks are right on the canvas has no mask loss; with targets of the pictures' own size it has."""
    model = small().train()
    pictures, targets = scene()
    seen = {}
    monkeypatch.setattr(
        model.segmenter, "get_loss_dict", lambda *given: seen.update(given=given) or {"loss_mask": torch.zeros(())}
    )
    model(pictures, targets)
    _, _, masks, labels, _ = seen["given"]
    assert [tuple(mask.shape) for mask in masks] == [(3, 64, 96)] * 2
    for mask, target in zip(masks, targets, strict=True):
        rows, columns = target["masks"].shape[1:]
        assert torch.equal(mask[:, :rows, :columns] > 0, target["masks"])
        assert mask[:, rows:].sum() == mask[:, :, columns:].sum() == 0
    right = torch.cat([torch.stack(masks), torch.zeros(2, 7, 64, 96)], dim=1) * 40 - 20
    classes = torch.full((2, 10, CLASSES + 1), -20.0)
    classes[:, 3:, CLASSES] = 20
    for query, label in enumerate((0, 2, 3)):
        classes[:, query, label] = 20
    losses = {}
    for name, wanted in (("canvas", masks), ("own size", [target["masks"].float() for target in targets])):
        losses[name] = model.segmenter.criterion(right, classes, wanted, labels)["loss_mask"].item()
    assert losses["canvas"] < 0.3  # points between two pixels, where a mask is neither 0 nor 1
    assert losses["own size"] > 1


def test_a_few_steps_lower_the_loss():
    model = small().train()
    pictures, targets = scene()
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-4)
    totals = []
    for _ in range(10):
        optimizer.zero_grad()
        total = sum(model(pictures, targets).values())
        total.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        totals.append(total.item())
    assert totals[-1] < 0.9 * totals[0]


@pytest.mark.slow
def test_a_segmenter_learns_two_pictures_by_heart():
    """Some hundred steps on two pictures of different sizes; nearly every pixel is given its class again."""
    model = small().train()
    pictures, targets = scene((64, 90), (50, 96))
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-4)
    for _ in range(200):
        optimizer.zero_grad()
        sum(model(pictures, targets).values()).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    with torch.no_grad():
        answers = model.eval()(pictures)
    for answer, target in zip(answers, targets, strict=True):
        size = tuple(target["masks"].shape[1:])
        ids, segments = panoptic_segments(answer["class_logits"], answer["mask_logits"], size, things=THINGS)
        found = {label: ids == number for number, label, _ in segments}
        assert sorted(label for _, label, _ in segments) == [0, 2, 3]
        for label, mask in zip(target["labels"].tolist(), target["masks"], strict=True):
            assert (found[label] & mask).sum() > 0.85 * (found[label] | mask).sum()


def test_no_answer_depends_on_the_other_pictures_of_the_batch():
    """Up to rounding, since larger batches add in another order; with more filling the answers are others."""
    model = small().eval()
    pictures, _ = scene((64, 90), (50, 64), (130, 70), (60, 95))
    with torch.no_grad():
        together = model(pictures)
        for picture, answer in zip(pictures, together, strict=True):
            (alone,) = model([picture])
            rows, columns = picture.shape[1:]
            assert alone["mask_logits"].shape == (10, -(-rows // 4), -(-columns // 4))
            assert alone["class_logits"].shape == (10, CLASSES + 1)
            # logits of a few units in float32
            torch.testing.assert_close(answer["class_logits"], alone["class_logits"], rtol=0, atol=1e-4)
            torch.testing.assert_close(answer["mask_logits"], alone["mask_logits"], rtol=0, atol=1e-3)
        (other,) = model([nn.functional.pad(pictures[0], (0, 64, 0, 64))])
    assert (other["class_logits"] - together[0]["class_logits"]).abs().max() > 1e-2


@pytest.mark.parametrize("size", [(64, 96), (50, 61), (1, 1), (63, 95)])
def test_the_mask_logits_cover_exactly_the_picture(size):
    """On a canvas whose logits are their own places in pixels; plain cutting would place them elsewhere."""
    y, x = torch.meshgrid(torch.arange(16) * 4 + 2.0, torch.arange(24) * 4 + 2.0, indexing="ij")
    cut = cut_to_picture(torch.stack([y, x]), (64, 96), size)
    for axis, side in enumerate(size):
        steps = -(-side // 4)
        assert cut.shape[1 + axis] == steps
        wanted = ((torch.arange(steps) + 0.5) * side / steps).clamp(min=2)  # half a cell from the edge nothing is known
        places = cut[axis].movedim(axis, 0)
        torch.testing.assert_close(places, wanted[:, None].expand_as(places), rtol=0, atol=1e-3)
    if size == (50, 61):
        plain = torch.stack([y, x])[:, :13, :16]
        assert (plain - cut).abs().max() > 1


def logits_of(rows: list[list[float]]) -> torch.Tensor:
    """Class logits whose softmax is as given."""
    return torch.tensor(rows).log()


def masks_of(*drawn: str) -> torch.Tensor:
    """Mask logits: # surely in, + rather in, - rather out, . surely out."""
    value = {"#": 9.0, "+": 0.5, "-": -0.5, ".": -9.0}
    return torch.tensor([[[value[c] for c in row] for row in one.split()] for one in drawn])


def test_segments_merge_as_worked_out_by_hand():
    """Two classes, a thing and a stuff, at the size of the logits.

    Queries 1 and 4 (stuff, 0.9 and 0.7) become one segment with the score 0.9. Query 2 (thing, 0.8) loses its first
    column to query 1, since 0.8 x 0.62 < 0.9 x 1: 4 of 6 pixels remain, less than 0.8, so it is left out. Query 3 is
    nothing, query 5 not sure enough. Query 6 comes after the merging and gets a number of its own; the pixel below
    its mask is owned by it too, but its probability there is under a half: nothing.
    """
    classes = logits_of([
        [0.05, 0.90, 0.05], [0.80, 0.15, 0.05], [0.03, 0.02, 0.95],
        [0.10, 0.70, 0.20], [0.45, 0.30, 0.25], [0.60, 0.20, 0.20],
    ])  # fmt: skip
    masks = masks_of(
        "##.... ##....", ".+##.. .+##..", "###### ######", "...... ....#.", "###### ######", "....#. .....-"
    )
    ids, segments = panoptic_segments(classes, masks, (2, 6), things=(True, False))
    assert ids.tolist() == [[1, 1, 0, 0, 2, 0], [1, 1, 0, 0, 1, 0]]
    assert [(number, label) for number, label, _ in segments] == [(1, 1), (2, 0)]
    assert [score for *_, score in segments] == pytest.approx([0.9, 0.6])
    assert ids.dtype == torch.int32


def test_a_mask_keeps_its_segment_if_enough_of_it_is_seen():
    classes = logits_of([[0.05, 0.90, 0.05], [0.80, 0.15, 0.05]])
    masks = masks_of("##.... ##....", ".+##.. .+##..")
    ids, segments = panoptic_segments(classes, masks, (2, 6), things=(True, False), min_visible=0.6)
    assert ids.tolist() == [[1, 1, 2, 2, 0, 0]] * 2
    assert [label for _, label, _ in segments] == [1, 0]


def blocks(seed: int, *, stuff_last: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """Sure answers: 5 rectangles of classes 0 to 2, some of them over others, and a ground of class 3 in two parts."""
    generator = torch.Generator().manual_seed(seed)
    masks = torch.full((7, 384, 384), -20.0)
    free = torch.ones(384, 384, dtype=torch.bool)
    for query in range(5):
        y, x = torch.randint(0, 250, (2,), generator=generator).tolist()
        masks[query, y : y + 130, x : x + 100] = 20.0
        free[y : y + 130, x : x + 100] = False
    masks[5, :200][free[:200]] = masks[6, 200:][free[200:]] = 20.0
    classes = torch.zeros(7, CLASSES + 1)
    labels = torch.cat([torch.randint(0, 3, (5,), generator=generator), torch.tensor([3, 3])])
    classes[range(7), labels] = torch.linspace(12, 10, 7)
    order = range(7) if stuff_last else (5, 0, 6, 1, 2, 3, 4)
    return classes[list(order)], masks[list(order)]


def merged_by_transformers(classes: torch.Tensor, masks: torch.Tensor, size: tuple[int, int]) -> tuple:
    from transformers import Mask2FormerImageProcessor

    outputs = SimpleNamespace(class_queries_logits=classes[None], masks_queries_logits=masks[None])
    (found,) = Mask2FormerImageProcessor().post_process_panoptic_segmentation(
        outputs, label_ids_to_fuse={3}, target_sizes=[size]
    )
    return found["segmentation"], found["segments_info"]


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("size", [(384, 384), (101, 173)])
def test_sure_answers_merge_as_in_transformers(seed, size):
    """At 384 x 384, where transformers brings every mask. At another size pixels on edges may differ: it resizes
    probabilities, and we, like the paper's code, logits."""
    classes, masks = blocks(seed, stuff_last=True)
    ids, segments = panoptic_segments(classes, masks, size, things=THINGS)
    theirs, information = merged_by_transformers(classes, masks, size)
    assert len(segments) > 2
    assert {(s["id"], s["label_id"]) for s in information} == {(number, label) for number, label, _ in segments}
    assert (ids != theirs).float().mean() <= (0 if size == (384, 384) else 0.01)


def test_no_two_segments_share_a_number_even_after_merging():
    """transformers 5.23 counts on from the merged segment, and gives its next thing a number that is taken."""
    classes, masks = blocks(0, stuff_last=False)
    ids, segments = panoptic_segments(classes, masks, (384, 384), things=THINGS)
    numbers = [number for number, *_ in segments]
    assert len(set(numbers)) == len(numbers)
    assert set(ids.unique().tolist()) - {0} == set(numbers)
    _, information = merged_by_transformers(classes, masks, (384, 384))
    things = [segment["id"] for segment in information if not segment["was_fused"]]
    assert len(set(things)) < len(things)


def test_where_nothing_is_sure_there_is_no_segment():
    classes = logits_of([[0.4, 0.3, 0.3], [0.1, 0.1, 0.8]])
    ids, segments = panoptic_segments(classes, masks_of("##", "##"), (3, 5), things=(True, False))
    assert segments == []
    assert torch.equal(ids, torch.zeros(3, 5, dtype=torch.int32))


def test_logits_that_do_not_belong_together_are_refused():
    with pytest.raises(ShapeError, match=r"class_logits is \(2, 3\), mask_logits \(1, 1, 2\) and things has 2 classes"):
        panoptic_segments(torch.zeros(2, 3), torch.zeros(1, 1, 2), (3, 5), things=(True, False))
    with pytest.raises(ShapeError, match="things has 3 classes"):
        panoptic_segments(torch.zeros(1, 3), torch.zeros(1, 1, 2), (3, 5), things=(True, False, True))


def test_a_classifiers_weights_load_into_the_backbone_entry_for_entry():
    trained = timm.create_model("van_b0", num_classes=0)
    model = small()
    assert isinstance(model.backbone, VAN)
    model.backbone.load_state_dict(trained.state_dict(), strict=True)
    picture = torch.rand(1, 3, 64, 64)
    maps = model.segmenter.model.pixel_level_module.encoder.eval()(picture).feature_maps
    wanted = trained.eval().forward_intermediates(picture, norm=True, intermediates_only=True)
    assert len(maps) == len(wanted) == 4
    assert all(torch.equal(mine, theirs) for mine, theirs in zip(maps, wanted, strict=True))


def test_the_queries_are_those_of_the_paper():
    with torch.device("meta"):
        queries = {
            name: PanopticSegmenter(
                name, num_classes=2, encoder_layers=1, decoder_layers=1
            ).segmenter.config.num_queries
            for name in ("van_b0", "van_b6")
        }
    assert queries == {"van_b0": 100, "van_b6": 200}


@pytest.mark.parametrize("package", ["transformers", "scipy"])
def test_a_missing_package_says_which_extra_to_install(package, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(MissingExtra, match=rf"Mask2Former needs the package '{package}'.*\[transformers\]"):
        small()


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("resnet50", {}, "there is no 'resnet50' to build on; known: van_b0"),
        ("van_b0", {"queries": 0}, "queries is 0; wanted at least 1"),
        ("van_b0", {"channels": 32}, "channels is 32; wanted a multiple of 64"),
        ("van_b0", {"dropuot": 0.1}, "mask2former has no option dropuot; see transformers' Mask2FormerConfig"),
    ],
)
def test_what_cannot_be_built_is_refused(name, options, message):
    with pytest.raises(UsageError, match=message):
        PanopticSegmenter(name, **{"num_classes": 2, **options})


def test_training_without_targets_is_refused():
    with pytest.raises(UsageError, match="targets is None in training; wanted one for each of the 2 pictures"):
        small().train()(scene()[0])
