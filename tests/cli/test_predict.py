"""``van predict``: an answer for every picture that can be read, the name of every one that cannot."""

import csv
import io
import json
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data.made import COLOURS, picture, write_classes
from van import Predictor


@pytest.fixture
def mixed(tmp_path) -> list[Path]:
    """Four pictures and two files that are none, in an order of their own."""
    write_classes(tmp_path, {"red": 2, "blue": 2})
    (tmp_path / "text.png").write_text("no picture")
    names = ["text.png", "red/red-0.png", "blue/blue-0.png", "gone.png", "red/red-1.png", "blue/blue-1.png"]
    return [tmp_path / name for name in names]


def test_text_gives_a_line_for_each_picture_in_order_and_names_the_rest(van, checkpoint, mixed):
    ran = van("predict", checkpoint, *mixed, "--top", "2", "--batch-size", "2")
    predictor = Predictor.load(checkpoint)
    wanted = []
    for path in (mixed[1], mixed[2], mixed[4], mixed[5]):
        best = predictor(path).top(2)
        wanted.append(f"{path}: " + ", ".join(f"{one.label} {one.probability:.1%}" for one in best))
    assert ran.out.splitlines() == wanted
    assert ran.status == 1
    known = ran.err.splitlines()
    assert known[0].startswith(f"van: {mixed[0]}: is no picture that can be read")
    assert known[1:] == [f"van: {mixed[3]}: no such file", "2 of 6 pictures could not be read"]


def test_json_is_one_object_a_line_errors_too(van, checkpoint, mixed):
    ran = van("predict", checkpoint, *mixed, "--json", "--top", "9")
    assert ran.status == 1
    records = [json.loads(line) for line in ran.out.splitlines()]
    assert [record["picture"] for record in records] == [str(path) for path in mixed]
    assert records[3] == {"picture": str(mixed[3]), "error": "no such file"}
    best = records[1]["classes"]
    assert [one["label"] for one in best] == [one.label for one in Predictor.load(checkpoint)(mixed[1]).top(9)]
    assert sum(one["probability"] for one in best) == pytest.approx(1, abs=1e-5)
    assert all(COLOURS and list(COLOURS)[one["index"]] == one["label"] for one in best)


def test_csv_has_a_header_and_a_row_for_each_class(van, checkpoint, tmp_path):
    odd = tmp_path / 'a "quoted", name.png'
    picture(COLOURS["red"], 3).save(odd)
    ran = van("predict", checkpoint, odd, "--csv", "--top", "2")
    assert ran.status == 0
    rows = list(csv.DictReader(io.StringIO(ran.out)))
    assert (rows[0]["picture"], rows[0]["rank"], rows[0]["label"]) == (str(odd), "1", "red")
    assert [row["rank"] for row in rows] == ["1", "2"]
    assert all(0 <= float(row["probability"]) <= 1 for row in rows)


def test_a_dash_reads_the_list_from_standard_input(van, checkpoint, mixed):
    wanted = van("predict", checkpoint, *mixed[1:3]).out
    listed = f"{mixed[1]}\n\n{mixed[2]}\n".encode()
    assert van("predict", checkpoint, "-", stdin=listed).out == wanted
    first, second = wanted.splitlines()
    assert van("predict", checkpoint, mixed[2], "-", stdin=os.fsencode(mixed[1])).out.splitlines() == [second, first]
    nothing = van("predict", checkpoint, "-", stdin=b"\n")
    assert (nothing.status, nothing.out, nothing.err) == (2, "", "van: standard input lists no pictures\n")


def test_folders_and_patterns_are_searched(van, checkpoint, mixed, tmp_path):
    ran = van("predict", checkpoint, tmp_path / "red", tmp_path / "blue" / "*-1.png")
    names = [Path(line.split(":")[0]).name for line in ran.out.splitlines()]
    assert names == ["red-0.png", "red-1.png", "blue-1.png"]


