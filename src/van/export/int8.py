"""8-bit networks for OpenVINO: NNCF finds the ranges, and measured time and answers decide which layers use them.

NNCF quantises the whole network once, on a part of the pictures. Then groups of layers are spared their 8 bits, what is
not in 8 bits is computed in float32 or, where the processor has it, in bfloat16, and each of these trials is timed on
this machine, in turn with the others, and asked about the pictures that were held out. The fastest that lose no more
than was allowed are timed once more, and the first of them is written. Shapes: see ``van.export.writing``.
"""

import contextlib
import dataclasses
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from van.errors import CheckpointError, UsageError
from van.export.formats import Format
from van.export.header import Header
from van.export.int8_layers import Layer, layers_of, spared
from van.export.openvino import Arithmetic, compile_model, has_bfloat16, median_times, save
from van.export.quiet import quiet_import, quiet_log
from van.export.writing import INPUT, ExportOptions, Prepared, prepare
from van.models.load import Loaded
from van.preprocess import Preprocess

MAX_LOSS = 0.005
"""Share of the answers that may be lost: half a point of top-1."""
EVERYTHING = "all layers"
_LEAST_PICTURES = 12
_CALIBRATED = 100
_NOTHING = "none"
_FINALISTS = 4

Answers = list[np.ndarray]
"""For each picture the class, () or, of maps, (rows, columns)."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Trial:
    """One choice of precisions, and what came of it.

    Args:
        name: which layers have 8 bits, in words.
        spared: names of the layers that have not.
        arithmetic: of all that has no 8 bits.
        latency_ms: of one picture, or of one batch where its size is fixed; the median.
        loss: share of held-out answers: top-1 in float32 less top-1 here where the truth is known, else the share
            that is not the answer of float32.
    """

    name: str
    spared: frozenset[str]
    arithmetic: Arithmetic
    latency_ms: float
    loss: float

    @property
    def has_int8(self) -> bool:
        """Whether it is one of those that may be written."""
        return self.name != _NOTHING


def write(
    loaded: Loaded,
    path: Path,
    *,
    options: ExportOptions,
    format_: Format,
    pictures: Sequence[Image.Image],
    truths: Sequence[int] | None = None,
    max_loss: float = MAX_LOSS,
    threads: int | None = None,
    rounds: int = 30,
    only: Sequence[str] = (),
    say: Callable[[str], object] = lambda text: sys.stderr.write(f"{text}\n"),
) -> Path:
    """Quantise ``loaded`` and write the fastest choice of precisions that loses at most ``max_loss``.

    Args:
        loaded: what to quantise; it classifies or segments.
        path: the .xml; its .bin comes beside it.
        options: which way to export; not half.
        format_: OpenVINO's.
        pictures: of the kind that the network will see; a third of them, at most 100, calibrates, the others judge.
        truths: the class of each picture, where it is known.
        max_loss: share of the held-out answers.
        threads: of OpenVINO while it is timed; as many as it likes if None.
        rounds: how often each trial is timed.
        only: names among ``choices`` to try; every one if empty.
        say: told the table of trials before anything is written.

    Raises:
        CheckpointError: no trial is both faster than float32 and good enough; nothing was written.
        MissingExtra: openvino or nncf is not installed.
        UsageError: the format, the task or the pictures will not do.
    """
    _check(loaded, options, format_, pictures, truths, max_loss)
    openvino: Any = quiet_import("openvino", purpose="quantising a network")
    nncf: Any = quiet_import("nncf", purpose="quantising a network")
    versions = {"openvino": openvino.get_version(), "nncf": nncf.__version__}
    prepared = prepare(loaded, options, format="openvino", precision="int8", opset="OpenVINO IR", versions=versions)
    seen = _as_seen(prepared, pictures)
    calibration, judges = seen[::3][:_CALIBRATED], [one for place, one in enumerate(seen) if place % 3]
    known = None if truths is None else [truth for place, truth in enumerate(truths) if place % 3]
    plain = named(openvino.convert_model(prepared.program()), prepared)
    quantised = _quantise(nncf, plain, calibration)
    rows = prepared.header.inputs[INPUT][2] or 0
    offered = {name: names for name, names in choices(layers_of(plain, rows=rows)).items() if not only or name in only}
    trials = try_all(quantised, plain, offered, judges, known, max_loss=max_loss, threads=threads, rounds=rounds)
    best = choose(trials, max_loss=max_loss)
    say(table_of(trials, best, judged=len(judges), known=known is not None))
    if best is None:
        raise CheckpointError(
            f"nothing was written: no choice of 8-bit layers is faster than float32 and loses at most "
            f"{max_loss:.1%} of the answers on {len(judges)} pictures; give more pictures, or export without --int8"
        )
    lost = _loss_in_words(best, known is not None)
    save(spared(quantised, plain, best.spared), _as_tried(prepared.header, best, f"{lost} on {len(judges)}"), path)
    return path


def _as_tried(header: Header, best: Trial, lost: str) -> Header:
    """The header, saying what was chosen."""
    return dataclasses.replace(
        header,
        precision="int8+bfloat16" if best.arithmetic == "bfloat16" else "int8",
        notes=(*header.notes, f"int8: {best.name}, {best.arithmetic} between; {lost} held-out pictures"),
    )


def named(model: Any, prepared: Prepared) -> Any:
    """``model`` with the input and the outputs called as the header calls them, and the header's shape."""
    model.inputs[0].get_tensor().set_names({INPUT})
    for output, name in zip(model.outputs, prepared.header.outputs, strict=True):
        output.get_tensor().set_names({name})
    model.reshape([-1 if side is None else side for side in prepared.header.inputs[INPUT]])
    return model


