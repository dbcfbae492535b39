"""COCO's figures against pycocotools, COCO's own code, and against answers worked out by hand."""

import contextlib
import io
import json
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools import mask as run_lengths
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from torch import Tensor

from van.errors import DataError
from van.tasks.base import Frame
from van.tasks.coco_metrics import CocoMeter
from van.tasks.detect import Detect

LABELS = ("both", "both, too", "and this", "only found", "only there")
CATEGORY_IDS = (3, 7, 11, 12, 90)
SIZE = (140, 160)
NAMES = (
    "ap", "ap50", "ap75", "ap_small", "ap_medium", "ap_large", "ar1", "ar10", "ar100",
    "ar_small", "ar_medium", "ar_large",
)  # fmt: skip
"""In the order of pycocotools' stats."""
# pycocotools 2.0.11 sets the shape of an array, which NumPy 2.5 is to forbid
own_warning = pytest.mark.filterwarnings("ignore:Setting the shape on a NumPy array:DeprecationWarning")

Picture = tuple[str, dict[str, Tensor], dict[str, Tensor]]


def shaped(box: np.ndarray, round_one: bool) -> np.ndarray:
    """The mask of a box or of the ellipse in it, (rows, columns) bool; at least a pixel."""
    y, x = np.mgrid[: SIZE[0], : SIZE[1]] + 0.5
    x1, y1, x2, y2 = box
    if round_one:
        mask = ((2 * x - x1 - x2) / (x2 - x1)) ** 2 + ((2 * y - y1 - y2) / (y2 - y1)) ** 2 <= 1
    else:
        mask = (x > x1) & (x < x2) & (y > y1) & (y < y2)
    mask[min(int(y1), SIZE[0] - 1), min(int(x1), SIZE[1] - 1)] = True
    return mask


def random_box(random: np.random.Generator) -> np.ndarray:
    """Small, medium or large; whole pixels half of the time, so that IoUs meet thresholds exactly."""
    width, height = random.choice([8, 20, 50, 120]) * random.uniform(0.6, 1.15, 2)
    x, y = random.uniform(0, SIZE[1] - width), random.uniform(0, SIZE[0] - height)
    box = np.array([x, y, x + width, y + height])
    return np.rint(box) if random.random() < 0.5 else box


def packed(boxes: list[np.ndarray], labels: list[int]) -> dict[str, Tensor]:
    masks = [shaped(box, label % 2 == 1) for box, label in zip(boxes, labels, strict=True)]
    return {
        "boxes": torch.tensor(np.array(boxes).reshape(-1, 4), dtype=torch.float32),
        "labels": torch.tensor(labels, dtype=torch.int64),
        "masks": torch.from_numpy(np.array(masks, bool).reshape(-1, *SIZE)),
    }


def random_picture(name: str, random: np.random.Generator, *, things: int, many: int) -> Picture:
    """A picture with its answers, which are shifted things, doubled things and inventions, and with its target."""
    boxes = [random_box(random) for _ in range(things)]
    labels = random.choice([0, 1, 2, 4], things).tolist()
    target = packed(boxes, labels)
    target["iscrowd"] = torch.from_numpy((random.random(things) < 0.2).astype(np.int64))
    annotated = torch.from_numpy(random.choice([300, 4000, 12_000], things)).float()
    drawn = target["masks"].flatten(1).sum(1).float() if things else torch.zeros(0)
    target["area"] = torch.where(torch.from_numpy(random.random(things) < 0.3), annotated, drawn)
    found: list[tuple[np.ndarray, int]] = []
    for box, label in zip(boxes, labels, strict=True):
        for _ in range(int(random.integers(0, 3)) if label != 4 else 0):
            moved = np.clip(box + random.integers(-2, 3, 4), 0, [SIZE[1], SIZE[0]] * 2)
            right = moved[2:] - moved[:2] >= 2
            found.append((moved if right.all() else box, label))
    found += [(random_box(random), int(random.integers(4))) for _ in range(many)]
    answer = packed([box for box, _ in found], [label for _, label in found])
    scores = random.random(len(found)) * np.where(np.arange(len(found)) < len(found) - many, 1, 0.7)
    answer["scores"] = torch.from_numpy(np.rint(10 * scores) / 10).float()  # many are equal
    return name, answer, target


