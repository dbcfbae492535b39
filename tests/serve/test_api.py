"""What the routes answer: the same as the Python interface, in order, whatever else is asked at the moment."""

import base64
import io
import json
import re
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from PIL import Image
from prometheus_client.parser import text_string_to_metric_families

import van
from serve.conftest import png
from van.explain.explainer import Explainer
from van.pictures import read_picture


@pytest.fixture(scope="module")
def predictor(small_file):
    return van.Predictor.load(small_file, device="cpu")


def ranked(answer: dict) -> list:
    return [(one["label"], one["index"]) for one in answer["classes"]]


def probabilities(answer: dict) -> list[float]:
    return [one["probability"] for one in answer["classes"]]


def test_fifty_requests_at_once_are_each_answered_with_their_own_picture_in_batches(service, predictor):
    pictures = [png(60 + seed, 50 + seed, seed) for seed in range(50)]
    wanted = [answer.to_dict() for answer in map(predictor, pictures)]
    before = service.metric("van_batch_size_count"), service.metric("van_batch_size_sum")
    with ThreadPoolExecutor(50) as pool:
        answers = list(
            pool.map(
                lambda pair: service.client.post("/predict", files={"file": (f"{pair[0]}.png", pair[1])}).json(),
                enumerate(pictures),
            )
        )
    batches, seen = service.metric("van_batch_size_count") - before[0], service.metric("van_batch_size_sum") - before[1]
    assert seen == 50
    assert batches < 40
    for place, (answer, own) in enumerate(zip(answers, wanted, strict=True)):
        [one] = answer["answers"]
        assert one["picture"] == f"{place}.png"
        assert ranked(one) == ranked(own)
        np.testing.assert_allclose(probabilities(one), probabilities(own), atol=2e-5)
    assert len({tuple(probabilities(answer["answers"][0])) for answer in answers}) == 50  # none is another's


def test_three_forms_of_a_body_give_one_answer(service):
    picture = png()
    encoded = base64.b64encode(picture).decode()
    client = service.client
    asked = [
        client.post("/predict?top=2", files=[("any", ("a.png", picture))]),
        client.post("/predict", files=[("any", ("a.png", picture))], data={"top": "2"}),
        client.post("/predict", json={"pictures": [{"name": "a.png", "data": encoded}], "top": 2}),
        client.post("/predict", json={"pictures": [f"data:image/png;base64,{encoded}"], "top": "2"}),
        client.post("/predict?top=2", content=picture, headers={"Content-Type": "image/png"}),
    ]
    classes = [one.json()["answers"][0]["classes"] for one in asked]
    assert [one.status_code for one in asked] == [200] * 5
    assert len(classes[0]) == 2
    for other in classes[1:]:
        assert [one["label"] for one in other] == [one["label"] for one in classes[0]]
        np.testing.assert_allclose(
            [one["probability"] for one in other], [one["probability"] for one in classes[0]], atol=2e-5
        )


