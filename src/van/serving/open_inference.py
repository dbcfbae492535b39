"""The Open Inference Protocol, version 2, over HTTP and JSON.

A request has one input: ``images`` (BYTES, [N], files in base64), or ``tensor`` (FP32, [N, 3, H, W], preprocessed
images). Outputs: ``predictions`` (BYTES, [N], each the JSON of ``/predict``), and for classification ``scores`` (FP32,
[N, K], in the order of ``parameters.class_names`` of the model) and ``class_names`` (BYTES, [N], the top class). One
invalid image fails the whole request. Source: github.com/kserve/open-inference-protocol, "HTTP/REST".
"""

import asyncio
import json
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse

import van
from van.serving.api_error import ApiError
from van.serving.messages import ModelCard
from van.serving.openapi import INFER_BODY, V2_ERRORS
from van.serving.request_parsing import decode_base64_image, parse_json
from van.serving.service import Outcome, Service

_DATATYPES = {"images": "BYTES", "tensor": "FP32"}


def open_inference_routes(service: Service) -> APIRouter:
    """Return the routes under ``/v2``."""
    router = APIRouter(prefix="/v2", responses=V2_ERRORS)

    @router.get("", summary="Server metadata")
    async def server() -> dict[str, Any]:
        return {"name": "van", "version": van.__version__, "extensions": []}

    @router.get("/health/live", summary="Server liveness")
    async def live() -> dict[str, bool]:
        return {"live": True}

    @router.get("/health/ready", summary="Server readiness")
    async def ready() -> Response:
        return _readiness(service.is_ready)

    @router.get("/models/{name}", summary="Model metadata", description="Inputs, outputs and classes of a model.")
    async def model(name: str) -> dict[str, Any]:
        return _metadata(service.card(name))

    @router.get("/models/{name}/ready", summary="Model readiness")
    async def model_ready(name: str) -> Response:
        if service.state == "ready":
            service.card(name)
        return _readiness(service.is_ready)

    @router.post(
        "/models/{name}/infer",
        summary="Inference",
        description="Run a model on images or on a preprocessed tensor.",
        openapi_extra={"requestBody": INFER_BODY},
    )
    async def infer(name: str, request: Request) -> JSONResponse:
        return await _infer(name, request, service)

    return router


async def _infer(name: str, request: Request, service: Service) -> JSONResponse:
    card, context = service.card(name), request.state.context
    media_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if media_type not in ("application/json", ""):
        message = f"Content-Type: expected application/json, got {media_type[:60]!r}"
        raise ApiError(415, "unsupported_media_type", message)
    body = await asyncio.to_thread(parse_json, await request.body())
    tensor_input, output_names = _parse_input(body), _parse_output_names(body, card)
    options = {"top": len(card.class_names)} if card.task == "classify" else {}
    context.model, context.images = card.name, tensor_input["shape"][0] if tensor_input["shape"] else 0
    limits = service.settings.limits
    if tensor_input["name"] == "tensor":
        tensors, size = await asyncio.to_thread(_parse_tensors, tensor_input, card, limits.max_pixels)
        _check_image_count(len(tensors), limits.max_images)
        outcomes = await service.infer_tensors(card, tensors, size, options)
    else:
        images = _parse_images(tensor_input)
        _check_image_count(len(images), limits.max_images)
        outcomes = await service.infer("predict", card, images, options)
    for outcome in outcomes:
        if outcome.error:
            raise outcome.error
    outputs = [_make_output(output, card, outcomes) for output in output_names]
    response = {"model_name": card.name, "model_version": card.version, "outputs": outputs}
    return JSONResponse({**response, **({"id": body["id"]} if "id" in body else {})})


def _readiness(ready: bool) -> Response:
    return JSONResponse({"ready": ready}, 200 if ready else 503, headers={} if ready else {"Retry-After": "2"})


def _metadata(card: ModelCard) -> dict[str, Any]:
    side = card.image_size or -1  # -1 is a variable size in the protocol
    inputs = [
        {"name": "images", "datatype": "BYTES", "shape": [-1]},
        {"name": "tensor", "datatype": "FP32", "shape": [-1, 3, side, side]},
    ]
    return {
        "name": card.name,
        "versions": [card.version],
        "platform": f"van_{card.task}",
        "inputs": inputs,
        "outputs": [{"name": name, **_output_type(name, card)} for name in _output_names(card)],
        "parameters": {"class_names": list(card.class_names), "task": card.task, "architecture": card.architecture},
    }


def _output_names(card: ModelCard) -> tuple[str, ...]:
    return ("predictions", "scores", "class_names") if card.task == "classify" else ("predictions",)


def _output_type(output: str, card: ModelCard) -> dict[str, Any]:
    if output == "scores":
        return {"datatype": "FP32", "shape": [-1, len(card.class_names)]}
    return {"datatype": "BYTES", "shape": [-1]}


