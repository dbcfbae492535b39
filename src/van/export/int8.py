"""int8 quantization for OpenVINO: NNCF calibrates, and measured latency and accuracy select the quantized layers.

NNCF quantizes the whole network once with the calibration images. Each trial then excludes a group of layers from
int8 and computes all layers that are not int8 in float32 or, where the processor supports it, in bfloat16. The
latency of all trials is measured on this machine in alternation, and their accuracy on the validation images, which
are not used for calibration. The fastest trials within the accuracy limit are measured once more, and the best of
them is written. Shapes: see ``van.export.writing``.
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
from van.export.int8_layers import Layer, exclude_layers, list_layers
from van.export.openvino import Arithmetic, compile_model, has_bfloat16, median_times, save
from van.export.suppress_output import import_without_telemetry, suppress_log
from van.export.writing import INPUT, ExportOptions, Prepared, prepare
from van.model import Model
from van.preprocess import CenterCropPreprocess

MAX_ACCURACY_DROP = 0.005
"""Half a percentage point of top-1."""
ALL_LAYERS = "all layers"
_MIN_IMAGES = 12
_MAX_CALIBRATION_IMAGES = 100
_FLOAT = "none"
"""The name of the trials without int8 layers."""
_FINALISTS = 4

Predictions = list[np.ndarray]
"""The class of each image, shape (), or its label map (rows, columns)."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Trial:
    """One choice of int8 layers and arithmetic, with its measurements.

    Args:
        name: which layers are int8.
        excluded_layers: names of the layers that are not.
        arithmetic: of the layers that are not int8.
        latency_ms: median, of one image, or of one batch where the batch size is fixed.
        accuracy_drop: on the validation images: top-1 of float32 minus top-1 of this trial where labels are known,
            otherwise the fraction of predictions that differ from float32's.
    """

    name: str
    excluded_layers: frozenset[str]
    arithmetic: Arithmetic
    latency_ms: float
    accuracy_drop: float

    @property
    def uses_int8(self) -> bool:
        """Whether any layer is int8; only such trials can be written."""
        return self.name != _FLOAT


def write(
    loaded: Model,
    path: Path,
    *,
    options: ExportOptions,
    format_: Format,
    images: Sequence[Image.Image],
    labels: Sequence[int] | None = None,
    max_accuracy_drop: float = MAX_ACCURACY_DROP,
    threads: int | None = None,
    rounds: int = 30,
    candidates: Sequence[str] = (),
    log: Callable[[str], object] = lambda text: sys.stderr.write(f"{text}\n"),
) -> Path:
    """Quantize ``loaded`` and write the fastest trial whose accuracy drop is at most ``max_accuracy_drop``.

    Args:
        loaded: the network to quantize; its task is classify or segment.
        path: the .xml; its .bin is written beside it.
        options: of the export; not half.
        format_: OpenVINO's.
        images: of the kind that the network will process; a third, at most 100, are calibration images, the others
            are validation images.
        labels: the class index of each image, where known.
        max_accuracy_drop: fraction of the validation images.
        threads: of OpenVINO during the measurement; its default if None.
        rounds: number of runs in the measurement of a latency.
        candidates: names among ``candidate_groups`` to try; all if empty.
        log: receives the table of trials before anything is written.

    Raises:
        CheckpointError: no trial is both faster than float32 and accurate enough; nothing was written.
        MissingExtra: openvino or nncf is not installed.
        UsageError: the format, the task or the images are not supported.
    """
    _check(loaded, options, format_, images, labels, max_accuracy_drop)
    openvino: Any = import_without_telemetry("openvino", purpose="int8 quantization")
    nncf: Any = import_without_telemetry("nncf", purpose="int8 quantization")
    versions = {"openvino": openvino.get_version(), "nncf": nncf.__version__}
    prepared = prepare(loaded, options, format="openvino", precision="int8", opset="OpenVINO IR", versions=versions)
    inputs = _preprocess(prepared, images)
    # Every third image calibrates: folders list one class after another, and both subsets need all classes.
    calibration_images = inputs[::3][:_MAX_CALIBRATION_IMAGES]
    validation_images = [image for place, image in enumerate(inputs) if place % 3]
    validation_labels = None if labels is None else [label for place, label in enumerate(labels) if place % 3]
    original = set_tensor_names(openvino.convert_model(prepared.program()), prepared)
    quantized = _quantize(nncf, original, calibration_images)
    groups = candidate_groups(list_layers(original, rows=prepared.header.inputs[INPUT][2] or 0))
    trials = run_trials(
        quantized,
        original,
        {name: layers for name, layers in groups.items() if not candidates or name in candidates},
        validation_images,
        validation_labels,
        max_accuracy_drop=max_accuracy_drop,
        threads=threads,
        rounds=rounds,
    )
    best = select_best(trials, max_accuracy_drop=max_accuracy_drop)
    has_labels, count = validation_labels is not None, len(validation_images)
    log(format_trials(trials, best, num_images=count, has_labels=has_labels))
    if best is None:
        raise CheckpointError(
            f"{path}: not written: expected a choice of int8 layers that is faster than float32 with an accuracy drop "
            f"of at most {max_accuracy_drop:.1%} on {count} validation images, got none; give more images, or export "
            "without --int8"
        )
    header = _header_of_trial(prepared.header, best, num_images=count, has_labels=has_labels)
    save(exclude_layers(quantized, original, best.excluded_layers), header, path)
    return path


