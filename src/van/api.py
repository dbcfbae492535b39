"""One function per verb: ``van train`` is ``van.train``, ``van eval`` is ``van.evaluate``, and so on.

The command line parses its flags, calls one of these functions and prints the result. A ``model`` is a ``Model`` or
anything that ``Model.load`` reads; who uses a model more than once should load it once. Importing this module does not
import torch; every function imports what it needs.
"""

import functools
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, TypeVar

from van.errors import ImageError, UsageError
from van.progress import show_progress
from van.results import Metrics, Report, Run, write_charts
from van.settings import check_at_least, check_folder, check_suffix

if TYPE_CHECKING:
    from van.datasets.check import CheckReport
    from van.explain import Explanation
    from van.export.exporting import Exported
    from van.images import Box, ImageInput
    from van.model import Model

Source: TypeAlias = "Model | str | Path"
"""A model, or what ``Model.load`` reads: a checkpoint, a run folder, public weights, an exported file, a name."""

Result = TypeVar("Result")


def train(recipe: str, **settings: Any) -> Run:
    """Train a model by a recipe; settings, log and checkpoints go to a run folder.

    Args:
        recipe: one of ``van.recipes.RECIPES``, such as ``digits``, ``classify`` (``finetune``) or ``detect``.
        settings: those of the recipe, by the names of its flags: ``data``, ``out``, ``epochs``, ``batch_size``, ``lr``.
            ``van train RECIPE --help`` lists them.

    Raises:
        UsageError: there is no such recipe or setting, or a value is wrong.
        VanError: see ``van.training.trainer.fit``.
    """
    from van.recipes import make_settings, run_recipe

    resolved = make_settings(recipe, settings)
    return Run(folder=Path(resolved.out), **vars(run_recipe(resolved)))


def evaluate(
    model: Source,
    data: str | Path,
    *,
    batch_size: int | None = None,
    workers: int = 0,
    device: str = "auto",
    precision: Literal["fp32", "bf16", "fp16"] = "fp32",
    tile_size: int = 0,
    multi_scale: bool = False,
    confusion: str | Path | None = None,
    charts: str | Path | None = None,
) -> Metrics:
    """Evaluate a model on the validation split of an annotated dataset.

    Args:
        model: a model or its source.
        data: the dataset, in any format that training reads.
        batch_size: images per batch in each process; 64 for classification and 4 for other tasks if None.
        workers: data loading processes.
        device: cpu, cuda, mps, or auto, which takes the first one available of cuda, mps and cpu.
        precision: of the forward pass.
        tile_size: segmentation: predict at the original image size with a sliding window of this side, in pixels.
        multi_scale: segmentation: average over six scales and horizontal flips.
        confusion: write the confusion matrix to this PNG file.
        charts: write the charts of the task to this folder.

    Raises:
        DataError: the dataset does not fit the model, or none of its images can be read.
        UsageError: an option is wrong, or does not apply to the model.
    """
    check_at_least(1, batch_size=batch_size)
    check_at_least(0, workers=workers)
    check_suffix(".png", confusion=confusion)
    check_folder(charts=charts)
    from van.datasets.evaluation import evaluation_dataset, training_data_warnings
    from van.device import to_channels_last
    from van.heads.sliding_window import wrap_inference
    from van.training import evaluate as evaluation_module
    from van.training.distributed import accelerator_context

    loaded = _load_to_evaluate(model, device, precision=precision, has_confusion=confusion is not None)
    network = wrap_inference(loaded.network, task=loaded.task, tile_size=tile_size, multi_scale=multi_scale)
    task = loaded.make_task()
    notes: list[str] = []
    samples = evaluation_dataset(
        Path(data),
        task=loaded.task,
        class_names=loaded.class_names,
        preprocess=loaded.preprocess,
        without_resize=tile_size > 0,
        log=notes.append,
    )
    with accelerator_context(device="cpu" if loaded.is_exported else device, precision=precision) as accelerator:
        is_main_process = accelerator.is_main_process
        result = evaluation_module.evaluate(
            task,
            to_channels_last(network.eval(), accelerator.device),
            samples,
            accelerator,
            batch_size=batch_size or (64 if loaded.task == "classify" else 4),
            workers=workers,
            on_batch=show_progress("batch") if is_main_process else None,
        )
    names = write_charts(result, task, confusion=confusion, charts=charts) if is_main_process else ()
    warnings = training_data_warnings(Path(data), loaded.recipe) if loaded.task == "classify" else []
    return Metrics(
        task=loaded.task,
        model=loaded.source or loaded.name,
        data=str(data),
        metrics=result.metrics,
        per_class=result.details["per_class"],
        samples=result.samples,
        unreadable=result.unreadable,
        confusion=result.details.get("confusion"),
        charts=names,
        notes=(*notes, *loaded.notes, *warnings),
    )


