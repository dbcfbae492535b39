"""The service's own routes: predict, explain, the models, measures, and the page."""

import time
from collections.abc import Sequence
from importlib import resources
from typing import Any

from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse

import van
from van.pictures import FORMATS
from van.serve.documents import EXPLAIN_BODY, MODEL, PICTURES_BODY, PREDICT_OPTIONS, REFUSALS
from van.serve.guard import Facts
from van.serve.options import explain_options, predict_options
from van.serve.reading import Asked, read_asked
from van.serve.refusals import Refused
from van.serve.service import Outcome, Service

_SHOWN_LIMITS = ("body_bytes", "pixels", "pictures", "url_bytes", "timeout_s", "queue", "requests")
_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".svg": "image/svg+xml",
    ".png": "image/png",
    ".jpg": "image/jpeg",
    ".ico": "image/x-icon",
}
_OVERLOADED = (429, 503)


def own_routes(service: Service) -> APIRouter:
    """The routes over a service; ``app.py`` says what they take and answer."""
    router = APIRouter()

    @router.get("/models", summary="The models, the limits, and what is read")
    async def models() -> dict[str, Any]:
        if not service.cards:
            raise Refused(503, "not_ready", "the models are being loaded; come again later", retry_after_s=2)
        limits = {name: getattr(service.settings.limits, name) for name in _SHOWN_LIMITS}
        return {
            "models": [card.to_dict() for card in service.cards.values()],
            "default": service.default,
            "limits": limits,
            "formats": list(FORMATS),
            "version": van.__version__,
            "key_wanted": bool(service.settings.api_key),
        }

    @router.post(
        "/predict",
        summary="What is in pictures",
        responses={**REFUSALS, 200: {"content": {"application/json": {}, "image/png": {}}, "description": "answers"}},
        openapi_extra={"requestBody": PICTURES_BODY, "parameters": [MODEL, *PREDICT_OPTIONS]},
    )
    async def predict(request: Request) -> Response:
        return await _predict(request, service)

    @router.post(
        "/explain",
        summary="Which parts of a picture an answer rests on",
        responses={**REFUSALS, 200: {"content": {"application/json": {}, "image/png": {}}, "description": "maps"}},
        openapi_extra={"requestBody": EXPLAIN_BODY, "parameters": [MODEL]},
    )
    async def explain(request: Request) -> Response:
        return await _explain(request, service)

    @router.get("/metrics", summary="Measures for Prometheus", response_class=Response)
    async def metrics() -> Response:
        return Response(service.measures.text(), media_type="text/plain; version=0.0.4; charset=utf-8")

    return router


def page_routes() -> APIRouter:
    """The page and its files, from the package."""
    router = APIRouter(include_in_schema=False)
    folder = resources.files("van.serve") / "page"

    @router.get("/")
    async def page() -> Response:
        return await file("index.html")

    @router.get("/page/{name}")
    async def file(name: str) -> Response:
        known = {entry.name: entry for entry in folder.iterdir() if entry.is_file()} if folder.is_dir() else {}
        suffix = name[name.rfind(".") :]
        if name not in known or suffix not in _TYPES:
            raise Refused(404, "no_such_file", f"the page has no file {name[:60]!r}")
        return Response(known[name].read_bytes(), media_type=_TYPES[suffix], headers={"Cache-Control": "no-cache"})

    return router


async def _predict(request: Request, service: Service) -> Response:
    facts, asked, options = await _asked(request, service)
    card = service.card(options.pop("model", None))
    facts.model, facts.pictures = card.name, len(asked.pictures)
    checked = predict_options(options, card)
    drawn = _wants_png(request)
    if drawn:
        checked["png"] = True
        _want_one(asked, "draw")
    outcomes = await service.ask("predict", card, asked.pictures, checked)
    _raise_what_ends_all(outcomes)
    if drawn:
        return _picture_of(outcomes[0])
    answers = [
        {"picture": name, **outcome.refused.to_dict()}
        if outcome.refused
        else {**outcome.answer, "timings": outcome.timings()}
        for (name, _), outcome in zip(asked.pictures, outcomes, strict=True)
    ]
    return JSONResponse({**_envelope(facts, outcomes), "answers": answers})


async def _explain(request: Request, service: Service) -> Response:
    facts, asked, options = await _asked(request, service)
    card = service.card(options.pop("model", None))
    facts.model, facts.pictures = card.name, len(asked.pictures)
    _want_one(asked, "explain")
    kind, checked = explain_options(options, card)
    drawn = kind == "lka" or _wants_png(request)
    if kind == "explain" and drawn:
        checked["png"] = True
    [outcome] = await service.ask("explain" if kind == "explain" else "lka", card, asked.pictures, checked)
    _raise_what_ends_all([outcome])
    if drawn:
        return _picture_of(outcome)
    envelope = _envelope(facts, [outcome])
    envelope["timings"] |= outcome.timings()
    return JSONResponse({**envelope, "answer": outcome.answer})


def _wants_png(request: Request) -> bool:
    return "image/png" in request.headers.get("accept", "")


def _want_one(asked: Asked, what: str) -> None:
    if len(asked.pictures) != 1:
        raise Refused(422, "one_picture", f"the request holds {len(asked.pictures)} pictures; wanted one to {what}")


def _picture_of(outcome: Outcome) -> Response:
    return Response(outcome.answer, media_type="image/png", headers={"Server-Timing": _server_timing(outcome)})


async def _asked(request: Request, service: Service) -> tuple[Facts, Asked, dict[str, Any]]:
    body = await request.body()
    asked = await read_asked(body, request.headers, request.query_params, service.settings.limits)
    return request.state.facts, asked, dict(asked.options)


def _raise_what_ends_all(outcomes: Sequence[Outcome]) -> None:
    """A single picture's refusal is the request's; so is one of an overloaded service, of however many pictures."""
    for outcome in outcomes:
        if outcome.refused and (len(outcomes) == 1 or outcome.refused.status in _OVERLOADED):
            raise outcome.refused


def _envelope(facts: Facts, outcomes: Sequence[Outcome]) -> dict[str, Any]:
    seconds = {
        "read_ms": facts.read_s,
        "decode_ms": max(outcome.decode_s for outcome in outcomes),
        "total_ms": time.perf_counter() - facts.started,
    }
    timings: dict[str, Any] = {name: round(1000 * value, 2) for name, value in seconds.items()}
    return {"model": facts.model, "request_id": facts.request_id, "timings": timings}


def _server_timing(outcome: Outcome) -> str:
    return ", ".join(f"{name.removesuffix('_ms')};dur={value}" for name, value in outcome.timings().items())


def said(refused: Refused, facts: Facts, *, v2: bool) -> JSONResponse:
    """A refusal in the form of its part of the service."""
    facts.code = refused.code
    content = {"error": refused.message} if v2 else refused.to_dict(facts.request_id)
    return JSONResponse(content, status_code=refused.status, headers=refused.headers)
