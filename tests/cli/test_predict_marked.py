"""``van predict`` with networks that see whole pictures: what they answer, printed, drawn and written in every form."""

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

from data.made import COLOURS, picture
from data.made_marked import HEADS, SIZE_PX
from van import Predictor
from van.results import Boxes, Masks

BOXES, MAPS = ("detect", "instances"), ("segment", "panoptic")


@pytest.fixture
def held_out(scenes) -> list[Path]:
    return sorted((scenes / "coco" / "val").iterdir())


@pytest.fixture
def wide(tmp_path) -> Path:
    """A picture of another size and aspect than the network sees."""
    picture(COLOURS["red"], seed=3, size_px=(150, 101)).save(tmp_path / "wide.png")
    return tmp_path / "wide.png"


def rows_of(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(text)))


@pytest.mark.parametrize("task", HEADS)
def test_json_is_one_object_a_line_with_all_that_was_found(van, marked, held_out, task):
    ran = van("predict", marked(task), *held_out, "--json", "--device", "cpu")
    assert (ran.status, ran.err) == (0, "")
    predictor = Predictor.load(marked(task), device="cpu")
    wanted = [predictor(path).to_dict() for path in held_out]
    assert [json.loads(line) for line in ran.out.splitlines()] == json.loads(json.dumps(wanted))
    assert all(record["width"] == record["height"] == SIZE_PX for record in wanted)
    assert sum(len(record.get("things", record.get("regions", []))) for record in wanted) > 3


@pytest.mark.parametrize("task", BOXES)
def test_text_names_each_thing_with_its_score_and_its_corners(van, marked, wide, task):
    ran = van("predict", marked(task), wide, "--top", "2", "--device", "cpu")
    best = Predictor.load(marked(task), device="cpu")(wide).found[:2]
    corners = [",".join(str(round(side)) for side in thing.box[:2]) for thing in best]
    assert ran.out.startswith(f"{wide}: {best[0].label} {best[0].score:.1%} at {corners[0]}-")
    assert ran.out.count(" at ") == 2
    assert corners[1] in ran.out


@pytest.mark.parametrize("task", MAPS)
def test_text_names_each_region_with_its_share_the_largest_first(van, marked, wide, task):
    ran = van("predict", marked(task), wide, "--device", "cpu")
    regions = Predictor.load(marked(task), device="cpu")(wide).to_dict()["regions"]
    regions.sort(key=lambda region: -region["pixels"])
    assert ran.out == f"{wide}: " + ", ".join(f"{one['label']} {one['share']:.1%}" for one in regions) + "\n"
    first = van("predict", marked(task), wide, "--top", "1", "--device", "cpu").out
    assert first == f"{wide}: {regions[0]['label']} {regions[0]['share']:.1%}\n"


@pytest.mark.parametrize("task", HEADS)
def test_csv_has_a_header_and_a_row_for_each_thing_or_region(van, marked, wide, task):
    ran = van("predict", marked(task), wide, "--csv", "--device", "cpu")
    rows = rows_of(ran.out)
    answer = Predictor.load(marked(task), device="cpu")(wide)
    assert [row["rank"] for row in rows] == [str(rank) for rank in range(1, len(rows) + 1)]
    if isinstance(answer, Boxes):
        assert list(rows[0]) == ["picture", "rank", "label", "score", "x1", "y1", "x2", "y2"]
        for row, thing in zip(rows, answer.found, strict=True):
            assert (row["label"], float(row["score"])) == (thing.label, pytest.approx(thing.score, abs=1e-6))
            sides = [float(row[name]) for name in ("x1", "y1", "x2", "y2")]
            assert sides == pytest.approx(thing.box, abs=0.006)
    else:
        assert list(rows[0]) == ["picture", "rank", "label", "score", "pixels", "share"]
        regions = {(one["label"], one["pixels"]) for one in answer.to_dict()["regions"]}
        assert {(row["label"], int(row["pixels"])) for row in rows} == regions
        assert sum(float(row["share"]) for row in rows) <= 1 + 1e-5
    assert len(rows) == len(answer.found if isinstance(answer, Boxes) else answer.regions)


def test_a_picture_in_which_nothing_is_found_has_a_line_all_the_same(van, marked, wide):
    assert van("predict", marked("detect"), wide, "--min-score", "1").out == f"{wide}: nothing found\n"
    (record,) = map(json.loads, van("predict", marked("detect"), wide, "--min-score", "1", "--json").out.splitlines())
    assert record["things"] == []
    assert rows_of(van("predict", marked("detect"), wide, "--min-score", "1", "--csv").out) == []


@pytest.mark.parametrize("task", BOXES)
def test_a_least_score_leaves_out_what_scores_less(van, marked, wide, task):
    def scores(*flags: str) -> list[float]:
        return [
            thing["score"] for thing in json.loads(van("predict", marked(task), wide, "--json", *flags).out)["things"]
        ]

    every = scores("--min-score", "0")
    assert every == sorted(every, reverse=True)
    assert scores() == [score for score in every if score >= 0.3]
    middle = (every[4] + every[5]) / 2
    assert scores("--min-score", repr(middle)) == [score for score in every if score >= middle]
    assert scores("--min-score", "0", "--top", "3") == every[:3]
    assert 0 < len(scores("--min-score", repr(middle))) < len(every)


