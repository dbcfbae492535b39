"""Batch samplers and data loaders whose order does not depend on the number of processes or on a resume.

The order of an epoch depends only on the seed and the epoch, and so does the randomness of each
sample's augmentation. A loader can therefore start in the middle of an epoch, with any number of
workers, and yield the same batches as an uninterrupted run.
"""

import contextlib
import random
from collections.abc import Callable, Generator, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.utils.data import DataLoader, Sampler, get_worker_info

from van.tasks.base import Batch, Sample
from van.training.run import Dataset

MAX_SUBSTITUTES = 8
"""How many consecutive samples are tried in place of an unreadable one."""


class SampleRef(NamedTuple):
    """A reference to a sample: its index, the seed of its augmentation, and whether metrics count it."""

    index: int
    seed: int
    valid: bool = True


class TrainBatchSampler(Sampler[list[SampleRef]]):
    """A sampler of the micro-batches of one process in one epoch, starting at a given update.

    Args:
        length: number of samples in the dataset.
        batch_size: samples per update, over all processes and accumulated steps.
        grad_accum_steps: micro-batches per update.
        rank, world_size: the index of this process and the number of processes.
        seed, epoch: the order depends on these two only.
        first_update: number of updates of this epoch that are already done.
    """

    def __init__(
        self,
        length: int,
        *,
        batch_size: int,
        grad_accum_steps: int,
        rank: int,
        world_size: int,
        seed: int,
        epoch: int,
        first_update: int,
    ) -> None:
        self.length, self.batch_size, self.grad_accum_steps = length, batch_size, grad_accum_steps
        self.rank, self.world_size = rank, world_size
        self.seed, self.epoch, self.first_update = seed, epoch, first_update

    def __len__(self) -> int:
        return (self.length // self.batch_size - self.first_update) * self.grad_accum_steps

    def __iter__(self) -> Iterator[list[SampleRef]]:
        generator = torch.Generator().manual_seed(_combine_seeds(self.seed, self.epoch))
        order = torch.randperm(self.length, generator=generator).tolist()
        micro_batch_size = self.batch_size // (self.grad_accum_steps * self.world_size)
        for update in range(self.first_update, self.length // self.batch_size):
            for micro in range(self.grad_accum_steps):
                # the ranks' micro-batches put together are the batch of one process
                start = update * self.batch_size + (micro * self.world_size + self.rank) * micro_batch_size
                indices = order[start : start + micro_batch_size]
                yield [SampleRef(index, _combine_seeds(self.seed, self.epoch, index)) for index in indices]


class EvalBatchSampler(Sampler[list[SampleRef]]):
    """A sampler of every sample once over all processes.

    Each process gets the same number of batches; the last ones are padded with references that are not ``valid``.
    """

    def __init__(self, length: int, *, batch_size: int, rank: int, world_size: int) -> None:
        self.length, self.batch_size, self.rank, self.world_size = length, batch_size, rank, world_size

    def __len__(self) -> int:
        return -(-self._samples_per_process() // self.batch_size)

    def _samples_per_process(self) -> int:
        return -(-self.length // self.world_size)

    def __iter__(self) -> Iterator[list[SampleRef]]:
        indices = range(self.rank, self._samples_per_process() * self.world_size, self.world_size)
        refs = [SampleRef(index, 0) if index < self.length else SampleRef(0, 0, False) for index in indices]
        for start in range(0, len(refs), self.batch_size):
            yield refs[start : start + self.batch_size]


class SeededDataset:
    """A dataset indexed by ``SampleRef``: each sample is read under its own seed.

    Args:
        samples: the dataset to read from.
        substitute: replace an unreadable sample by the next readable one, so that training batches stay
            full; the ``skipped`` entry of the substitute names the samples that it replaces.
    """

    def __init__(self, samples: Dataset, *, substitute: bool) -> None:
        self.samples, self.substitute = samples, substitute

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, ref: SampleRef) -> dict[str, Any]:
        skipped: list[tuple[str, str]] = []
        for offset in range(MAX_SUBSTITUTES if self.substitute else 1):
            with seeded(ref.seed):
                sample = self.samples[(ref.index + offset) % len(self.samples)]
            if "unreadable" not in sample:
                break
            skipped.append((sample["name"], sample["unreadable"]))
        return {**sample, "valid": ref.valid, "skipped": tuple(skipped)}


def make_loader(
    samples: Dataset, sampler: Sampler[list[SampleRef]], collate: Callable[[Sequence[Sample]], Batch], *, workers: int
) -> DataLoader[Any]:
    """Return a loader of the batches that ``sampler`` lists; ``workers`` processes read ahead."""
    return DataLoader(
        SeededDataset(samples, substitute=isinstance(sampler, TrainBatchSampler)),  # pyrefly: ignore[bad-argument-type]
        batch_sampler=sampler,
        collate_fn=collate,
        num_workers=workers,
        pin_memory=torch.cuda.is_available(),
        generator=torch.Generator().manual_seed(0),  # otherwise each new iterator draws from the global generator
        worker_init_fn=_limit_threads if workers else None,
    )


@contextlib.contextmanager
def seeded(seed: int) -> Generator[None, None, None]:
    """Seed the three global random generators for a block; outside of workers, restore them after it."""
    # a worker process reads samples only, so its generators need not be restored
    in_main_process = get_worker_info() is None
    before = (random.getstate(), np.random.get_state(), torch.get_rng_state()) if in_main_process else None
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


def _limit_threads(worker: int) -> None:
    torch.set_num_threads(1)


def _combine_seeds(*seeds: int) -> int:
    """Return one 63-bit seed from several integers, by the SplitMix64 finalizer (Steele et al. 2014)."""
    state = 0
    for seed in seeds:
        state = (state + seed + 0x9E3779B97F4A7C15) % 2**64
        state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) % 2**64
        state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) % 2**64
        state ^= state >> 31
    return state >> 1
