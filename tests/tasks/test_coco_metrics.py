"""COCO's metrics against pycocotools, COCO's own code, and against values computed by hand."""

import contextlib
import io
import json
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools import mask as encode_rle
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from torch import Tensor

from van.errors import DataError
from van.tasks.base import ImageMeta
from van.tasks.detection import DetectionMetric, DetectionTask

LABELS = ("first", "second", "third", "only predicted", "only annotated")
CATEGORY_IDS = (3, 7, 11, 12, 90)
SIZE = (140, 160)
NAMES = (
    "ap", "ap50", "ap75", "ap_small", "ap_medium", "ap_large", "ar1", "ar10", "ar100",
    "ar_small", "ar_medium", "ar_large",
)  # fmt: skip
"""Metric names in the order of pycocotools' stats."""
# pycocotools 2.0.11 sets the shape of an array, which NumPy 2.5 is to forbid
ignore_numpy_warning = pytest.mark.filterwarnings("ignore:Setting the shape on a NumPy array:DeprecationWarning")

Example = tuple[str, dict[str, Tensor], dict[str, Tensor]]


def draw_mask(box: np.ndarray, ellipse: bool) -> np.ndarray:
    """Return the mask of a box or of the ellipse in it, (rows, columns) bool, with at least one pixel."""
    y, x = np.mgrid[: SIZE[0], : SIZE[1]] + 0.5
    x1, y1, x2, y2 = box
    if ellipse:
        mask = ((2 * x - x1 - x2) / (x2 - x1)) ** 2 + ((2 * y - y1 - y2) / (y2 - y1)) ** 2 <= 1
    else:
        mask = (x > x1) & (x < x2) & (y > y1) & (y < y2)
    mask[min(int(y1), SIZE[0] - 1), min(int(x1), SIZE[1] - 1)] = True
    return mask


def random_box(random: np.random.Generator) -> np.ndarray:
    """Return a small, medium or large box; half of them are whole pixels, so that IoUs equal thresholds exactly."""
    width, height = random.choice([8, 20, 50, 120]) * random.uniform(0.6, 1.15, 2)
    x, y = random.uniform(0, SIZE[1] - width), random.uniform(0, SIZE[0] - height)
    box = np.array([x, y, x + width, y + height])
    return np.rint(box) if random.random() < 0.5 else box


def make_annotations(boxes: list[np.ndarray], labels: list[int]) -> dict[str, Tensor]:
    masks = [draw_mask(box, label % 2 == 1) for box, label in zip(boxes, labels, strict=True)]
    return {
        "boxes": torch.tensor(np.array(boxes).reshape(-1, 4), dtype=torch.float32),
        "labels": torch.tensor(labels, dtype=torch.int64),
        "masks": torch.from_numpy(np.array(masks, bool).reshape(-1, *SIZE)),
    }


def random_image(name: str, random: np.random.Generator, *, num_objects: int, num_false: int) -> Example:
    """Return an image with its target and with detections: shifted and duplicated objects, and false positives."""
    boxes = [random_box(random) for _ in range(num_objects)]
    labels = random.choice([0, 1, 2, 4], num_objects).tolist()
    target = make_annotations(boxes, labels)
    target["iscrowd"] = torch.from_numpy((random.random(num_objects) < 0.2).astype(np.int64))
    annotated = torch.from_numpy(random.choice([300, 4000, 12_000], num_objects)).float()
    drawn = target["masks"].flatten(1).sum(1).float() if num_objects else torch.zeros(0)
    target["area"] = torch.where(torch.from_numpy(random.random(num_objects) < 0.3), annotated, drawn)
    detected: list[tuple[np.ndarray, int]] = []
    for box, label in zip(boxes, labels, strict=True):
        for _ in range(int(random.integers(0, 3)) if label != 4 else 0):
            moved = np.clip(box + random.integers(-2, 3, 4), 0, [SIZE[1], SIZE[0]] * 2)
            large_enough = moved[2:] - moved[:2] >= 2
            detected.append((moved if large_enough.all() else box, label))
    detected += [(random_box(random), int(random.integers(4))) for _ in range(num_false)]
    detections = make_annotations([box for box, _ in detected], [label for _, label in detected])
    scores = random.random(len(detected)) * np.where(np.arange(len(detected)) < len(detected) - num_false, 1, 0.7)
    detections["scores"] = torch.from_numpy(np.rint(10 * scores) / 10).float()  # many are equal
    return name, detections, target


