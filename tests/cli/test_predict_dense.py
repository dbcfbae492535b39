"""``van predict`` for detection and segmentation: all forms of output."""

import csv
import io
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pycocotools.coco import COCO

from datasets.synthetic import COLORS, make_image
from datasets.synthetic_annotated import HEADS, SIZE_PX
from van.model import Model
from van.predict import Predictor
from van.predictions import Detections, Segmentation

BOXES, MAPS = ("detect", "instances"), ("segment", "panoptic")


@pytest.fixture
def val_images(scenes) -> list[Path]:
    return sorted((scenes / "coco" / "val").iterdir())


@pytest.fixture
def wide(tmp_path) -> Path:
    """Return an image whose size and aspect ratio differ from the network's input."""
    make_image(COLORS["red"], seed=3, image_size=(150, 101)).save(tmp_path / "wide.png")
    return tmp_path / "wide.png"


def read_csv(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(text)))


def test_json_is_one_object_per_line_with_all_detections(subtests, van, dense_checkpoint, val_images):
    for task in HEADS:
        with subtests.test(task=task):
            ran = van("predict", dense_checkpoint(task), *val_images, "--json", "--device", "cpu")
            assert (ran.status, ran.err) == (0, "")
            predictor = Predictor(Model.load(dense_checkpoint(task)), device="cpu")
            expected = [predictor(path).to_dict() for path in val_images]
            assert [json.loads(line) for line in ran.out.splitlines()] == json.loads(json.dumps(expected))
            assert all(record["width"] == record["height"] == SIZE_PX for record in expected)
            assert sum(len(record.get("detections", record.get("segments", []))) for record in expected) > 3


def test_text_has_each_detection_with_score_and_corners(subtests, van, dense_checkpoint, wide):
    for task in BOXES:
        with subtests.test(task=task):
            ran = van("predict", dense_checkpoint(task), wide, "--top", "2", "--device", "cpu")
            best = Predictor(Model.load(dense_checkpoint(task)), device="cpu")(wide).detections[:2]
            corners = [",".join(str(round(side)) for side in detection.box[:2]) for detection in best]
            assert ran.out.startswith(f"{wide}: {best[0].label} {best[0].score:.1%} at {corners[0]}-")
            assert ran.out.count(" at ") == 2
            assert corners[1] in ran.out


def test_text_has_each_segment_with_its_fraction_the_largest_first(subtests, van, dense_checkpoint, wide):
    for task in MAPS:
        with subtests.test(task=task):
            ran = van("predict", dense_checkpoint(task), wide, "--device", "cpu")
            segments = Predictor(Model.load(dense_checkpoint(task)), device="cpu")(wide).to_dict()["segments"]
            segments.sort(key=lambda segment: -segment["area"])
            assert (
                ran.out
                == f"{wide}: "
                + ", ".join(f"{segment['label']} {segment['fraction']:.1%}" for segment in segments)
                + "\n"
            )
            first = van("predict", dense_checkpoint(task), wide, "--top", "1", "--device", "cpu").out
            assert first == f"{wide}: {segments[0]['label']} {segments[0]['fraction']:.1%}\n"


def test_csv_has_a_header_and_a_row_for_each_detection_or_segment(subtests, van, dense_checkpoint, wide):
    for task in HEADS:
        with subtests.test(task=task):
            ran = van("predict", dense_checkpoint(task), wide, "--csv", "--device", "cpu")
            rows = read_csv(ran.out)
            prediction = Predictor(Model.load(dense_checkpoint(task)), device="cpu")(wide)
            assert [row["rank"] for row in rows] == [str(rank) for rank in range(1, len(rows) + 1)]
            if isinstance(prediction, Detections):
                assert list(rows[0]) == ["image", "rank", "label", "score", "x1", "y1", "x2", "y2"]
                for row, detection in zip(rows, prediction.detections, strict=True):
                    assert (row["label"], float(row["score"])) == (
                        detection.label,
                        pytest.approx(detection.score, abs=1e-6),
                    )
                    sides = [float(row[name]) for name in ("x1", "y1", "x2", "y2")]
                    assert sides == pytest.approx(detection.box, abs=0.006)
            else:
                assert list(rows[0]) == ["image", "rank", "label", "score", "area", "fraction"]
                segments = {(one["label"], one["area"]) for one in prediction.to_dict()["segments"]}
                assert {(row["label"], int(row["area"])) for row in rows} == segments
                assert sum(float(row["fraction"]) for row in rows) <= 1 + 1e-5
            assert len(rows) == len(
                prediction.detections if isinstance(prediction, Detections) else prediction.segments
            )


