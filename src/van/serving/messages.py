"""Messages between the front end and a worker process: inference requests for images, and responses.

The pixels travel beside the request as bytes: RGB, rows x columns x 3 uint8; of a tensor 3 x rows x columns float32.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal

RequestKind = Literal["predict", "crop", "tensor", "cam", "lka"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class InferenceRequest:
    """One image, and what to compute for it.

    Args:
        kind: predict: the prediction for a whole image; crop: the same for an image that the front end has cropped;
            tensor: the same for a preprocessed tensor; cam: class activation maps; lka: a sheet of attention maps.
        model: served name of the model.
        name: name of the image, for messages and predictions.
        width, height: size of the image or tensor in pixels.
        options: options of that kind, such as ``top``.
        preprocess: for a crop, ``van.preprocess.CenterCropPreprocess.to_dict`` of the rule that cropped it.
    """

    kind: RequestKind
    model: str
    name: str
    width: int
    height: int
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    preprocess: Mapping[str, Any] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True, kw_only=True)
class InferenceResponse:
    """The result of one request, or an error.

    Args:
        result: plain values or the bytes of a PNG; None with an error.
        error: error message, empty without one.
        error_kind: request: an option is invalid; image: the image is invalid; server: inference failed; stale_crop:
            the image was cropped for another model, so the whole image must be sent.
        inference_s: time that the worker took for the batch.
        batch_size: number of images in the batch.
    """

    result: Any = None
    error: str = ""
    error_kind: Literal["", "request", "image", "server", "stale_crop"] = ""
    inference_s: float = 0.0
    batch_size: int = 1


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelCard:
    """Description of a served model, as ``/models`` returns it.

    Args:
        name: served name.
        architecture: name of the architecture, such as van_b2.
        task: classify, detect, instances, segment or panoptic.
        class_names: names of the classes, by index.
        image_size: height and width of the model input in pixels, or 0 where it varies with the image.
        preprocess: preprocessing rule.
        methods: class activation map methods of ``/explain``; empty where there are none.
        blocks: large kernel attention blocks of ``/explain?kind=lka``; empty where there are none.
        min_score: lowest score of a detection; None for other tasks.
        notes: remarks on the model file.
        version: first 12 digits of the SHA-256 of the model file.
    """

    name: str
    architecture: str
    task: str
    class_names: tuple[str, ...]
    image_size: int
    preprocess: Mapping[str, Any]
    methods: tuple[str, ...] = ()
    blocks: tuple[str, ...] = ()
    min_score: float | None = None
    notes: tuple[str, ...] = ()
    version: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Return plain values."""
        return dataclasses.asdict(self)
