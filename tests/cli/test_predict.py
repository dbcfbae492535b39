"""``van predict``: a prediction for every readable image, an error with the name of every other."""

import csv
import io
import json
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from datasets.synthetic import COLORS, make_image, write_classes
from van.model import Model
from van.predict import Predictor


@pytest.fixture
def mixed(tmp_path) -> list[Path]:
    """Return four images and two unreadable paths in a mixed order."""
    write_classes(tmp_path, {"red": 2, "blue": 2})
    (tmp_path / "text.png").write_text("no image")
    names = ["text.png", "red/red-0.png", "blue/blue-0.png", "missing.png", "red/red-1.png", "blue/blue-1.png"]
    return [tmp_path / name for name in names]


def test_text_has_a_line_for_each_image_in_order_and_errors_name_the_others(van, checkpoint, mixed):
    ran = van("predict", checkpoint, *mixed, "--top", "2", "--batch-size", "2")
    predictor = Predictor(Model.load(checkpoint))
    expected = []
    for path in (mixed[1], mixed[2], mixed[4], mixed[5]):
        best = predictor(path).top(2)
        expected.append(f"{path}: " + ", ".join(f"{one.label} {one.score:.1%}" for one in best))
    assert ran.out.splitlines() == expected
    assert ran.status == 1
    errors = ran.err.splitlines()
    assert errors[0].startswith(f"van: {mixed[0]}: ")
    assert errors[1].startswith(f"van: {mixed[3]}: ")
    assert errors[2:] == ["2 of 6 images could not be read"]


def test_json_is_one_object_per_line_including_errors(van, checkpoint, mixed):
    ran = van("predict", checkpoint, *mixed, "--json", "--top", "9")
    assert ran.status == 1
    records = [json.loads(line) for line in ran.out.splitlines()]
    assert [record["image"] for record in records] == [str(path) for path in mixed]
    assert records[3] == {"image": str(mixed[3]), "error": "no such file"}
    best = records[1]["classes"]
    assert [one["label"] for one in best] == [one.label for one in Predictor(Model.load(checkpoint))(mixed[1]).top(9)]
    assert sum(one["score"] for one in best) == pytest.approx(1, abs=1e-5)
    assert all(COLORS and list(COLORS)[one["index"]] == one["label"] for one in best)


def test_csv_has_a_header_and_a_row_for_each_class(van, checkpoint, tmp_path):
    odd = tmp_path / 'a "quoted", name.png'
    make_image(COLORS["red"], 3).save(odd)
    ran = van("predict", checkpoint, odd, "--csv", "--top", "2")
    assert ran.status == 0
    rows = list(csv.DictReader(io.StringIO(ran.out)))
    assert (rows[0]["image"], rows[0]["rank"], rows[0]["label"]) == (str(odd), "1", "red")
    assert [row["rank"] for row in rows] == ["1", "2"]
    assert all(0 <= float(row["score"]) <= 1 for row in rows)


def test_a_dash_reads_the_list_from_standard_input(van, checkpoint, mixed):
    expected = van("predict", checkpoint, *mixed[1:3]).out
    listed = f"{mixed[1]}\n\n{mixed[2]}\n".encode()
    assert van("predict", checkpoint, "-", stdin=listed).out == expected
    first, second = expected.splitlines()
    assert van("predict", checkpoint, mixed[2], "-", stdin=os.fsencode(mixed[1])).out.splitlines() == [second, first]
    empty = van("predict", checkpoint, "-", stdin=b"\n")
    assert (empty.status, empty.out, "standard input" in empty.err) == (2, "", True)


def test_folders_and_patterns_are_searched(van, checkpoint, mixed, tmp_path):
    ran = van("predict", checkpoint, tmp_path / "red", tmp_path / "blue" / "*-1.png")
    names = [Path(line.split(":")[0]).name for line in ran.out.splitlines()]
    assert names == ["red-0.png", "red-1.png", "blue-1.png"]


