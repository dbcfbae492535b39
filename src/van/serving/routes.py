"""The routes of the server itself: predict, explain, models, metrics and the pages."""

import time
from collections.abc import Sequence
from importlib import resources
from typing import Any

from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse

import van
from van.images import FORMATS
from van.serving.api_error import ApiError
from van.serving.middleware import RequestContext
from van.serving.openapi import ERRORS, EXPLAIN_BODY, EXPLAIN_QUERY, PREDICT_BODY, PREDICT_QUERY
from van.serving.options import parse_explain_options, parse_predict_options
from van.serving.request_parsing import ParsedRequest, parse_request
from van.serving.service import Outcome, Service

_PUBLIC_LIMITS = (
    "max_body_bytes",
    "max_pixels",
    "max_images",
    "max_url_bytes",
    "timeout_s",
    "max_queue",
    "max_requests",
)
_MEDIA_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".svg": "image/svg+xml",
    ".png": "image/png",
    ".jpg": "image/jpeg",
    ".ico": "image/x-icon",
}
_OVERLOADED = (429, 503)
_JSON_OR_PNG = {"application/json": {}, "image/png": {}}


def api_routes(service: Service) -> APIRouter:
    """Return the routes of a service; ``app.py`` documents their requests and responses."""
    router = APIRouter()

    @router.get("/models", summary="List models", description="Models, limits and supported image formats.")
    async def models() -> dict[str, Any]:
        if not service.cards:
            raise ApiError(503, "not_ready", "the models are still loading; retry later", retry_after_s=2)
        return {
            "models": [card.to_dict() for card in service.cards.values()],
            "default": service.default_model,
            "limits": {name: getattr(service.settings.limits, name) for name in _PUBLIC_LIMITS},
            "formats": list(FORMATS),
            "version": van.__version__,
            "api_key_required": bool(service.settings.api_key),
        }

    @router.post(
        "/predict",
        summary="Predict",
        description="Predict classes, detections or segments of images. With Accept: image/png, "
        "the prediction for one image is returned as a drawing.",
        responses={**ERRORS, 200: {"content": _JSON_OR_PNG, "description": "Predictions"}},
        openapi_extra={"requestBody": PREDICT_BODY, "parameters": PREDICT_QUERY},
    )
    async def predict(request: Request) -> Response:
        return await _predict(request, service)

    @router.post(
        "/explain",
        summary="Explain",
        description="Explain the prediction for one image by class activation maps, or show the attention maps of the "
        "model. With Accept: image/png, the maps are returned as a drawing.",
        responses={**ERRORS, 200: {"content": _JSON_OR_PNG, "description": "Explanation"}},
        openapi_extra={"requestBody": EXPLAIN_BODY, "parameters": EXPLAIN_QUERY},
    )
    async def explain(request: Request) -> Response:
        return await _explain(request, service)

    @router.get(
        "/metrics", summary="Metrics", description="Metrics in Prometheus' text format.", response_class=Response
    )
    async def metrics() -> Response:
        return Response(service.metrics.to_text(), media_type="text/plain; version=0.0.4; charset=utf-8")

    return router


def page_routes() -> APIRouter:
    """Return the routes of the pages and their files, which come from the package."""
    router = APIRouter(include_in_schema=False)
    folder = resources.files("van.serving") / "page"

    @router.get("/")
    async def index() -> Response:
        return await page_file("index.html")

    @router.get("/docs")
    async def docs() -> Response:  # FastAPI's own page loads its scripts from another site
        return await page_file("docs.html")

    @router.get("/page/{name}")
    async def page_file(name: str) -> Response:
        known = {entry.name: entry for entry in folder.iterdir() if entry.is_file()} if folder.is_dir() else {}
        suffix = name[name.rfind(".") :]
        if name not in known or suffix not in _MEDIA_TYPES:
            raise ApiError(404, "file_not_found", f"unknown page file {name[:60]!r}")
        headers = {"Cache-Control": "no-cache"}
        return Response(known[name].read_bytes(), media_type=_MEDIA_TYPES[suffix], headers=headers)

    return router


def error_response(error: ApiError, context: RequestContext, *, v2: bool) -> JSONResponse:
    """Return the response of an error, in the form of the Open Inference Protocol if ``v2``."""
    context.code = error.code
    content = {"error": error.message} if v2 else error.to_dict(context.request_id)
    return JSONResponse(content, status_code=error.status, headers=error.headers)


async def _predict(request: Request, service: Service) -> Response:
    context, parsed, options = await _parse(request, service)
    card = service.card(options.pop("model", None))
    context.model, context.images = card.name, len(parsed.images)
    options = parse_predict_options(options, card)
    as_png = _accepts_png(request)
    if as_png:
        options["png"] = True
        _check_single_image(parsed, "a drawn prediction")
    outcomes = await service.infer("predict", card, parsed.images, options)
    _raise_request_error(outcomes)
    if as_png:
        return _png_response(outcomes[0])
    predictions = [
        {"image": name, **outcome.error.to_dict()}
        if outcome.error
        else {**outcome.result, "timings": outcome.timings()}
        for (name, _), outcome in zip(parsed.images, outcomes, strict=True)
    ]
    return JSONResponse({**_envelope(context, outcomes), "predictions": predictions})


async def _explain(request: Request, service: Service) -> Response:
    context, parsed, options = await _parse(request, service)
    card = service.card(options.pop("model", None))
    context.model, context.images = card.name, len(parsed.images)
    _check_single_image(parsed, "an explanation")
    kind, options = parse_explain_options(options, card)
    as_png = kind == "lka" or _accepts_png(request)
    if kind == "cam" and as_png:
        options["png"] = True
    [outcome] = await service.infer(kind, card, parsed.images, options)
    _raise_request_error([outcome])
    if as_png:
        return _png_response(outcome)
    envelope = _envelope(context, [outcome])
    envelope["timings"] |= outcome.timings()
    return JSONResponse({**envelope, "explanation": outcome.result})


async def _parse(request: Request, service: Service) -> tuple[RequestContext, ParsedRequest, dict[str, Any]]:
    body = await request.body()
    parsed = await parse_request(body, request.headers, request.query_params, service.settings.limits)
    return request.state.context, parsed, dict(parsed.options)


def _accepts_png(request: Request) -> bool:
    return "image/png" in request.headers.get("accept", "")


def _check_single_image(parsed: ParsedRequest, purpose: str) -> None:
    count = len(parsed.images)
    if count != 1:
        raise ApiError(422, "single_image_required", f"expected exactly 1 image for {purpose}, got {count}")


def _raise_request_error(outcomes: Sequence[Outcome]) -> None:
    """Raise the error of a single image, or the first error of an overloaded server, as that of the whole request."""
    for outcome in outcomes:
        if outcome.error and (len(outcomes) == 1 or outcome.error.status in _OVERLOADED):
            raise outcome.error


def _png_response(outcome: Outcome) -> Response:
    times = outcome.timings().items()
    server_timing = ", ".join(f"{name.removesuffix('_ms')};dur={value}" for name, value in times)
    return Response(outcome.result, media_type="image/png", headers={"Server-Timing": server_timing})


def _envelope(context: RequestContext, outcomes: Sequence[Outcome]) -> dict[str, Any]:
    seconds = {
        "read_ms": context.read_s,
        "decode_ms": max(outcome.decode_s for outcome in outcomes),
        "total_ms": time.perf_counter() - context.started,
    }
    timings: dict[str, Any] = {name: round(1000 * value, 2) for name, value in seconds.items()}
    return {"model": context.model, "request_id": context.request_id, "timings": timings}
