"""The networks that a worker process holds, and how it answers a batch of questions.

A batch that fails is asked again one by one, so that a picture never fails its neighbours.
"""

import dataclasses
import io
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from van.errors import MissingExtra, PictureError, ShapeError, UsageError, VanError
from van.explain.cam import METHODS
from van.explain.explainer import Explainer
from van.explain.gates import gate_names, lka_maps
from van.export.formats import is_exported
from van.models.load import Loaded
from van.predict import Answer, Predictor, load_network
from van.preprocess import Preprocess, WholePreprocess
from van.results import Boxes, Classes
from van.results.strips import by_stage, draw_strips
from van.serve.questions import ModelCard, Question, Reply
from van.tasks.base import Frame

LEAST_SCORE, USUAL_SCORE = 0.05, 0.3
"""Things below the first are not looked for; those below the second are left out unless a client asks."""


class _StaleCrop(Exception):
    """A picture was cropped by a rule that is not this network's."""


class Holding:
    """One network, ready to answer.

    Args:
        name: under which it is served.
        source: a checkpoint, a public weights file, an exported file, or a model name.
        device: where to run; the GPU where there is one if None.
        threads: of an exported file's runtime.

    Raises:
        VanError: it cannot be loaded.
    """

    def __init__(self, name: str, source: str, *, device: str | None = None, threads: int | None = None) -> None:
        exported = is_exported(source)
        loaded = load_network(source, device=device, threads=threads if exported else None)
        finds = loaded.task in ("detect", "instances")
        self.predictor = Predictor(loaded, device=device, min_score=LEAST_SCORE if finds else None)
        self.explainer = None if exported else Explainer(loaded, device=device)
        self.card = _card(name, loaded, LEAST_SCORE if finds else None)
        self._ask: dict[str, Callable[[Sequence[Question], Sequence[bytes]], list[Any]]] = {
            "predict": self._predict,
            "crop": self._of_crops,
            "tensor": self._of_tensors,
            "explain": self._explain,
            "lka": self._lka,
        }

    def warm_up(self) -> None:
        """Answer and explain once, so that the first client does not wait for what is built at the first call.

        The card tells afterwards whether the network can be explained here.
        """
        picture = Image.new("RGB", (64, 64), "grey")
        self.predictor([picture])
        if self.explainer is None:
            return
        try:
            self.explainer([picture])
        except MissingExtra as missing:
            self.card = dataclasses.replace(self.card, notes=(*self.card.notes, str(missing)))
        else:
            self.card = dataclasses.replace(self.card, methods=tuple(METHODS))

    def answer(self, questions: Sequence[Question], payloads: Sequence[bytes]) -> list[Reply]:
        """A reply to each question, in their order; all of one kind."""
        start = time.perf_counter()
        try:
            answers = self._ask[questions[0].kind](questions, payloads)
        except Exception as error:  # whatever a network raises, the service goes on
            if len(questions) > 1:
                return [self.answer([q], [payload])[0] for q, payload in zip(questions, payloads, strict=True)]
            return [_refusal(questions[0], error)]
        seconds = time.perf_counter() - start
        return [Reply(answer=answer, seconds=seconds, batch=len(questions)) for answer in answers]

    def _predict(self, questions: Sequence[Question], payloads: Sequence[bytes]) -> list[Any]:
        pictures = [_picture(*pair) for pair in zip(questions, payloads, strict=True)]
        answers = [_named(answer, q.name) for answer, q in zip(self.predictor(pictures), questions, strict=True)]
        return [
            _drawn(answer, picture, question) if question.options.get("png") else _plain(answer, question)
            for answer, picture, question in zip(answers, pictures, questions, strict=True)
        ]

    def _of_crops(self, questions: Sequence[Question], payloads: Sequence[bytes]) -> list[Any]:
        rule = self.predictor.preprocess
        plain = rule.to_dict()
        if not isinstance(rule, Preprocess) or any(question.rule != plain for question in questions):
            raise _StaleCrop
        pixels = torch.frombuffer(bytearray().join(payloads), dtype=torch.uint8)
        pictures = pixels.view(len(questions), rule.size_px, rule.size_px, 3).permute(0, 3, 1, 2)
        frames = [Frame(question.name) for question in questions]
        answers = self.predictor.of_tensors(rule.normalise(pictures.float().div_(255)), frames)
        return [_plain(answer, question) for answer, question in zip(answers, questions, strict=True)]

    def _of_tensors(self, questions: Sequence[Question], payloads: Sequence[bytes]) -> list[Any]:
        tensors = [_tensor(*pair) for pair in zip(questions, payloads, strict=True)]
        sizes = [(question.height, question.width) for question in questions]
        frames = [Frame(question.name, size, size) for question, size in zip(questions, sizes, strict=True)]
        answers = self.predictor.of_tensors(tensors, frames)
        return [_plain(answer, question) for answer, question in zip(answers, questions, strict=True)]

    def _explain(self, questions: Sequence[Question], payloads: Sequence[bytes]) -> list[Any]:
        assert self.explainer is not None  # the front asks nobody else
        found: list[Any] = []
        for question, payload in zip(questions, payloads, strict=True):
            picture, options = _picture(question, payload), dict(question.options)
            drawn = options.pop("png", False)
            explained = self.explainer([picture], **options)[0]
            if drawn:
                found.append(_png(explained.draw(picture)))
            else:
                found.append({**explained.to_dict(), "picture": question.name})
        return found

    def _lka(self, questions: Sequence[Question], payloads: Sequence[bytes]) -> list[Any]:
        return [self._strips(*pair) for pair in zip(questions, payloads, strict=True)]

    def _strips(self, question: Question, payload: bytes) -> bytes:
        picture, rule, model = _picture(question, payload), self.predictor.preprocess, self.predictor.model
        seen = rule.crop(picture) if isinstance(rule, Preprocess) else rule.resize(picture)
        weight = next(model.parameters())
        x = rule(picture).to(weight.device, weight.dtype)
        given = x[None] if self.card.task == "classify" else [x]
        channels = question.options.get("channels", "mean")
        blocks = question.options.get("blocks")
        if blocks is None and channels != "mean":
            blocks = list({name.partition(".")[0]: name for name in self.card.blocks}.values())
        strips = lka_maps(model, given, channels=channels, blocks=blocks)[0]
        title = f"large kernel attention of {self.card.network}: what each block multiplies its features by"
        return _png(draw_strips(seen, by_stage(strips) if channels == "mean" else strips, title=title))