def set_tensor_names(model: Any, prepared: Prepared) -> Any:
    """Give ``model`` the header's names of inputs and outputs, and the header's input shape."""
    model.inputs[0].get_tensor().set_names({INPUT})
    for output, name in zip(model.outputs, prepared.header.outputs, strict=True):
        output.get_tensor().set_names({name})
    model.reshape([-1 if side is None else side for side in prepared.header.inputs[INPUT]])
    return model


def candidate_groups(layers: Sequence[Layer]) -> dict[str, frozenset[str]]:
    """Return the choices of int8 layers to try: their names, and the layers that each excludes from int8."""
    by_kind = {kind: {layer.name for layer in layers if layer.kind == kind} for kind in {x.kind for x in layers}}
    all_names = {layer.name for layer in layers}
    pointwise = {name for kind, names in by_kind.items() if kind.endswith("1x1") for name in names}
    depthwise, attention_pointwise = by_kind.get("depth-wise", set()), by_kind.get("channel-preserving 1x1", set())
    first_stage = {layer.name for layer in layers if layer.stage == 1}
    last_stage = {layer.name for layer in layers if layer.stage == 4}
    ends = {layer.name for layer in (layers[0], layers[-1])} if layers else set()
    groups = {
        ALL_LAYERS: set(),
        "all but the first and the last": ends,
        "all but larger convolutions": by_kind.get("larger", set()),
        "all but stage 1": first_stage,
        "all but stage 4": last_stage,
        "all but depth-wise": depthwise,
        "all but the attention's 1x1": attention_pointwise,
        "1x1 convolutions only": all_names - pointwise,
        "fc1 and fc2 only": all_names - pointwise | attention_pointwise,
    }
    # Two choices can exclude the same layers of a small network; the first name is kept.
    unique: dict[frozenset[str], str] = {}
    for name, excluded in groups.items():
        if excluded != all_names:
            unique.setdefault(frozenset(excluded), name)
    return {name: excluded for excluded, name in unique.items()}