@pytest.mark.parametrize("task", HEADS)
def test_drawings_keep_the_picture_s_aspect(van, marked, wide, tmp_path, task):
    ran = van("predict", marked(task), wide, "--draw", tmp_path / "drawn", "--device", "cpu")
    assert ran.status == 0
    (path,) = (tmp_path / "drawn").iterdir()
    assert path.name == f"{tmp_path.name}-wide.png"
    with Image.open(path) as sheet:
        assert sheet.format == "PNG"
        drawn = np.asarray(sheet.convert("RGB"))
    scale = drawn.shape[1] / 150
    assert scale >= 1
    if task in BOXES:
        assert drawn.shape[:2] == (round(101 * scale), round(150 * scale))
    else:  # a legend stands below
        assert drawn.shape[0] > 101 * scale
    assert len(np.unique(drawn.reshape(-1, 3), axis=0)) > 50
    answer = Predictor.load(marked(task), device="cpu")(wide)
    with Image.open(wide) as file:
        np.testing.assert_array_equal(drawn, answer.draw(file))


@pytest.mark.parametrize("task", MAPS)
def test_masks_are_the_map_that_json_tells_of(van, marked, held_out, wide, tmp_path, task):
    ran = van("predict", marked(task), *held_out, wide, "--masks", tmp_path / "masks", "--json", "--device", "cpu")
    assert ran.status == 0
    records = [json.loads(line) for line in ran.out.splitlines()]
    names = [f"{Path(one['picture']).parent.name}-{Path(one['picture']).stem}.png" for one in records]
    assert sorted(path.name for path in (tmp_path / "masks").iterdir()) == sorted(names)
    for record, name in zip(records, names, strict=True):
        with Image.open(tmp_path / "masks" / name) as file:
            assert file.mode == ("RGB" if task == "panoptic" else "P")
            values = np.asarray(file).astype(int)
        assert values.shape[:2] == (record["height"], record["width"])
        ids = values @ [1, 256, 65_536] if task == "panoptic" else values
        counts = dict(zip(*np.unique(ids, return_counts=True), strict=True))
        assert counts.pop(0 if task == "panoptic" else 255, 0) == ids.size - sum(
            one["pixels"] for one in record["regions"]
        )
        assert counts == {one["id"]: one["pixels"] for one in record["regions"]}
        if task == "segment":
            answer = Predictor.load(marked(task), device="cpu")(record["picture"])
            np.testing.assert_array_equal(ids, answer.ids)


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # pycocotools' own
@pytest.mark.parametrize("task", BOXES)
def test_coco_s_own_tools_read_the_results_file(van, marked, scenes, held_out, tmp_path, capsys, task):
    file, annotations = tmp_path / "found" / "results.json", scenes / "coco" / "annotations" / "instances_val.json"
    ran = van("predict", marked(task), *held_out, "--coco", file, "--annotations", annotations, "--device", "cpu")
    assert ran.status == 0
    truth = COCO(str(annotations))
    numbers = {
        truth.imgs[number]["id"]: scenes / "coco" / "val" / truth.imgs[number]["file_name"] for number in truth.imgs
    }
    results = truth.loadRes(str(file))
    capsys.readouterr()
    predictor = Predictor.load(marked(task), device="cpu")
    for number, path in numbers.items():
        things = predictor(path).found
        read = results.loadAnns(results.getAnnIds(imgIds=[number]))
        assert len(read) == len(things)
        for one, thing in zip(read, things, strict=True):
            assert one["score"] == thing.score
            assert truth.loadCats(one["category_id"])[0]["name"] == thing.label
            x, y, width, height = one["bbox"]
            assert [x, y, x + width, y + height] == pytest.approx(thing.box)
            if thing.mask is not None:
                np.testing.assert_array_equal(results.annToMask(one), thing.mask)


def test_without_annotations_pictures_count_from_1_and_are_named(van, marked, held_out, tmp_path):
    assert van("predict", marked("detect"), *held_out, "--coco", tmp_path / "c.json", "--device", "cpu").status == 0
    found = json.loads((tmp_path / "c.json").read_text())
    places = {path.name: place for place, path in enumerate(held_out, start=1)}
    assert {one["file_name"] for one in found} <= set(places)
    assert all(one["image_id"] == places[one["file_name"]] for one in found)


def test_annotations_that_lack_a_picture_or_are_none_are_refused(van, marked, scenes, held_out, tmp_path):
    annotations = scenes / "coco" / "annotations" / "instances_train.json"
    other = shutil.copy(held_out[0], tmp_path / "other.png")
    for file, message in (
        (annotations, "has no picture other.png, and lacks 1 in all"),
        (other, "cannot be read as COCO"),
    ):
        ran = van("predict", marked("detect"), other, "--coco", tmp_path / "c.json", "--annotations", file)
        assert ran.status == 2
        assert message in ran.err
    ran = van("predict", marked("detect"), other, "--annotations", annotations)
    assert (ran.status, "--annotations is for --coco" in ran.err) == (2, True)
    assert not (tmp_path / "c.json").exists()


