"""Model files, images, and one server for all tests that do not change it."""

import io
from collections.abc import Iterator
from pathlib import Path

import pytest

from datasets.synthetic_annotated import write_dense_checkpoint
from explain.small_models import image, write_small
from serving.server import ServerProcess, running_server


def png(width: int = 90, height: int = 70, seed: int = 0) -> bytes:
    """Return an image file."""
    buffer = io.BytesIO()
    image(width, height, seed).save(buffer, format="png")
    return buffer.getvalue()


@pytest.fixture(scope="session")
def classifier_file(tmp_path_factory) -> Path:
    """Return a classifier with an input of 64 px; tests must not change the file."""
    return write_small(tmp_path_factory.mktemp("served") / "small.safetensors", image_size=64)


@pytest.fixture(scope="session")
def detector_file(tmp_path_factory) -> Path:
    """Return a detector; tests must not change the file."""
    return write_dense_checkpoint(tmp_path_factory.mktemp("served") / "detector.safetensors", "detect")


@pytest.fixture(scope="session")
def service(classifier_file, detector_file) -> Iterator[ServerProcess]:
    """Run a server with small limits and one worker that holds both models."""
    flags = ["--max-body-mb", 2, "--max-megapixels", 1, "--max-images", 60, "--max-queue", 64, "--max-memory-mb", 24]
    flags += ["--header-timeout-s", 2, "--body-timeout-s", 2.4, "--max-wait-ms", 20, "--reload-interval-s", 0]
    flags += ["--max-connections", 80]
    with running_server(classifier_file, f"detector={detector_file}", *flags, OMP_NUM_THREADS="1") as server:
        yield server