def run_trials(
    quantized: Any,
    original: Any,
    groups: dict[str, frozenset[str]],
    validation_images: Sequence[np.ndarray],
    validation_labels: Sequence[int] | None,
    *,
    max_accuracy_drop: float,
    threads: int | None,
    rounds: int,
) -> list[Trial]:
    """Measure latency and accuracy drop of every candidate and of the float network.

    Args:
        quantized, original: see ``van.export.int8_layers.exclude_layers``.
        groups: see ``candidate_groups``.
        validation_images: (N, 3, H, W) each, not used for calibration.
        validation_labels: their class indices, where known.
        max_accuracy_drop: the fastest trials within it are measured a second time, with all ``rounds``.
        threads, rounds: see ``write``.

    Returns:
        The network in float32 first, then in bfloat16 where supported, then the candidates.
    """
    arithmetics: list[Arithmetic] = ["float32", "bfloat16"] if has_bfloat16() else ["float32"]
    graphs = {_FLOAT: original}
    graphs |= {name: exclude_layers(quantized, original, excluded) for name, excluded in groups.items()}
    compiled = {
        f"{name}/{arithmetic}": compile_model(graph, arithmetic=arithmetic, threads=threads)
        for name, graph in graphs.items()
        for arithmetic in arithmetics
    }
    # The first measurement only ranks the trials, so a third of the rounds is enough.
    times = median_times(compiled, validation_images[0], rounds=-(-rounds // 3))
    reference = _predict(compiled[f"{_FLOAT}/float32"], validation_images)
    trials = [
        Trial(
            name=name,
            excluded_layers=groups.get(name, frozenset()),
            arithmetic=arithmetic,
            latency_ms=times[f"{name}/{arithmetic}"],
            accuracy_drop=_accuracy_drop(
                _predict(compiled[f"{name}/{arithmetic}"], validation_images), reference, validation_labels
            ),
        )
        for name in graphs
        for arithmetic in arithmetics
    ]
    accurate = sorted(
        (trial for trial in trials if trial.uses_int8 and trial.accuracy_drop <= max_accuracy_drop),
        key=lambda trial: trial.latency_ms,
    )
    finalists = [*(trial for trial in trials if not trial.uses_int8), *accurate[:_FINALISTS]]
    by_key = {f"{trial.name}/{trial.arithmetic}": trial for trial in finalists}
    times = median_times({key: compiled[key] for key in by_key}, validation_images[0], rounds=rounds)
    remeasured = {id(trial): dataclasses.replace(trial, latency_ms=times[key]) for key, trial in by_key.items()}
    return [remeasured.get(id(trial), trial) for trial in trials]


def select_best(trials: Sequence[Trial], *, max_accuracy_drop: float) -> Trial | None:
    """Return the fastest int8 trial that is accurate enough and faster than the first trial, which is float32.

    Returns None if there is none.
    """
    float32, *others = trials
    eligible = [
        trial
        for trial in others
        if trial.uses_int8 and trial.accuracy_drop <= max_accuracy_drop and trial.latency_ms < float32.latency_ms
    ]
    return min(eligible, key=lambda trial: trial.latency_ms, default=None)


def format_trials(trials: Sequence[Trial], best: Trial | None, *, num_images: int, has_labels: bool) -> str:
    """Format the trials as a text table, the fastest first, with "written" after the best."""
    float32 = trials[0]
    title = "top-1 drop" if has_labels else "changed predictions"
    header = f"{'int8 layers':<34}{'other layers':<14}{'latency ms':>11}{'speed-up':>10}{title:>21}"
    lines = [f"{header}  ({num_images} validation images)"]
    for trial in sorted(trials, key=lambda trial: trial.latency_ms):
        drop = "-" if trial is float32 else f"{trial.accuracy_drop:.2%}"
        suffix = "  written" if trial is best else ""
        speed_up = f"{float32.latency_ms / trial.latency_ms:.2f}x"
        lines.append(f"{trial.name:<34}{trial.arithmetic:<14}{trial.latency_ms:>11.2f}{speed_up:>10}{drop:>21}{suffix}")
    fastest = min(trials, key=lambda trial: trial.latency_ms)
    if not fastest.uses_int8 and fastest is not float32:
        lines.append(f"{fastest.arithmetic} without int8 is the fastest; export with --half to use it")
    return "\n".join(lines)


def _header_of_trial(header: Header, trial: Trial, *, num_images: int, has_labels: bool) -> Header:
    drop = f"top-1 drop {trial.accuracy_drop:.2%}" if has_labels else f"{trial.accuracy_drop:.2%} changed predictions"
    note = f"int8: {trial.name}, other layers {trial.arithmetic}; {drop} on {num_images} validation images"
    precision = "int8+bfloat16" if trial.arithmetic == "bfloat16" else "int8"
    return dataclasses.replace(header, precision=precision, notes=(*header.notes, note))


def _check(
    loaded: Model,
    options: ExportOptions,
    format_: Format,
    images: Sequence[Image.Image],
    labels: Sequence[int] | None,
    max_accuracy_drop: float,
) -> None:
    if format_.name != "openvino":
        raise UsageError(f"--int8: expected --format openvino, got {format_.name}")
    if options.half:
        raise UsageError("int8 and half exclude each other; choose one")
    if loaded.task not in ("classify", "segment"):
        raise UsageError(f"--int8: expected a network for classify or segment, got {loaded.name} for {loaded.task}")
    if len(images) < _MIN_IMAGES:
        raise UsageError(f"calibration images: expected at least {_MIN_IMAGES}, got {len(images)}")
    if labels is not None and (loaded.task != "classify" or len(labels) != len(images)):
        raise UsageError(
            f"labels: expected one class index for each of {len(images)} images of a classifier, got {len(labels)}"
        )
    if not 0 <= max_accuracy_drop <= 1:
        raise UsageError(f"max_accuracy_drop: expected 0 to 1, got {max_accuracy_drop}")


def _preprocess(prepared: Prepared, images: Sequence[Image.Image]) -> list[np.ndarray]:
    """Return the preprocessed images (N, 3, H, W), each repeated to the batch size where it is fixed."""
    batch_size, _, *sides = prepared.header.inputs[INPUT]
    preprocess = prepared.header.preprocess
    tensors = [preprocess(image) for image in images]
    if not isinstance(preprocess, CenterCropPreprocess) and None not in sides:
        tensors = [tensor for tensor in tensors if list(tensor.shape[1:]) == sides]
        if len(tensors) < _MIN_IMAGES:
            raise UsageError(
                f"calibration images: expected at least {_MIN_IMAGES} of {sides[0]} x {sides[1]} after preprocessing, "
                f"got {len(tensors)} of {len(images)}; give others, or export with --dynamic"
            )
    return [tensor[None].expand(batch_size or 1, -1, -1, -1).contiguous().numpy() for tensor in tensors]


def _quantize(nncf: Any, original: Any, calibration_images: Sequence[np.ndarray]) -> Any:
    """Quantize weights and inputs of every layer by NNCF's default scheme.

    Biases are not corrected, because the correction would stay wrong in layers that are later excluded.
    """
    advanced = nncf.AdvancedQuantizationParameters(disable_bias_correction=True)
    with (
        suppress_log("nncf"),
        suppress_log("torch.utils.cpp_extension"),  # warns that there is no GPU
        contextlib.redirect_stdout(sys.stderr),  # NNCF prints a progress bar
    ):
        return nncf.quantize(
            original,
            nncf.Dataset(calibration_images),
            subset_size=len(calibration_images),
            advanced_parameters=advanced,
        )


def _predict(network: Any, images: Sequence[np.ndarray]) -> Predictions:
    return [np.asarray(network([image])[0][0].argmax(axis=0)) for image in images]


def _accuracy_drop(predictions: Predictions, reference: Predictions, labels: Sequence[int] | None) -> float:
    if labels is not None:
        triples = zip(predictions, reference, labels, strict=True)
        return float(np.mean([float(expected == label) - float(got == label) for got, expected, label in triples]))
    return float(np.mean([(got != expected).mean() for got, expected in zip(predictions, reference, strict=True)]))
