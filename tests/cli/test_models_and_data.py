"""``van models`` lists the seven variants as published; ``van data digits`` writes the digits as files."""

import json

import pytest

from van.datasets.folder import load_image_folder

PAPER = {  # parameters, GMACs at 224 x 224, ImageNet-1K top-1 in percent
    "van_b0": (4_105_800, 0.864, 75.4),
    "van_b1": (13_861_800, 2.495, 81.1),
    "van_b2": (26_578_472, 4.993, 82.8),
    "van_b3": (44_765_608, 8.925, 83.9),
    "van_b4": (60_283_176, 12.144, 84.2),
    "van_b5": (89_967_688, 17.129, None),
    "van_b6": (199_829_416, 38.710, None),
}


def test_json_lists_the_seven_variants_as_published(van):
    ran = van("models", "--json")
    assert (ran.status, ran.err) == (0, "")
    records = {record["name"]: record for record in json.loads(ran.out)}
    assert list(records) == list(PAPER)
    for name, (parameters, gmacs, top1) in PAPER.items():
        record = records[name]
        assert record["parameters"] == parameters
        assert round(record["macs"] / 1e9, 3) == gmacs
        assert record["top1_published"] == (None if top1 is None else pytest.approx(top1 / 100))
        assert record["pretrained"] == (name in ("van_b0", "van_b1", "van_b2", "van_b3"))
        assert record["weights"]


def test_the_table_has_parameters_weights_and_the_license(van):
    text = van("models").out
    for name, (parameters, gmacs, top1) in PAPER.items():
        (line,) = [line for line in text.splitlines() if line.startswith(name)]
        assert f"{parameters:,}" in line
        assert f"{gmacs:.3f}" in line
        assert top1 is None or f" {top1} " in line
    assert "Visual-Attention-Network/VAN-Tiny-original (van_tiny_754.pth.tar)" in text
    assert "commercial" in text


def test_digits_are_written_as_images(van, tmp_path):
    ran = van("data", "digits", "--out", tmp_path / "digits")
    assert (ran.status, ran.err) == (0, "")
    assert ran.out == f"{tmp_path / 'digits'}: 1433 training images, 364 validation images\n"
    split = load_image_folder(tmp_path / "digits")
    assert (len(split.train), len(split.validation), len(split.class_names)) == (1433, 364, 10)


def test_an_output_folder_that_exists_or_cannot_be_written_is_status_2(van, tmp_path):
    (tmp_path / "file").write_text("mine")
    for out in (tmp_path, tmp_path / "file" / "below"):
        ran = van("data", "digits", "--out", out)
        assert (ran.status, ran.out) == (2, "")
        assert str(out) in ran.err
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
