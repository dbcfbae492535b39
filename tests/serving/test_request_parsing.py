"""Parsing of request bodies: image fields of forms and JSON, base64 and URLs."""

import asyncio
import base64
import json
from typing import Any

import pytest
from starlette.datastructures import Headers, QueryParams

from van.serving.api_error import ApiError
from van.serving.request_parsing import ParsedRequest, decode_base64_image, parse_request
from van.serving.settings import Limits

BASE64 = base64.b64encode(b"content").decode()


def parse_form(*fields: tuple[str, str, bytes]) -> ParsedRequest:
    """Parse a multipart form of (field, file name or empty, content)."""
    body = b""
    for field, filename, content in fields:
        file = f'; filename="{filename}"' if filename else ""
        head = f'--x\r\nContent-Disposition: form-data; name="{field}"{file}\r\n\r\n'
        body += head.encode() + content + b"\r\n"
    headers = Headers({"content-type": "multipart/form-data; boundary=x"})
    return asyncio.run(parse_request(body + b"--x--\r\n", headers, QueryParams(""), Limits()))


def parse_json_body(**content: Any) -> ParsedRequest:
    headers = Headers({"content-type": "application/json"})
    return asyncio.run(parse_request(json.dumps(content).encode(), headers, QueryParams(""), Limits()))


@pytest.mark.parametrize(
    "url", ["http://x/a.png", " HTTPS://x", "file:/etc/passwd", "//example.org/a", "//10.0.0.1/a", "//host:80/a"]
)
def test_a_url_is_rejected_as_one(url):
    with pytest.raises(ApiError, match=r"image 0.*URL") as error:
        decode_base64_image(url, "image 0")
    assert error.value.code == "url_not_supported"


def test_base64_that_starts_like_a_url_is_decoded():
    content = b"\xff\xff\xff and more"
    text = base64.b64encode(content).decode()
    assert text.startswith("//")
    assert decode_base64_image(text, "image 0") == content


def test_one_image_and_several_images_are_parsed_from_forms_and_json():
    assert parse_form(("image", "a.png", b"content")).images == (("a.png", b"content"),)
    assert parse_form(("images", "a.png", b"1"), ("top", "", b"2"), ("images", "b.png", b"3")) == ParsedRequest(
        images=(("a.png", b"1"), ("b.png", b"3")), options={"top": "2"}
    )
    assert parse_json_body(image=BASE64).images == (("image", b"content"),)
    assert parse_json_body(images=[BASE64, {"name": "b.png", "data": BASE64}], top=2) == ParsedRequest(
        images=(("image 0", b"content"), ("b.png", b"content")), options={"top": 2}
    )


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ([("file", "a.png", b"1")], "'file'"),
        ([("image", "", b"1")], "image"),
        ([("image", "a.png", b"1"), ("image", "b.png", b"2")], "2.*images"),
        ([("image", "a.png", b"1"), ("images", "b.png", b"2")], "both"),
    ],
)
def test_a_form_with_images_in_other_fields_is_rejected(fields, named):
    with pytest.raises(ApiError, match=named) as error:
        parse_form(*fields)
    assert (error.value.status, error.value.code) == (422, "invalid_image_field")


def test_json_with_image_and_images_is_rejected():
    with pytest.raises(ApiError, match="both") as error:
        parse_json_body(image=BASE64, images=[BASE64])
    assert (error.value.status, error.value.code) == (422, "invalid_image_field")