def _parse_output_names(body: dict[str, Any], card: ModelCard) -> list[str]:
    known = _output_names(card)
    outputs = body.get("outputs") or [{"name": name} for name in known]
    if not isinstance(outputs, list):
        raise ApiError(422, "invalid_output", "outputs: expected a list such as [{name: ...}]")
    names = [output.get("name") if isinstance(output, dict) else None for output in outputs]
    for name in names:
        if name not in known:
            message = f"outputs: expected some of {', '.join(known)}, got {str(name)[:60]!r}"
            raise ApiError(422, "invalid_output", message)
    return [str(name) for name in names]


def _parse_input(body: dict[str, Any]) -> dict[str, Any]:
    """Return the only input after checking its name, datatype and the types of its shape and data."""
    if not isinstance(body.get("id", ""), str):
        raise ApiError(422, "invalid_id", f"id: expected a string, got {str(body['id'])[:60]}")
    inputs = body.get("inputs")
    if not isinstance(inputs, list) or len(inputs) != 1 or not isinstance(inputs[0], dict):
        raise ApiError(422, "invalid_input", "inputs: expected a list of exactly one input, images or tensor")
    tensor_input = inputs[0]
    name, datatype, shape = tensor_input.get("name"), tensor_input.get("datatype"), tensor_input.get("shape")
    if not isinstance(name, str) or name not in _DATATYPES or datatype != _DATATYPES[name]:
        got = f"{str(name)[:60]!r} with datatype {str(datatype)[:20]}"
        raise ApiError(
            422, "invalid_input", f"inputs: expected images with datatype BYTES or tensor with FP32, got {got}"
        )
    is_shape = isinstance(shape, list) and all(type(side) is int and 0 < side < 1 << 31 for side in shape)
    if not is_shape:
        message = f"shape of {name}: expected a list of positive integers, got {str(shape)[:80]}"
        raise ApiError(422, "invalid_input", message)
    if not isinstance(tensor_input.get("data"), list):
        raise ApiError(422, "invalid_input", f"data of {name}: expected a list")
    return tensor_input


def _check_image_count(count: int, max_images: int) -> None:
    if count > max_images:
        raise ApiError(413, "too_many_images", f"inputs: expected at most {max_images} images, got {count}")


def _parse_images(tensor_input: dict[str, Any]) -> list[tuple[str, bytes]]:
    data, shape = tensor_input["data"], tensor_input["shape"]
    if shape not in ([len(data)], [len(data), 1]) or not data:
        message = f"shape of images: expected [{len(data)}], the length of data and at least 1, got {str(shape)[:80]}"
        raise ApiError(422, "invalid_input", message)
    return [(f"image {index}", decode_base64_image(text, f"image {index}")) for index, text in enumerate(data)]


def _parse_tensors(
    tensor_input: dict[str, Any], card: ModelCard, max_pixels: int
) -> tuple[list[bytes], tuple[int, int]]:
    """Return the float32 bytes of each image, and their rows and columns."""
    shape, side = tensor_input["shape"], card.image_size or "any"
    fits = len(shape) == 4 and shape[1] == 3 and (not card.image_size or shape[2:] == [card.image_size] * 2)
    if not fits or shape[2] * shape[3] > max_pixels:
        message = f"shape of tensor: expected [N, 3, {side}, {side}], got {str(shape)[:80]}"
        raise ApiError(422, "invalid_input", message)
    try:
        values = np.asarray(tensor_input["data"])
    except (ValueError, OverflowError, RecursionError):
        values = np.asarray("ragged")
    if values.dtype.kind not in "iuf" or values.size != math.prod(shape):
        message = f"data of tensor: expected {math.prod(shape):,} numbers for the shape {shape}"
        raise ApiError(422, "invalid_input", message)
    with np.errstate(over="ignore"):  # an overflow becomes infinity, which is rejected below
        values = values.astype(np.float32).reshape(shape)
    if not np.isfinite(values).all():
        message = "data of tensor: expected finite float32 values, got NaN, infinity or an overflow"
        raise ApiError(422, "invalid_input", message)
    return [image.tobytes() for image in values], (shape[2], shape[3])


def _make_output(name: str, card: ModelCard, outcomes: Sequence[Outcome]) -> dict[str, Any]:
    predictions = [outcome.result for outcome in outcomes]
    count = len(predictions)
    if name == "predictions":
        data = [json.dumps(prediction) for prediction in predictions]
        return {"name": name, "datatype": "BYTES", "shape": [count], "data": data}
    if name == "class_names":
        top = [prediction["classes"][0]["label"] for prediction in predictions]
        return {"name": name, "datatype": "BYTES", "shape": [count], "data": top}
    scores = np.zeros((count, len(card.class_names)))
    for row, prediction in zip(scores, predictions, strict=True):
        for class_score in prediction["classes"]:
            row[class_score["index"]] = class_score["score"]
    return {"name": name, "datatype": "FP32", "shape": list(scores.shape), "data": scores.ravel().tolist()}
