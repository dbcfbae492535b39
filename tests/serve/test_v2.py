"""The Open Inference Protocol: forms, names and errors as it has them, and the answers of the Python interface."""

import base64
import json

import numpy as np
import pytest

import van
from serve.conftest import png
from van.pictures import read_picture


@pytest.fixture(scope="module")
def predictor(small_file):
    return van.Predictor.load(small_file, device="cpu")


def infer(service, model: str = "small", **request):
    return service.client.post(f"/v2/models/{model}/infer", json=request)


def of_pictures(*pictures: bytes) -> dict:
    data = [base64.b64encode(picture).decode() for picture in pictures]
    return {"name": "pictures", "datatype": "BYTES", "shape": [len(data)], "data": data}


def outputs_of(answer) -> dict:
    assert answer.status_code == 200, answer.text
    return {output["name"]: output for output in answer.json()["outputs"]}


def probabilities(predictor, picture: bytes) -> list[float]:
    return list(predictor(picture).probabilities)


def test_the_server_and_its_models_are_described(service):
    client = service.client
    assert set(client.get("/v2").json()) >= {"name", "version", "extensions"}
    assert client.get("/v2/health/live").status_code == client.get("/v2/health/ready").status_code == 200
    assert client.get("/v2/models/small/ready").status_code == 200
    told = client.get("/v2/models/small").json()
    assert set(told) >= {"name", "versions", "platform", "inputs", "outputs"}
    assert [one["shape"] for one in told["inputs"]] == [[-1], [-1, 3, 64, 64]]
    assert told["parameters"]["labels"] == ["ant", "bee", "cat", "dog"]
    for answer in (client.get("/v2/models/none"), client.get("/v2/models/none/ready"), infer(service, "none")):
        assert answer.status_code == 404
        assert isinstance(answer.json()["error"], str)


def test_pictures_are_answered_with_probabilities_in_the_order_of_the_labels(service, predictor):
    pictures = [png(seed=1), png(120, 64, seed=2)]
    answer = infer(service, id="7", inputs=[of_pictures(*pictures)])
    assert answer.json()["id"] == "7"
    assert answer.json()["model_name"] == "small"
    outputs = outputs_of(answer)
    assert outputs["probabilities"]["shape"] == [2, 4]
    found = np.reshape(outputs["probabilities"]["data"], (2, 4))
    np.testing.assert_allclose(found, [probabilities(predictor, picture) for picture in pictures], atol=2e-5)
    assert outputs["labels"]["data"] == [predictor(picture).top(1)[0].label for picture in pictures]
    assert [len(json.loads(text)["classes"]) for text in outputs["answers"]["data"]] == [4, 4]


@pytest.mark.parametrize("flat", [True, False])
def test_a_tensor_is_what_the_network_reads(service, predictor, flat):
    pictures = [png(seed=3), png(seed=4)]
    seen = np.stack([predictor.preprocess(read_picture(picture)).numpy() for picture in pictures])
    data = (seen.ravel() if flat else seen).tolist()
    given = {"name": "tensor", "datatype": "FP32", "shape": [2, 3, 64, 64], "data": data}
    outputs = outputs_of(infer(service, inputs=[given], outputs=[{"name": "probabilities"}]))
    assert set(outputs) == {"probabilities"}
    found = np.reshape(outputs["probabilities"]["data"], (2, 4))
    np.testing.assert_allclose(found, [probabilities(predictor, picture) for picture in pictures], atol=2e-5)


def test_things_are_answered_as_json_in_bytes(service):
    outputs = outputs_of(infer(service, "things", inputs=[of_pictures(png(64, 64))]))
    assert set(outputs) == {"answers"}
    assert json.loads(outputs["answers"]["data"][0])["things"]


def tensor(shape: list, data: list, datatype: str = "FP32") -> dict:
    return {"name": "tensor", "datatype": datatype, "shape": shape, "data": data}


BAD = {
    "no inputs": ({}, "wanted a list inputs with one input"),
    "two": ({"inputs": [of_pictures(b"x"), of_pictures(b"x")]}, "wanted a list inputs with one input"),
    "name": ({"inputs": [{**of_pictures(b"x"), "name": "image"}]}, "the input is 'image' of BYTES; wanted pictures"),
    "datatype": ({"inputs": [tensor([1, 3, 64, 64], [], "FP16")]}, "'tensor' of FP16"),
    "shape": ({"inputs": [tensor([1, 3, 32, 32], [0.0] * 3072)]}, "wanted [N, 3, 64, 64]"),
    "few": ({"inputs": [tensor([1, 3, 64, 64], [0.0])]}, "is not 12,288 numbers"),
    "ragged": ({"inputs": [tensor([1, 3, 64, 64], [[0.0], [0.0, 1.0]])]}, "is not 12,288 numbers"),
    "words": ({"inputs": [tensor([1, 3, 64, 64], ["0"] * 12288)]}, "is not 12,288 numbers"),
    "large": ({"inputs": [tensor([1, 3, 64, 64], [1e300] * 12288)]}, "NaN, infinity or what float32 cannot hold"),
    "count": ({"inputs": [{**of_pictures(b"x"), "shape": [2]}]}, "the shape of pictures is [2]; wanted [1]"),
    "negative": ({"inputs": [{**of_pictures(b"x"), "shape": [-1]}]}, "a size is none"),
    "output": ({"inputs": [of_pictures(b"x")], "outputs": [{"name": "poem"}]}, "there is no output 'poem'"),
    "unreadable": ({"inputs": [of_pictures(b"x")]}, "picture 0: is no picture that can be read"),
    "address": ({"inputs": [{**of_pictures(b"x"), "data": ["http://x/y"]}]}, "nothing is fetched here"),
    "id": ({"inputs": [of_pictures(b"x")], "id": 7}, "id is no string"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_wrong_request_is_refused_in_the_protocols_form(service, case):
    request, message = BAD[case]
    answer = infer(service, **request)
    assert answer.status_code == 422
    assert set(answer.json()) == {"error"}
    assert message in answer.json()["error"]
