"""The same samples in the same order, however many processes read them and wherever one starts."""

import random

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from engine.tiny import Squares
from van.engine.loader import EvaluationOrder, SeededSet, Ticket, TrainingOrder, make_loader, seeded


def order(length: int, **changes: int) -> TrainingOrder:
    chosen = {
        "batch_size": 4,
        "accumulate": 1,
        "rank": 0,
        "world": 1,
        "seed": 0,
        "epoch": 0,
        "first_update": 0,
    } | changes
    return TrainingOrder(length, **chosen)


@given(
    share=st.integers(1, 4), accumulate=st.integers(1, 3), world=st.integers(1, 3),
    updates=st.integers(1, 5), rest=st.integers(0, 3), epoch=st.integers(0, 3),
)  # fmt: skip
def test_processes_and_steps_share_each_update_of_one_process(
    share: int, accumulate: int, world: int, updates: int, rest: int, epoch: int
):
    """Micro-batch by micro-batch, the ranks' tickets put together are what one process would read."""
    batch = share * accumulate * world
    length = updates * batch + min(rest, batch - 1)
    whole = [ticket for tickets in order(length, batch_size=batch, epoch=epoch) for ticket in tickets]
    parts = [
        list(order(length, batch_size=batch, accumulate=accumulate, rank=rank, world=world, epoch=epoch))
        for rank in range(world)
    ]
    assert all(len(part) == updates * accumulate for part in parts)
    joined = [ticket for step in zip(*parts, strict=True) for tickets in step for ticket in tickets]
    assert joined == whole
    assert len({ticket.index for ticket in whole}) == updates * batch


@given(first=st.integers(0, 6))
def test_an_epoch_entered_in_the_middle_goes_on_as_it_would_have(first: int):
    assert list(order(27, first_update=first)) == list(order(27))[first:]
    assert len(order(27, first_update=first)) == 6 - first


def test_epochs_and_seeds_change_the_order_and_the_augmentation():
    base, epoch, seed = list(order(40)), list(order(40, epoch=1)), list(order(40, seed=1))
    assert base != epoch
    assert base != seed
    assert {t.seed for batch in base for t in batch}.isdisjoint(t.seed for batch in epoch for t in batch)


@given(length=st.integers(1, 40), world=st.integers(1, 4), batch=st.integers(1, 7))
def test_an_evaluation_reads_every_sample_once_and_gives_each_process_as_many_batches(
    length: int, world: int, batch: int
):
    orders = [EvaluationOrder(length, batch_size=batch, rank=rank, world=world) for rank in range(world)]
    parts = [list(one) for one in orders]
    assert {len(part) for part in parts} == {len(orders[0])}
    counted = [t.index for part in parts for tickets in part for t in tickets if t.valid]
    assert sorted(counted) == list(range(length))


def test_seeding_a_sample_leaves_the_global_generators_as_they_were():
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


def test_a_training_sample_that_cannot_be_read_is_replaced_by_the_next_and_named():
    samples = SeededSet(Squares(5, broken=(3, 4)), substitute=True)
    assert samples[Ticket(3, 0)]["name"] == "square-0"
    assert samples[Ticket(3, 0)]["passed_over"] == (("square-3", "is damaged"), ("square-4", "is damaged"))
    assert samples[Ticket(1, 0)]["passed_over"] == ()


def test_an_evaluation_sample_that_cannot_be_read_is_not_replaced():
    assert SeededSet(Squares(5, broken=(3,)), substitute=False)[Ticket(3, 0)]["unreadable"] == "is damaged"


def test_making_an_iterator_draws_nothing_from_the_global_generator():
    """PyTorch's loader draws a base seed; from the global generator it would make resumed runs differ."""
    torch.manual_seed(4)
    before = torch.get_rng_state()
    next(iter(make_loader(Squares(8), order(8), list, workers=0)))
    assert torch.equal(torch.get_rng_state(), before)