def random_set(seed: int) -> list[Picture]:
    """Among seven pictures one with more than 100 answers of a class, one without any, and one without things."""
    random = np.random.default_rng(seed)
    pictures = [
        random_picture(f"{n:03}", random, things=int(random.integers(1, 9)), many=int(random.integers(4)))
        for n in range(4)
    ]
    pictures.append(random_picture("004", random, things=0, many=3))
    name, _, target = random_picture("005", random, things=4, many=0)
    nothing = packed([], []) | {"scores": torch.zeros(0)}
    pictures.append((name, nothing, target))
    name, answer, target = random_picture("006", random, things=3, many=115)
    answer["labels"][-105:] = 0
    return [*pictures, (name, answer, target)]


def run_length(mask: Tensor) -> dict[str, Any]:
    coded = run_lengths.encode(np.asfortranarray(mask.numpy().astype(np.uint8)))
    return {"size": list(coded["size"]), "counts": coded["counts"].decode()}


def sides(box: Tensor) -> list[float]:
    x1, y1, x2, y2 = box.tolist()
    return [x1, y1, x2 - x1, y2 - y1]


def annotation_file(pictures: list[Picture]) -> COCO:
    """The targets as COCO has them."""
    rows, columns = SIZE
    annotations: list[dict[str, Any]] = []
    for number, (_, _, target) in enumerate(pictures):
        for place, label in enumerate(target["labels"].tolist()):
            annotation = {"id": len(annotations) + 1, "image_id": number, "category_id": CATEGORY_IDS[label]}
            annotation |= {name: target[name][place].item() for name in ("iscrowd", "area")}
            annotation |= {"bbox": sides(target["boxes"][place]), "segmentation": run_length(target["masks"][place])}
            annotations.append(annotation)
    truth = COCO()
    images = [{"id": number, "height": rows, "width": columns} for number in range(len(pictures))]
    categories = [{"id": number, "name": label} for number, label in zip(CATEGORY_IDS, LABELS, strict=True)]
    truth.dataset = {"info": {}, "images": images, "annotations": annotations, "categories": categories}
    with contextlib.redirect_stdout(io.StringIO()):
        truth.createIndex()
    return truth


def results(pictures: list[Picture]) -> list[dict[str, Any]]:
    """The answers as entries of a results file, in the order given."""
    return [
        {
            "image_id": number,
            "category_id": CATEGORY_IDS[int(answer["labels"][place])],
            "bbox": sides(answer["boxes"][place]),
            "score": answer["scores"][place].item(),
            "segmentation": run_length(answer["masks"][place]),
        }
        for number, (_, answer, _) in enumerate(pictures)
        for place in range(len(answer["labels"]))
    ]


def by_pycocotools(truth: COCO, file: Any, kind: str) -> tuple[dict[str, float], dict[str, dict[str, float]]]:
    """All figures that exist, and those of each class; ``kind`` is box or mask."""
    if kind == "mask" and not isinstance(file, str):  # else answers would be as large as their boxes
        file = [{key: value for key, value in entry.items() if key != "bbox"} for entry in file]
    with contextlib.redirect_stdout(io.StringIO()):
        asked = COCOeval(truth, truth.loadRes(file), {"box": "bbox", "mask": "segm"}[kind])
        asked.evaluate()
        asked.accumulate()
        everything = dict(asked.eval)
        asked.summarize()
        whole = asked.stats
        per_class = {}
        for place, label in enumerate(LABELS):
            asked.eval = everything | {
                "precision": everything["precision"][:, :, [place]],
                "recall": everything["recall"][:, [place]],
            }
            asked.summarize()
            per_class[label] = existing(asked.stats, kind)
    return existing(whole, kind), {label: figures for label, figures in per_class.items() if figures}


