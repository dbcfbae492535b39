"""Parsing of a request body to images and options, in the three forms that ``app.py`` describes.

Nothing is ever fetched: an image given as a URL is rejected. Everything stays in memory, within the limits.
"""

import base64
import binascii
import dataclasses
import json
import re
from collections.abc import AsyncGenerator, Mapping, Sequence
from typing import Any

from starlette.datastructures import Headers, QueryParams, UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser

from van.serving.api_error import ApiError
from van.serving.settings import Limits

_URL = re.compile(r"\s*(?:[a-z][a-z0-9+.-]*://|file:|//[a-z0-9-]*[.:])", re.IGNORECASE)
"""Two slashes alone may be base64: of bytes that start with ff f0 to ff ff."""
_DATA_URL = re.compile(r"data:image/[a-z0-9.+-]+;base64,", re.IGNORECASE)
_MAX_FIELDS, _MAX_FIELD_BYTES = 64, 4096
_MAX_NAME_LENGTH = 200
_MAX_OBJECTS, _MAX_LISTS, _MAX_COMMAS = 1 << 16, 1 << 17, 1 << 14
"""Limits on JSON: three characters such as ``{},`` take twenty times their memory when parsed. A tensor may be nested
lists of numbers, so that commas are limited only beside image files."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ParsedRequest:
    """Images as (name, file content), and options as sent; an option that is given several times is a list."""

    images: tuple[tuple[str, bytes], ...]
    options: Mapping[str, Any]


class _InMemoryParser(MultiPartParser):
    """The multipart parser without temporary files: the body is in memory already and limited there."""

    spool_max_size = 1 << 62


async def parse_request(body: bytes, headers: Headers, query: QueryParams, limits: Limits) -> ParsedRequest:
    """Parse the images and options of a request; query parameters override those in the body.

    Raises:
        ApiError: 400 malformed body, 413 too many images, 415 unsupported media type, 422 an image is missing or given
            as a URL.
    """
    media_type = headers.get("content-type", "").partition(";")[0].strip().lower()
    if media_type == "multipart/form-data":
        images, options = await _parse_form(body, headers, limits)
    elif media_type == "application/json":
        images, options = parse_json_images(body, limits)
    elif media_type.startswith("image/") or media_type == "application/octet-stream":
        images, options = [("image", body)], {}
    else:
        expected = "multipart/form-data, application/json, image/* or application/octet-stream"
        message = f"Content-Type: expected {expected}, got {_clean(media_type) or 'none'}"
        raise ApiError(415, "unsupported_media_type", message)
    if not images:
        raise ApiError(422, "missing_image", "expected at least 1 image in the field image or images, got 0")
    return ParsedRequest(images=tuple(images), options={**options, **_group_values(query.multi_items())})


def parse_json_images(body: bytes, limits: Limits) -> tuple[list[tuple[str, bytes]], dict[str, Any]]:
    """Parse the images and options of a JSON body.

    Raises:
        ApiError: see ``parse_request``.
    """
    _check_json_size(body, b",", max(_MAX_COMMAS, 8 * limits.max_images))
    options = parse_json(body)
    if "image" in options and "images" in options:
        raise ApiError(422, "invalid_image_field", "expected either image or images in the JSON, got both")
    if "image" in options:
        return [_parse_json_image(options.pop("image"), "image")], options
    entries = options.pop("images", None)
    if not isinstance(entries, list):
        expected = '{"image": BASE64} or {"images": [BASE64, ...]}'
        raise ApiError(422, "missing_image", f"expected {expected}, got {_type_name(entries)} for images")
    _check_image_count(len(entries), limits)
    return [_parse_json_image(entry, f"image {index}") for index, entry in enumerate(entries)], options


def parse_json(body: bytes) -> dict[str, Any]:
    """Parse a JSON object.

    Raises:
        ApiError: 400 or 422, the body is no JSON object; 413, it has too many objects or lists.
    """
    _check_json_size(body, b"{", _MAX_OBJECTS)
    _check_json_size(body, b"[", _MAX_LISTS)
    try:
        parsed = json.loads(body)
    except (ValueError, RecursionError) as error:
        is_syntax = isinstance(error, json.JSONDecodeError)
        reason = f"{error.msg} at position {error.pos}" if is_syntax else "nested too deeply, or not UTF-8"
        raise ApiError(400, "invalid_json", f"invalid JSON: {reason}") from error
    if not isinstance(parsed, dict):
        raise ApiError(422, "invalid_body", f"JSON body: expected an object, got {_type_name(parsed)}")
    return parsed


def decode_base64_image(text: object, name: str) -> bytes:
    """Decode an image file in base64, optionally with a ``data:`` prefix.

    Raises:
        ApiError: 422, it is a URL or not base64.
    """
    if not isinstance(text, str):
        raise ApiError(422, "invalid_base64", f"{name}: expected a base64 string, got {_type_name(text)}")
    if _URL.match(text[:64]):
        message = f"{name}: expected the image file in base64, got a URL; the server does not fetch URLs"
        raise ApiError(422, "url_not_supported", message)
    prefix = _DATA_URL.match(text[:64])
    try:
        return base64.b64decode(text[prefix.end() :] if prefix else text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise ApiError(422, "invalid_base64", f"{name}: invalid base64 ({error})") from error


async def _parse_form(body: bytes, headers: Headers, limits: Limits) -> tuple[list[tuple[str, bytes]], dict[str, Any]]:
    async def stream() -> AsyncGenerator[bytes, None]:
        yield body
        yield b""

    parser = _InMemoryParser(
        headers, stream(), max_files=limits.max_images, max_fields=_MAX_FIELDS, max_part_size=_MAX_FIELD_BYTES
    )
    try:
        form = await parser.parse()
    except MultiPartException as error:
        if error.message.startswith("Too many files"):
            _check_image_count(limits.max_images + 1, limits)
        raise ApiError(400, "invalid_form", f"invalid multipart form: {error.message}") from error
    except (KeyError, UnicodeError, LookupError) as error:
        raise ApiError(400, "invalid_form", "invalid multipart form: invalid boundary or encoding") from error
    images: list[tuple[str, bytes]] = []
    image_fields: list[str] = []
    fields: list[tuple[str, str]] = []
    for field, value in form.multi_items():
        if isinstance(value, UploadFile):
            image_fields.append(field)
            images.append((_clean(value.filename or "") or f"image {len(images)}", await value.read()))
        else:
            fields.append((field, value))
    await form.close()
    _check_image_fields(image_fields, [field for field, _ in fields])
    return images, _group_values(fields)


def _check_image_fields(file_fields: Sequence[str], text_fields: Sequence[str]) -> None:
    """Check that files are in the field ``image`` (one) or in the field ``images`` (one or several)."""
    for field in file_fields:
        if field not in ("image", "images"):
            message = f"form field {_clean(field)!r} has a file; expected files in image or images only"
            raise ApiError(422, "invalid_image_field", message)
    for field in text_fields:
        if field in ("image", "images"):
            raise ApiError(422, "invalid_image_field", f"form field {field}: expected a file with a name, got text")
    if len(set(file_fields)) > 1:
        raise ApiError(422, "invalid_image_field", "expected either image or images in the form, got both")
    if file_fields.count("image") > 1:
        message = f"form field image: expected 1 file, got {len(file_fields)}; send several in the field images"
        raise ApiError(422, "invalid_image_field", message)


def _parse_json_image(entry: object, name: str) -> tuple[str, bytes]:
    if isinstance(entry, dict):
        if set(entry) - {"name", "data"} or "data" not in entry:
            keys = _clean(", ".join(map(str, entry))) or "none"
            message = f'{name}: expected the keys "data" and optionally "name", got {keys}'
            raise ApiError(422, "invalid_image_field", message)
        name, entry = _clean(str(entry.get("name") or name)), entry["data"]
    return name, decode_base64_image(entry, name)


def _check_json_size(body: bytes, character: bytes, most: int) -> None:
    if (count := body.count(character)) > most:
        message = f"JSON: expected at most {most:,} times {character.decode()!r}, got {count:,}"
        raise ApiError(413, "json_too_complex", message)


def _check_image_count(count: int, limits: Limits) -> None:
    if count > limits.max_images:
        message = f"expected at most {limits.max_images} images, got at least {count}; send several requests"
        raise ApiError(413, "too_many_images", message)


def _group_values(items: Sequence[tuple[str, str]]) -> dict[str, Any]:
    """Return the value of each name, or the list of its values if there are several."""
    groups: dict[str, list[str]] = {}
    for name, value in items:
        groups.setdefault(name, []).append(value)
    return {name: values[0] if len(values) == 1 else values for name, values in groups.items()}


def _type_name(value: object) -> str:
    names: dict[type, str] = {
        dict: "an object",
        list: "a list",
        str: "a string",
        bool: "a boolean",
        type(None): "nothing",
    }
    return names.get(type(value), "a number")


def _clean(text: str) -> str:
    """Return a name that a client sent without control characters, for messages and predictions."""
    return "".join(character for character in text if character.isprintable())[:_MAX_NAME_LENGTH]
