"""Which samples come when: the same ones however many processes read them, and after any resume.

The order of an epoch depends on the seed and the epoch alone, and so does the randomness of each
sample's augmentation. A loader can therefore start in the middle of an epoch, with any number of
workers, and yield exactly what it would have yielded.
"""

import contextlib
import random
from collections.abc import Callable, Generator, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.utils.data import DataLoader, Sampler, get_worker_info

from van.engine.job import SampleSet
from van.tasks.base import Batch, Sample

SUBSTITUTES = 8
"""How many samples are tried in a row before an unreadable one is given up."""


class Ticket(NamedTuple):
    """One reading of one sample: its index, the seed of its augmentation, and whether it counts."""

    index: int
    seed: int
    valid: bool = True


class TrainingOrder(Sampler[list[Ticket]]):
    """The micro-batches of one process in one epoch, from a given update on.

    Args:
        length: samples in the set.
        batch_size: of one update, over all processes and accumulated steps.
        accumulate: micro-batches in one update.
        rank, world: this process and their number.
        seed, epoch: what the order depends on.
        first_update: updates of this epoch that are already done.
    """

    def __init__(
        self,
        length: int,
        *,
        batch_size: int,
        accumulate: int,
        rank: int,
        world: int,
        seed: int,
        epoch: int,
        first_update: int,
    ) -> None:
        self.length, self.batch_size, self.accumulate = length, batch_size, accumulate
        self.rank, self.world = rank, world
        self.seed, self.epoch, self.first_update = seed, epoch, first_update

    def __len__(self) -> int:
        return (self.length // self.batch_size - self.first_update) * self.accumulate

    def __iter__(self) -> Iterator[list[Ticket]]:
        generator = torch.Generator().manual_seed(_mixed(self.seed, self.epoch))
        order = torch.randperm(self.length, generator=generator).tolist()
        share = self.batch_size // (self.accumulate * self.world)
        for update in range(self.first_update, self.length // self.batch_size):
            for micro in range(self.accumulate):
                start = update * self.batch_size + (micro * self.world + self.rank) * share
                places = range(start, start + share)
                yield [Ticket(order[p], _mixed(self.seed, self.epoch, order[p])) for p in places]


class EvaluationOrder(Sampler[list[Ticket]]):
    """Every sample once over all processes; each process gets as many batches, padded by tickets that do not count."""

    def __init__(self, length: int, *, batch_size: int, rank: int, world: int) -> None:
        self.length, self.batch_size, self.rank, self.world = length, batch_size, rank, world

    def __len__(self) -> int:
        return -(-self._share() // self.batch_size)

    def _share(self) -> int:
        return -(-self.length // self.world)

    def __iter__(self) -> Iterator[list[Ticket]]:
        places = range(self.rank, self._share() * self.world, self.world)
        mine = [Ticket(place, 0) if place < self.length else Ticket(0, 0, False) for place in places]
        for start in range(0, len(mine), self.batch_size):
            yield mine[start : start + self.batch_size]


class SeededSet:
    """A sample set addressed by tickets: each sample is read under its own seed.

    Args:
        samples: what to read.
        substitute: replace an unreadable sample by the next readable one, so that training batches stay
            full; what was passed over is named in the substitute's ``passed_over``.
    """

    def __init__(self, samples: SampleSet, *, substitute: bool) -> None:
        self.samples, self.substitute = samples, substitute

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, ticket: Ticket) -> dict[str, Any]:
        passed_over: list[tuple[str, str]] = []
        for place in range(SUBSTITUTES if self.substitute else 1):
            with seeded(ticket.seed):
                sample = self.samples[(ticket.index + place) % len(self.samples)]
            if "unreadable" not in sample:
                break
            passed_over.append((sample["name"], sample["unreadable"]))
        return {**sample, "valid": ticket.valid, "passed_over": tuple(passed_over)}


def make_loader(
    samples: SampleSet, order: Sampler[list[Ticket]], collate: Callable[[Sequence[Sample]], Batch], *, workers: int
) -> DataLoader[Any]:
    """A loader of batches in ``order``; ``workers`` processes read ahead."""
    return DataLoader(
        SeededSet(samples, substitute=isinstance(order, TrainingOrder)),  # pyrefly: ignore[bad-argument-type]
        batch_sampler=order,
        collate_fn=collate,
        num_workers=workers,
        pin_memory=torch.cuda.is_available(),
        generator=torch.Generator().manual_seed(0),  # else each new iterator would draw from the global one
        worker_init_fn=_one_thread if workers else None,
    )


@contextlib.contextmanager
def seeded(seed: int) -> Generator[None, None, None]:
    """Seed the three global random generators for a block; outside of workers, put them back after it."""
    keep = get_worker_info() is None
    before = (random.getstate(), np.random.get_state(), torch.get_rng_state()) if keep else None
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.default_generator.manual_seed(seed)
    try:
        yield
    finally:
        if before is not None:
            random.setstate(before[0])
            np.random.set_state(before[1])
            torch.set_rng_state(before[2])


def _one_thread(worker: int) -> None:
    torch.set_num_threads(1)


def _mixed(*parts: int) -> int:
    """One 63-bit seed from several numbers, by the SplitMix64 finaliser (Steele et al. 2014)."""
    state = 0
    for part in parts:
        state = (state + part + 0x9E3779B97F4A7C15) % 2**64
        state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) % 2**64
        state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) % 2**64
        state ^= state >> 31
    return state >> 1