def test_an_image_without_detections_is_printed_too(van, dense_checkpoint, wide):
    assert van("predict", dense_checkpoint("detect"), wide, "--min-score", "1").out == f"{wide}: no detections\n"
    (record,) = map(
        json.loads, van("predict", dense_checkpoint("detect"), wide, "--min-score", "1", "--json").out.splitlines()
    )
    assert record["detections"] == []
    assert read_csv(van("predict", dense_checkpoint("detect"), wide, "--min-score", "1", "--csv").out) == []


def test_min_score_filters_detections(subtests, van, dense_checkpoint, wide):
    for task in BOXES:
        with subtests.test(task=task):

            def scores(*flags: str) -> list[float]:
                return [
                    detection["score"]
                    for detection in json.loads(van("predict", dense_checkpoint(task), wide, "--json", *flags).out)[
                        "detections"
                    ]
                ]

            all_scores = scores("--min-score", "0")
            assert all_scores == sorted(all_scores, reverse=True)
            assert scores() == [score for score in all_scores if score >= 0.3]
            middle = (all_scores[4] + all_scores[5]) / 2
            assert scores("--min-score", repr(middle)) == [score for score in all_scores if score >= middle]
            assert scores("--min-score", "0", "--top", "3") == all_scores[:3]
            assert 0 < len(scores("--min-score", repr(middle))) < len(all_scores)


@pytest.mark.parametrize("task", HEADS)
def test_drawings_keep_the_aspect_ratio_of_the_image(van, dense_checkpoint, wide, tmp_path, task):
    ran = van("predict", dense_checkpoint(task), wide, "--draw", tmp_path / "drawn", "--device", "cpu")
    assert ran.status == 0
    (path,) = (tmp_path / "drawn").iterdir()
    assert path.name == f"{tmp_path.name}-wide.png"
    with Image.open(path) as sheet:
        assert sheet.format == "PNG"
        drawing = np.asarray(sheet.convert("RGB"))
    scale = drawing.shape[1] / 150
    assert scale >= 1
    if task in BOXES:
        assert drawing.shape[:2] == (round(101 * scale), round(150 * scale))
    else:  # a legend is below the image
        assert drawing.shape[0] > 101 * scale
    assert len(np.unique(drawing.reshape(-1, 3), axis=0)) > 50
    prediction = Predictor(Model.load(dense_checkpoint(task)), device="cpu")(wide)
    with Image.open(wide) as file:
        np.testing.assert_array_equal(drawing, prediction.draw(file))