def test_drawings_show_the_image_and_have_its_folder_in_their_names(van, checkpoint, mixed, tmp_path):
    ran = van("predict", checkpoint, *mixed, "--draw", tmp_path / "drawn")
    assert ran.status == 1
    drawn = sorted((tmp_path / "drawn").iterdir())
    assert [path.name for path in drawn] == ["blue-blue-0.png", "blue-blue-1.png", "red-red-0.png", "red-red-1.png"]
    with Image.open(drawn[-1]) as sheet:
        assert sheet.width >= 240
        middle = np.asarray(sheet.convert("RGB"))[: sheet.height // 3, sheet.width // 2].mean(0)
    assert np.abs(middle - COLORS["red"]).max() < 40  # the image above its bar chart


def test_drawings_of_images_with_the_same_name_get_numbers(van, checkpoint, tmp_path):
    sources = [tmp_path / place / "same" / name for place in "ab" for name in ("1.png", "1.jpg", "1-2.png")]
    for seed, path in enumerate(sources):
        path.parent.mkdir(parents=True, exist_ok=True)
        make_image(COLORS["red" if seed < 3 else "blue"], seed).save(path)
    target = tmp_path / "drawn"
    ran = van("predict", checkpoint, *sources, sources[0], "--draw", target)  # the last one is the first image again
    assert ran.status == 0
    assert len(list(target.iterdir())) == 6
    before = {path.name: path.read_bytes() for path in target.iterdir()}
    assert len(set(before.values())) == 6
    van("predict", checkpoint, *sources, "--draw", target)
    assert {path.name: path.read_bytes() for path in target.iterdir()} == before  # the same names every time


def test_a_path_that_is_no_folder_for_drawings_is_rejected(van, checkpoint, mixed, tmp_path):
    ran = van("predict", checkpoint, mixed[1], "--draw", mixed[0])
    assert (ran.status, ran.out) == (2, "")
    assert "--draw" in ran.err
    assert str(mixed[0]) in ran.err
    ran = van("predict", checkpoint, mixed[1], "--draw", mixed[0] / "below")
    assert ran.status == 1
    assert str(mixed[0] / "below") in ran.err


def test_file_names_that_are_not_utf8_are_read_and_printed_escaped(van, checkpoint, tmp_path):
    """A pipe transports bytes; on Linux file names need not be UTF-8."""
    name = os.fsencode(tmp_path) + b"/na\xefve.png"
    try:
        with open(name, "wb") as file:  # noqa: PTH123  a path of bytes
            make_image(COLORS["red"], 1).save(file, "PNG")
    except OSError:
        pytest.skip("this file system takes names in UTF-8 only")
    for ran in (van("predict", checkpoint, os.fsdecode(name)), van("predict", checkpoint, "-", stdin=name + b"\n")):
        assert (ran.status, ran.err) == (0, "")
        assert ran.out.startswith(f"{tmp_path}/na\\udcefve.png: red ")
    assert json.loads(van("predict", checkpoint, os.fsdecode(name), "--json").out)["image"] == os.fsdecode(name)
    assert "na\\udcefve.png,1,red" in van("predict", checkpoint, os.fsdecode(name), "--csv").out
    missing = van("predict", checkpoint, "-", stdin=name.replace(b"ve", b"if") + b"\n")
    assert (missing.status, "na\\udcefif.png" in missing.err) == (1, True)


def test_labels_in_any_script_are_valid_json(van, tmp_path):
    from datasets.synthetic import write_checkpoint

    path = write_checkpoint(tmp_path / "labels.safetensors", class_names=("Blüte", "花", "\u202ertl\n"))
    make_image(COLORS["red"], 1).save(tmp_path / "a.png")
    ran = van("predict", path, tmp_path / "a.png", "--json")
    (line,) = ran.out.splitlines()
    assert {one["label"] for one in json.loads(line)["classes"]} == {"Blüte", "花", "\u202ertl\n"}


def test_an_unknown_device_is_rejected(van, checkpoint, mixed):
    ran = van("predict", checkpoint, mixed[1], "--device", "tpu")
    assert (ran.status, "tpu" in ran.err) == (2, True)


def test_public_weights_are_used_with_a_note_on_their_license(van, tmp_path):
    import torch

    from parity import filled_b0

    torch.save({"state_dict": filled_b0()}, tmp_path / "van_tiny_754.pth.tar")
    make_image(COLORS["red"], 1, (80, 80)).save(tmp_path / "a.png")
    ran = van("predict", tmp_path / "van_tiny_754.pth.tar", tmp_path / "a.png", "--top", "1")
    assert ran.status == 0
    assert ran.out.count("\n") == 1
    assert "van_b0" in ran.err
    assert "commercial use" in ran.err