def _card(name: str, loaded: Loaded, least_score: float | None) -> ModelCard:
    try:
        blocks = tuple(gate_names(loaded.model))
    except UsageError:  # a Swin, for one, has none, and an exported file shows none
        blocks = ()
    rule: Preprocess | WholePreprocess = loaded.preprocess
    return ModelCard(
        name=name,
        network=loaded.name,
        task=loaded.task,
        labels=loaded.labels,
        size_px=rule.size_px if isinstance(rule, Preprocess) else 0,
        preprocess=rule.to_dict(),
        blocks=blocks,
        least_score=least_score,
        notes=loaded.notes,
    )


def _plain(answer: Answer, question: Question) -> dict[str, Any]:
    """The answer as plain values, with as much of it as was asked for."""
    top = question.options.get("top")
    if isinstance(answer, Classes):
        return answer.to_dict(top or 5)
    if isinstance(answer, Boxes):
        sure = answer.above(question.options.get("min_score", USUAL_SCORE))
        return (sure.top(top) if top else sure).to_dict()
    plain = answer.to_dict()
    if top:
        plain["regions"] = sorted(plain["regions"], key=lambda region: -region["pixels"])[:top]
    return plain


def _drawn(answer: Answer, picture: Image.Image, question: Question) -> bytes:
    """The answer over its picture as a PNG, with as much of it as was asked for."""
    top = question.options.get("top")
    if isinstance(answer, Classes):
        return _png(answer.draw(picture, top or 3))
    if isinstance(answer, Boxes):
        answer = answer.above(question.options.get("min_score", USUAL_SCORE))
        answer = answer.top(top) if top else answer
    return _png(answer.draw(picture))


def _named(answer: Answer, name: str) -> Any:
    """The same answer under the picture's own name."""
    return dataclasses.replace(answer, name=name)


def _picture(question: Question, payload: bytes) -> Image.Image:
    return Image.frombytes("RGB", (question.width, question.height), payload)


def _tensor(question: Question, payload: bytes) -> Tensor:
    return torch.frombuffer(bytearray(payload), dtype=torch.float32).view(3, question.height, question.width)


def _png(sheet: Image.Image) -> bytes:
    written = io.BytesIO()
    sheet.save(written, format="png")
    return written.getvalue()


def _refusal(question: Question, error: Exception) -> Reply:
    if isinstance(error, _StaleCrop):
        return Reply(error=f"{question.name}: the model was replaced meanwhile", fault="stale")
    if isinstance(error, UsageError):
        return Reply(error=str(error), fault="asked")
    if isinstance(error, PictureError):
        return Reply(error=error.reason, fault="picture")
    told = str(error) if isinstance(error, ShapeError | VanError) else type(error).__name__
    return Reply(error=f"{question.name}: the network could not answer ({told})", fault="ours")