@pytest.mark.parametrize("task", MAPS)
def test_masks_agree_with_the_segments_in_json(van, dense_checkpoint, val_images, wide, tmp_path, task):
    ran = van(
        "predict", dense_checkpoint(task), *val_images, wide, "--masks", tmp_path / "masks", "--json", "--device", "cpu"
    )
    assert ran.status == 0
    records = [json.loads(line) for line in ran.out.splitlines()]
    names = [f"{Path(one['image']).parent.name}-{Path(one['image']).stem}.png" for one in records]
    assert sorted(path.name for path in (tmp_path / "masks").iterdir()) == sorted(names)
    for record, name in zip(records, names, strict=True):
        with Image.open(tmp_path / "masks" / name) as file:
            assert file.mode == ("RGB" if task == "panoptic" else "P")
            values = np.asarray(file).astype(int)
        assert values.shape[:2] == (record["height"], record["width"])
        ids = values @ [1, 256, 65_536] if task == "panoptic" else values
        counts = dict(zip(*np.unique(ids, return_counts=True), strict=True))
        assert counts.pop(0 if task == "panoptic" else 255, 0) == ids.size - sum(
            one["area"] for one in record["segments"]
        )
        assert counts == {one["id"]: one["area"] for one in record["segments"]}
        if task == "segment":
            prediction = Predictor(Model.load(dense_checkpoint(task)), device="cpu")(record["image"])
            np.testing.assert_array_equal(ids, prediction.segment_ids)


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # from pycocotools
@pytest.mark.parametrize("task", BOXES)
def test_pycocotools_reads_the_results_file(van, dense_checkpoint, scenes, val_images, tmp_path, capsys, task):
    file, annotations = tmp_path / "detections" / "results.json", scenes / "coco" / "annotations" / "instances_val.json"
    ran = van(
        "predict", dense_checkpoint(task), *val_images, "--coco", file, "--annotations", annotations, "--device", "cpu"
    )
    assert ran.status == 0
    ground_truth = COCO(str(annotations))
    paths = {
        ground_truth.imgs[image_id]["id"]: scenes / "coco" / "val" / ground_truth.imgs[image_id]["file_name"]
        for image_id in ground_truth.imgs
    }
    results = ground_truth.loadRes(str(file))
    capsys.readouterr()
    predictor = Predictor(Model.load(dense_checkpoint(task)), device="cpu")
    for image_id, path in paths.items():
        detections = predictor(path).detections
        read = results.loadAnns(results.getAnnIds(imgIds=[image_id]))
        assert len(read) == len(detections)
        for one, detection in zip(read, detections, strict=True):
            assert one["score"] == detection.score
            assert ground_truth.loadCats(one["category_id"])[0]["name"] == detection.label
            x, y, width, height = one["bbox"]
            assert [x, y, x + width, y + height] == pytest.approx(detection.box)
            if detection.mask is not None:
                np.testing.assert_array_equal(results.annToMask(one), detection.mask)


def test_without_annotations_image_ids_count_from_1_and_file_names_are_written(
    van, dense_checkpoint, val_images, tmp_path
):
    assert (
        van("predict", dense_checkpoint("detect"), *val_images, "--coco", tmp_path / "c.json", "--device", "cpu").status
        == 0
    )
    records = json.loads((tmp_path / "c.json").read_text())
    places = {path.name: place for place, path in enumerate(val_images, start=1)}
    assert {one["file_name"] for one in records} <= set(places)
    assert all(one["image_id"] == places[one["file_name"]] for one in records)


def test_annotations_without_the_image_or_in_another_format_are_rejected(
    van, dense_checkpoint, scenes, val_images, tmp_path
):
    annotations = scenes / "coco" / "annotations" / "instances_train.json"
    other = shutil.copy(val_images[0], tmp_path / "other.png")
    for file, facts in ((annotations, ("--annotations", "other.png", "1")), (other, ("--annotations", str(other)))):
        ran = van("predict", dense_checkpoint("detect"), other, "--coco", tmp_path / "c.json", "--annotations", file)
        assert ran.status == 2
        assert all(fact in ran.err for fact in facts)
    ran = van("predict", dense_checkpoint("detect"), other, "--annotations", annotations)
    assert (ran.status, "--annotations" in ran.err and "--coco" in ran.err) == (2, True)
    assert not (tmp_path / "c.json").exists()


def test_unreadable_images_are_named_and_the_others_predicted(subtests, van, dense_checkpoint, val_images, tmp_path):
    for style in ["text", "--json", "--csv"]:
        for task in HEADS:
            with subtests.test(style=style, task=task):
                (tmp_path / "text.png").write_text("no image")
                (tmp_path / "cut.png").write_bytes(val_images[0].read_bytes()[:300])
                images = [
                    tmp_path / "text.png",
                    val_images[0],
                    tmp_path / "missing.png",
                    val_images[1],
                    tmp_path / "cut.png",
                ]
                flags = [] if style == "text" else [style]
                ran = van("predict", dense_checkpoint(task), *images, *flags, "--batch-size", "3", "--device", "cpu")
                assert ran.status == 1
                assert [line.split(": ")[1] for line in ran.err.splitlines()[:3]] == [
                    str(images[place]) for place in (0, 2, 4)
                ]
                assert ran.err.endswith("3 of 5 images could not be read\n")
                if style == "--json":
                    records = [json.loads(line) for line in ran.out.splitlines()]
                    assert [record["image"] for record in records] == [str(path) for path in images]
                    assert ["error" in record for record in records] == [True, False, True, False, True]
                else:
                    names = (
                        {row["image"] for row in read_csv(ran.out)}
                        if flags
                        else {line.split(": ")[0] for line in ran.out.splitlines()}
                    )
                    assert names == {str(val_images[0]), str(val_images[1])}


