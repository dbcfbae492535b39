"""One exported file of each kind, for tests that only read it."""

import shutil
from pathlib import Path

import pytest

from export.made import classifier, written


@pytest.fixture(scope="session")
def network():
    return classifier()


@pytest.fixture(scope="session")
def onnx_file(network, tmp_path_factory) -> Path:
    """For any number of pictures of 32 px. Not to be changed."""
    return written(network, tmp_path_factory.mktemp("onnx"), dynamic=True, source="0" * 64)


@pytest.fixture(scope="session")
def xml_file(network, tmp_path_factory) -> Path:
    """For any number of pictures of 32 px, with its .bin. Not to be changed."""
    return written(network, tmp_path_factory.mktemp("openvino"), "openvino", dynamic=True)


@pytest.fixture
def onnx_copy(onnx_file, tmp_path) -> Path:
    return Path(shutil.copy(onnx_file, tmp_path / "network.onnx"))


@pytest.fixture
def xml_copy(xml_file, tmp_path) -> Path:
    shutil.copy(xml_file.with_suffix(".bin"), tmp_path / "network.bin")
    return Path(shutil.copy(xml_file, tmp_path / "network.xml"))
