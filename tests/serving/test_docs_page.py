"""The API documentation page: every endpoint of the schema, and a form for each that sends a request."""

import json
import re

import pytest

from browser import chromium  # noqa: F401
from serving.page_session import PageSession
from serving.test_page import (  # noqa: F401
    OVERFLOWING,
    SMALL_TARGETS,
    check_contrast,
    check_references,
    files,
    service,
    visit,
)


def open_form(page: PageSession, endpoint: str):
    """Open the form of an endpoint, such as ``post-predict``."""
    section = page.page.locator(f"#{endpoint}")
    section.locator("summary", has_text="Try it").click()
    return section


def send(section) -> tuple[str, str]:
    """Send the request of a form; returns the status line and the body of the response."""
    section.get_by_role("button", name="Send request").click()
    section.locator(".status").wait_for()
    body = section.locator(".response pre")
    return section.locator(".status").inner_text(), body.inner_text() if body.count() else ""


def test_every_endpoint_has_a_form(visit, service):  # noqa: F811
    page = visit("/docs")
    schema = service.client.get("/openapi.json", headers={"X-API-Key": page_key()}).json()
    expected = [f"{method.upper()} {path}" for path, methods in schema["paths"].items() for method in methods]
    headings = [text.replace("\n", " ") for text in page.page.locator(".endpoint h2").all_inner_texts()]
    assert headings == expected
    assert page.page.locator(".endpoint form").count() == len(expected)
    assert page.page.locator("#contents a").count() == len(expected)


def page_key() -> str:
    from serving.page_session import KEY

    return KEY


@pytest.mark.parametrize(
    ("endpoint", "named"),
    [
        ("get-models", '"class_names"'),
        ("get-metrics", "van_requests_total"),
        ("get-v2", '"van"'),
        ("get-v2-health-live", '"live": true'),
        ("get-v2-health-ready", '"ready": true'),
        ("get-v2-models-name", '"platform": "van_classify"'),
        ("get-v2-models-name-ready", '"ready": true'),
        ("post-v2-models-name-infer", '"scores"'),
    ],
)
def test_a_form_with_its_default_values_is_a_valid_request(visit, endpoint, named):  # noqa: F811
    section = open_form(visit("/docs"), endpoint)
    status, body = send(section)
    assert status.startswith("200 ")
    assert re.search(r"\d ms|\d s", status)
    assert named in body


def test_an_image_file_is_predicted_with_options(visit, files):  # noqa: F811
    section = open_form(visit("/docs"), "post-predict")
    section.get_by_label("image", exact=True).set_input_files(str(files / "0.png"))
    section.get_by_label("top", exact=True).fill("2")
    status, body = send(section)
    assert status.startswith("200 ")
    [prediction] = json.loads(body)["predictions"]
    assert prediction["image"] == "0.png"
    assert len(prediction["classes"]) == 2


def test_several_images_are_predicted_and_an_image_response_is_shown(visit, files):  # noqa: F811
    page = visit("/docs")
    section = open_form(page, "post-predict")
    section.get_by_label("images", exact=True).set_input_files([str(files / "0.png"), str(files / "1.png")])
    _, body = send(section)
    assert [prediction["image"] for prediction in json.loads(body)["predictions"]] == ["0.png", "1.png"]
    section.get_by_label("Content type of the body").select_option("image/*")
    section.get_by_label("file (required)").set_input_files(str(files / "0.png"))
    section.get_by_label("Accept").select_option("image/png")
    section.get_by_role("button", name="Send request").click()
    image = section.get_by_role("img", name="Response image")
    image.wait_for()
    assert image.evaluate("image => image.naturalWidth") >= 90
    image.click()
    page.page.get_by_role("dialog", name="response image").wait_for()
    page.page.keyboard.press("Escape")


def test_the_json_example_is_predicted_and_explained(visit):  # noqa: F811
    page = visit("/docs")
    for endpoint, key in (("post-predict", "predictions"), ("post-explain", "explanation")):
        section = open_form(page, endpoint)
        section.get_by_label("Content type of the body").select_option("application/json")
        status, body = send(section)
        assert status.startswith("200 "), body
        assert key in json.loads(body)


def test_an_error_response_is_shown_with_its_status(visit):  # noqa: F811
    section = open_form(visit("/docs"), "get-v2-models-name")
    section.get_by_label("name (required)").fill("unknown")
    status, body = send(section)
    assert status.startswith("404 ")
    assert "'unknown'" in json.loads(body)["error"]


def test_the_api_key_is_requested(visit):  # noqa: F811
    page = visit("/docs", key="")
    page.enter_key("a-key-that-is-wrong")
    page.page.get_by_role("heading", name="Invalid API key").wait_for()
    page.page.get_by_role("button", name="Cancel").click()
    page.page.get_by_role("alert").filter(has_text="API key").wait_for()
    page.page.get_by_role("button", name="Retry").click()
    page.enter_key()
    page.page.locator(".endpoint").first.wait_for()


@pytest.mark.parametrize("dark", [False, True])
def test_on_a_phone_nothing_overflows(visit, dark):  # noqa: F811
    page = visit("/docs", width_px=360, dark=dark)
    section = open_form(page, "get-models")
    assert send(section)[0].startswith("200 ")
    for summary in page.page.locator("summary").all():
        if not summary.evaluate("one => one.parentElement.open"):
            summary.click()
    assert page.run("document.documentElement.scrollWidth") == 360
    assert page.run(OVERFLOWING) == []
    assert page.run(SMALL_TARGETS) == []
    check_contrast(page, dark, ("body", ".soft", "summary", ".request label", ".request small", "nav a[href='./']"))
    check_references(page)
