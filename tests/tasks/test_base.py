"""Batches on their way to a device, whatever a task puts into them."""

import torch

from van.tasks.base import Batch, Frame, unreadable_of


def test_pictures_arrive_in_channels_last_and_all_else_as_it_was():
    batch = Batch(
        pictures=torch.rand(2, 3, 4, 5),
        targets=[{"boxes": torch.rand(2, 4), "label": "cat"}, {"boxes": torch.rand(0, 4), "label": "dog"}],
        frames=(Frame("a"), Frame("b", (4, 5), (8, 10))),
        valid=torch.tensor([True, False]),
        unreadable=(("c", "is empty"),),
    )
    moved = batch.to(torch.device("cpu"))
    assert moved.pictures.is_contiguous(memory_format=torch.channels_last)
    assert moved.pictures.equal(batch.pictures)
    assert moved.targets[0]["boxes"].equal(batch.targets[0]["boxes"])
    assert [target["label"] for target in moved.targets] == ["cat", "dog"]
    assert (moved.names, moved.valid.tolist(), moved.unreadable) == (("a", "b"), [True, False], (("c", "is empty"),))
    assert len(moved) == 2


def test_targets_in_tuples_and_dictionaries_move_with_the_batch():
    """The meta device holds no numbers, so whatever was left behind shows."""
    targets = ({"masks": torch.rand(1, 2)}, [torch.rand(3)])
    batch = Batch(pictures=torch.rand(1, 3, 2, 2), targets=targets, frames=(Frame("a"),), valid=torch.tensor([True]))
    moved = batch.to(torch.device("meta"))
    tensors = (moved.pictures, moved.valid, moved.targets[0]["masks"], moved.targets[1][0])
    assert all(tensor.device.type == "meta" for tensor in tensors)
    assert isinstance(moved.targets, tuple)


def test_unreadable_samples_are_named_once_and_padding_is_left_out():
    samples = [
        {"name": "a", "unreadable": "is empty", "passed_over": (("a", "is empty"), ("b", "is damaged"))},
        {"name": "c", "passed_over": (("b", "is damaged"),)},
        {"name": "d", "unreadable": "is empty", "valid": False},
        {"name": "e", "unreadable": "is empty"},
    ]
    assert unreadable_of(samples) == (("a", "is empty"), ("b", "is damaged"), ("e", "is empty"))