def predict(
    model: Source,
    images: "ImageInput | Iterable[ImageInput]",
    *,
    min_score: float | None = None,
    tile_size: int = 0,
    multi_scale: bool = False,
    batch_size: int | None = None,
    device: str | None = None,
    errors: Literal["raise", "return"] = "raise",
    stream: bool = False,
) -> Any:
    """Predict classes, boxes, masks or maps: a ``Classification``, ``Detections`` or ``Segmentation`` for each image.

    Args:
        model: a model or its source.
        images: one image, or several: paths, folders, glob patterns, bytes or file objects of image files, PIL images,
            arrays (H, W, 3) of uint8 RGB, tensors (3, H, W) of uint8 RGB or of floats from 0 to 1.
        min_score: detection: minimum score of a detection; 0.3 if None.
        tile_size: semantic segmentation: tile side in pixels for sliding-window inference at the original size; its
            memory does not grow with the image's height. 0 predicts the whole image at once.
        multi_scale: semantic segmentation: average over six scales with horizontal flips.
        batch_size: images per batch; 16 for classification and 1 for other tasks if None.
        device: cpu, cuda or mps; the GPU if available if None.
        errors: ``raise`` the error of the first image that cannot be read, or ``return`` it in the image's place.
        stream: return an iterator that reads, predicts and yields one batch after another, for many images.

    Returns:
        The prediction of one image; for a folder, a pattern or several images a list of predictions in their order,
        or an iterator.

    Raises:
        ImageError: an image cannot be read.
        UsageError: an option does not apply to the model, or an image has another type.
    """
    check_at_least(1, batch_size=batch_size)
    if min_score is not None and not 0 <= min_score <= 1:
        raise UsageError(f"min_score: expected 0 to 1, got {min_score}")
    loaded = _load(model, device)
    options = {"device": device, "min_score": min_score, "tile_size": tile_size, "multi_scale": multi_scale}
    predictor = loaded.predictor(**options)
    size = batch_size or (16 if loaded.task == "classify" else 1)
    return _collect(functools.partial(predictor.stream, batch_size=size), images, errors=errors, stream=stream)


def explain(
    model: Source,
    images: "ImageInput | Iterable[ImageInput]",
    *,
    classes: Sequence[str | int] | None = None,
    top: int = 1,
    box: "Box | None" = None,
    method: str | Sequence[str] | None = None,
    layer: str | None = None,
    batch_size: int = 8,
    device: str | None = None,
    errors: Literal["raise", "return"] = "raise",
    stream: bool = False,
) -> Any:
    """Explain the prediction of each image by heatmaps: an ``Explanation`` with the prediction and the maps.

    Args:
        model: a model or its source.
        images, batch_size, device, errors, stream: as for ``predict``.
        classes: names or indices of the classes to explain; the ``top`` predicted ones if None.
        top: number of predicted classes or detections to explain.
        box: detection: left, top, right and bottom of the detection to explain, in pixels.
        method: one or more of ``van.explain.METHODS``; Grad-CAM for classification, Layer-CAM for other tasks if None.
        layer: ``stage1`` to ``stage4``, ``stage3.block0``, or the path of a module; if None ``stage4``, or an earlier
            stage for small images.

    Raises:
        CheckpointError: the model is an exported file.
        ImageError: an image cannot be read.
        UsageError: an option is wrong, or an image has another type.
    """
    from van.explain.explainer import Explainer

    explainer = Explainer(_load(model, device), device=device)
    stream_pairs = functools.partial(
        explainer.stream,
        batch_size=batch_size,
        methods=(method,) if method is None or isinstance(method, str) else tuple(method),
        classes=classes,
        top=top,
        box=box,
        layer=layer,
    )

    def explanations(inputs: "Iterable[ImageInput]") -> "Iterator[Explanation | ImageError]":
        return (result if isinstance(result, ImageError) else result[1] for result in stream_pairs(inputs))

    return _collect(explanations, images, errors=errors, stream=stream)


