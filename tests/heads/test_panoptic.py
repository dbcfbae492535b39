"""Mask2Former on VAN: all parameters train, masks cover the images exactly, segments merge as computed by hand."""

import copy
import sys
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from van.errors import MissingExtra, ShapeError, UsageError
from van.heads import create_model
from van.heads.panoptic_segmenter import crop_to_image, merge_panoptic

CLASSES = 4
THINGS = (True, True, True, False)


def small(**options: Any) -> Any:
    torch.manual_seed(0)
    sizes = {"queries": 10, "channels": 64, "encoder_layers": 1, "decoder_layers": 2, "points": 512}
    return create_model("van_b0", num_classes=CLASSES, options={"head": "mask2former", **sizes, **options})


def scene(*sizes: tuple[int, int]) -> tuple[list[torch.Tensor], list[dict[str, torch.Tensor]]]:
    """Images with bright rectangles of classes 0 and 2 on a background of class 3."""
    images, targets = [], []
    for rows, columns in sizes or ((64, 90), (50, 64)):
        image = torch.rand(3, rows, columns) * 0.2
        masks = torch.zeros(3, rows, columns, dtype=torch.bool)
        for index, (x1, y1, x2, y2) in enumerate(((4, 6, 30, 40), (34, 8, 60, 44))):
            image[index, y1:y2, x1:x2] = 1.0
            masks[index, y1:y2, x1:x2] = True
        masks[2] = ~masks.any(0)
        images.append(image)
        targets.append({"masks": masks, "labels": torch.tensor([0, 2, 3])})
    return images, targets


def empty_target(rows: int, columns: int) -> dict[str, torch.Tensor]:
    return {"masks": torch.zeros(0, rows, columns, dtype=torch.bool), "labels": torch.zeros(0, dtype=torch.int64)}


def test_the_sum_of_the_losses_equals_transformers_loss():
    """On images without padding, with the same random points."""
    images, targets = scene((64, 64), (64, 64))
    model = small().train()
    reference = copy.deepcopy(model).segmenter
    torch.manual_seed(1)
    total = sum(model(images, targets).values())
    torch.manual_seed(1)
    masks, labels = [t["masks"].float() for t in targets], [t["labels"] for t in targets]
    output = reference(pixel_values=torch.stack(images), mask_labels=masks, class_labels=labels)
    torch.testing.assert_close(total, output.loss, rtol=1e-5, atol=0)


def test_images_without_segments_give_finite_losses():
    model = small().train()
    images, (target, _) = scene()
    for targets in ([target, empty_target(50, 64)], [empty_target(64, 90), empty_target(50, 64)]):
        losses = model(images, targets)
        assert all(value.isfinite() for value in losses.values())
        assert losses["cross_entropy"] > 0  # the absence of segments is trained, too
        sum(losses.values()).backward()


def test_in_a_padded_batch_the_losses_compare_masks_at_the_same_pixels(monkeypatch):
    """Perfect masks at the padded size have no mask loss; with targets of the images' own sizes they have one."""
    model = small().train()
    images, targets = scene()
    call = {}
    monkeypatch.setattr(
        model.segmenter,
        "get_loss_dict",
        lambda *arguments: call.update(arguments=arguments) or {"loss_mask": torch.zeros(())},
    )
    model(images, targets)
    _, _, masks, labels, _ = call["arguments"]
    assert [tuple(mask.shape) for mask in masks] == [(3, 64, 96)] * 2
    for mask, target in zip(masks, targets, strict=True):
        rows, columns = target["masks"].shape[1:]
        assert torch.equal(mask[:, :rows, :columns] > 0, target["masks"])
        assert mask[:, rows:].sum() == mask[:, :, columns:].sum() == 0
    perfect = torch.cat([torch.stack(masks), torch.zeros(2, 7, 64, 96)], dim=1) * 40 - 20
    classes = torch.full((2, 10, CLASSES + 1), -20.0)
    classes[:, 3:, CLASSES] = 20
    for query, label in enumerate((0, 2, 3)):
        classes[:, query, label] = 20
    losses = {}
    for name, expected in (("padded size", masks), ("own size", [target["masks"].float() for target in targets])):
        losses[name] = model.segmenter.criterion(perfect, classes, expected, labels)["loss_mask"].item()
    assert losses["padded size"] < 0.3  # points between two pixels, where a mask is neither 0 nor 1
    assert losses["own size"] > 1


