"""The routes of the service, and what they take and answer. JSON throughout, unless it says otherwise.

``GET /models``: ``{"models": [{"name", "network", "task", "labels": [...], "size_px", "preprocess", "methods": [...],
"blocks": [...], "least_score", "notes", "version"}], "default": NAME, "limits": {"body_bytes", "pixels", "pictures",
"timeout_s", "queue", ...}, "formats": ["JPEG", ...], "version": VAN'S, "key_wanted": bool}``. ``task`` is classify,
detect, instances, segment or panoptic; ``methods`` is empty where ``/explain`` is not to be had, ``blocks`` where
``kind=lka`` is not; ``least_score`` is null where there are no boxes.

``POST /predict`` takes pictures in one of three forms, and options as query, form field or JSON key (the query wins):
``model`` (NAME; the first one served), ``top`` (5 classes, or all things) and, for boxes, ``min_score`` (0.3).
  - multipart/form-data: one or several parts with a file name, whatever the field is called;
  - application/json: ``{"pictures": [BASE64 or {"name", "data": BASE64}, ...], "model", "top", "min_score"}``;
  - image/* or application/octet-stream: the file itself.
It answers ``{"model", "request_id", "answers": [...], "timings": {"read_ms", "decode_ms", "total_ms"}}``, an answer for
each picture in their order, what ``van.results``' ``to_dict`` gives and ``"timings": {"queue_ms", "network_ms",
"batch"}``:
  - classes: ``{"picture", "classes": [{"label", "probability", "index"}]}``;
  - boxes: ``{"picture", "width", "height", "things": [{"label", "index", "score", "box": [x1, y1, x2, y2], "area" and
    "mask" where there are masks: COCO's compressed run lengths}]}``;
  - maps: ``{"picture", "width", "height", "regions": [{"id", "label", "index", "score", "pixels", "share"}]}``.
Where ``Accept`` names ``image/png`` it takes exactly one picture and answers a PNG, the answer drawn over it.
One picture that cannot be read ends the request with 422 (413 if it has too many pixels); of several, that one's answer
is ``{"picture", "error": {"code", "message"}}``, the others are answered, and the status is 200.

``POST /explain`` takes exactly one picture in the same forms, and ``classes`` (names or numbers; several times, or a
list in JSON), ``top`` (1), ``method``, ``layer``, ``kind`` (``maps`` or ``lka``), and for lka ``channels`` (``mean`` or
``strongest``) and ``blocks``. It answers the answer with ``"maps": [{"label", "score", "method", "layer", "covers",
"seen", "cells": [[...]]}]`` in the envelope ``{"model", "request_id", "answer", "timings"}``; a PNG of the maps over
the picture where ``Accept`` names ``image/png``; and for ``kind=lka`` always a PNG.

``GET /v2``, ``/v2/health/live``, ``/v2/health/ready``, ``/v2/models/NAME``, ``/v2/models/NAME/ready``,
``POST /v2/models/NAME/infer``: the Open Inference Protocol, see ``protocol.py``.
``GET /metrics`` (Prometheus' text), ``/openapi.json``, ``/docs`` (offline), ``/`` and ``/page/FILE`` (the page).

Errors are ``{"error": {"code", "message", "request_id"}}`` (under ``/v2``: ``{"error": MESSAGE}``): 400 cannot be
understood, 401 key missing or wrong (``Authorization: Bearer KEY`` or ``X-API-Key: KEY``), 403 another site's page,
404 no such route or model, 405, 408 body too slow, 413 too large, 414 URL too long, 415 another kind of body, 422 a
picture or an option is wrong, 429 queue full (``Retry-After``), 500 the network failed, 503 not ready or stopping
(``Retry-After``), 504 took too long. Every answer carries ``X-Request-ID``, the client's own where it sent a plain one.
The page, its files and ``/v2/health`` need no key.
"""

from fastapi import FastAPI, Request, Response
from fastapi.responses import HTMLResponse
from starlette.exceptions import HTTPException

import van
from van.serve.docs_page import docs_page
from van.serve.guard import Guard
from van.serve.protocol import protocol_routes
from van.serve.refusals import Refused
from van.serve.routes import own_routes, page_routes, said
from van.serve.service import Service


def make_app(service: Service) -> Guard:
    """All routes over a service, behind the guard."""
    app = FastAPI(
        title="van serve",
        version=van.__version__,
        docs_url=None,  # FastAPI's own pages load their scripts from elsewhere
        redoc_url=None,
        redirect_slashes=False,
    )
    app.include_router(own_routes(service))
    app.include_router(protocol_routes(service))
    app.include_router(page_routes())

    @app.get("/docs", include_in_schema=False)
    async def docs() -> HTMLResponse:
        return HTMLResponse(docs_page(app.openapi()))

    @app.exception_handler(Refused)
    async def refused(request: Request, error: Refused) -> Response:
        service.measures.rejected.labels(error.code).inc()
        return said(error, request.state.facts, v2=request.url.path.startswith("/v2"))

    @app.exception_handler(HTTPException)
    async def no_route(request: Request, error: HTTPException) -> Response:
        told = {
            404: ("no_such_route", f"there is no route {request.url.path[:60]}; see /openapi.json"),
            405: ("no_such_method", f"{request.url.path[:60]} takes no {request.method[:20]}; see /openapi.json"),
        }
        code, message = told.get(error.status_code, ("refused", str(error.detail)))
        answer = await refused(request, Refused(error.status_code, code, message))
        answer.headers.update(error.headers or {})
        return answer

    return Guard(app, service)
