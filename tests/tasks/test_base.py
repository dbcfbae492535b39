"""Moving batches to a device, and listing unreadable samples."""

import torch

from van.tasks.base import Batch, ImageMeta, unreadable_of


def test_moved_images_are_channels_last_and_other_values_are_unchanged():
    batch = Batch(
        images=torch.rand(2, 3, 4, 5),
        targets=[{"boxes": torch.rand(2, 4), "label": "cat"}, {"boxes": torch.rand(0, 4), "label": "dog"}],
        image_metas=(ImageMeta("a"), ImageMeta("b", (4, 5), (8, 10))),
        valid=torch.tensor([True, False]),
        unreadable=(("c", "is empty"),),
    )
    moved = batch.to(torch.device("cpu"))
    assert moved.images.is_contiguous(memory_format=torch.channels_last)
    assert moved.images.equal(batch.images)
    assert moved.targets[0]["boxes"].equal(batch.targets[0]["boxes"])
    assert [target["label"] for target in moved.targets] == ["cat", "dog"]
    assert (moved.names, moved.valid.tolist(), moved.unreadable) == (("a", "b"), [True, False], (("c", "is empty"),))
    assert len(moved) == 2


def test_targets_in_tuples_and_dictionaries_move_with_the_batch():
    """On the meta device, so that a tensor that was not moved is on another device."""
    targets = ({"masks": torch.rand(1, 2)}, [torch.rand(3)])
    batch = Batch(
        images=torch.rand(1, 3, 2, 2), targets=targets, image_metas=(ImageMeta("a"),), valid=torch.tensor([True])
    )
    moved = batch.to(torch.device("meta"))
    tensors = (moved.images, moved.valid, moved.targets[0]["masks"], moved.targets[1][0])
    assert all(tensor.device.type == "meta" for tensor in tensors)
    assert isinstance(moved.targets, tuple)


def test_unreadable_samples_are_listed_once_without_padding():
    samples = [
        {"name": "a", "unreadable": "is empty", "skipped": (("a", "is empty"), ("b", "is damaged"))},
        {"name": "c", "skipped": (("b", "is damaged"),)},
        {"name": "d", "unreadable": "is empty", "valid": False},
        {"name": "e", "unreadable": "is empty"},
    ]
    assert unreadable_of(samples) == (("a", "is empty"), ("b", "is damaged"), ("e", "is empty"))