def random_dataset(seed: int) -> list[Example]:
    """Return seven images: one has more than 100 detections of a class, one has none, and one has no objects."""
    random = np.random.default_rng(seed)
    images = [
        random_image(f"{n:03}", random, num_objects=int(random.integers(1, 9)), num_false=int(random.integers(4)))
        for n in range(4)
    ]
    images.append(random_image("004", random, num_objects=0, num_false=3))
    name, _, target = random_image("005", random, num_objects=4, num_false=0)
    empty = make_annotations([], []) | {"scores": torch.zeros(0)}
    images.append((name, empty, target))
    name, detections, target = random_image("006", random, num_objects=3, num_false=115)
    detections["labels"][-105:] = 0
    return [*images, (name, detections, target)]


def to_rle(mask: Tensor) -> dict[str, Any]:
    coded = encode_rle.encode(np.asfortranarray(mask.numpy().astype(np.uint8)))
    return {"size": list(coded["size"]), "counts": coded["counts"].decode()}


def to_xywh(box: Tensor) -> list[float]:
    x1, y1, x2, y2 = box.tolist()
    return [x1, y1, x2 - x1, y2 - y1]


def annotation_file(images: list[Example]) -> COCO:
    """Return the targets as a COCO annotation file."""
    rows, columns = SIZE
    annotations: list[dict[str, Any]] = []
    for image_id, (_, _, target) in enumerate(images):
        for index, label in enumerate(target["labels"].tolist()):
            annotation = {"id": len(annotations) + 1, "image_id": image_id, "category_id": CATEGORY_IDS[label]}
            annotation |= {name: target[name][index].item() for name in ("iscrowd", "area")}
            annotation |= {"bbox": to_xywh(target["boxes"][index]), "segmentation": to_rle(target["masks"][index])}
            annotations.append(annotation)
    ground_truth = COCO()
    entries = [{"id": image_id, "height": rows, "width": columns} for image_id in range(len(images))]
    categories = [{"id": category_id, "name": label} for category_id, label in zip(CATEGORY_IDS, LABELS, strict=True)]
    ground_truth.dataset = {"info": {}, "images": entries, "annotations": annotations, "categories": categories}
    with contextlib.redirect_stdout(io.StringIO()):
        ground_truth.createIndex()
    return ground_truth


def result_entries(images: list[Example]) -> list[dict[str, Any]]:
    """Return the detections as entries of a results file, in their order."""
    return [
        {
            "image_id": image_id,
            "category_id": CATEGORY_IDS[int(detections["labels"][index])],
            "bbox": to_xywh(detections["boxes"][index]),
            "score": detections["scores"][index].item(),
            "segmentation": to_rle(detections["masks"][index]),
        }
        for image_id, (_, detections, _) in enumerate(images)
        for index in range(len(detections["labels"]))
    ]


def by_pycocotools(ground_truth: COCO, file: Any, kind: str) -> tuple[dict[str, float], dict[str, dict[str, float]]]:
    """Return all metrics that have ground truth, overall and per class; ``kind`` is box or mask."""
    if kind == "mask" and not isinstance(file, str):  # otherwise areas would be those of the boxes
        file = [{key: value for key, value in entry.items() if key != "bbox"} for entry in file]
    with contextlib.redirect_stdout(io.StringIO()):
        evaluator = COCOeval(ground_truth, ground_truth.loadRes(file), {"box": "bbox", "mask": "segm"}[kind])
        evaluator.evaluate()
        evaluator.accumulate()
        arrays = dict(evaluator.eval)
        evaluator.summarize()
        overall = evaluator.stats
        per_class = {}
        for index, label in enumerate(LABELS):
            evaluator.eval = arrays | {
                "precision": arrays["precision"][:, :, [index]],
                "recall": arrays["recall"][:, [index]],
            }
            evaluator.summarize()
            per_class[label] = with_ground_truth(evaluator.stats, kind)
    return with_ground_truth(overall, kind), {label: values for label, values in per_class.items() if values}