def choices(layers: Sequence[Layer]) -> dict[str, frozenset[str]]:
    """Which layers have 8 bits, in words, and the names of those that each choice spares."""
    by_kind = {kind: {layer.name for layer in layers if layer.kind == kind} for kind in {x.kind for x in layers}}
    everything = {layer.name for layer in layers}
    one_by_one = {name for kind, names in by_kind.items() if kind.endswith("1x1") for name in names}
    depthwise, keeping = by_kind.get("depth-wise", set()), by_kind.get("keeping 1x1", set())
    first = {layer.name for layer in layers if layer.stage == 1}
    last = {layer.name for layer in layers if layer.stage == 4}
    ends = {layer.name for layer in (layers[0], layers[-1])} if layers else set()
    offered = {
        EVERYTHING: set(),
        "all but the first and the last": ends,
        "all but larger convolutions": by_kind.get("larger", set()),
        "all but stage 1": first,
        "all but stage 4": last,
        "all but depth-wise": depthwise,
        "all but the attention's 1x1": keeping,
        "1x1 convolutions only": everything - one_by_one,
        "fc1 and fc2 only": everything - one_by_one | keeping,
    }
    found: dict[frozenset[str], str] = {}
    for name, names in offered.items():
        if names != everything:
            found.setdefault(frozenset(names), name)
    return {name: names for names, name in found.items()}


