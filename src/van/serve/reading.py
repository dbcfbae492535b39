"""From a request's body to pictures and options, in any of the three forms that ``app.py`` describes.

Nothing is ever fetched: a picture given as an address is refused. Everything stays in memory, within the limits.
"""

import base64
import binascii
import dataclasses
import json
import re
from collections.abc import AsyncGenerator, Mapping
from typing import Any

from starlette.datastructures import Headers, QueryParams, UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser

from van.serve.refusals import Refused
from van.serve.settings import Limits

_ADDRESS = re.compile(r"\s*(?:[a-z][a-z0-9+.-]*://|file:|//[a-z0-9-]*[.:])", re.IGNORECASE)
"""Two strokes alone may begin base64: of bytes that start with ff f0 to ff ff."""
_DATA = re.compile(r"data:image/[a-z0-9.+-]+;base64,", re.IGNORECASE)
_MOST_FIELDS, _MOST_FIELD_BYTES = 64, 4096
_MOST_LETTERS = 200
_MOST_OBJECTS, _MOST_LISTS, _MOST_COMMAS = 1 << 16, 1 << 17, 1 << 14
"""In JSON: what takes three letters takes twenty times their memory when it is read. A tensor may be lists of lists of
numbers; beside pictures there is little."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Asked:
    """Pictures as (name, contents of a file), and options as they were written; a list where one came several times."""

    pictures: tuple[tuple[str, bytes], ...]
    options: Mapping[str, Any]


class _InMemory(MultiPartParser):
    """The parser without its temporary files: the body is in memory anyway, and is bounded there."""

    spool_max_size = 1 << 62


async def read_asked(body: bytes, headers: Headers, query: QueryParams, limits: Limits) -> Asked:
    """What a request asks.

    Raises:
        Refused: 400 it cannot be understood, 413 more pictures than allowed, 415 another kind of body, 422 a picture
            is given as an address or there is none.
    """
    kind = headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind == "multipart/form-data":
        pictures, options = await _from_form(body, headers, limits)
    elif kind == "application/json":
        pictures, options = from_json(body, limits)
    elif kind.startswith("image/") or kind == "application/octet-stream":
        pictures, options = [("picture", body)], {}
    else:
        known = "multipart/form-data, application/json, image/* or application/octet-stream"
        raise Refused(415, "kind_of_body", f"Content-Type is {_short(kind) or 'missing'}; wanted {known}")
    if not pictures:
        raise Refused(422, "no_pictures", "the request holds no picture; wanted at least one")
    return Asked(pictures=tuple(pictures), options={**options, **_several(query.multi_items())})


def from_json(body: bytes, limits: Limits) -> tuple[list[tuple[str, bytes]], dict[str, Any]]:
    """Pictures and options of a JSON body.

    Raises:
        Refused: see ``read_asked``.
    """
    _want_little(body, b",", max(_MOST_COMMAS, 8 * limits.pictures))
    options = parse_json(body)
    given = options.pop("pictures", None)
    if not isinstance(given, list):
        raise Refused(422, "no_pictures", 'the JSON holds no list "pictures"; wanted {"pictures": [BASE64, ...]}')
    _want_few(len(given), limits)
    return [_of_json(picture, place) for place, picture in enumerate(given)], options


def parse_json(body: bytes) -> dict[str, Any]:
    """A JSON object.

    Raises:
        Refused: it is none, or holds very many objects or lists.
    """
    _want_little(body, b"{", _MOST_OBJECTS)
    _want_little(body, b"[", _MOST_LISTS)
    try:
        parsed = json.loads(body)
    except (ValueError, RecursionError) as error:
        told = f"{error.msg} at {error.pos}" if isinstance(error, json.JSONDecodeError) else "too deep, or no UTF-8"
        raise Refused(400, "no_json", f"the body is no JSON ({told})") from error
    if not isinstance(parsed, dict):
        raise Refused(422, "no_object", f"the JSON is a {type(parsed).__name__}; wanted an object")
    return parsed


def of_base64(text: object, name: str) -> bytes:
    """The bytes of a picture in base64, perhaps as a ``data:`` address.

    Raises:
        Refused: it is another address, or no base64.
    """
    if not isinstance(text, str):
        raise Refused(422, "no_base64", f"{name} is a {type(text).__name__}; wanted a string, the file in base64")
    if _ADDRESS.match(text[:64]):
        raise Refused(
            422, "address_refused", f"{name} is an address, and nothing is fetched here; send the file itself"
        )
    found = _DATA.match(text[:64])
    try:
        return base64.b64decode(text[found.end() :] if found else text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise Refused(422, "no_base64", f"{name} is no base64; wanted the file, encoded so") from error


async def _from_form(body: bytes, headers: Headers, limits: Limits) -> tuple[list[tuple[str, bytes]], dict[str, Any]]:
    async def stream() -> AsyncGenerator[bytes, None]:
        yield body
        yield b""

    parser = _InMemory(
        headers,
        stream(),
        max_files=limits.pictures,
        max_fields=_MOST_FIELDS,
        max_part_size=_MOST_FIELD_BYTES,
    )
    try:
        form = await parser.parse()
    except MultiPartException as error:
        if error.message.startswith("Too many files"):
            _want_few(limits.pictures + 1, limits)
        raise Refused(400, "no_form", f"the form cannot be read ({error.message})") from error
    except (KeyError, UnicodeError, LookupError) as error:
        raise Refused(400, "no_form", "the form cannot be read (its boundary or letters)") from error
    pictures: list[tuple[str, bytes]] = []
    fields: list[tuple[str, str]] = []
    for field, value in form.multi_items():
        if isinstance(value, UploadFile):
            name = _short(value.filename or "") or f"picture {len(pictures)}"
            pictures.append((name, await value.read()))
        else:
            fields.append((field, value))
    await form.close()
    return pictures, _several(fields)


def _of_json(given: object, place: int) -> tuple[str, bytes]:
    name = f"picture {place}"
    if isinstance(given, dict):
        strange = set(given) - {"name", "data"}
        if strange or "data" not in given:
            raise Refused(
                422,
                "no_picture",
                f'{name} holds {_short(", ".join(map(str, given)))}; wanted "data" and perhaps "name"',
            )
        name, given = _short(str(given.get("name") or name)), given["data"]
    return name, of_base64(given, name)


def _want_little(body: bytes, sign: bytes, most: int) -> None:
    if (count := body.count(sign)) > most:
        told = f"the JSON has {count:,} of the sign {sign.decode()!r}; wanted at most {most:,}"
        raise Refused(413, "too_much_json", told)


def _want_few(count: int, limits: Limits) -> None:
    if count > limits.pictures:
        raise Refused(
            413, "too_many_pictures", f"the request holds {count} pictures or more; wanted at most {limits.pictures}"
        )


def _several(items: list[tuple[str, str]]) -> dict[str, Any]:
    """One value, or the list of those that came under one name."""
    found: dict[str, list[str]] = {}
    for key, value in items:
        found.setdefault(key, []).append(value)
    return {key: values[0] if len(values) == 1 else values for key, values in found.items()}


def _short(text: str) -> str:
    """A name that a client gave, fit for messages and logs."""
    return "".join(letter for letter in text if letter.isprintable())[:_MOST_LETTERS]
