"""The parts of ``/openapi.json`` for bodies, options and errors that the routes parse themselves."""

from typing import Any

from van.serving.options import MAX_EXPLAINED_CLASSES, MAX_TOP

_EXAMPLE_PNG = (
    "iVBORw0KGgoAAAANSUhEUgAAABgAAAAYBAMAAAASWSDLAAAAGFBMVEXU1NTExMSzs7PmnwCFhYVYWFg/Pz8sLCy1dXjiAAAAOUlEQVR42mMsf///"
    "A8N7hn8P/r//wMSABMjhsDAwMNxjYGBgEHxHngE05LAwMDAoMbxn+PeAGqYBAFE5DgA+C0RvAAAAAElFTkSuQmCC"
)
"""A square of 12 on a ground of 24 pixels, so that the example of the documentation page can be sent as it is."""
_FILE = {"type": "string", "format": "binary"}
_BASE64 = {"type": "string", "contentEncoding": "base64", "description": "Image file in base64; URLs are not fetched."}
_NAMED_IMAGE = {
    "type": "object",
    "properties": {"name": {"type": "string"}, "data": _BASE64},
    "required": ["data"],
    "additionalProperties": False,
}
_JSON_IMAGE = {"anyOf": [_BASE64, _NAMED_IMAGE]}
_NAME = {"type": "string"}
_MODEL_NAME = {**_NAME, "description": "Served model; the first one by default."}
_TOP = {
    "type": "integer",
    "minimum": 1,
    "maximum": MAX_TOP,
    "description": "Number of predictions: 5 classes by default, all detections or segments.",
}
_MIN_SCORE = {
    "type": "number",
    "minimum": 0,
    "maximum": 1,
    "description": "Score threshold of detections; 0.3 by default.",
}
_EXPLAIN_OPTIONS: dict[str, Any] = {
    "model": _MODEL_NAME,
    "kind": {
        "enum": ["cam", "lka"],
        "description": "Class activation maps (default), or the attention maps of large kernel attention.",
    },
    "classes": {
        "type": "array",
        "items": {"type": ["string", "integer"]},
        "minItems": 1,
        "maxItems": MAX_EXPLAINED_CLASSES,
        "description": "Class names or class indices to explain; the top classes by default.",
    },
    "top": {
        "type": "integer",
        "minimum": 1,
        "maximum": MAX_EXPLAINED_CLASSES,
        "description": "Number of top classes or detections to explain; 1 by default.",
    },
    "method": {**_NAME, "description": "Class activation map method; see methods in /models."},
    "layer": {**_NAME, "description": "Layer of the class activation map; the default depends on the method."},
    "channels": {"enum": ["mean", "strongest"], "description": "Channels of the attention maps, for kind=lka."},
    "blocks": {
        "type": "array",
        "items": _NAME,
        "description": "Blocks or stages, for kind=lka; see blocks in /models.",
    },
}
_PREDICT_OPTIONS: dict[str, Any] = {"model": _MODEL_NAME, "top": _TOP, "min_score": _MIN_SCORE}


def _image_body(options: dict[str, Any], *, several: bool) -> dict[str, Any]:
    """Return the schema of a body with images as a form, as JSON or as a file."""

    def with_images(one: dict[str, Any], description: str) -> dict[str, Any]:
        fields: dict[str, Any] = {"image": {**one, "description": f"One {description}."}}
        fields["images"] = {
            "type": "array",
            "items": one,
            "minItems": 1,
            "description": f"Several {description}s, instead of image." if several else f"List of one {description}.",
            **({} if several else {"maxItems": 1}),
        }
        return {
            "type": "object",
            "properties": {**fields, **options},
            "oneOf": [{"required": ["image"]}, {"required": ["images"]}],
            "additionalProperties": False,
        }

    return {
        "required": True,
        "content": {
            "multipart/form-data": {"schema": with_images(_FILE, "image file")},
            "application/json": {
                "schema": with_images(_JSON_IMAGE, "image file in base64"),
                "example": {"image": _EXAMPLE_PNG},
            },
            "image/*": {"schema": _FILE},
            "application/octet-stream": {"schema": _FILE},
        },
    }


def _query(name: str, schema: dict[str, Any]) -> dict[str, Any]:
    schema = dict(schema)
    return {"name": name, "in": "query", "required": False, "description": schema.pop("description"), "schema": schema}


PREDICT_QUERY = [_query(name, schema) for name, schema in _PREDICT_OPTIONS.items()]
EXPLAIN_QUERY = [_query(name, schema) for name, schema in _EXPLAIN_OPTIONS.items()]
PREDICT_BODY = _image_body(_PREDICT_OPTIONS, several=True)
EXPLAIN_BODY = _image_body(_EXPLAIN_OPTIONS, several=False)

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
_DESCRIPTIONS = {
    400: "Malformed request",
    401: "Missing or invalid API key",
    403: "Origin or host not allowed",
    404: "Unknown model",
    408: "Timeout while receiving the body",
    413: "Body or image too large, or too many images",
    414: "URL too long",
    415: "Unsupported media type",
    422: "Invalid image or option",
    429: "Overloaded; retry after the seconds in Retry-After",
    500: "Inference or server error",
    503: "Not ready, or shutting down; retry after the seconds in Retry-After",
    504: "Timeout",
}


def _error_responses(schema: dict[str, Any]) -> dict[int | str, dict[str, Any]]:
    return {
        status: {"description": description, "content": {"application/json": {"schema": schema}}}
        for status, description in _DESCRIPTIONS.items()
    }


ERRORS = _error_responses(_ERROR)
V2_ERRORS = _error_responses(_V2_ERROR)

_V2_INPUT = {
    "type": "object",
    "required": ["name", "shape", "datatype", "data"],
    "properties": {
        "name": {"enum": ["images", "tensor"]},
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
                    "inputs": {"type": "array", "items": _V2_INPUT, "minItems": 1, "maxItems": 1},
                    "outputs": {"type": "array", "items": {"type": "object", "required": ["name"]}},
                    "parameters": {"type": "object"},
                },
            },
            "example": {"inputs": [{"name": "images", "datatype": "BYTES", "shape": [1], "data": [_EXAMPLE_PNG]}]},
        }
    },
}