def with_ground_truth(stats: np.ndarray, kind: str) -> dict[str, float]:
    return {f"{kind}_{name}": float(value) for name, value in zip(NAMES, stats, strict=True) if value > -1}


def evaluate(images: list[Example], *, masks: bool = True) -> dict[str, Any]:
    metric = DetectionMetric(LABELS, masks=masks)
    for name, detections, target in images:
        output = detections | {"masks": detections["masks"][:, None].float()} if "masks" in detections else detections
        metric.add(output, target, ImageMeta(name, SIZE, SIZE))
    return metric.compute()


def assert_equals_pycocotools(computed: dict[str, Any], ground_truth: COCO, file: Any, kinds: tuple[str, ...]) -> None:
    reference = [by_pycocotools(ground_truth, file, kind) for kind in kinds]
    metrics = {name: value for overall, _ in reference for name, value in overall.items()}
    assert computed["metrics"] == pytest.approx(metrics, abs=1e-12)
    assert list(computed["per_class"]) == list(reference[0][1])
    for label, values in computed["per_class"].items():
        expected = {name: value for _, per_class in reference for name, value in per_class[label].items()}
        assert values == pytest.approx(expected, abs=1e-12), label


@ignore_numpy_warning
@settings(deadline=None, max_examples=12)
@given(seed=st.integers(0, 2**32 - 1))
def test_all_metrics_overall_and_per_class_equal_those_of_pycocotools(seed):
    images = random_dataset(seed)
    computed = evaluate(images)
    assert "only predicted" not in computed["per_class"]
    assert_equals_pycocotools(computed, annotation_file(images), result_entries(images), ("box", "mask"))
    assert_equals_pycocotools(evaluate(images, masks=False), annotation_file(images), result_entries(images), ("box",))


@ignore_numpy_warning
def test_the_random_datasets_cover_every_case_and_the_comparison_detects_small_errors():
    images = random_dataset(1)
    ground_truth, file = annotation_file(images), result_entries(images)
    computed = evaluate(images)
    assert set(computed["metrics"]) == {f"{kind}_{name}" for kind in ("box", "mask") for name in NAMES}
    assert 0.05 < computed["metrics"]["box_ap"] < 0.95
    assert any(int((detections["labels"] == label).sum()) > 100 for _, detections, _ in images for label in range(4))
    assert sum(int(target["iscrowd"].sum()) for _, _, target in images) > 1
    worse = [{**entry, "score": 1 - entry["score"]} for entry in file]
    for other in (worse, file[3:]):
        with pytest.raises(AssertionError):
            assert_equals_pycocotools(computed, ground_truth, other, ("box", "mask"))
    uncrowded = [(name, detections, target | {"iscrowd": 0 * target["iscrowd"]}) for name, detections, target in images]
    assert evaluate(uncrowded)["metrics"] != computed["metrics"]


