"""Exported files behind the service: the same answers as from Python, and a pair of files that is replaced."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

import van
from export.made import LABELS, classifier, written
from serve.conftest import png
from serve.running import Running, running


def write_pair(folder: Path, seed: int) -> Path:
    """An OpenVINO file with the weights beside it."""
    folder.mkdir()
    return written(classifier(seed=seed), folder, "openvino")


@pytest.fixture(scope="module")
def onnx_file(tmp_path_factory) -> Path:
    return written(classifier(), tmp_path_factory.mktemp("exported"))


@pytest.fixture(scope="module")
def service(onnx_file) -> Iterator[Running]:
    with running(onnx_file, "--threads", 1, "--watch-s", 0, OMP_NUM_THREADS="1") as server:
        yield server


def probabilities(service: Running, picture: bytes) -> list[float]:
    answer = service.client.post("/predict", files={"f": ("a.png", picture)})
    assert answer.status_code == 200, answer.text
    ranked = sorted(answer.json()["answers"][0]["classes"], key=lambda one: one["index"])
    assert [one["label"] for one in ranked] == list(LABELS)
    return [one["probability"] for one in ranked]


def test_an_exported_file_is_answered_as_by_the_predictor_of_it(service, onnx_file):
    own = van.Predictor.load(onnx_file, threads=1)
    found = [probabilities(service, png(81, 70, seed)) for seed in range(2)]
    wanted = [own(png(81, 70, seed)).probabilities for seed in range(2)]
    np.testing.assert_allclose(found, wanted, atol=2e-5)
    assert not np.allclose(*wanted, atol=1e-4)


def test_what_cannot_be_looked_into_says_so(service):
    answer = service.client.post("/explain", files={"f": ("a.png", png())})
    assert (answer.status_code, answer.json()["error"]["code"]) == (422, "cannot_explain")
    assert service.client.get("/models").json()["models"][0]["methods"] == []


@pytest.mark.slow
def test_a_pair_is_taken_up_when_both_of_its_files_fit_and_not_before(tmp_path):
    """The weights come first: the old network does not fit them, and goes on until the new one is there, too."""
    pair, fresh = (write_pair(tmp_path / name, seed) for seed, name in enumerate(("served", "fresh")))
    picture = png(seed=3)
    old, new = (list(van.Predictor.load(path, threads=1)(picture).probabilities) for path in (pair, fresh))
    assert not np.allclose(old, new, atol=1e-3)
    with running(pair, "--threads", 1, "--watch-s", 0.2, OMP_NUM_THREADS="1") as service:
        version = service.client.get("/models").json()["models"][0]["version"]
        before = len(service.lines)
        for suffix in (".bin", ".xml"):
            np.testing.assert_allclose(probabilities(service, picture), old, atol=2e-5)
            shutil.copy(fresh.with_suffix(suffix), pair.with_suffix(".new"))
            pair.with_suffix(".new").replace(pair.with_suffix(suffix))
            if suffix == ".bin":
                service.wait_for("a new model file is refused", after=before, timeout_s=60)
        service.wait_for("a new model file is served", after=before, timeout_s=60)
        np.testing.assert_allclose(probabilities(service, picture), new, atol=2e-5)
        assert service.client.get("/models").json()["models"][0]["version"] != version
