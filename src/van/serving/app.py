"""The application: all routes behind the middleware. This docstring is the reference of the HTTP API.

Responses are JSON unless noted otherwise.

``GET /models``: ``{"models": [{"name", "architecture", "task", "class_names": [...], "image_size", "preprocess",
"methods": [...], "blocks": [...], "min_score", "notes", "version"}], "default": NAME, "limits": {"max_body_bytes",
"max_pixels", "max_images", "timeout_s", "max_queue", ...}, "formats": ["JPEG", ...], "version": VERSION OF VAN,
"api_key_required": bool}``. ``task`` is classify, detect, instances, segment or panoptic; ``image_size`` is 0 where it
varies; ``methods`` is empty where ``/explain`` is not supported, ``blocks`` where ``kind=lka`` is not; ``min_score`` is
null for tasks without boxes.

``POST /predict`` takes images in one of three forms, and options as query parameters, form fields or JSON keys (query
parameters override the others): ``model`` (served name; the first model by default), ``top`` (5 classes, or all
detections or segments, by default) and, for boxes, ``min_score`` (0.3 by default).
  - multipart/form-data: one file in the field ``image``, or one or several in the field ``images``;
  - application/json: ``{"image": IMAGE}`` or ``{"images": [IMAGE, ...]}`` with the options, where an IMAGE is BASE64 or
    ``{"name", "data": BASE64}``;
  - image/* or application/octet-stream: the image file itself.
Response: ``{"model", "request_id", "predictions": [...], "timings": {"read_ms", "decode_ms", "total_ms"}}``, one
prediction for each image, in the same order: the JSON of ``van.predictions`` and ``"timings": {"queue_ms",
"inference_ms", "batch_size"}``:
  - classification: ``{"image", "classes": [{"label", "score", "index"}]}``;
  - detection: ``{"image", "width", "height", "detections": [{"label", "index", "score", "box": [x1, y1, x2, y2]}]}``,
    with ``"area"`` and ``"mask"`` (COCO's compressed run lengths) for instance segmentation;
  - segmentation: ``{"image", "width", "height", "segments": [{"id", "label", "index", "score", "area", "fraction"}]}``.
With ``Accept: image/png`` it takes exactly one image and returns the drawn prediction as a PNG.
A single invalid image fails the request with 422 (413 if it has too many pixels). Among several images, its prediction
is ``{"image", "error": {"code", "message"}}``, the others are predicted, and the status is 200.

``POST /explain`` takes exactly one image in the same forms, and ``classes`` (class names or indices; repeated, or a
list in JSON), ``top`` (1 by default), ``method``, ``layer``, ``kind`` (``cam`` or ``lka``), and for ``lka`` also
``channels`` (``mean`` or ``strongest``) and ``blocks``. Response: ``{"model", "request_id", "explanation",
"timings"}``, where the explanation is the prediction with the class activation maps in ``"maps"``; with ``Accept:
image/png`` a PNG of the maps over the image; with ``kind=lka`` always a PNG.

``GET /v2``, ``/v2/health/live``, ``/v2/health/ready``, ``/v2/models/NAME``, ``/v2/models/NAME/ready``,
``POST /v2/models/NAME/infer``: the Open Inference Protocol, see ``open_inference.py``.
``GET /metrics`` (Prometheus' text format), ``/openapi.json``, ``/`` and ``/docs`` (pages), ``/page/FILE`` (files).

Errors are ``{"error": {"code", "message", "request_id"}}`` (under ``/v2``: ``{"error": MESSAGE}``): 400 malformed
request, 401 missing or invalid API key (``Authorization: Bearer KEY`` or ``X-API-Key: KEY``), 403 origin or host not
allowed, 404 unknown route or model, 405 method not allowed, 408 timeout while receiving the body, 413 too large, 414
URL too long, 415 unsupported media type, 422 invalid image or option, 429 overloaded (``Retry-After``), 500 inference
or server error, 503 not ready or shutting down (``Retry-After``), 504 timeout. Every response has an ``X-Request-ID``:
that of the client if it sent a valid one. The pages, their files and ``/v2/health`` need no API key.
"""

from fastapi import FastAPI, Request, Response
from starlette.exceptions import HTTPException

import van
from van.serving.api_error import ApiError
from van.serving.middleware import RequestMiddleware
from van.serving.open_inference import open_inference_routes
from van.serving.routes import api_routes, error_response, page_routes
from van.serving.service import Service


def create_app(service: Service) -> RequestMiddleware:
    """Return the application of a service: its routes behind the middleware."""
    app = FastAPI(
        title="van serve",
        version=van.__version__,
        description="Inference server of the Visual Attention Network.",
        docs_url=None,  # the pages of FastAPI load their scripts from another site; routes.py has one that does not
        redoc_url=None,
        redirect_slashes=False,
    )
    app.include_router(api_routes(service))
    app.include_router(open_inference_routes(service))
    app.include_router(page_routes())

    @app.exception_handler(ApiError)
    async def api_error(request: Request, error: ApiError) -> Response:
        service.metrics.requests_rejected.labels(error.code).inc()
        return error_response(error, request.state.context, v2=request.url.path.startswith("/v2"))

    @app.exception_handler(HTTPException)
    async def http_error(request: Request, error: HTTPException) -> Response:
        path = request.url.path[:60]
        errors = {
            404: ("route_not_found", f"unknown route {path}; see /docs"),
            405: ("method_not_allowed", f"{path} does not support {request.method[:20]}; see /docs"),
        }
        code, message = errors.get(error.status_code, ("http_error", str(error.detail)))
        response = await api_error(request, ApiError(error.status_code, code, message))
        response.headers.update(error.headers or {})
        return response

    return RequestMiddleware(app, service)
