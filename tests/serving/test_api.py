"""Responses of the routes: the same as from the Python interface, in order, whatever other requests are running."""

import base64
import io
import json
import re
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from PIL import Image
from prometheus_client.parser import text_string_to_metric_families

from serving.conftest import png
from van.explain.explainer import Explainer
from van.images import read_image
from van.model import Model
from van.predict import Predictor


@pytest.fixture(scope="module")
def predictor(classifier_file):
    return Predictor(Model.load(classifier_file), device="cpu")


def ranked_classes(prediction: dict) -> list:
    return [(entry["label"], entry["index"]) for entry in prediction["classes"]]


def scores(prediction: dict) -> list[float]:
    return [entry["score"] for entry in prediction["classes"]]


def test_fifty_concurrent_requests_get_the_predictions_of_their_own_images_in_batches(service, predictor):
    images = [png(60 + seed, 50 + seed, seed) for seed in range(50)]
    expected = [prediction.to_dict() for prediction in map(predictor, images)]
    before = service.metric("van_batch_size_count"), service.metric("van_batch_size_sum")

    def predict(pair: tuple[int, bytes]) -> dict:
        return service.client.post("/predict", files={"image": (f"{pair[0]}.png", pair[1])}).json()

    with ThreadPoolExecutor(50) as pool:
        responses = list(pool.map(predict, enumerate(images)))
    batches = service.metric("van_batch_size_count") - before[0]
    assert service.metric("van_batch_size_sum") - before[1] == 50
    assert batches < 40
    for index, (response, own) in enumerate(zip(responses, expected, strict=True)):
        [prediction] = response["predictions"]
        assert prediction["image"] == f"{index}.png"
        assert ranked_classes(prediction) == ranked_classes(own)
        np.testing.assert_allclose(scores(prediction), scores(own), atol=2e-5)
    assert len({tuple(scores(response["predictions"][0])) for response in responses}) == 50  # no two are the same


def test_all_forms_of_a_body_give_the_same_prediction(service):
    image = png()
    encoded = base64.b64encode(image).decode()
    client = service.client
    responses = [
        client.post("/predict?top=2", files=[("image", ("a.png", image))]),
        client.post("/predict", files=[("images", ("a.png", image))], data={"top": "2"}),
        client.post("/predict", json={"image": encoded, "top": 2}),
        client.post("/predict", json={"images": [{"name": "a.png", "data": encoded}], "top": 2}),
        client.post("/predict", json={"images": [f"data:image/png;base64,{encoded}"], "top": "2"}),
        client.post("/predict?top=2", content=image, headers={"Content-Type": "image/png"}),
    ]
    assert [response.status_code for response in responses] == [200] * 6
    first, *others = [response.json()["predictions"][0] for response in responses]
    assert len(first["classes"]) == 2
    for other in others:
        assert ranked_classes(other) == ranked_classes(first)
        np.testing.assert_allclose(scores(other), scores(first), atol=2e-5)


