"""Loaders yield the same samples in the same order for any number of processes and any first update."""

import random

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from training.tiny import Squares
from van.training.loader import EvalBatchSampler, SampleRef, SeededDataset, TrainBatchSampler, make_loader, seeded


def make_sampler(length: int, **changes: int) -> TrainBatchSampler:
    arguments = {
        "batch_size": 4,
        "grad_accum_steps": 1,
        "rank": 0,
        "world_size": 1,
        "seed": 0,
        "epoch": 0,
        "first_update": 0,
    } | changes
    return TrainBatchSampler(length, **arguments)


@given(
    share=st.integers(1, 4), grad_accum_steps=st.integers(1, 3), world_size=st.integers(1, 3),
    updates=st.integers(1, 5), rest=st.integers(0, 3), epoch=st.integers(0, 3),
)  # fmt: skip
def test_ranks_and_accumulation_steps_partition_the_batch_of_one_process(
    share: int, grad_accum_steps: int, world_size: int, updates: int, rest: int, epoch: int
):
    """Micro-batch by micro-batch, the ranks' references put together are those of one process."""
    batch = share * grad_accum_steps * world_size
    length = updates * batch + min(rest, batch - 1)
    whole = [ref for refs in make_sampler(length, batch_size=batch, epoch=epoch) for ref in refs]
    parts = [
        list(
            make_sampler(
                length,
                batch_size=batch,
                grad_accum_steps=grad_accum_steps,
                rank=rank,
                world_size=world_size,
                epoch=epoch,
            )
        )
        for rank in range(world_size)
    ]
    assert all(len(part) == updates * grad_accum_steps for part in parts)
    joined = [ref for step in zip(*parts, strict=True) for refs in step for ref in refs]
    assert joined == whole
    assert len({ref.index for ref in whole}) == updates * batch


@given(first=st.integers(0, 6))
def test_a_sampler_that_starts_in_the_middle_of_an_epoch_yields_the_remaining_batches(first: int):
    assert list(make_sampler(27, first_update=first)) == list(make_sampler(27))[first:]
    assert len(make_sampler(27, first_update=first)) == 6 - first


def test_epochs_and_seeds_change_the_order_and_the_augmentation():
    base, epoch, seed = list(make_sampler(40)), list(make_sampler(40, epoch=1)), list(make_sampler(40, seed=1))
    assert base != epoch
    assert base != seed
    assert {t.seed for batch in base for t in batch}.isdisjoint(t.seed for batch in epoch for t in batch)


@given(length=st.integers(1, 40), world_size=st.integers(1, 4), batch=st.integers(1, 7))
def test_evaluation_reads_every_sample_once_and_gives_each_process_the_same_number_of_batches(
    length: int, world_size: int, batch: int
):
    orders = [
        EvalBatchSampler(length, batch_size=batch, rank=rank, world_size=world_size) for rank in range(world_size)
    ]
    parts = [list(one) for one in orders]
    assert {len(part) for part in parts} == {len(orders[0])}
    counted = [t.index for part in parts for refs in part for t in refs if t.valid]
    assert sorted(counted) == list(range(length))


def test_seeded_restores_the_global_generators():
    def draws() -> tuple[float, float, float]:
        return random.random(), float(np.random.rand()), float(torch.rand(()))

    random.seed(1), np.random.seed(1), torch.manual_seed(1)
    expected = draws()
    random.seed(1), np.random.seed(1), torch.manual_seed(1)
    with seeded(5):
        inside = draws()
    assert draws() == expected
    with seeded(5):
        assert draws() == inside != expected


def test_an_unreadable_training_sample_is_replaced_by_the_next_readable_one_which_names_it():
    samples = SeededDataset(Squares(5, broken=(3, 4)), substitute=True)
    assert samples[SampleRef(3, 0)]["name"] == "square-0"
    assert samples[SampleRef(3, 0)]["skipped"] == (("square-3", "is damaged"), ("square-4", "is damaged"))
    assert samples[SampleRef(1, 0)]["skipped"] == ()


def test_an_unreadable_validation_sample_is_not_replaced():
    assert SeededDataset(Squares(5, broken=(3,)), substitute=False)[SampleRef(3, 0)]["unreadable"] == "is damaged"


def test_creating_an_iterator_does_not_draw_from_the_global_generator():
    """PyTorch's loader draws a base seed; drawn from the global generator it would make resumed runs differ."""
    torch.manual_seed(4)
    before = torch.get_rng_state()
    next(iter(make_loader(Squares(8), make_sampler(8), list, workers=0)))
    assert torch.equal(torch.get_rng_state(), before)