def test_drawings_show_the_picture_and_carry_its_folder_s_name(van, checkpoint, mixed, tmp_path):
    ran = van("predict", checkpoint, *mixed, "--draw", tmp_path / "drawn")
    assert ran.status == 1
    drawn = sorted((tmp_path / "drawn").iterdir())
    assert [path.name for path in drawn] == ["blue-blue-0.png", "blue-blue-1.png", "red-red-0.png", "red-red-1.png"]
    with Image.open(drawn[-1]) as sheet:
        assert sheet.width >= 240
        middle = np.asarray(sheet.convert("RGB"))[: sheet.height // 3, sheet.width // 2].mean(0)
    assert np.abs(middle - COLOURS["red"]).max() < 40  # the picture itself, above its bars


def test_drawings_of_one_name_do_not_replace_one_another(van, checkpoint, tmp_path):
    sources = [tmp_path / place / "same" / name for place in "ab" for name in ("1.png", "1.jpg", "1-2.png")]
    for seed, path in enumerate(sources):
        path.parent.mkdir(parents=True, exist_ok=True)
        picture(COLOURS["red" if seed < 3 else "blue"], seed).save(path)
    target = tmp_path / "drawn"
    ran = van("predict", checkpoint, *sources, sources[0], "--draw", target)  # the last one is no other picture
    assert ran.status == 0
    assert len(list(target.iterdir())) == 6
    before = {path.name: path.read_bytes() for path in target.iterdir()}
    assert len(set(before.values())) == 6
    van("predict", checkpoint, *sources, "--draw", target)
    assert {path.name: path.read_bytes() for path in target.iterdir()} == before  # the same names every time


def test_a_place_that_cannot_hold_drawings_is_refused_before_the_work(van, checkpoint, mixed, tmp_path):
    ran = van("predict", checkpoint, mixed[1], "--draw", mixed[0])
    assert (ran.status, ran.out, ran.err) == (2, "", f"van: --draw {mixed[0]} is a file; wanted a folder\n")
    ran = van("predict", checkpoint, mixed[1], "--draw", mixed[0] / "below")
    assert ran.status == 1
    assert ran.err.startswith(f"van: cannot write {mixed[0] / 'below'}")


def test_file_names_that_are_no_text_go_in_and_come_out_escaped(van, checkpoint, tmp_path):
    """A pipe brings bytes; Linux has no rule that they are UTF-8."""
    name = os.fsencode(tmp_path) + b"/na\xefve.png"
    try:
        with open(name, "wb") as file:  # noqa: PTH123  a path of bytes
            picture(COLOURS["red"], 1).save(file, "PNG")
    except OSError:
        pytest.skip("this file system takes names in UTF-8 only")
    for ran in (van("predict", checkpoint, os.fsdecode(name)), van("predict", checkpoint, "-", stdin=name + b"\n")):
        assert (ran.status, ran.err) == (0, "")
        assert ran.out.startswith(f"{tmp_path}/na\\udcefve.png: red ")
    assert json.loads(van("predict", checkpoint, os.fsdecode(name), "--json").out)["picture"] == os.fsdecode(name)
    assert "na\\udcefve.png,1,red" in van("predict", checkpoint, os.fsdecode(name), "--csv").out
    gone = van("predict", checkpoint, "-", stdin=name.replace(b"ve", b"if") + b"\n")
    assert (gone.status, "na\\udcefif.png: no such file" in gone.err) == (1, True)


def test_labels_in_any_script_are_valid_json(van, tmp_path):
    from data.made import write_checkpoint

    path = write_checkpoint(tmp_path / "labels.safetensors", labels=("Blüte", "花", "\u202ertl\n"))
    picture(COLOURS["red"], 1).save(tmp_path / "a.png")
    ran = van("predict", path, tmp_path / "a.png", "--json")
    (line,) = ran.out.splitlines()
    assert {one["label"] for one in json.loads(line)["classes"]} == {"Blüte", "花", "\u202ertl\n"}


def test_a_device_is_checked(van, checkpoint, mixed):
    ran = van("predict", checkpoint, mixed[1], "--device", "tpu")
    assert (ran.status, ran.err) == (2, "van: device is 'tpu'; wanted auto, cpu, cuda or mps\n")


def test_public_weights_are_used_with_a_word_on_their_licence(van, tmp_path):
    import torch

    from parity import filled_b0

    torch.save({"state_dict": filled_b0()}, tmp_path / "van_tiny_754.pth.tar")
    picture(COLOURS["red"], 1, (80, 80)).save(tmp_path / "a.png")
    ran = van("predict", tmp_path / "van_tiny_754.pth.tar", tmp_path / "a.png", "--top", "1")
    assert ran.status == 0
    assert ran.out.count("\n") == 1
    assert "official weights of van_b0" in ran.err
    assert "for commercial use they ask to be contacted" in ran.err