def test_10_steps_lower_the_loss():
    model = small().train()
    images, targets = scene()
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-4)
    totals = []
    for _ in range(10):
        optimizer.zero_grad()
        total = sum(model(images, targets).values())
        total.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        totals.append(total.item())
    assert totals[-1] < 0.9 * totals[0]


@pytest.mark.slow
def test_a_segmenter_overfits_two_images():
    """200 steps on two images of different sizes; nearly every pixel gets its class."""
    model = small().train()
    images, targets = scene((64, 90), (50, 96))
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-4)
    for _ in range(200):
        optimizer.zero_grad()
        sum(model(images, targets).values()).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    with torch.no_grad():
        outputs = model.eval()(images)
    for output, target in zip(outputs, targets, strict=True):
        size = tuple(target["masks"].shape[1:])
        ids, segments = merge_panoptic(output["class_logits"], output["mask_logits"], size, things=THINGS)
        predicted = {label: ids == segment_id for segment_id, label, _ in segments}
        assert sorted(label for _, label, _ in segments) == [0, 2, 3]
        for label, mask in zip(target["labels"].tolist(), target["masks"], strict=True):
            assert (predicted[label] & mask).sum() > 0.85 * (predicted[label] | mask).sum()


def test_the_logits_have_a_quarter_of_the_sides_and_depend_on_the_padded_size():
    """The reason why images of one padded size form a batch."""
    model = small().eval()
    (image,), _ = scene((64, 90))
    with torch.no_grad():
        (alone,), (other,) = model([image]), model([nn.functional.pad(image, (0, 64, 0, 64))])
    assert alone["mask_logits"].shape == (10, 16, 23)
    assert alone["class_logits"].shape == (10, CLASSES + 1)
    assert (other["class_logits"] - alone["class_logits"]).abs().max() > 1e-2