@pytest.mark.parametrize(("rows", "columns"), [(300, 200), pytest.param(1000, 1500, marks=pytest.mark.slow)])
def test_a_large_image_is_segmented_in_tiles_and_at_several_scales(van, dense_checkpoint, tmp_path, rows, columns):
    make_image(COLORS["blue"], seed=1, image_size=(columns, rows)).save(tmp_path / "large.png")
    flags: list[Any] = ["--masks", tmp_path / "masks", "--json", "--device", "cpu"]
    for options in ([], ["--tile-size", "256"], ["--multi-scale"]):
        ran = van("predict", dense_checkpoint("segment"), tmp_path / "large.png", *options, *flags)
        assert (ran.status, ran.err) == (0, "")
        record = json.loads(ran.out)
        assert (record["height"], record["width"]) == (rows, columns)
        assert sum(segment["area"] for segment in record["segments"]) == rows * columns
        with Image.open(tmp_path / "masks" / f"{tmp_path.name}-large.png") as file:
            assert file.size == (columns, rows)


def test_outputs_that_a_network_cannot_give_are_rejected_before_inference(
    subtests, van, dense_checkpoint, checkpoint, wide, tmp_path, monkeypatch
):
    for task, flags, facts in [
        ("classify", ["--masks", "m"], ("--masks", "classify")),
        ("detect", ["--masks", "m"], ("--masks", "detect")),
        ("segment", ["--coco", "c.json"], ("--coco", "segment")),
        ("panoptic", ["--coco", "c.json"], ("--coco", "panoptic")),
        ("classify", ["--coco", "c.json"], ("--coco", "classify")),
        ("classify", ["--min-score", "0.5"], ("--min-score", "classify")),
        ("segment", ["--min-score", "0.5"], ("--min-score", "segment")),
        ("classify", ["--tile-size", "256"], ("--tile-size", "--multi-scale")),
        ("detect", ["--multi-scale"], ("--tile-size", "--multi-scale")),
        ("panoptic", ["--tile-size", "256"], ("--tile-size", "panoptic")),
        ("segment", ["--tile-size", "256", "--multi-scale"], ("--tile-size", "--multi-scale")),
        ("segment", ["--tile-size", "-1"], ("--tile-size", "-1")),
    ]:
        with subtests.test(task=task, flags=flags, facts=facts):
            monkeypatch.chdir(tmp_path)
            ran = van("predict", checkpoint if task == "classify" else dense_checkpoint(task), wide, *flags)
            assert (ran.status, ran.out) == (2, "")
            assert all(fact in ran.err for fact in facts)
            assert [path.name for path in tmp_path.iterdir()] == ["wide.png"]


def test_files_that_cannot_be_written_are_named(van, dense_checkpoint, wide, tmp_path):
    (tmp_path / "file").write_text("mine")
    for flag, name in (("--draw", "file/below"), ("--masks", "file/below"), ("--coco", "file/below.json")):
        task = "detect" if flag == "--coco" else "segment"
        ran = van("predict", dense_checkpoint(task), wide, flag, tmp_path / name)
        assert ran.status == 1
        assert str(tmp_path / "file") in ran.err
    assert (tmp_path / "file").read_text() == "mine"


def test_the_type_of_a_prediction_follows_from_the_task(dense_checkpoint, wide):
    types = {task: type(Predictor(Model.load(dense_checkpoint(task)), device="cpu")(wide)) for task in HEADS}
    assert types == dict.fromkeys(BOXES, Detections) | dict.fromkeys(MAPS, Segmentation)