@ignore_numpy_warning
def test_a_results_file_has_the_same_metrics_in_pycocotools(subtests, tmp_path):
    """End to end: network outputs, decoding, the results file, and COCO's own reader."""
    for seed in [2, 3]:
        folder = tmp_path / str(len(list(tmp_path.iterdir())))
        folder.mkdir()
        with subtests.test(seed=str(seed)):
            images = random_dataset(seed)
            task = DetectionTask(LABELS, masks=True, category_ids=CATEGORY_IDS, min_score=0.0)
            metric = task.metric()
            entries = []
            for image_id, (name, detections, target) in enumerate(images):
                input_size = (3 * SIZE[0] // 4, 3 * SIZE[1] // 4)
                outputs = [
                    detections | {"boxes": detections["boxes"] * 0.75, "masks": detections["masks"][:, None].float()}
                ]
                image_meta = ImageMeta(name, SIZE, input_size)
                outputs[0]["masks"] = (
                    torch.nn.functional.interpolate(outputs[0]["masks"], input_size)
                    if len(detections["masks"])
                    else (torch.zeros(0, 1, *input_size))
                )
                batch = task.collate(
                    [{"image": torch.zeros(3, *input_size), "target": target, "original_size": SIZE, "name": name}]
                )
                metric.update(outputs, batch)
                entries += task.decode(outputs, [image_meta])[0].to_coco(image_id)
            boxes, masks = folder / "boxes.json", folder / "masks.json"
            boxes.write_text(json.dumps(entries))
            masks.write_text(json.dumps([{key: entry[key] for key in entry if key != "bbox"} for entry in entries]))
            ground_truth, computed = annotation_file(images), metric.compute()["metrics"]
            metrics = (
                by_pycocotools(ground_truth, str(boxes), "box")[0] | by_pycocotools(ground_truth, str(masks), "mask")[0]
            )
            assert computed == pytest.approx(metrics, abs=1e-12)
            assert computed["mask_ap"] > 0.05


@ignore_numpy_warning
def test_precision_recall_curves_equal_those_of_pycocotools(subtests):
    for seed in [1, 5]:
        with subtests.test(seed=str(seed)):
            images = random_dataset(seed)
            computed = evaluate(images)
            curves, ground_truth, file = computed["precision_recall"], annotation_file(images), result_entries(images)
            assert list(curves) == ["recall", "box", "mask"]
            for kind in ("box", "mask"):
                reference = precision_by_pycocotools(ground_truth, file, kind)
                assert set(curves[kind]["per_class"]) == {
                    label for label, values in reference.items() if values.min() > -1
                }
                assert "only predicted" not in curves[kind]["per_class"]
                mean = np.mean([reference[label] for label in curves[kind]["per_class"]], axis=0)
                for mine, theirs in [(curves[kind]["all"], mean)] + [
                    (curve, reference[label]) for label, curve in curves[kind]["per_class"].items()
                ]:
                    for name, expected in (
                        ("0.50", theirs[0]),
                        ("0.75", theirs[5]),
                        ("0.50:0.95", theirs.mean(axis=0)),
                    ):
                        assert mine[name] == pytest.approx(expected, abs=1e-6)
                assert curves[kind]["all"]["0.50"] != pytest.approx(mean[5], abs=1e-3)  # negative control: IoU 0.75
                for name, threshold in (("ap50", "0.50"), ("ap75", "0.75"), ("ap", "0.50:0.95")):
                    assert np.mean(curves[kind]["all"][threshold]) == pytest.approx(
                        computed["metrics"][f"{kind}_{name}"], abs=1e-6
                    )
            assert curves["recall"] == pytest.approx([n / 100 for n in range(101)], abs=1e-12)
            assert json.loads(json.dumps(curves, allow_nan=False)) == curves


def precision_by_pycocotools(ground_truth: COCO, file: Any, kind: str) -> dict[str, np.ndarray]:
    """Return (10 IoU thresholds, 101 recalls) per class for all sizes and 100 detections; -1 without ground truth."""
    if kind == "mask":
        file = [{key: value for key, value in entry.items() if key != "bbox"} for entry in file]
    with contextlib.redirect_stdout(io.StringIO()):
        evaluator = COCOeval(ground_truth, ground_truth.loadRes(file), {"box": "bbox", "mask": "segm"}[kind])
        evaluator.evaluate()
        evaluator.accumulate()
    return {label: evaluator.eval["precision"][:, :, index, 0, 2] for index, label in enumerate(LABELS)}


def test_the_precision_recall_curve_of_a_small_example():
    """One of two objects is detected, after a false positive: the precision is 0.5 up to a recall of 0.5."""
    boxes = [[50.0, 50, 60, 60], [0, 0, 10, 10]]
    objects = [[0.0, 0, 10, 10], [100, 100, 110, 110]]
    computed = evaluate([one_image(boxes, [0.9, 0.8], objects)], masks=False)["precision_recall"]
    assert list(computed) == ["recall", "box"]
    assert computed["box"]["per_class"] == {LABELS[0]: computed["box"]["all"]}
    for curve in computed["box"]["all"].values():
        assert curve == pytest.approx([0.5] * 51 + [0.0] * 50, abs=1e-9)


def one_image(boxes: list[list[float]], scores: list[float], objects: list[list[float]], **more: Any) -> Example:
    detections = {"boxes": torch.tensor(boxes).reshape(-1, 4), "labels": torch.zeros(len(boxes), dtype=torch.int64)}
    target = {"boxes": torch.tensor(objects).reshape(-1, 4), "labels": torch.zeros(len(objects), dtype=torch.int64)}
    return "a", detections | {"scores": torch.tensor(scores)}, target | more


def test_an_iou_of_exactly_a_threshold_is_a_match_at_it():
    """60 of 100 pixels: a match at 0.50, 0.55 and 0.60, none at the seven thresholds above."""
    computed = evaluate([one_image([[0, 0, 10, 6]], [0.9], [[0, 0, 10, 10]])], masks=False)["metrics"]
    assert computed["box_ap"] == pytest.approx(0.3, abs=1e-6)
    assert (computed["box_ap50"], computed["box_ap75"]) == (1.0, 0.0)


def test_a_recall_of_exactly_one_tenth_reaches_that_threshold():
    """One of ten objects is detected: the precision is 1 at the recalls 0.00 to 0.10, which are 11 of 101."""
    objects = [[20.0 * n, 0, 20.0 * n + 10, 10] for n in range(10)]
    computed = evaluate([one_image(objects[:1], [0.9], objects)], masks=False)["metrics"]
    assert computed["box_ap"] == pytest.approx(11 / 101, abs=1e-6)
    assert computed["box_ar100"] == pytest.approx(0.1, abs=1e-6)


def test_box_widths_are_not_rounded_to_float32():
    """6.1 - 0.1 of float32 values is 5.9999999, which a results file keeps and float32 rounds to 6: IoU below 0.6."""
    image = one_image([[0.1, 0, 6.1, 10]], [0.9], [[0, 0, 10, 10]])
    assert (image[1]["boxes"][0, 2] - image[1]["boxes"][0, 0]).item() == 6.0
    assert evaluate([image], masks=False)["metrics"]["box_ap"] == pytest.approx(0.2, abs=1e-6)


def test_metrics_without_ground_truth_are_omitted():
    computed = evaluate([one_image([[0, 0, 10, 10]], [0.9], [[0, 0, 10, 10]])], masks=False)
    expected = {"ap", "ap50", "ap75", "ap_small", "ar1", "ar10", "ar100", "ar_small"}
    assert computed["metrics"] == {f"box_{name}": 1.0 for name in expected}
    assert computed["per_class"] == {LABELS[0]: computed["metrics"]}


def test_a_network_without_detections_has_metrics_of_zero():
    computed = evaluate([one_image([], [], [[0, 0, 10, 10]])], masks=False)["metrics"]
    assert set(computed.values()) == {0.0}
    assert "box_ap" in computed
    no_masks = {"masks": torch.zeros(0, *SIZE, dtype=torch.bool)}
    name, detections, target = one_image([], [], [[0, 0, 10, 10]], masks=torch.ones(1, *SIZE, dtype=torch.bool))
    assert evaluate([(name, detections | no_masks, target)])["metrics"]["mask_ap"] == 0.0


def test_a_dataset_without_objects_raises(subtests):
    for objects in [[], [[0, 0, 10, 10]]]:
        with subtests.test(objects=str(objects)):
            image = one_image([[0, 0, 10, 10]], [0.9], objects, iscrowd=torch.ones(len(objects), dtype=torch.int64))
            with pytest.raises(DataError, match="annotated object"):
                evaluate([image], masks=False)
            with pytest.raises(DataError, match="annotated object"):
                DetectionMetric(LABELS, masks=False).compute()


def test_the_result_does_not_depend_on_the_order_of_images():
    """Many scores are equal, and then the order of the names decides which detection is matched first."""
    images = random_dataset(4)
    assert evaluate(images[::-1]) == evaluate(images)
    renamed = [(f"{9 - index}", detections, target) for index, (_, detections, target) in enumerate(images)]
    assert evaluate(renamed)["metrics"] != evaluate(images)["metrics"]
