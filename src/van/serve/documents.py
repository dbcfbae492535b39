"""What ``/openapi.json`` says of bodies and options that the routes read themselves."""

from typing import Any

_FILE = {"type": "string", "format": "binary"}
_BASE64 = {"type": "string", "contentEncoding": "base64", "description": "a picture file in base64; no address"}
_NAMED = {
    "type": "object",
    "properties": {"name": {"type": "string"}, "data": _BASE64},
    "required": ["data"],
    "additionalProperties": False,
}
_TOP = {"type": "integer", "minimum": 1, "maximum": 1000}
_SCORE = {"type": "number", "minimum": 0, "maximum": 1}


def _body(options: dict[str, Any], *, most: int | None) -> dict[str, Any]:
    """The three forms of a body, with options as form fields or JSON keys."""
    pictures: dict[str, Any] = {"type": "array", "items": {"anyOf": [_BASE64, _NAMED]}, "minItems": 1}
    if most:
        pictures["maxItems"] = most
    plain = {"type": "object", "properties": {"pictures": pictures, **options}, "required": ["pictures"]}
    files = {"type": "array", "items": _FILE, "minItems": 1, **({"maxItems": most} if most else {})}
    form = {"type": "object", "properties": {"pictures": files, **options}, "required": ["pictures"]}
    return {
        "required": True,
        "content": {
            "multipart/form-data": {"schema": {**form, "additionalProperties": False}},
            "application/json": {"schema": {**plain, "additionalProperties": False}},
            "image/*": {"schema": _FILE},
            "application/octet-stream": {"schema": _FILE},
        },
    }


def _query(name: str, schema: dict[str, Any], description: str) -> dict[str, Any]:
    return {"name": name, "in": "query", "required": False, "schema": schema, "description": description}


_NAME = {"type": "string"}
MODEL = _query("model", _NAME, "the served model; the first one if not given")
PREDICT_OPTIONS = [
    _query("top", _TOP, "how many classes, things or regions; 5 classes, all of the others if not given"),
    _query("min_score", _SCORE, "for boxes: what scores less is left out; 0.3 if not given"),
]
PICTURES_BODY = _body({"model": _NAME, "top": _TOP, "min_score": _SCORE}, most=None)
EXPLAIN_BODY = _body(
    {
        "model": _NAME,
        "kind": {"enum": ["maps", "lka"]},
        "classes": {"type": "array", "items": {"type": ["string", "integer"]}, "minItems": 1, "maxItems": 16},
        "top": {"type": "integer", "minimum": 1, "maximum": 16},
        "method": _NAME,
        "layer": _NAME,
        "channels": {"enum": ["mean", "strongest"]},
        "blocks": {"type": "array", "items": _NAME},
    },
    most=1,
)

_ERROR: dict[str, Any] = {
    "type": "object",
    "required": ["error"],
    "properties": {
        "error": {
            "type": "object",
            "required": ["code", "message"],
            "properties": {name: {"type": "string"} for name in ("code", "message", "request_id")},
        }
    },
}
_V2_ERROR: dict[str, Any] = {"type": "object", "required": ["error"], "properties": {"error": {"type": "string"}}}
_REASONS = {
    400: "it cannot be understood",
    401: "the key is missing or wrong",
    403: "a page of another site",
    404: "no such model",
    408: "the body came too slowly",
    413: "the body, a picture or their number is too large",
    414: "the URL is too long",
    415: "another kind of body",
    422: "a picture or an option is wrong",
    429: "too much is in work; see Retry-After",
    500: "the network or the service failed",
    503: "not ready, or stopping; see Retry-After",
    504: "it took too long",
}
REFUSALS: dict[int | str, dict[str, Any]] = {
    status: {"description": reason, "content": {"application/json": {"schema": _ERROR}}}
    for status, reason in _REASONS.items()
}
V2_REFUSALS: dict[int | str, dict[str, Any]] = {
    status: {"description": reason, "content": {"application/json": {"schema": _V2_ERROR}}}
    for status, reason in _REASONS.items()
}

_V2_TENSOR = {
    "type": "object",
    "required": ["name", "shape", "datatype", "data"],
    "properties": {
        "name": {"enum": ["pictures", "tensor"]},
        "shape": {"type": "array", "items": {"type": "integer", "minimum": 1}},
        "datatype": {"enum": ["BYTES", "FP32"]},
        "data": {"type": "array"},
        "parameters": {"type": "object"},
    },
}
INFER_BODY = {
    "required": True,
    "content": {
        "application/json": {
            "schema": {
                "type": "object",
                "required": ["inputs"],
                "properties": {
                    "id": {"type": "string"},
                    "inputs": {"type": "array", "items": _V2_TENSOR, "minItems": 1, "maxItems": 1},
                    "outputs": {"type": "array", "items": {"type": "object", "required": ["name"]}},
                    "parameters": {"type": "object"},
                },
            }
        }
    },
}