def existing(stats: np.ndarray, kind: str) -> dict[str, float]:
    return {f"{kind}_{name}": float(value) for name, value in zip(NAMES, stats, strict=True) if value > -1}


def measured(pictures: list[Picture], *, masks: bool = True) -> dict[str, Any]:
    meter = CocoMeter(LABELS, masks=masks)
    for picture in pictures:
        meter.add(*picture)
    return meter.compute()


def assert_equals_pycocotools(found: dict[str, Any], truth: COCO, file: Any, kinds: tuple[str, ...]) -> None:
    official = [by_pycocotools(truth, file, kind) for kind in kinds]
    figures = {name: value for whole, _ in official for name, value in whole.items()}
    assert found["metrics"] == pytest.approx(figures, abs=1e-6)
    assert list(found["per_class"]) == list(official[0][1])
    for label, values in found["per_class"].items():
        wanted = {name: value for _, per_class in official for name, value in per_class[label].items()}
        assert values == pytest.approx(wanted, abs=1e-6), label


@own_warning
@settings(deadline=None, max_examples=12)
@given(seed=st.integers(0, 2**32 - 1))
def test_all_figures_of_boxes_and_masks_and_of_each_class_are_those_of_pycocotools(seed):
    pictures = random_set(seed)
    found = measured(pictures)
    assert "only found" not in found["per_class"]
    assert_equals_pycocotools(found, annotation_file(pictures), results(pictures), ("box", "mask"))
    assert_equals_pycocotools(measured(pictures, masks=False), annotation_file(pictures), results(pictures), ("box",))


@own_warning
def test_the_random_sets_hold_every_case_and_the_comparison_would_notice_a_small_mistake():
    pictures = random_set(1)
    truth, file = annotation_file(pictures), results(pictures)
    found = measured(pictures)
    assert set(found["metrics"]) == {f"{kind}_{name}" for kind in ("box", "mask") for name in NAMES}
    assert 0.05 < found["metrics"]["box_ap"] < 0.95
    assert any(int((answer["labels"] == label).sum()) > 100 for _, answer, _ in pictures for label in range(4))
    assert sum(int(target["iscrowd"].sum()) for _, _, target in pictures) > 1
    worse = [{**entry, "score": 1 - entry["score"]} for entry in file]
    for other in (worse, file[3:]):
        with pytest.raises(AssertionError):
            assert_equals_pycocotools(found, truth, other, ("box", "mask"))
    uncrowded = [(name, answer, target | {"iscrowd": 0 * target["iscrowd"]}) for name, answer, target in pictures]
    assert measured(uncrowded)["metrics"] != found["metrics"]


