"""Exported files that several tests read."""

import shutil
from pathlib import Path

import pytest

from export.networks import build_classifier, export_file


@pytest.fixture(scope="session")
def network():
    return build_classifier()


@pytest.fixture(scope="session")
def onnx_file(network, tmp_path_factory) -> Path:
    """Return a file for batches of any size of 32 px images; tests must not change it."""
    return export_file(network, tmp_path_factory.mktemp("onnx"), dynamic=True, source="0" * 64)


@pytest.fixture(scope="session")
def xml_file(network, tmp_path_factory) -> Path:
    """Return a file, with its .bin, for batches of any size of 32 px images; tests must not change it."""
    return export_file(network, tmp_path_factory.mktemp("openvino"), "openvino", dynamic=True)


@pytest.fixture
def onnx_copy(onnx_file, tmp_path) -> Path:
    return Path(shutil.copy(onnx_file, tmp_path / "network.onnx"))


@pytest.fixture
def xml_copy(xml_file, tmp_path) -> Path:
    shutil.copy(xml_file.with_suffix(".bin"), tmp_path / "network.bin")
    return Path(shutil.copy(xml_file, tmp_path / "network.xml"))