def test_the_mask_logits_cover_exactly_the_image():
    """The logits are their own coordinates in pixels; the control: plain slicing misplaces them."""
    y, x = torch.meshgrid(torch.arange(16) * 4 + 2.0, torch.arange(24) * 4 + 2.0, indexing="ij")
    for size in ((64, 96), (1, 1), (63, 95), (50, 61)):
        cropped = crop_to_image(torch.stack([y, x]), (64, 96), size)
        for axis, side in enumerate(size):
            steps = -(-side // 4)
            assert cropped.shape[1 + axis] == steps
            # half a cell from the edge the logits are constant
            expected = ((torch.arange(steps) + 0.5) * side / steps).clamp(min=2)
            coordinates = cropped[axis].movedim(axis, 0)
            torch.testing.assert_close(coordinates, expected[:, None].expand_as(coordinates), rtol=0, atol=1e-3)
    plain = torch.stack([y, x])[:, :13, :16]
    assert (plain - cropped).abs().max() > 1


def logits_of(rows: list[list[float]]) -> torch.Tensor:
    """Return class logits with the given softmax."""
    return torch.tensor(rows).log()


def masks_of(*drawn: str) -> torch.Tensor:
    """Return mask logits: # certainly inside, + probably inside, - probably outside, . certainly outside."""
    value = {"#": 9.0, "+": 0.5, "-": -0.5, ".": -9.0}
    return torch.tensor([[[value[c] for c in row] for row in one.split()] for one in drawn])


def test_segments_merge_as_computed_by_hand():
    """Two classes, a thing and a stuff class, at the size of the logits.

    Queries 1 and 4 (stuff, 0.9 and 0.7) become one segment with the score 0.9. Query 2 (thing, 0.8) loses its first
    column to query 1, since 0.8 x 0.62 < 0.9 x 1: 4 of 6 pixels remain, less than 0.8, so it is dropped. Query 3 is
    no object, query 5 has too low a score. Query 6 comes after the merging and gets its own id; the pixel below its
    mask is assigned to it too, but its probability there is below a half: no segment.
    """
    classes = logits_of([
        [0.05, 0.90, 0.05], [0.80, 0.15, 0.05], [0.03, 0.02, 0.95],
        [0.10, 0.70, 0.20], [0.45, 0.30, 0.25], [0.60, 0.20, 0.20],
    ])  # fmt: skip
    masks = masks_of(
        "##.... ##....", ".+##.. .+##..", "###### ######", "...... ....#.", "###### ######", "....#. .....-"
    )
    ids, segments = merge_panoptic(classes, masks, (2, 6), things=(True, False))
    assert ids.tolist() == [[1, 1, 0, 0, 2, 0], [1, 1, 0, 0, 1, 0]]
    assert [(segment_id, label) for segment_id, label, _ in segments] == [(1, 1), (2, 0)]
    assert [score for *_, score in segments] == pytest.approx([0.9, 0.6])
    assert ids.dtype == torch.int32


def test_a_mask_keeps_its_segment_if_enough_of_it_is_visible():
    classes = logits_of([[0.05, 0.90, 0.05], [0.80, 0.15, 0.05]])
    masks = masks_of("##.... ##....", ".+##.. .+##..")
    ids, segments = merge_panoptic(classes, masks, (2, 6), things=(True, False), min_visible=0.6)
    assert ids.tolist() == [[1, 1, 2, 2, 0, 0]] * 2
    assert [label for _, label, _ in segments] == [1, 0]


def blocks(seed: int, *, stuff_last: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """Return confident logits: 5 rectangles of classes 0 to 2, some overlapping, and a background of class 3 in two."""
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
    (merged,) = Mask2FormerImageProcessor().post_process_panoptic_segmentation(
        outputs, label_ids_to_fuse={3}, target_sizes=[size]
    )
    return merged["segmentation"], merged["segments_info"]


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("size", [(384, 384), (101, 173)])
def test_confident_outputs_merge_as_in_transformers(seed, size):
    """Exactly at 384 x 384, the size to which transformers resizes every mask. At another size edge pixels may differ:
    transformers resizes probabilities, this package and the paper's code logits."""
    classes, masks = blocks(seed, stuff_last=True)
    ids, segments = merge_panoptic(classes, masks, size, things=THINGS)
    reference, information = merged_by_transformers(classes, masks, size)
    assert len(segments) > 2
    assert {(s["id"], s["label_id"]) for s in information} == {(segment_id, label) for segment_id, label, _ in segments}
    assert (ids != reference).float().mean() <= (0 if size == (384, 384) else 0.01)


def test_segment_ids_are_unique_even_after_merging():
    """Negative control: transformers 5.23 continues from the merged segment's id, and reuses an id."""
    classes, masks = blocks(0, stuff_last=False)
    ids, segments = merge_panoptic(classes, masks, (384, 384), things=THINGS)
    segment_ids = [segment_id for segment_id, *_ in segments]
    assert len(set(segment_ids)) == len(segment_ids)
    assert set(ids.unique().tolist()) - {0} == set(segment_ids)
    _, information = merged_by_transformers(classes, masks, (384, 384))
    things = [segment["id"] for segment in information if not segment["was_fused"]]
    assert len(set(things)) < len(things)


def test_queries_with_low_scores_give_no_segment():
    classes = logits_of([[0.4, 0.3, 0.3], [0.1, 0.1, 0.8]])
    ids, segments = merge_panoptic(classes, masks_of("##", "##"), (3, 5), things=(True, False))
    assert segments == []
    assert torch.equal(ids, torch.zeros(3, 5, dtype=torch.int32))


def test_logits_of_shapes_that_do_not_match_are_refused():
    with pytest.raises(ShapeError, match=r"\(2, 3\), \(1, 1, 2\), 2"):
        merge_panoptic(torch.zeros(2, 3), torch.zeros(1, 1, 2), (3, 5), things=(True, False))
    with pytest.raises(ShapeError, match=r"\(1, 3\), \(1, 1, 2\), 3"):
        merge_panoptic(torch.zeros(1, 3), torch.zeros(1, 1, 2), (3, 5), things=(True, False, True))


def test_the_default_number_of_queries_is_the_papers():
    with torch.device("meta"):
        for name, expected in (("van_b0", 100), ("van_b6", 200)):
            options = {"head": "mask2former", "depths": (1, 1, 1, 1), "encoder_layers": 1, "decoder_layers": 1}
            network: Any = create_model(name, num_classes=2, options=options)
            assert network.segmenter.config.num_queries == expected


@pytest.mark.parametrize("package", ["transformers", "scipy"])
def test_the_error_for_a_missing_package_names_the_extra(package, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(MissingExtra, match=rf"Mask2Former.*{package}.*\[transformers\]"):
        small()


def test_invalid_sizes_and_unknown_options_are_refused():
    for options, message in (
        ({"queries": 0}, "queries.* 0"),
        ({"channels": 32}, "channels.*64.* 32"),
        ({"dropuot": 0.1}, "mask2former.*dropuot.*Mask2FormerConfig"),
    ):
        with pytest.raises(UsageError, match=message):
            small(**options)


def test_training_without_targets_is_refused():
    with pytest.raises(UsageError, match=r"targets.*2 images.*None"):
        small().train()(scene()[0])