@own_warning
@pytest.mark.parametrize("seed", [2, 3])
def test_a_results_file_scores_in_pycocotools_what_the_meter_said(tmp_path, seed):
    """Through the whole way: the network's pixels, decoding, the file, and COCO's own reader."""
    pictures = random_set(seed)
    task = Detect(LABELS, masks=True, category_ids=CATEGORY_IDS, min_score=0.0)
    meter = task.meter()
    entries = []
    for number, (name, answer, target) in enumerate(pictures):
        seen = (3 * SIZE[0] // 4, 3 * SIZE[1] // 4)
        outputs = [answer | {"boxes": answer["boxes"] * 0.75, "masks": answer["masks"][:, None].float()}]
        frame = Frame(name, SIZE, seen)
        outputs[0]["masks"] = (
            torch.nn.functional.interpolate(outputs[0]["masks"], seen)
            if len(answer["masks"])
            else (torch.zeros(0, 1, *seen))
        )
        batch = task.collate([{"picture": torch.zeros(3, *seen), "target": target, "size": SIZE, "name": name}])
        meter.update(outputs, batch)
        entries += task.decode(outputs, [frame])[0].to_coco(number)
    boxes, masks = tmp_path / "boxes.json", tmp_path / "masks.json"
    boxes.write_text(json.dumps(entries))
    masks.write_text(json.dumps([{key: entry[key] for key in entry if key != "bbox"} for entry in entries]))
    truth, found = annotation_file(pictures), meter.compute()["metrics"]
    figures = by_pycocotools(truth, str(boxes), "box")[0] | by_pycocotools(truth, str(masks), "mask")[0]
    assert found == pytest.approx(figures, abs=1e-6)
    assert found["mask_ap"] > 0.05


@own_warning
@pytest.mark.parametrize("seed", [1, 5])
def test_precision_over_recall_is_that_of_pycocotools(seed):
    pictures = random_set(seed)
    found = measured(pictures)
    curves, truth, file = found["precision_recall"], annotation_file(pictures), results(pictures)
    assert list(curves) == ["recall", "box", "mask"]
    for kind in ("box", "mask"):
        official = precision_by_pycocotools(truth, file, kind)
        assert set(curves[kind]["per_class"]) == {label for label, values in official.items() if values.min() > -1}
        assert "only found" not in curves[kind]["per_class"]
        mean = np.mean([official[label] for label in curves[kind]["per_class"]], axis=0)
        for mine, theirs in [(curves[kind]["all"], mean)] + [
            (curve, official[label]) for label, curve in curves[kind]["per_class"].items()
        ]:
            for name, wanted in (("0.50", theirs[0]), ("0.75", theirs[5]), ("0.50:0.95", theirs.mean(axis=0))):
                assert mine[name] == pytest.approx(wanted, abs=1e-6)
        assert curves[kind]["all"]["0.50"] != pytest.approx(mean[5], abs=1e-3)  # the control: IoU 0.75
        for name, threshold in (("ap50", "0.50"), ("ap75", "0.75"), ("ap", "0.50:0.95")):
            assert np.mean(curves[kind]["all"][threshold]) == pytest.approx(
                found["metrics"][f"{kind}_{name}"], abs=1e-6
            )
    assert curves["recall"] == pytest.approx([n / 100 for n in range(101)], abs=1e-12)
    assert json.loads(json.dumps(curves, allow_nan=False)) == curves


def precision_by_pycocotools(truth: COCO, file: Any, kind: str) -> dict[str, np.ndarray]:
    """(10 IoU thresholds, 101 recalls) of each class, things of all sizes, 100 answers; -1 where there is nothing."""
    if kind == "mask":
        file = [{key: value for key, value in entry.items() if key != "bbox"} for entry in file]
    with contextlib.redirect_stdout(io.StringIO()):
        asked = COCOeval(truth, truth.loadRes(file), {"box": "bbox", "mask": "segm"}[kind])
        asked.evaluate()
        asked.accumulate()
    return {label: asked.eval["precision"][:, :, place, 0, 2] for place, label in enumerate(LABELS)}


def test_precision_over_recall_worked_out_by_hand():
    """Of two things one is found, after a false answer: half of what was answered is right, up to a recall of 0.5."""
    boxes = [[50.0, 50, 60, 60], [0, 0, 10, 10]]
    things = [[0.0, 0, 10, 10], [100, 100, 110, 110]]
    found = measured([one_picture(boxes, [0.9, 0.8], things)], masks=False)["precision_recall"]
    assert list(found) == ["recall", "box"]
    assert found["box"]["per_class"] == {LABELS[0]: found["box"]["all"]}
    for curve in found["box"]["all"].values():
        assert curve == pytest.approx([0.5] * 51 + [0.0] * 50, abs=1e-9)


def one_picture(boxes: list[list[float]], scores: list[float], things: list[list[float]], **more: Any) -> Picture:
    found = {"boxes": torch.tensor(boxes).reshape(-1, 4), "labels": torch.zeros(len(boxes), dtype=torch.int64)}
    target = {"boxes": torch.tensor(things).reshape(-1, 4), "labels": torch.zeros(len(things), dtype=torch.int64)}
    return "a", found | {"scores": torch.tensor(scores)}, target | more


def test_an_iou_of_exactly_a_threshold_is_a_match_at_it():
    """60 of 100 pixels: right at 0.50, 0.55 and 0.60, wrong at the seven thresholds above."""
    found = measured([one_picture([[0, 0, 10, 6]], [0.9], [[0, 0, 10, 10]])], masks=False)["metrics"]
    assert found["box_ap"] == pytest.approx(0.3, abs=1e-6)
    assert (found["box_ap50"], found["box_ap75"]) == (1.0, 0.0)


def test_a_recall_of_exactly_a_tenth_counts_as_a_tenth():
    """One of ten things is found: precision is 1 at the recalls 0.00 to 0.10, which are 11 of the 101."""
    things = [[20.0 * n, 0, 20.0 * n + 10, 10] for n in range(10)]
    found = measured([one_picture(things[:1], [0.9], things)], masks=False)["metrics"]
    assert found["box_ap"] == pytest.approx(11 / 101, abs=1e-6)
    assert found["box_ar100"] == pytest.approx(0.1, abs=1e-6)


def test_a_width_is_not_rounded_on_its_way_to_the_metric():
    """6.1 - 0.1 in float32 numbers is 5.9999999, which a results file keeps and float32 would make 6: IoU below 0.6."""
    picture = one_picture([[0.1, 0, 6.1, 10]], [0.9], [[0, 0, 10, 10]])
    assert (picture[1]["boxes"][0, 2] - picture[1]["boxes"][0, 0]).item() == 6.0
    assert measured([picture], masks=False)["metrics"]["box_ap"] == pytest.approx(0.2, abs=1e-6)


def test_figures_that_do_not_exist_are_left_out():
    found = measured([one_picture([[0, 0, 10, 10]], [0.9], [[0, 0, 10, 10]])], masks=False)
    there = {"ap", "ap50", "ap75", "ap_small", "ar1", "ar10", "ar100", "ar_small"}
    assert found["metrics"] == {f"box_{name}": 1.0 for name in there}
    assert found["per_class"] == {LABELS[0]: found["metrics"]}


def test_a_network_that_finds_nothing_at_all_scores_nothing():
    found = measured([one_picture([], [], [[0, 0, 10, 10]])], masks=False)["metrics"]
    assert set(found.values()) == {0.0}
    assert "box_ap" in found
    nothing = {"masks": torch.zeros(0, *SIZE, dtype=torch.bool)}
    name, answer, target = one_picture([], [], [[0, 0, 10, 10]], masks=torch.ones(1, *SIZE, dtype=torch.bool))
    assert measured([(name, answer | nothing, target)])["metrics"]["mask_ap"] == 0.0


@pytest.mark.parametrize("things", [[], [[0, 0, 10, 10]]], ids=["nothing", "a crowd"])
def test_a_set_without_things_to_find_is_refused(things):
    picture = one_picture([[0, 0, 10, 10]], [0.9], things, iscrowd=torch.ones(len(things), dtype=torch.int64))
    with pytest.raises(DataError, match="nothing to measure"):
        measured([picture], masks=False)
    with pytest.raises(DataError, match="nothing to measure"):
        CocoMeter(LABELS, masks=False).compute()


def test_the_order_in_which_pictures_are_counted_does_not_matter():
    """Scores are equal in many pictures, and then their order decides which answer takes which thing first."""
    pictures = random_set(4)
    assert measured(pictures[::-1]) == measured(pictures)
    renamed = [(f"{9 - place}", answer, target) for place, (_, answer, target) in enumerate(pictures)]
    assert measured(renamed)["metrics"] != measured(pictures)["metrics"]
