"""The Open Inference Protocol: its types, names and errors, and the predictions of the Python interface."""

import base64
import json

import numpy as np
import pytest

from serving.conftest import png
from van.images import read_image
from van.model import Model
from van.predict import Predictor


@pytest.fixture(scope="module")
def predictor(classifier_file):
    return Predictor(Model.load(classifier_file), device="cpu")


def infer(service, model: str = "small", **request):
    return service.client.post(f"/v2/models/{model}/infer", json=request)


def images_input(*images: bytes) -> dict:
    data = [base64.b64encode(image).decode() for image in images]
    return {"name": "images", "datatype": "BYTES", "shape": [len(data)], "data": data}


def tensor_input(shape: list, data: list, datatype: str = "FP32") -> dict:
    return {"name": "tensor", "datatype": datatype, "shape": shape, "data": data}


def outputs_of(response) -> dict:
    assert response.status_code == 200, response.text
    return {output["name"]: output for output in response.json()["outputs"]}


def scores(predictor, image: bytes) -> list[float]:
    return list(predictor(image).scores)


def test_the_server_and_its_models_are_described(service):
    client = service.client
    assert set(client.get("/v2").json()) >= {"name", "version", "extensions"}
    assert client.get("/v2/health/live").status_code == client.get("/v2/health/ready").status_code == 200
    assert client.get("/v2/models/small/ready").status_code == 200
    metadata = client.get("/v2/models/small").json()
    assert set(metadata) >= {"name", "versions", "platform", "inputs", "outputs"}
    assert [one["shape"] for one in metadata["inputs"]] == [[-1], [-1, 3, 64, 64]]
    assert [one["name"] for one in metadata["outputs"]] == ["predictions", "scores", "class_names"]
    assert metadata["parameters"]["class_names"] == ["ant", "bee", "cat", "dog"]
    for response in (client.get("/v2/models/none"), client.get("/v2/models/none/ready"), infer(service, "none")):
        assert response.status_code == 404
        assert isinstance(response.json()["error"], str)


def test_scores_are_in_the_order_of_the_class_names(service, predictor):
    images = [png(seed=1), png(120, 64, seed=2)]
    response = infer(service, id="7", inputs=[images_input(*images)])
    assert response.json()["id"] == "7"
    assert response.json()["model_name"] == "small"
    outputs = outputs_of(response)
    assert outputs["scores"]["shape"] == [2, 4]
    found = np.reshape(outputs["scores"]["data"], (2, 4))
    np.testing.assert_allclose(found, [scores(predictor, image) for image in images], atol=2e-5)
    assert outputs["class_names"]["data"] == [predictor(image).top(1)[0].label for image in images]
    assert [len(json.loads(text)["classes"]) for text in outputs["predictions"]["data"]] == [4, 4]


@pytest.mark.parametrize("flat", [True, False])
def test_a_tensor_is_a_preprocessed_image(service, predictor, flat):
    images = [png(seed=3), png(seed=4)]
    tensors = np.stack([predictor.preprocess(read_image(image)).numpy() for image in images])
    request = tensor_input([2, 3, 64, 64], (tensors.ravel() if flat else tensors).tolist())
    outputs = outputs_of(infer(service, inputs=[request], outputs=[{"name": "scores"}]))
    assert set(outputs) == {"scores"}
    found = np.reshape(outputs["scores"]["data"], (2, 4))
    np.testing.assert_allclose(found, [scores(predictor, image) for image in images], atol=2e-5)


def test_detections_are_json_in_bytes(service):
    outputs = outputs_of(infer(service, "detector", inputs=[images_input(png(64, 64))]))
    assert set(outputs) == {"predictions"}
    assert json.loads(outputs["predictions"]["data"][0])["detections"]


INVALID = {
    "no inputs": ({}, "inputs:"),
    "two": ({"inputs": [images_input(b"x"), images_input(b"x")]}, "inputs:"),
    "name": ({"inputs": [{**images_input(b"x"), "name": "image"}]}, "'image' with datatype BYTES"),
    "datatype": ({"inputs": [tensor_input([1, 3, 64, 64], [], "FP16")]}, "'tensor' with datatype FP16"),
    "shape": ({"inputs": [tensor_input([1, 3, 32, 32], [0.0] * 3072)]}, "[N, 3, 64, 64]"),
    "few": ({"inputs": [tensor_input([1, 3, 64, 64], [0.0])]}, "12,288"),
    "ragged": ({"inputs": [tensor_input([1, 3, 64, 64], [[0.0], [0.0, 1.0]])]}, "12,288"),
    "strings": ({"inputs": [tensor_input([1, 3, 64, 64], ["0"] * 12288)]}, "12,288"),
    "large": ({"inputs": [tensor_input([1, 3, 64, 64], [1e300] * 12288)]}, "finite float32"),
    "count": ({"inputs": [{**images_input(b"x"), "shape": [2]}]}, "[1]"),
    "negative": ({"inputs": [{**images_input(b"x"), "shape": [-1]}]}, "[-1]"),
    "no data": ({"inputs": [{**images_input(b"x"), "data": "x"}]}, "data of images"),
    "output": ({"inputs": [images_input(b"x")], "outputs": [{"name": "poem"}]}, "'poem'"),
    "unreadable": ({"inputs": [images_input(b"x")]}, "image 0"),
    "url": ({"inputs": [{**images_input(b"x"), "data": ["http://x/y"]}]}, "URL"),
    "id": ({"inputs": [images_input(b"x")], "id": 7}, "id:"),
}


@pytest.mark.parametrize("case", INVALID)
def test_an_invalid_request_gets_an_error_of_the_protocol(service, case):
    request, named = INVALID[case]
    response = infer(service, **request)
    assert response.status_code == 422
    assert set(response.json()) == {"error"}
    assert named in response.json()["error"]