def try_all(
    quantised: Any,
    plain: Any,
    offered: dict[str, frozenset[str]],
    judges: Sequence[np.ndarray],
    truths: Sequence[int] | None,
    *,
    max_loss: float,
    threads: int | None,
    rounds: int,
) -> list[Trial]:
    """Time every choice in turn with the network without 8 bits, and ask each about the held-out pictures.

    Args:
        quantised, plain: see ``van.export.int8_layers.spared``.
        offered: see ``choices``.
        judges: held-out pictures (N, 3, H, W).
        truths: their classes, where they are known.
        max_loss: the fastest that lose no more are timed a second time, which is what they are told by.
        threads, rounds: see ``write``.

    Returns:
        The network in float32 first, then, where there is bfloat16, the same in that, then the choices.
    """
    kinds: list[Arithmetic] = ["float32", "bfloat16"] if has_bfloat16() else ["float32"]
    graphs = {_NOTHING: plain, **{name: spared(quantised, plain, names) for name, names in offered.items()}}
    compiled = {
        f"{name}/{kind}": compile_model(graph, arithmetic=kind, threads=threads)
        for name, graph in graphs.items()
        for kind in kinds
    }
    times = median_times(compiled, judges[0], rounds=-(-rounds // 3))
    right = _answers(compiled[f"{_NOTHING}/float32"], judges)
    trials = [
        Trial(
            name=name,
            spared=offered.get(name, frozenset()),
            arithmetic=kind,
            latency_ms=times[f"{name}/{kind}"],
            loss=_loss(_answers(compiled[f"{name}/{kind}"], judges), right, truths),
        )
        for name in graphs
        for kind in kinds
    ]
    good = sorted((one for one in trials if one.has_int8 and one.loss <= max_loss), key=lambda one: one.latency_ms)
    last = [*(one for one in trials if not one.has_int8), *good[:_FINALISTS]]
    again = {f"{one.name}/{one.arithmetic}": one for one in last}
    times = median_times({name: compiled[name] for name in again}, judges[0], rounds=rounds)
    retimed = {id(one): dataclasses.replace(one, latency_ms=times[name]) for name, one in again.items()}
    return [retimed.get(id(one), one) for one in trials]


def choose(trials: Sequence[Trial], *, max_loss: float) -> Trial | None:
    """The fastest that is good enough and faster than the first, which is float32; None if there is none."""
    plain, *others = trials
    good = [one for one in others if one.has_int8 and one.loss <= max_loss and one.latency_ms < plain.latency_ms]
    return min(good, key=lambda one: one.latency_ms, default=None)


def table_of(trials: Sequence[Trial], best: Trial | None, *, judged: int, known: bool) -> str:
    """The trials as text, the fastest first, the one that is written marked."""
    plain = trials[0]
    title = "top-1 lost" if known else "answers changed"
    lines = [f"{'8 bits in':<34}{'rest in':<10}{'ms':>9}{'times':>8}{title:>18}  ({judged} held-out pictures)"]
    for trial in sorted(trials, key=lambda trial: trial.latency_ms):
        loss = "-" if trial is plain else f"{trial.loss:.2%}"
        mark = "  written" if trial is best else ""
        speed = f"{plain.latency_ms / trial.latency_ms:.2f}x"
        lines.append(f"{trial.name:<34}{trial.arithmetic:<10}{trial.latency_ms:>9.2f}{speed:>8}{loss:>18}{mark}")
    fastest = min(trials, key=lambda trial: trial.latency_ms)
    if not fastest.has_int8 and fastest is not plain:
        lines.append(f"{fastest.arithmetic} without 8 bits is the fastest; --half writes it")
    return "\n".join(lines)


def _check(
    loaded: Loaded,
    options: ExportOptions,
    format_: Format,
    pictures: Sequence[Image.Image],
    truths: Sequence[int] | None,
    max_loss: float,
) -> None:
    if format_.name != "openvino":
        raise UsageError(f"--int8 is for --format openvino; the format is {format_.name}")
    if options.half:
        raise UsageError("int8 and half exclude each other; choose one")
    if loaded.task not in ("classify", "segment"):
        raise UsageError(f"int8 is for networks that classify or segment; {loaded.name} is to {loaded.task}")
    if len(pictures) < _LEAST_PICTURES:
        raise UsageError(f"there are {len(pictures)} pictures to calibrate on; wanted at least {_LEAST_PICTURES}")
    if truths is not None and (loaded.task != "classify" or len(truths) != len(pictures)):
        raise UsageError(f"there are {len(truths)} truths for {len(pictures)} pictures; wanted one class for each")
    if not 0 <= max_loss <= 1:
        raise UsageError(f"max_loss is {max_loss}; wanted a share from 0 to 1")


def _as_seen(prepared: Prepared, pictures: Sequence[Image.Image]) -> list[np.ndarray]:
    """The pictures (N, 3, H, W) as the network sees them; where the batch is fixed, each as often as that."""
    batch, _, *sides = prepared.header.inputs[INPUT]
    rule = prepared.header.preprocess
    seen = [rule(picture) for picture in pictures]
    if not isinstance(rule, Preprocess) and None not in sides:
        seen = [one for one in seen if list(one.shape[1:]) == sides]
        if len(seen) < _LEAST_PICTURES:
            raise UsageError(
                f"{len(seen)} of {len(pictures)} pictures are seen as {sides[0]} x {sides[1]}; wanted at least "
                f"{_LEAST_PICTURES}, or a file with --dynamic"
            )
    return [one[None].expand(batch or 1, -1, -1, -1).contiguous().numpy() for one in seen]


def _quantise(nncf: Any, plain: Any, calibration: Sequence[np.ndarray]) -> Any:
    """Every layer with 8-bit weights and inputs, by NNCF's own rules; biases stay, so that layers can be spared."""
    advanced = nncf.AdvancedQuantizationParameters(disable_bias_correction=True)
    with (
        quiet_log("nncf"),
        quiet_log("torch.utils.cpp_extension"),  # which tells those without a GPU that they have none
        contextlib.redirect_stdout(sys.stderr),  # NNCF draws a bar
    ):
        return nncf.quantize(
            plain, nncf.Dataset(calibration), subset_size=len(calibration), advanced_parameters=advanced
        )


def _answers(network: Any, pictures: Sequence[np.ndarray]) -> Answers:
    return [np.asarray(network([picture])[0][0].argmax(axis=0)) for picture in pictures]


def _loss(answers: Answers, right: Answers, truths: Sequence[int] | None) -> float:
    if truths is not None:
        pairs = [(a == truth, r == truth) for a, r, truth in zip(answers, right, truths, strict=True)]
        return float(np.mean([float(r) - float(a) for a, r in pairs]))
    return float(np.mean([(a != r).mean() for a, r in zip(answers, right, strict=True)]))


def _loss_in_words(trial: Trial, known: bool) -> str:
    return f"{trial.loss:.2%} of top-1 lost" if known else f"{trial.loss:.2%} of the answers are not float32's"