def test_things_are_answered_as_by_the_predictor_above_the_score_that_is_asked(service, things_file):
    picture = png(64, 64)
    own = van.Predictor.load(things_file, device="cpu")(picture).to_dict()["things"]
    found = service.client.post("/predict?model=things", content=picture, headers={"Content-Type": "image/png"})
    things = found.json()["answers"][0]["things"]
    assert len(own) > 1
    assert [thing["label"] for thing in things] == [thing["label"] for thing in own]
    for one, other in zip(things, own, strict=True):
        np.testing.assert_allclose([one["score"], *one["box"]], [other["score"], *other["box"]], rtol=1e-3, atol=1e-3)
    middle = own[len(own) // 2]["score"]
    fewer, top = (
        service.client.post(f"/predict?model=things&{query}", content=picture, headers={"Content-Type": "image/png"})
        for query in (f"min_score={middle - 1e-4}", "top=1")
    )
    wanted = sum(thing["score"] >= middle - 1e-4 for thing in own)
    assert 1 < wanted < len(own)
    assert len(fewer.json()["answers"][0]["things"]) == wanted
    assert top.json()["answers"][0]["things"] == things[:1]


def test_one_bad_picture_among_several_has_its_own_error_and_hurts_none(service, predictor):
    good, other = png(seed=1), png(seed=2)
    files = [("f", ("good.png", good)), ("f", ("bad.png", good[:200])), ("f", ("other.png", other))]
    answer = service.client.post("/predict", files=files)
    assert answer.status_code == 200
    first, bad, last = answer.json()["answers"]
    assert bad["picture"] == "bad.png"
    assert bad["error"]["code"] == "unreadable"
    assert "damaged or cut off" in bad["error"]["message"]
    for one, picture in ((first, good), (last, other)):
        np.testing.assert_allclose(probabilities(one), probabilities(predictor(picture).to_dict()), atol=2e-5)
    alone = service.client.post("/predict", files=files[1:2])
    assert (alone.status_code, alone.json()["error"]["code"]) == (422, "unreadable")


def test_maps_are_those_of_the_explainer(service, small_file):
    picture = png(100, 80)
    own = Explainer.load(small_file, device="cpu")(picture, classes=["bee", "dog"], method="layer-cam").to_dict()
    asked = "/explain?classes=bee&classes=3&method=layer-cam"
    answer = service.client.post(asked, files={"f": ("a.png", picture)}).json()["answer"]
    assert [found["label"] for found in answer["maps"]] == ["bee", "dog"]
    for one, other in zip(answer["maps"], own["maps"], strict=True):
        assert (one["method"], one["layer"], one["covers"]) == (other["method"], other["layer"], other["covers"])
        np.testing.assert_allclose(one["cells"], other["cells"], rtol=1e-3, atol=1e-6)


def test_a_map_and_lkas_own_attention_are_drawn(service, small_file):
    picture = png(100, 80)
    drawn = service.client.post("/explain?top=2", files={"f": ("a.png", picture)}, headers={"Accept": "image/png"})
    assert drawn.headers["content-type"] == "image/png"
    own = Explainer.load(small_file, device="cpu")(picture, top=2).draw(read_picture(picture))
    with Image.open(io.BytesIO(drawn.content)) as sheet:
        assert sheet.size == own.size
        difference = np.abs(np.asarray(sheet.convert("RGB"), dtype=int) - np.asarray(own, dtype=int))
    assert difference.max() <= 2
    strips = service.client.post("/explain?kind=lka&channels=strongest&blocks=stage2", files={"f": ("a.png", picture)})
    with Image.open(io.BytesIO(strips.content)) as sheet:
        assert min(sheet.size) > 200


WRONG = {
    "/predict?top=0": (422, "wrong_option", "top is '0'; wanted a whole number, 1 to 1000"),
    "/predict?top=many": (422, "wrong_option", "top is 'many'"),
    "/predict?tpo=3": (422, "no_such_option", "there is no option 'tpo' here; known: model, top, min_score"),
    "/predict?min_score=0.5": (422, "wrong_option", "none: small finds no things, its task is classify"),
    "/predict?model=things&min_score=2": (422, "wrong_option", "min_score is '2'; wanted 0 to 1"),
    "/predict?model=things&min_score=0.01": (422, "wrong_option", "wanted 0.05 to 1"),
    "/predict?model=other": (404, "no_such_model", "there is no model 'other'; served: small, things"),
    "/explain?method=magic": (422, "wrong_option", "method is 'magic'; wanted one of grad-cam"),
    "/explain?classes=wasp": (422, "wrong_option", "classes is 'wasp'; wanted labels of small"),
    "/explain?layer=attic": (422, "wrong_option", "attic"),
    "/explain?kind=poem": (422, "wrong_option", "kind is 'poem'"),
    "/explain?kind=lka&blocks=stage9": (422, "wrong_option", "stage9"),
    "/nowhere": (404, "no_such_route", "there is no route /nowhere"),
}


@pytest.mark.parametrize("asked", WRONG)
def test_a_wrong_option_is_named_with_what_was_wanted(service, asked):
    status, code, message = WRONG[asked]
    answer = service.client.post(asked, files={"f": ("a.png", png())})
    error = answer.json()["error"]
    assert (answer.status_code, error["code"]) == (status, code)
    assert message in error["message"]
    assert error["request_id"] == answer.headers["x-request-id"]


BODIES = {
    "text": ({"content": b"hello", "headers": {"Content-Type": "text/plain"}}, 415, "Content-Type is text/plain"),
    "no type": ({"content": b"hello"}, 415, "Content-Type is missing"),
    "no json": ({"content": b"{", "headers": {"Content-Type": "application/json"}}, 400, "the body is no JSON"),
    "deep": ({"content": b"[" * 99999, "headers": {"Content-Type": "application/json"}}, 400, "the body is no JSON"),
    "list": ({"json": []}, 422, "the JSON is a list; wanted an object"),
    "none": ({"json": {"pictures": []}}, 422, "the request holds no picture"),
    "number": ({"json": {"pictures": [7]}}, 422, "picture 0 is a int; wanted a string"),
    "address": ({"json": {"pictures": ["http://127.0.0.1:1/a.png"]}}, 422, "nothing is fetched here"),
    "file": ({"json": {"pictures": [{"data": "file:///etc/passwd"}]}}, 422, "nothing is fetched here"),
    "letters": ({"json": {"pictures": ["!!!!"]}}, 422, "picture 0 is no base64"),
    "form": ({"content": b"x", "headers": {"Content-Type": "multipart/form-data"}}, 400, "the form cannot be read"),
    "field": ({"data": {"a": "b"}, "files": {"f": ("a.png", b"x")}}, 422, "there is no option 'a' here"),
    "empty": ({"files": {"f": ("a.png", b"")}}, 422, "a.png: is empty"),
    "svg": ({"files": {"f": ("a.svg", b"<svg xmlns='http://www.w3.org/2000/svg'/>")}}, 422, "is no picture that can"),
    "postscript": (
        {"files": {"f": ("a.eps", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n")}},
        422,
        "is no picture",
    ),
}


@pytest.mark.parametrize("body", BODIES)
def test_a_body_that_cannot_be_used_is_told_why(service, body):
    content, status, message = BODIES[body]
    answer = service.client.post("/predict", **content)
    assert answer.status_code == status
    assert message in answer.json()["error"]["message"]


def test_a_plain_request_id_is_kept_and_another_replaced(service):
    kept = service.client.get("/models", headers={"X-Request-ID": "order-66.a_b"})
    assert kept.headers["x-request-id"] == "order-66.a_b"
    for strange in ("a b", "x" * 65, '"}{'):
        made = service.client.get("/models", headers={"X-Request-ID": strange}).headers["x-request-id"]
        assert re.fullmatch("[0-9a-f]{32}", made)
    line = service.wait_until(lambda: [line for line in service.lines if line.get("request_id") == "order-66.a_b"], 5)[
        0
    ]
    assert (line["path"], line["status"], line["level"]) == ("/models", 200, "info")


def test_logs_hold_no_query_and_nothing_of_a_picture(service):
    service.client.post("/predict?top=secret-word", files={"f": ("private-name.png", b"picture-content")})
    service.client.get("/models", headers={"X-Request-ID": "the-end"})
    assert service.wait_until(lambda: any(line.get("request_id") == "the-end" for line in service.lines), 5)
    written = json.dumps(service.lines) + "".join(service.told)
    assert "secret-word" not in written
    assert "picture-content" not in written
    assert "private-name" not in written
    assert not service.told  # every line is JSON


def test_models_and_limits_are_told(service):
    told = service.client.get("/models").json()
    small, things = told["models"]
    assert (small["name"], small["task"], small["labels"]) == ("small", "classify", ["ant", "bee", "cat", "dog"])
    assert (things["name"], things["task"], things["least_score"]) == ("things", "detect", 0.05)
    assert told["default"] == "small"
    assert told["limits"]["pixels"] == 1_000_000
    assert "grad-cam" in small["methods"]
    assert len(small["version"]) == 12


def test_measures_can_be_read_by_prometheus(service):
    service.client.post("/predict", files={"f": ("a.png", png())})
    families = {family.name: family for family in text_string_to_metric_families(service.client.get("/metrics").text)}
    stages = {sample.labels["stage"] for sample in families["van_stage_seconds"].samples}
    assert stages == {"read", "decode", "queue", "send", "network", "total"}
    assert families["van_workers"].samples[0].value == 1
    assert families["van_memory_bytes"].samples[0].value == 0  # all of it was given back
    assert sum(sample.value for sample in families["van_accepted_pictures"].samples) == 0
    routes = {sample.labels["route"] for sample in families["van_requests"].samples}
    assert routes <= {"/predict", "/explain", "/models", "/metrics", "/page/{name}", "/", "/openapi.json", "other"} | {
        route for route in routes if route.startswith("/v2")
    }


def test_the_page_comes_with_a_policy_that_lets_nothing_in_from_elsewhere(service):
    page = service.client.get("/")
    assert page.status_code == 200
    assert page.headers["content-type"].startswith("text/html")
    policy = page.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    for file in re.findall(r'(?:src|href)="(page/[^"]+)"', page.text):
        assert service.client.get(f"/{file}").status_code == 200
    for wrong in ("/page/..%2fapp.py", "/page/%2e%2e%2fapp.py", "/page/none.js", "/page/"):
        assert service.client.get(wrong).status_code == 404


def test_the_schema_names_every_route(service):
    schema = service.client.get("/openapi.json").json()
    assert {"/predict", "/explain", "/models", "/metrics", "/v2/models/{name}/infer"} <= set(schema["paths"])
    page = service.client.get("/docs").text
    assert all(path in page for path in schema["paths"])
    assert "://" not in page


def test_an_answer_is_drawn_where_a_picture_is_asked_for(service, predictor):
    shown = png(90, 70)
    asked = service.client.post("/predict", files={"file": ("a.png", shown)}, headers={"Accept": "image/png"})
    assert asked.status_code == 200
    assert asked.headers["content-type"] == "image/png"
    wanted = predictor(shown).draw(read_picture(shown))
    drawn = Image.open(io.BytesIO(asked.content)).convert("RGB")
    assert drawn.size == wanted.size
    assert (np.abs(np.asarray(drawn).astype(int) - np.asarray(wanted)) > 40).mean() < 0.01  # a bar may end a pixel off
    things = service.client.post(
        "/predict?model=things&min_score=0.1", files={"file": ("a.png", shown)}, headers={"Accept": "image/png"}
    )
    assert Image.open(io.BytesIO(things.content)).size[0] >= 90
    files = [("file", ("a.png", shown)), ("file", ("b.png", shown))]
    several = service.client.post("/predict", files=files, headers={"Accept": "image/png"})
    assert several.status_code == 422
    assert several.json()["error"]["message"] == "the request holds 2 pictures; wanted one to draw"
