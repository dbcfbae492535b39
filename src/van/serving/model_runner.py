"""The models that a worker process holds, and how it runs a batch of requests.

The requests of a batch that fails are run again one by one, so that an image never fails the others of its batch.
"""

import dataclasses
import io
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from van.errors import ImageError, MissingExtra, ShapeError, UsageError, VanError
from van.explain.cam import METHODS
from van.explain.explainer import Explainer
from van.explain.lka_attention import lka_block_names, lka_channel_maps
from van.export.formats import is_exported
from van.model import Model
from van.predict import Prediction, Predictor
from van.predictions import Classification, Detections
from van.preprocess import CenterCropPreprocess, ResizePreprocess
from van.serving.messages import InferenceRequest, InferenceResponse, ModelCard
from van.tasks.base import ImageMeta
from van.visualization.attention_grids import draw_attention_grid, group_by_stage

MIN_SCORE, DEFAULT_SCORE_THRESHOLD = 0.05, 0.3
"""Detections below the first are never computed; those below the second are returned only with ``min_score``."""
_DEFAULT_TOP, _DEFAULT_TOP_DRAWN = 5, 3


class _StaleCropError(Exception):
    """An image was cropped by a preprocessing rule that is not the one of this model."""


class ModelRunner:
    """One loaded model that runs requests.

    Args:
        name: served name.
        source: a checkpoint, a public weights file, an exported file, or a model name.
        device: device to run on; None selects the GPU if there is one.
        threads: threads of the runtime of an exported file.

    Raises:
        VanError: the model cannot be loaded.
    """

    def __init__(self, name: str, source: str, *, device: str | None = None, threads: int | None = None) -> None:
        exported = is_exported(source)
        loaded = Model.load(source, device=device, threads=threads if exported else None)
        min_score = MIN_SCORE if loaded.task in ("detect", "instances") else None
        self.predictor = Predictor(loaded, device=device, min_score=min_score)
        self.explainer = None if exported else Explainer(loaded, device=device)
        self.card = _make_card(name, loaded, min_score)
        self._run_kind: dict[str, Callable[[Sequence[InferenceRequest], Sequence[bytes]], list[Any]]] = {
            "predict": self._predict_images,
            "crop": self._predict_crops,
            "tensor": self._predict_tensors,
            "cam": self._explain,
            "lka": self._draw_lka_attention,
        }

    def warm_up(self) -> None:
        """Run one prediction and one explanation, so that no client waits for what the first call builds.

        The card then has the class activation map methods if the model supports them.
        """
        image = Image.new("RGB", (64, 64), "gray")
        self.predictor([image])
        if self.explainer is None:
            return
        try:
            self.explainer([image])
        except MissingExtra as missing:
            self.card = dataclasses.replace(self.card, notes=(*self.card.notes, str(missing)))
        else:
            self.card = dataclasses.replace(self.card, methods=tuple(METHODS))

    def run(self, requests: Sequence[InferenceRequest], payloads: Sequence[bytes]) -> list[InferenceResponse]:
        """Run requests of one kind; returns their responses in the same order."""
        start = time.perf_counter()
        try:
            results = self._run_kind[requests[0].kind](requests, payloads)
        except Exception as error:  # a model may raise anything, and the worker must survive it
            if len(requests) > 1:
                return [self.run([one], [payload])[0] for one, payload in zip(requests, payloads, strict=True)]
            return [_error_response(requests[0], error)]
        seconds = time.perf_counter() - start
        return [InferenceResponse(result=result, inference_s=seconds, batch_size=len(requests)) for result in results]

    def _predict_images(self, requests: Sequence[InferenceRequest], payloads: Sequence[bytes]) -> list[Any]:
        images = [_to_image(*pair) for pair in zip(requests, payloads, strict=True)]
        results = []
        for prediction, image, request in zip(self.predictor(images), images, requests, strict=True):
            named: Any = dataclasses.replace(prediction, name=request.name)
            results.append(_draw(named, image, request) if request.options.get("png") else _to_dict(named, request))
        return results

    def _predict_crops(self, requests: Sequence[InferenceRequest], payloads: Sequence[bytes]) -> list[Any]:
        rule = self.predictor.preprocess
        expected = rule.to_dict()
        if not isinstance(rule, CenterCropPreprocess) or any(one.preprocess != expected for one in requests):
            raise _StaleCropError
        pixels = torch.frombuffer(bytearray().join(payloads), dtype=torch.uint8)
        images = pixels.view(len(requests), rule.image_size, rule.image_size, 3).permute(0, 3, 1, 2)
        image_metas = [ImageMeta(request.name) for request in requests]
        predictions = self.predictor.predict_tensors(rule.normalize(images.float().div_(255)), image_metas)
        return [_to_dict(*pair) for pair in zip(predictions, requests, strict=True)]

    def _predict_tensors(self, requests: Sequence[InferenceRequest], payloads: Sequence[bytes]) -> list[Any]:
        tensors = [_to_tensor(*pair) for pair in zip(requests, payloads, strict=True)]
        sizes = [(request.height, request.width) for request in requests]
        image_metas = [ImageMeta(request.name, size, size) for request, size in zip(requests, sizes, strict=True)]
        predictions = self.predictor.predict_tensors(tensors, image_metas)
        return [_to_dict(*pair) for pair in zip(predictions, requests, strict=True)]

    def _explain(self, requests: Sequence[InferenceRequest], payloads: Sequence[bytes]) -> list[Any]:
        assert self.explainer is not None  # without it the card has no methods, and the front end sends no request
        results: list[Any] = []
        for request, payload in zip(requests, payloads, strict=True):
            image, options = _to_image(request, payload), dict(request.options)
            as_png = options.pop("png", False)
            explanation = self.explainer([image], **options)[0]
            if as_png:
                results.append(_to_png(explanation.draw(image)))
            else:
                results.append({**explanation.to_dict(), "image": request.name})
        return results

    def _draw_lka_attention(self, requests: Sequence[InferenceRequest], payloads: Sequence[bytes]) -> list[Any]:
        return [self._draw_attention_sheet(*pair) for pair in zip(requests, payloads, strict=True)]

    def _draw_attention_sheet(self, request: InferenceRequest, payload: bytes) -> bytes:
        image, rule, model = _to_image(request, payload), self.predictor.preprocess, self.predictor.model.network
        model_input = rule.crop(image) if isinstance(rule, CenterCropPreprocess) else rule.resize(image)
        weight = next(model.parameters())
        tensor = rule(image).to(weight.device, weight.dtype)
        inputs = tensor[None] if self.card.task == "classify" else [tensor]
        channels = request.options.get("channels", "mean")
        blocks = request.options.get("blocks")
        if blocks is None and channels != "mean":  # the last block of each stage, or the sheet would be too long
            blocks = list({name.partition(".")[0]: name for name in self.card.blocks}.values())
        maps = lka_channel_maps(model, inputs, channels=channels, blocks=blocks)[0]
        title = f"Large kernel attention of {self.card.architecture}"
        return _to_png(
            draw_attention_grid(model_input, group_by_stage(maps) if channels == "mean" else maps, title=title)
        )