def report(
    run: "Model | Run | str | Path",
    out: str | Path | None = None,
    *,
    data: str | Path | None = None,
    limit: int = 0,
    num_errors: int = 12,
    batch_size: int | None = None,
    device: str = "auto",
    speed: bool = True,
) -> Report:
    """Write an HTML report of a training run: curves, metrics, the worst errors with heatmaps, speed, settings.

    Args:
        run: the run, its folder, or a model that was loaded from it.
        out: the page, ending in .html; ``report.html`` in the run folder if None.
        data: dataset folder with the validation images; the one in the run's settings if None.
        limit: maximum number of validation images, evenly spaced; 0 for all.
        num_errors: number of errors to show.
        batch_size: images per batch; 64 for classification, 4 for other tasks if None.
        device: cpu, cuda, mps, or auto.
        speed: measure the inference speed.
    """
    check_at_least(0, limit=limit, num_errors=num_errors)
    check_at_least(1, batch_size=batch_size)
    check_suffix((".html", ".htm"), out=out)
    processes = int(os.environ.get("WORLD_SIZE", "1"))
    if processes > 1:
        raise UsageError(f"van report: expected 1 process, got {processes}; run it without torchrun")
    given = run.folder if isinstance(run, Run) else run if isinstance(run, str | Path) else run.source
    if not given:
        raise UsageError("run: expected a model that was loaded from a run folder, got one that was not loaded")
    folder = Path(given).parent if Path(given).is_file() else Path(given)
    import van
    from van.checkpoint import write_text
    from van.report.data import ReportOptions, collect_report_data
    from van.report.page import render

    def show(text: str) -> None:
        if sys.stderr.isatty():
            print(f"\r\033[K{text}", end="", file=sys.stderr, flush=True)  # noqa: T201

    options = ReportOptions(
        data=None if data is None else Path(data),
        limit=limit,
        num_errors=num_errors,
        speed=speed,
        device=device,
        batch_size=batch_size,
        on_progress=show,
    )
    loaded = None if isinstance(run, Run | str | Path) else run
    collected = collect_report_data(folder, options, model=loaded)
    show("")
    page = folder / "report.html" if out is None else Path(out)
    write_text(page, render(collected, version=van.__version__))
    return Report(page, collected)


def export(
    model: Source,
    out: str | Path,
    *,
    format: str | None = None,  # noqa: A002 - the flag's name
    half: bool = False,
    dynamic: bool = False,
    batch_size: int | None = None,
    image_size: int | None = None,
    images: Sequence[str | Path] = (),
    tolerance: float | None = None,
    int8: bool = False,
    calibration_data: str | Path | None = None,
    max_accuracy_drop: float = 0.005,
) -> "Exported":
    """Write the file of another runtime, after a comparison of its outputs with PyTorch's.

    Args:
        model: a model or its source.
        out: the file, with the suffix of the format: .onnx, .xml (OpenVINO), .pt2 (torch.export).
        format: one of ``van.export.formats.FORMATS``; that of the suffix of ``out`` if None.
        half: float16 weights and arithmetic; OpenVINO computes in bfloat16 where that is faster, else in float32.
        dynamic: any batch size and, except for classification, any image size.
        batch_size: of a file without ``dynamic``; 1 if None.
        image_size: side of a classifier's center crop, or shorter side for other tasks, in pixels; as trained if None.
        images: files and folders: predictions are compared on up to 16 of them; on synthetic images if empty.
        tolerance: maximum absolute difference from PyTorch, relative to the largest output; 1e-4, with ``half`` 2e-2
            if None.
        int8: OpenVINO: quantize layers where int8 is faster and accurate enough; needs ``calibration_data``.
        calibration_data: for ``int8``: a folder of images of the kind that the network will process; labeled if in one
            folder per class.
        max_accuracy_drop: for ``int8``: fraction of the validation images whose prediction may get worse.

    Raises:
        CheckpointError: the file cannot be written, or its outputs differ from PyTorch's; nothing was written.
        MissingExtra: a package of the format is not installed.
        UsageError: the options exclude each other, or the network cannot be exported.
    """
    check_at_least(1, image_size=image_size, batch_size=batch_size)
    if tolerance is not None and not 0 < tolerance <= 1:
        raise UsageError(f"tolerance: expected more than 0 and at most 1, got {tolerance}")
    if not 0 <= max_accuracy_drop < 1:
        raise UsageError(f"max_accuracy_drop: expected at least 0 and less than 1, got {max_accuracy_drop}")
    if dynamic and batch_size is not None:
        raise UsageError("--batch-size and --dynamic exclude each other; --dynamic accepts any batch size")
    if int8 != (calibration_data is not None):
        raise UsageError("--int8 and --calibration-data FOLDER require each other; give both or neither")
    if int8 and half:
        raise UsageError("--int8 and --half exclude each other; choose one")
    from van.export.exporting import find_format, write_export

    chosen = find_format(format, Path(out), int8=int8)
    return write_export(
        _load(model),
        Path(out),
        chosen,
        dynamic=dynamic,
        half=half,
        batch_size=batch_size or 1,
        image_size=image_size,
        images=images,
        tolerance=tolerance,
        calibration_data=calibration_data,
        max_accuracy_drop=max_accuracy_drop,
    )