@pytest.mark.parametrize("style", ["text", "--json", "--csv"])
@pytest.mark.parametrize("task", HEADS)
def test_unreadable_pictures_are_named_and_the_others_answered(van, marked, held_out, tmp_path, task, style):
    (tmp_path / "text.png").write_text("no picture")
    (tmp_path / "cut.png").write_bytes(held_out[0].read_bytes()[:300])
    pictures = [tmp_path / "text.png", held_out[0], tmp_path / "gone.png", held_out[1], tmp_path / "cut.png"]
    flags = [] if style == "text" else [style]
    ran = van("predict", marked(task), *pictures, *flags, "--batch-size", "3", "--device", "cpu")
    assert ran.status == 1
    assert [line.split(": ")[1] for line in ran.err.splitlines()[:3]] == [str(pictures[place]) for place in (0, 2, 4)]
    assert ran.err.endswith("3 of 5 pictures could not be read\n")
    if style == "--json":
        records = [json.loads(line) for line in ran.out.splitlines()]
        assert [record["picture"] for record in records] == [str(path) for path in pictures]
        assert ["error" in record for record in records] == [True, False, True, False, True]
    else:
        seen = (
            {row["picture"] for row in rows_of(ran.out)}
            if flags
            else {line.split(": ")[0] for line in ran.out.splitlines()}
        )
        assert seen == {str(held_out[0]), str(held_out[1])}


@pytest.mark.parametrize(("rows", "columns"), [(300, 200), pytest.param(1000, 1500, marks=pytest.mark.slow)])
def test_a_large_picture_is_mapped_through_a_window_and_at_several_scales(van, marked, tmp_path, rows, columns):
    picture(COLOURS["blue"], seed=1, size_px=(columns, rows)).save(tmp_path / "large.png")
    flags: list[Any] = ["--masks", tmp_path / "masks", "--json", "--device", "cpu"]
    for view in ([], ["--tile-px", "256"], ["--multi-scale"]):
        ran = van("predict", marked("segment"), tmp_path / "large.png", *view, *flags)
        assert (ran.status, ran.err) == (0, "")
        record = json.loads(ran.out)
        assert (record["height"], record["width"]) == (rows, columns)
        assert sum(region["pixels"] for region in record["regions"]) == rows * columns
        with Image.open(tmp_path / "masks" / f"{tmp_path.name}-large.png") as file:
            assert file.size == (columns, rows)


@pytest.mark.parametrize(
    ("task", "flags", "message"),
    [
        ("classify", ["--masks", "m"], "--masks is for maps of regions; this network's task is classify"),
        ("detect", ["--masks", "m"], "--masks is for maps of regions; this network's task is detect"),
        ("segment", ["--coco", "c.json"], "--coco is for boxes; this network's task is segment"),
        ("panoptic", ["--coco", "c.json"], "--coco is for boxes; this network's task is panoptic"),
        ("classify", ["--coco", "c.json"], "--coco is for boxes; this network's task is classify"),
        ("classify", ["--min-score", "0.5"], "this one's task is classify"),
        ("segment", ["--min-score", "0.5"], "this one's task is segment"),
        ("classify", ["--tile-px", "256"], "--tile-px and --multi-scale are for semantic segmentation"),
        ("detect", ["--multi-scale"], "--tile-px and --multi-scale are for semantic segmentation"),
        ("panoptic", ["--tile-px", "256"], "this network's task is panoptic"),
        ("segment", ["--tile-px", "256", "--multi-scale"], "--tile-px and --multi-scale exclude each other"),
        ("segment", ["--tile-px", "-1"], "--tile-px is -1; wanted at least 1"),
    ],
)
def test_what_a_network_cannot_give_is_refused_before_it_is_asked(
    van, marked, checkpoint, wide, tmp_path, monkeypatch, task, flags, message
):
    monkeypatch.chdir(tmp_path)
    ran = van("predict", checkpoint if task == "classify" else marked(task), wide, *flags)
    assert (ran.status, ran.out) == (2, "")
    assert message in ran.err
    assert [path.name for path in tmp_path.iterdir()] == ["wide.png"]


def test_files_that_cannot_be_written_are_named(van, marked, wide, tmp_path):
    (tmp_path / "file").write_text("mine")
    for flag, name in (("--draw", "file/below"), ("--masks", "file/below"), ("--coco", "file/below.json")):
        task = "detect" if flag == "--coco" else "segment"
        ran = van("predict", marked(task), wide, flag, tmp_path / name)
        assert ran.status == 1
        assert ran.err.startswith(f"van: cannot write {tmp_path / 'file'}")
    assert (tmp_path / "file").read_text() == "mine"


def test_answers_are_those_of_the_predictor_s_types(marked, wide):
    kinds = {task: type(Predictor.load(marked(task), device="cpu")(wide)) for task in HEADS}
    assert kinds == dict.fromkeys(BOXES, Boxes) | dict.fromkeys(MAPS, Masks)