def test_detections_are_those_of_the_predictor_above_the_requested_score(service, detector_file):
    image = png(64, 64)
    own = Predictor(Model.load(detector_file), device="cpu")(image).to_dict()["detections"]
    response = service.client.post("/predict?model=detector", content=image, headers={"Content-Type": "image/png"})
    detections = response.json()["predictions"][0]["detections"]
    assert len(own) > 1
    assert [detection["label"] for detection in detections] == [detection["label"] for detection in own]
    for one, other in zip(detections, own, strict=True):
        np.testing.assert_allclose([one["score"], *one["box"]], [other["score"], *other["box"]], rtol=1e-3, atol=1e-3)
    middle = own[len(own) // 2]["score"]
    fewer, top = (
        service.client.post(f"/predict?model=detector&{query}", content=image, headers={"Content-Type": "image/png"})
        for query in (f"min_score={middle - 1e-4}", "top=1")
    )
    expected = sum(detection["score"] >= middle - 1e-4 for detection in own)
    assert 1 < expected < len(own)
    assert len(fewer.json()["predictions"][0]["detections"]) == expected
    assert top.json()["predictions"][0]["detections"] == detections[:1]


def test_one_invalid_image_among_several_has_its_own_error(service, predictor):
    good, other = png(seed=1), png(seed=2)
    files = [("images", ("good.png", good)), ("images", ("bad.png", good[:200])), ("images", ("other.png", other))]
    response = service.client.post("/predict", files=files)
    assert response.status_code == 200
    first, bad, last = response.json()["predictions"]
    assert bad["image"] == "bad.png"
    assert bad["error"]["code"] == "invalid_image"
    assert "bad.png" in bad["error"]["message"]
    for prediction, image in ((first, good), (last, other)):
        np.testing.assert_allclose(scores(prediction), scores(predictor(image).to_dict()), atol=2e-5)
    alone = service.client.post("/predict", files=files[1:2])
    assert (alone.status_code, alone.json()["error"]["code"]) == (422, "invalid_image")


def test_class_activation_maps_are_those_of_the_explainer(service, classifier_file):
    image = png(100, 80)
    own = Explainer(Model.load(classifier_file), device="cpu")(
        image, classes=["bee", "dog"], method="layer-cam"
    ).to_dict()
    url = "/explain?classes=bee&classes=3&method=layer-cam"
    explanation = service.client.post(url, files={"image": ("a.png", image)}).json()["explanation"]
    assert [found["label"] for found in explanation["maps"]] == ["bee", "dog"]
    for one, other in zip(explanation["maps"], own["maps"], strict=True):
        assert (one["method"], one["layer"], one["extent"]) == (other["method"], other["layer"], other["extent"])
        np.testing.assert_allclose(one["values"], other["values"], rtol=1e-3, atol=1e-6)


def test_class_activation_maps_and_attention_maps_are_drawn(service, classifier_file):
    image = png(100, 80)
    response = service.client.post("/explain?top=2", files={"image": ("a.png", image)}, headers={"Accept": "image/png"})
    assert response.headers["content-type"] == "image/png"
    own = Explainer(Model.load(classifier_file), device="cpu")(image, top=2).draw(read_image(image))
    with Image.open(io.BytesIO(response.content)) as drawn:
        assert drawn.size == own.size
        difference = np.abs(np.asarray(drawn.convert("RGB"), dtype=int) - np.asarray(own, dtype=int))
    assert difference.max() <= 2
    url = "/explain?kind=lka&channels=strongest&blocks=stage2"
    attention = service.client.post(url, files={"image": ("a.png", image)})
    with Image.open(io.BytesIO(attention.content)) as drawn:
        assert min(drawn.size) > 200


INVALID_OPTIONS = {
    "/predict?top=0": (422, "invalid_parameter", ("top:", "1 to 1000", "'0'")),
    "/predict?top=many": (422, "invalid_parameter", ("top:", "'many'")),
    "/predict?tpo=3": (422, "unknown_parameter", ("'tpo'", "model, top, min_score")),
    "/predict?min_score=0.5": (422, "invalid_parameter", ("min_score:", "small", "classify")),
    "/predict?model=detector&min_score=2": (422, "invalid_parameter", ("min_score:", "0 to 1", "'2'")),
    "/predict?model=detector&min_score=0.01": (422, "invalid_parameter", ("0.05 to 1", "'0.01'")),
    "/predict?model=other": (404, "model_not_found", ("'other'", "small, detector")),
    "/explain?method=magic": (422, "invalid_parameter", ("method:", "grad-cam", "'magic'")),
    "/explain?classes=wasp": (422, "invalid_parameter", ("classes:", "small", "0 to 3", "'wasp'")),
    "/explain?layer=attic": (422, "invalid_parameter", ("attic",)),
    "/explain?kind=poem": (422, "invalid_parameter", ("kind:", "cam or lka", "'poem'")),
    "/explain?kind=lka&blocks=stage9": (422, "invalid_parameter", ("blocks:", "stage9")),
    "/nowhere": (404, "route_not_found", ("/nowhere",)),
}


@pytest.mark.parametrize("url", INVALID_OPTIONS)
def test_an_invalid_option_is_named_with_the_expected_values(service, url):
    status, code, named = INVALID_OPTIONS[url]
    response = service.client.post(url, files={"image": ("a.png", png())})
    error = response.json()["error"]
    assert (response.status_code, error["code"]) == (status, code)
    for fact in named:
        assert fact in error["message"]
    assert error["request_id"] == response.headers["x-request-id"]


def image_file(name: str, content: bytes) -> dict:
    return {"files": {"image": (name, content)}}


JSON_TYPE, FORM_TYPE = {"Content-Type": "application/json"}, {"Content-Type": "multipart/form-data"}
INVALID_BODIES = {
    "text": (
        {"content": b"hello", "headers": {"Content-Type": "text/plain"}},
        415,
        "unsupported_media_type",
        "text/plain",
    ),
    "no type": ({"content": b"hello"}, 415, "unsupported_media_type", "Content-Type"),
    "no json": ({"content": b"{", "headers": JSON_TYPE}, 400, "invalid_json", "position 1"),
    "deep": ({"content": b"[" * 99999, "headers": JSON_TYPE}, 400, "invalid_json", "JSON"),
    "list": ({"json": []}, 422, "invalid_body", "a list"),
    "none": ({"json": {"images": []}}, 422, "missing_image", "0"),
    "no images": ({"json": {"top": 3}}, 422, "missing_image", "images"),
    "number": ({"json": {"images": [7]}}, 422, "invalid_base64", "image 0:"),
    "url": ({"json": {"images": ["http://127.0.0.1:1/a.png"]}}, 422, "url_not_supported", "image 0:"),
    "file url": ({"json": {"images": [{"data": "file:///etc/passwd"}]}}, 422, "url_not_supported", "image 0:"),
    "letters": ({"json": {"images": ["!!!!"]}}, 422, "invalid_base64", "image 0:"),
    "key": ({"json": {"images": [{"data": "", "size": 3}]}}, 422, "invalid_image_field", "data, size"),
    "form": ({"content": b"x", "headers": FORM_TYPE}, 400, "invalid_form", "form"),
    "field": ({"data": {"a": "b"}, **image_file("a.png", b"x")}, 422, "unknown_parameter", "'a'"),
    "file field": ({"files": {"file": ("a.png", b"x")}}, 422, "invalid_image_field", "'file'"),
    "empty": (image_file("a.png", b""), 422, "invalid_image", "a.png"),
    "svg": (
        image_file("a.svg", b"<svg xmlns='http://www.w3.org/2000/svg'/>"),
        422,
        "invalid_image",
        "a.svg",
    ),
    "postscript": (
        image_file("a.eps", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n"),
        422,
        "invalid_image",
        "a.eps",
    ),
}


@pytest.mark.parametrize("body", INVALID_BODIES)
def test_an_invalid_body_is_rejected_with_the_reason(service, body):
    content, status, code, named = INVALID_BODIES[body]
    response = service.client.post("/predict", **content)
    error = response.json()["error"]
    assert (response.status_code, error["code"]) == (status, code)
    assert named in error["message"]


def test_a_valid_request_id_is_kept_and_an_invalid_one_replaced(service):
    kept = service.client.get("/models", headers={"X-Request-ID": "order-66.a_b"})
    assert kept.headers["x-request-id"] == "order-66.a_b"
    for invalid in ("a b", "x" * 65, '"}{'):
        generated = service.client.get("/models", headers={"X-Request-ID": invalid}).headers["x-request-id"]
        assert re.fullmatch("[0-9a-f]{32}", generated)
    lines = service.wait_until(lambda: [x for x in service.lines if x.get("request_id") == "order-66.a_b"], 5)
    assert (lines[0]["path"], lines[0]["status"], lines[0]["level"]) == ("/models", 200, "info")


def test_logs_contain_no_query_and_nothing_of_an_image(service):
    service.client.post("/predict?top=secret-word", files={"image": ("private-name.png", b"image-content")})
    service.client.get("/models", headers={"X-Request-ID": "the-end"})
    assert service.wait_until(lambda: any(line.get("request_id") == "the-end" for line in service.lines), 5)
    log = json.dumps(service.lines) + "".join(service.plain_lines)
    assert "secret-word" not in log
    assert "image-content" not in log
    assert "private-name" not in log
    assert not service.plain_lines  # every line is JSON


def test_models_and_limits_are_listed(service):
    listing = service.client.get("/models").json()
    small, detector = listing["models"]
    assert (small["name"], small["task"], small["class_names"]) == ("small", "classify", ["ant", "bee", "cat", "dog"])
    assert (small["architecture"], small["image_size"], small["min_score"]) == ("van_b0", 64, None)
    assert (detector["name"], detector["task"], detector["min_score"]) == ("detector", "detect", 0.05)
    assert (listing["default"], listing["api_key_required"]) == ("small", False)
    assert listing["limits"]["max_pixels"] == 1_000_000
    assert "grad-cam" in small["methods"]
    assert len(small["version"]) == 12


def test_metrics_are_valid_prometheus_text(service):
    service.client.post("/predict", files={"image": ("a.png", png())})
    families = {family.name: family for family in text_string_to_metric_families(service.client.get("/metrics").text)}
    stages = {sample.labels["stage"] for sample in families["van_stage_seconds"].samples}
    assert stages == {"read", "decode", "queue", "transfer", "inference", "total"}
    assert families["van_workers"].samples[0].value == 1
    assert families["van_memory_bytes"].samples[0].value == 0  # all of it was released
    assert sum(sample.value for sample in families["van_images_in_progress"].samples) == 0
    routes = {sample.labels["route"] for sample in families["van_requests"].samples}
    known = {"/predict", "/explain", "/models", "/metrics", "/page/{name}", "/", "/docs", "/openapi.json", "other"}
    assert routes <= known | {route for route in routes if route.startswith("/v2")}
    assert families.keys() >= {
        *("van_batch_size", "van_queue_depth", "van_requests_in_progress", "van_requests_rejected"),
        *("van_client_disconnects", "van_worker_restarts", "van_model_reloads"),
    }


@pytest.mark.parametrize("path", ["/", "/docs"])
def test_a_page_has_a_policy_that_allows_only_its_own_files(service, path):
    page = service.client.get(path)
    assert page.status_code == 200
    assert page.headers["content-type"].startswith("text/html")
    policy = page.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert "://" not in page.text
    files = re.findall(r'(?:src|href)="(page/[^"]+)"', page.text)
    assert len(files) >= 3
    for file in files:
        assert service.client.get(f"/{file}").status_code == 200
    for invalid in ("/page/..%2fapp.py", "/page/%2e%2e%2fapp.py", "/page/none.js", "/page/"):
        assert service.client.get(invalid).status_code == 404


def test_the_schema_lists_every_route(service):
    schema = service.client.get("/openapi.json").json()
    assert {"/predict", "/explain", "/models", "/metrics", "/v2/models/{name}/infer"} <= set(schema["paths"])
    operations = [operation for methods in schema["paths"].values() for operation in methods.values()]
    assert all(operation["summary"] for operation in operations)


@pytest.mark.parametrize("path", ["/predict", "/v2/models/{name}/infer"])
def test_the_example_of_the_schema_is_a_valid_request(service, path):
    schema = service.client.get("/openapi.json").json()
    body = schema["paths"][path]["post"]["requestBody"]["content"]["application/json"]
    assert service.client.post(path.replace("{name}", "small"), json=body["example"]).status_code == 200


def test_a_prediction_is_drawn_with_accept_image_png(service, predictor):
    image = png(90, 70)
    response = service.client.post("/predict", files={"image": ("a.png", image)}, headers={"Accept": "image/png"})
    assert response.status_code == 200
    assert response.headers["content-type"] == "image/png"
    expected = predictor(image).draw(read_image(image))
    drawn = Image.open(io.BytesIO(response.content)).convert("RGB")
    assert drawn.size == expected.size
    differs = np.abs(np.asarray(drawn).astype(int) - np.asarray(expected)) > 40
    assert differs.mean() < 0.01  # a bar may be one pixel longer
    detections = service.client.post(
        "/predict?model=detector&min_score=0.1", files={"image": ("a.png", image)}, headers={"Accept": "image/png"}
    )
    assert Image.open(io.BytesIO(detections.content)).size[0] >= 90
    files = [("images", ("a.png", image)), ("images", ("b.png", image))]
    several = service.client.post("/predict", files=files, headers={"Accept": "image/png"})
    assert (several.status_code, several.json()["error"]["code"]) == (422, "single_image_required")
    assert "got 2" in several.json()["error"]["message"]