def serve(models: "Model | str | Path | Sequence[Model | str | Path]", **options: Any) -> int:
    """Serve predictions over HTTP until a stop signal; return 0 if all accepted requests were finished.

    Args:
        models: one or several: models, or their sources as paths or names, each optionally as ``NAME=FILE``; the first
            one is the default.
        options: fields of ``van.serving.settings.Settings`` (``host``, ``port``, ``workers``, ``device``, ``api_key``)
            and ``Limits`` (``max_body_bytes``, ``timeout_s``), with their units.

    Raises:
        MissingExtra: a package of the server is not installed.
        UsageError: there is no model, an option is wrong, or other machines can reach ``host`` without an ``api_key``.
    """
    given = [models] if not isinstance(models, Sequence) or isinstance(models, str) else list(models)
    if not given:
        raise UsageError("models: expected at least 1 checkpoint or model file, got none")
    from van.serving.launch import launch

    return launch(given, options)


def benchmark(subject: Literal["models", "ops", "sessions"] = "models", **options: Any) -> list[Any]:
    """Benchmark networks, operators or inference sessions; every output is first compared with a reference.

    Args:
        subject: what to benchmark.
        options: those of ``van bench models``, ``ops`` or ``sessions``, by the names of their flags.

    Returns:
        A row for each measurement, with ``to_dict``.

    Raises:
        UsageError: an option is wrong.
    """
    from van.bench import run_benchmark

    return run_benchmark(subject, **options)


def convert(source: str | Path, out: str | Path, *, num_classes: int | None = None, overwrite: bool = False) -> "Model":
    """Convert public VAN weights to a checkpoint of this package; return the model.

    Args:
        source: a weights file (.pth, .pth.tar, .bin, .safetensors) or a model name such as ``van_b2``.
        out: the checkpoint to write, ending in .safetensors.
        num_classes: replace the classifier by a new one with this number of classes; 0 keeps only the backbone.
        overwrite: replace ``out`` if it exists.

    Raises:
        CheckpointError: the weights cannot be used, or the file cannot be written.
        UsageError: ``out`` exists, or has another suffix.
    """
    check_suffix(".safetensors", out=out)
    if Path(out).exists() and not overwrite:
        raise UsageError(f"out: {out} exists; choose another name or add --overwrite")
    check_at_least(0, num_classes=num_classes)
    from van.model import Model

    model = Model.load(source, num_classes=num_classes)
    model.check_has_weights()
    model.replace(origin=model.origin or Path(source).name).save(out)
    return model


def check_dataset(path: str | Path, *, preview: str | Path | None = None) -> "CheckReport":
    """Validate a dataset: open every image, compare it with its annotations, and return statistics and all issues.

    Args:
        path: folder of the dataset, in any format that training reads.
        preview: write up to 24 images with their annotations to this PNG file.
    """
    check_suffix(".png", preview=preview)
    from van.datasets import check

    found = check.check_dataset(Path(path), on_image=show_progress("image"))
    if preview is not None:
        found.draw_preview(Path(preview))
    return found


def _load(model: Any, device: str | None = None) -> "Model":
    from van.model import Model

    return model if isinstance(model, Model) else Model.load(model, device=device)


def _load_to_evaluate(model: Source, device: str, *, precision: str, has_confusion: bool) -> "Model":
    """Load a model, and check that it can be evaluated with this precision and a confusion matrix."""
    from van.tasks.classification_metric import MAX_CONFUSION_CLASSES

    loaded = _load(model, device)
    if loaded.is_exported and precision != "fp32":
        raise UsageError(
            f"precision: expected none for the exported model {loaded.source}, whose precision is fixed, "
            f"got {precision}"
        )
    loaded.check_can_predict()
    num_classes = len(loaded.class_names)
    if has_confusion and loaded.task not in ("classify", "segment"):
        raise UsageError(f"confusion: expected a model of the task classify or segment, got {loaded.task}; remove it")
    if has_confusion and not 1 < num_classes <= MAX_CONFUSION_CLASSES:
        raise UsageError(f"confusion: expected 2 to {MAX_CONFUSION_CLASSES:,} classes, got {num_classes}")
    return loaded


def _collect(
    stream_results: "Callable[[Iterable[ImageInput]], Iterator[Result | ImageError]]",
    images: "ImageInput | Iterable[ImageInput]",
    *,
    errors: str,
    stream: bool,
) -> Any:
    """Return the result of one image, or the results of several as a list or an iterator."""
    from van.images import expand_image, expand_inputs, is_one_image

    if errors not in ("raise", "return"):
        raise UsageError(f"errors: expected raise or return, got {errors!r}")
    results = stream_results(expand_inputs(images))
    if errors == "raise":
        results = _raise_errors(results)
    if stream:
        return results
    several = list(results)
    is_single = is_one_image(images) and not (isinstance(images, str | Path) and expand_image(images))
    return several[0] if is_single else several


def _raise_errors(results: "Iterable[Result | ImageError]") -> Iterator[Result]:
    for result in results:
        if isinstance(result, ImageError):
            raise result
        yield result
