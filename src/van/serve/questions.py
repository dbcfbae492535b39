"""What passes between the front and a worker process: questions about pictures, and replies.

A picture travels beside its question as the bytes of its RGB pixels, rows x columns x 3; a tensor as the bytes of
3 x rows x columns float32.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal

Kind = Literal["predict", "crop", "tensor", "explain", "lka"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Question:
    """One picture and what is asked about it.

    Args:
        kind: predict: what is in it; crop: the same of the square that a network sees of it; tensor: the same of a
            picture as the network reads it; explain: maps behind the answer; lka: a sheet of the attention that large
            kernel attention computes.
        model: the served name.
        name: of the picture, for messages and answers.
        width, height: of the picture or tensor in pixels.
        options: such as ``top``, by kind.
        rule: of a crop, what ``van.preprocess.Preprocess.to_dict`` gives of the rule that made it.
    """

    kind: Kind
    model: str
    name: str
    width: int
    height: int
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    rule: Mapping[str, Any] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Reply:
    """What a worker says to one question: ``answer``, plain values or a PNG's bytes, or an ``error``.

    Args:
        answer: None where there is an error.
        error: the message.
        fault: asked: the question is wrong; picture: the picture is; ours: the network or the service failed; stale:
            this network crops pictures by another rule, so the whole picture is to be asked about.
        seconds: that the worker took for the batch.
        batch: pictures in it.
    """

    answer: Any = None
    error: str = ""
    fault: Literal["", "asked", "picture", "ours", "stale"] = ""
    seconds: float = 0.0
    batch: int = 1


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelCard:
    """What a client is told of a served model.

    Args:
        name: under which it is served.
        network: such as van_b2.
        task: classify, detect, instances, segment or panoptic.
        labels: its classes, in their order.
        size_px: side of the square that it reads, or 0 where it reads whole pictures.
        preprocess: the rule from a picture to what it reads.
        explains: whether ``/explain`` can ask it, and by which methods and blocks.
        least_score: things that score less are never answered; None where there are no things.
        version: the first digits of its file's sha256.
    """

    name: str
    network: str
    task: str
    labels: tuple[str, ...]
    size_px: int
    preprocess: Mapping[str, Any]
    methods: tuple[str, ...] = ()
    blocks: tuple[str, ...] = ()
    least_score: float | None = None
    notes: tuple[str, ...] = ()
    version: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        return dataclasses.asdict(self)
