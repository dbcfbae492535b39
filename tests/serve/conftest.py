"""Model files, pictures, and one service for all tests of a process that change nothing in it."""

import io
from collections.abc import Iterator
from pathlib import Path

import pytest

from data.made_marked import write_marked_checkpoint
from explain.small import picture, write_small
from serve.running import Running, running


def png(width: int = 90, height: int = 70, seed: int = 0) -> bytes:
    """A picture file."""
    written = io.BytesIO()
    picture(width, height, seed).save(written, format="png")
    return written.getvalue()


@pytest.fixture(scope="session")
def small_file(tmp_path_factory) -> Path:
    """A network that classifies, 64 px. Not to be changed."""
    return write_small(tmp_path_factory.mktemp("served") / "small.safetensors", size_px=64)


@pytest.fixture(scope="session")
def things_file(tmp_path_factory) -> Path:
    """A network that finds things. Not to be changed."""
    return write_marked_checkpoint(tmp_path_factory.mktemp("served") / "things.safetensors", "detect")


@pytest.fixture(scope="session")
def service(small_file, things_file) -> Iterator[Running]:
    """A service with small limits, with one worker that holds both networks."""
    flags = ["--max-body-mb", 2, "--max-megapixels", 1, "--max-pictures", 60, "--max-queue", 64, "--max-memory-mb", 24]
    flags += ["--head-s", 2, "--body-s", 2.4, "--max-wait-ms", 20, "--watch-s", 0, "--max-connections", 80]
    with running(small_file, f"things={things_file}", *flags, OMP_NUM_THREADS="1") as server:
        yield server
