"""The Open Inference Protocol, version 2, over HTTP and JSON, for clients that speak to any server so.

A request has one input: ``pictures`` (BYTES, [N], files in base64), or ``tensor`` (FP32, [N, 3, H, W], what the network
reads after preprocessing). Outputs: ``answers`` (BYTES, [N], each JSON as ``/predict`` answers), and of networks that
classify ``probabilities`` (FP32, [N, K], in the order of ``labels``) and ``labels`` (BYTES, [N], the most probable).
A picture that cannot be read refuses the whole request. Source: github.com/kserve/open-inference-protocol,
"HTTP/REST".
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
from van.serve.documents import INFER_BODY, V2_REFUSALS
from van.serve.questions import ModelCard
from van.serve.reading import of_base64, parse_json
from van.serve.refusals import Refused
from van.serve.service import Outcome, Service


def protocol_routes(service: Service) -> APIRouter:
    """The routes under ``/v2``."""
    router = APIRouter(prefix="/v2", responses=V2_REFUSALS)

    @router.get("", summary="The server")
    async def server() -> dict[str, Any]:
        return {"name": "van", "version": van.__version__, "extensions": []}

    @router.get("/health/live", summary="Whether the process answers")
    async def live() -> dict[str, bool]:
        return {"live": True}

    @router.get("/health/ready", summary="Whether every model answers")
    async def ready() -> Response:
        return _readiness(service.is_ready)

    @router.get("/models/{name}", summary="A model's inputs, outputs and classes")
    async def model(name: str) -> dict[str, Any]:
        return _metadata(service.card(name))

    @router.get("/models/{name}/ready", summary="Whether a model answers")
    async def model_ready(name: str) -> Response:
        if service.state == "ready":
            service.card(name)
        return _readiness(service.is_ready)

    @router.post("/models/{name}/infer", summary="Ask a model", openapi_extra={"requestBody": INFER_BODY})
    async def infer(name: str, request: Request) -> JSONResponse:
        card, facts = service.card(name), request.state.facts
        if request.headers.get("content-type", "").partition(";")[0].strip().lower() not in ("application/json", ""):
            raise Refused(415, "kind_of_body", "Content-Type is something else; wanted application/json")
        asked = await asyncio.to_thread(parse_json, await request.body())
        one, wanted = _input(asked), _wanted_outputs(asked, card)
        options = {"top": len(card.labels)} if card.task == "classify" else {}
        facts.model, facts.pictures = card.name, one["shape"][0] if one["shape"] else 0
        if one["name"] == "tensor":
            tensors, size = await asyncio.to_thread(_tensors, one, card, service.settings.limits.pixels)
            _want_few(len(tensors), service)
            outcomes = await service.ask_tensors(card, tensors, size, options)
        else:
            pictures = _pictures(one)
            _want_few(len(pictures), service)
            outcomes = await service.ask("predict", card, pictures, options)
        for outcome in outcomes:
            if outcome.refused:
                raise outcome.refused
        outputs = [_output(name, card, outcomes) for name in wanted]
        said = {"model_name": card.name, "model_version": card.version, "outputs": outputs}
        return JSONResponse({**said, **({"id": asked["id"]} if "id" in asked else {})})

    return router


def _readiness(ready: bool) -> Response:
    return JSONResponse({"ready": ready}, 200 if ready else 503, headers={} if ready else {"Retry-After": "2"})


def _metadata(card: ModelCard) -> dict[str, Any]:
    side = card.size_px or -1
    inputs = [
        {"name": "pictures", "datatype": "BYTES", "shape": [-1]},
        {"name": "tensor", "datatype": "FP32", "shape": [-1, 3, side, side]},
    ]
    return {
        "name": card.name,
        "versions": [card.version],
        "platform": f"van_{card.task}",
        "inputs": inputs,
        "outputs": [{"name": name, **_form(name, card)} for name in _outputs_of(card)],
        "parameters": {"labels": list(card.labels), "task": card.task, "network": card.network},
    }


def _outputs_of(card: ModelCard) -> tuple[str, ...]:
    return ("answers", "probabilities", "labels") if card.task == "classify" else ("answers",)


def _form(output: str, card: ModelCard) -> dict[str, Any]:
    if output == "probabilities":
        return {"datatype": "FP32", "shape": [-1, len(card.labels)]}
    return {"datatype": "BYTES", "shape": [-1]}


def _wanted_outputs(asked: dict[str, Any], card: ModelCard) -> list[str]:
    known = _outputs_of(card)
    given = asked.get("outputs") or [{"name": name} for name in known]
    if not isinstance(given, list):
        raise Refused(422, "wrong_output", "outputs is no list; wanted [{name: ...}]")
    names = [one.get("name") if isinstance(one, dict) else None for one in given]
    for name in names:
        if name not in known:
            raise Refused(422, "wrong_output", f"there is no output {str(name)[:60]!r}; known: {', '.join(known)}")
    return [str(name) for name in names]


def _input(asked: dict[str, Any]) -> dict[str, Any]:
    """The only input, its form checked."""
    if not isinstance(asked.get("id", ""), str):
        raise Refused(422, "wrong_id", "id is no string")
    inputs = asked.get("inputs")
    if not isinstance(inputs, list) or len(inputs) != 1 or not isinstance(inputs[0], dict):
        raise Refused(422, "wrong_input", "wanted a list inputs with one input, pictures or tensor")
    one = inputs[0]
    kinds = {"pictures": "BYTES", "tensor": "FP32"}
    name, datatype, shape = one.get("name"), one.get("datatype"), one.get("shape")
    if not isinstance(name, str) or name not in kinds or datatype != kinds[name]:
        told = f"the input is {str(name)[:60]!r} of {str(datatype)[:20]}"
        raise Refused(422, "wrong_input", f"{told}; wanted pictures of BYTES or tensor of FP32")
    whole = isinstance(shape, list) and all(type(side) is int and 0 < side < 1 << 31 for side in shape)
    if not whole or not isinstance(one.get("data"), list):
        raise Refused(422, "wrong_input", f"the shape or data of {name} is no list, or a size is none")
    return one


def _want_few(count: int, service: Service) -> None:
    most = service.settings.limits.pictures
    if count > most:
        raise Refused(413, "too_many_pictures", f"the input holds {count} pictures; wanted at most {most}")


def _pictures(one: dict[str, Any]) -> list[tuple[str, bytes]]:
    if one["shape"] not in ([len(one["data"])], [len(one["data"]), 1]) or not one["data"]:
        raise Refused(
            422, "wrong_input", f"the shape of pictures is {one['shape']}; wanted [{len(one['data'])}], at least [1]"
        )
    return [(f"picture {place}", of_base64(text, f"picture {place}")) for place, text in enumerate(one["data"])]


def _tensors(one: dict[str, Any], card: ModelCard, most_pixels: int) -> tuple[list[bytes], tuple[int, int]]:
    """The bytes of each picture, and their rows and columns."""
    shape, side = one["shape"], card.size_px or "any"
    fits = len(shape) == 4 and shape[1] == 3 and (not card.size_px or shape[2:] == [card.size_px] * 2)
    if not fits or shape[2] * shape[3] > most_pixels:
        raise Refused(422, "wrong_input", f"the shape of tensor is {str(shape)[:80]}; wanted [N, 3, {side}, {side}]")
    try:
        values = np.asarray(one["data"])
    except (ValueError, OverflowError, RecursionError):
        values = np.asarray("ragged")
    if values.dtype.kind not in "iuf" or values.size != math.prod(shape):
        raise Refused(
            422, "wrong_input", f"the data of tensor is not {math.prod(shape):,} numbers, which its shape holds"
        )
    with np.errstate(over="ignore"):  # what does not fit becomes infinite, and is refused below
        values = values.astype(np.float32).reshape(shape)
    if not np.isfinite(values).all():
        raise Refused(422, "wrong_input", "the data of tensor holds NaN, infinity or what float32 cannot hold")
    return [picture.tobytes() for picture in values], (shape[2], shape[3])


def _output(name: str, card: ModelCard, outcomes: Sequence[Outcome]) -> dict[str, Any]:
    answers = [outcome.answer for outcome in outcomes]
    count = len(answers)
    if name == "answers":
        return {"name": name, "datatype": "BYTES", "shape": [count], "data": [json.dumps(answer) for answer in answers]}
    if name == "labels":
        best = [answer["classes"][0]["label"] for answer in answers]
        return {"name": name, "datatype": "BYTES", "shape": [count], "data": best}
    table = np.zeros((count, len(card.labels)))
    for row, answer in zip(table, answers, strict=True):
        for ranked in answer["classes"]:
            row[ranked["index"]] = ranked["probability"]
    return {"name": name, "datatype": "FP32", "shape": list(table.shape), "data": table.ravel().tolist()}