def _make_card(name: str, loaded: Model, min_score: float | None) -> ModelCard:
    try:
        blocks = tuple(lka_block_names(loaded.network))
    except UsageError:  # other architectures, such as Swin, have none, and an exported file exposes none
        blocks = ()
    rule: CenterCropPreprocess | ResizePreprocess = loaded.preprocess
    return ModelCard(
        name=name,
        architecture=loaded.name,
        task=loaded.task,
        class_names=loaded.class_names,
        image_size=rule.image_size if isinstance(rule, CenterCropPreprocess) else 0,
        preprocess=rule.to_dict(),
        blocks=blocks,
        min_score=min_score,
        notes=loaded.notes,
    )


def _to_dict(prediction: Prediction, request: InferenceRequest) -> dict[str, Any]:
    """Return the requested part of a prediction as plain values."""
    top = request.options.get("top")
    if isinstance(prediction, Classification):
        return prediction.to_dict(top or _DEFAULT_TOP)
    if isinstance(prediction, Detections):
        return _select_detections(prediction, request).to_dict()
    fields = prediction.to_dict()
    if top:
        fields["segments"] = sorted(fields["segments"], key=lambda segment: -segment["area"])[:top]
    return fields


def _draw(prediction: Prediction, image: Image.Image, request: InferenceRequest) -> bytes:
    """Return the requested part of a prediction drawn over its image, as a PNG."""
    if isinstance(prediction, Classification):
        return _to_png(prediction.draw(image, request.options.get("top") or _DEFAULT_TOP_DRAWN))
    if isinstance(prediction, Detections):
        prediction = _select_detections(prediction, request)
    return _to_png(prediction.draw(image))


def _select_detections(detections: Detections, request: InferenceRequest) -> Detections:
    top = request.options.get("top")
    selected = detections.above(request.options.get("min_score", DEFAULT_SCORE_THRESHOLD))
    return selected.top(top) if top else selected


def _to_image(request: InferenceRequest, payload: bytes) -> Image.Image:
    return Image.frombytes("RGB", (request.width, request.height), payload)


def _to_tensor(request: InferenceRequest, payload: bytes) -> Tensor:
    return torch.frombuffer(bytearray(payload), dtype=torch.float32).view(3, request.height, request.width)


def _to_png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format="png")
    return buffer.getvalue()


def _error_response(request: InferenceRequest, error: Exception) -> InferenceResponse:
    if isinstance(error, _StaleCropError):
        message = f"{request.name}: the model was replaced after the image was cropped"
        return InferenceResponse(error=message, error_kind="stale_crop")
    if isinstance(error, UsageError):
        return InferenceResponse(error=str(error), error_kind="request")
    if isinstance(error, ImageError):
        return InferenceResponse(error=error.reason, error_kind="image")
    # other exceptions may contain internals, so that only their type is sent to the client
    reason = str(error) if isinstance(error, ShapeError | VanError) else type(error).__name__
    return InferenceResponse(error=f"{request.name}: inference failed ({reason})", error_kind="server")
