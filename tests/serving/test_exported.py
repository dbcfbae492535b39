"""Exported files behind the server: the same predictions as from Python, and reloading of a pair of files."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from export.networks import LABELS, build_classifier, export_file
from serving.conftest import png
from serving.server import ServerProcess, running_server
from van.model import Model
from van.predict import Predictor


def write_pair(folder: Path, seed: int) -> Path:
    """Export an OpenVINO file with its weights beside it."""
    folder.mkdir()
    return export_file(build_classifier(seed=seed), folder, "openvino")


@pytest.fixture(scope="module")
def onnx_file(tmp_path_factory) -> Path:
    return export_file(build_classifier(), tmp_path_factory.mktemp("exported"))


@pytest.fixture(scope="module")
def service(onnx_file) -> Iterator[ServerProcess]:
    with running_server(onnx_file, "--threads", 1, "--reload-interval-s", 0, OMP_NUM_THREADS="1") as server:
        yield server


def predict_scores(service: ServerProcess, image: bytes) -> list[float]:
    response = service.client.post("/predict", files={"image": ("a.png", image)})
    assert response.status_code == 200, response.text
    ranked = sorted(response.json()["predictions"][0]["classes"], key=lambda entry: entry["index"])
    assert [entry["label"] for entry in ranked] == list(LABELS)
    return [entry["score"] for entry in ranked]


def test_an_exported_file_has_the_predictions_of_its_predictor(service, onnx_file):
    own = Predictor(Model.load(onnx_file, threads=1))
    found = [predict_scores(service, png(81, 70, seed)) for seed in range(2)]
    expected = [own(png(81, 70, seed)).scores for seed in range(2)]
    np.testing.assert_allclose(found, expected, atol=2e-5)
    assert not np.allclose(*expected, atol=1e-4)


def test_an_exported_file_has_no_explanations(service):
    response = service.client.post("/explain", files={"image": ("a.png", png())})
    assert (response.status_code, response.json()["error"]["code"]) == (422, "explanation_not_supported")
    assert service.client.get("/models").json()["models"][0]["methods"] == []


@pytest.mark.slow
def test_a_pair_is_reloaded_only_when_both_of_its_files_match(tmp_path):
    """The new weights come first: they do not match the old network, which continues until the new one is there."""
    pair, fresh = (write_pair(tmp_path / name, seed) for seed, name in enumerate(("served", "fresh")))
    image = png(seed=3)
    old, new = (list(Predictor(Model.load(path, threads=1))(image).scores) for path in (pair, fresh))
    assert not np.allclose(old, new, atol=1e-3)
    with running_server(pair, "--threads", 1, "--reload-interval-s", 0.2, OMP_NUM_THREADS="1") as service:
        version = service.client.get("/models").json()["models"][0]["version"]
        before = len(service.lines)
        for suffix in (".bin", ".xml"):
            np.testing.assert_allclose(predict_scores(service, image), old, atol=2e-5)
            shutil.copy(fresh.with_suffix(suffix), pair.with_suffix(".new"))
            pair.with_suffix(".new").replace(pair.with_suffix(suffix))
            if suffix == ".bin":
                service.wait_for("model reload failed", after=before, timeout_s=60)
        service.wait_for("model reloaded", after=before, timeout_s=60)
        np.testing.assert_allclose(predict_scores(service, image), new, atol=2e-5)
        assert service.client.get("/models").json()["models"][0]["version"] != version
