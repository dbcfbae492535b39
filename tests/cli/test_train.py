"""``van train``: options, the summary, and resuming a run without repeating its options."""

import importlib
import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest

from datasets.synthetic import write_classes
from van import Checkpoint
from van.checkpoint import load_checkpoint
from van.recipes import RECIPES
from van.settings import field_names

QUICK = [
    *("--model", "van_b0", "--init-from", "scratch", "--image-size", "32", "--device", "cpu", "--freeze-backbone"),
    *("--epochs", "1", "--batch-size", "4", "--warmup-epochs", "0", "--log-every", "1"),
]


def recipe(out: Path) -> dict[str, Any]:
    return json.loads((out / "settings.json").read_text())["recipe"]


@pytest.fixture(scope="module")
def trained(colors, tmp_path_factory) -> Path:
    """A completed run in a folder ``run``. Read-only."""
    from van.cli.main import main

    out = tmp_path_factory.mktemp("trained") / "run"
    flags = ["--scale", "0.5", "0.9", "--rand-augment", "rand-m5", "--seed", "3"]
    assert main(["train", "classify", "--data", str(colors), "--out", str(out), *QUICK, *flags]) == 0
    return out


def test_help_has_an_option_for_every_setting_and_at_most_33_outside_the_advanced_ones(subtests, van):
    for name in RECIPES:
        with subtests.test(recipe=name):
            usual, advanced = van("train", name, "--help").out.split("\nAdvanced")
            options, rare = (
                re.findall(r"^  --(?:no-)?([a-z][a-z0-9-]+)", text, flags=re.M) for text in (usual, advanced)
            )
            assert 20 < len(options) <= 33  # without -h, --help
            assert {"milestones", "cooldown-epochs", "warmup-updates", "max-unreadable", "log-every"} <= set(rare)
            assert ("random-erasing" in rare) == (name in ("digits", "classify", "imagenet1k"))
            assert ("max-class-fraction" in rare) != ("random-erasing" in rare)
            settings = getattr(importlib.import_module(f"van.recipes.{RECIPES[name].module}"), RECIPES[name].settings)
            assert sorted([*options, *rare]) == sorted(field.replace("_", "-") for field in field_names(settings))


def test_advanced_options_are_stored(van, colors, tmp_path):
    changes = ["--cooldown-epochs", "0.5", "--random-erasing=0.2", "--max-unreadable", "0.5", "--save-every", "2"]
    ran = van("train", "classify", "--data", colors, "--out", tmp_path / "run", *QUICK, *changes)
    assert ran.status == 0, ran.err
    stored = recipe(tmp_path / "run")
    expected = {"cooldown_epochs": 0.5, "random_erasing": 0.2, "max_unreadable": 0.5, "save_every": 2, "log_every": 1}
    assert {name: stored[name] for name in expected} == expected


def test_milestones_divide_the_learning_rate(van, colors, tmp_path):
    flags = ["--schedule", "step", "--milestones", "1", "2", "--epochs", "3"]
    ran = van("train", "classify", "--data", colors, "--out", tmp_path / "run", *QUICK, *flags)
    assert ran.status == 0, ran.err
    assert recipe(tmp_path / "run")["milestones"] == [1, 2]
    log = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    rates = sorted({row["lr"] for row in log if row["kind"] == "train"})
    assert rates == pytest.approx([2e-6, 2e-5, 2e-4])
    assert van("train", "classify", "--out", tmp_path / "run", "--resume").status == 0


def test_the_summary_has_metrics_time_files_and_the_next_command(van, colors, tmp_path):
    out = tmp_path / "run"
    ran = van("train", "classify", "--data", colors, "--out", out, *QUICK)
    assert ran.status == 0
    assert re.search(r"^best +.*top1 [01]\.\d{4}.*\(update 3 of 3\)$", ran.out, flags=re.M)
    assert re.search(r"^time +0 min \d+ s, \d+ images/s$", ran.out, flags=re.M)
    assert ran.out.endswith(f"next        van predict {out}/best.safetensors IMAGES\n")
    assert "epoch 1/1: " in ran.err  # progress goes to standard error
    assert "epoch 1/1" not in ran.out
    for name in ("curves", "checkpoint"):
        (path,) = re.findall(rf"^{name} +(\S+)$", ran.out, flags=re.M)
        assert Path(path).stat().st_size > 1000


def test_only_rank_0_prints_the_summary(van, trained, monkeypatch):
    monkeypatch.setenv("RANK", "1")
    assert van("train", "classify", "--out", trained, "--resume").out == ""


@pytest.mark.parametrize("form", ["--out {}", "--out={}"])
def test_resume_needs_no_other_option(van, trained, form):
    before = recipe(trained)
    ran = van("train", "classify", *form.format(trained).split(), "--resume")
    assert ran.status == 0, ran.err
    assert "already complete" in ran.out
    assert recipe(trained) == before
    assert (before["scale"], before["rand_augment"], before["seed"]) == ([0.5, 0.9], "rand-m5", 3)


def test_resume_rejects_changed_settings_by_name(van, trained):
    before = {path: path.read_bytes() for path in trained.rglob("*") if path.is_file()}
    ran = van("train", "classify", "--out", trained, "--resume", "--epochs", "2", "--seed", "4")
    assert ran.status == 2
    assert re.search(r"epochs.*1.*2.*seed.*3.*4", ran.err)
    assert {path: path.read_bytes() for path in trained.rglob("*") if path.is_file()} == before


def test_resume_accepts_changes_that_do_not_affect_the_weights(van, trained):
    ran = van("train", "classify", "--out", trained, "--resume", "--workers", "1", "--log-every", "5")
    assert ran.status == 0, ran.err


def test_resume_rejects_a_run_of_another_recipe(van, trained):
    ran = van("train", "digits", "--out", trained, "--resume")
    assert ran.status == 2
    assert re.search(rf"{trained}.*expected digits, got classify", ran.err)


@pytest.mark.parametrize(
    "content", ["", "[]", '{"recipe": 3}', '{"recipe": {"recipe": "classify", "epochs": null}}', "\xff"]
)
def test_resume_reports_damaged_settings(van, trained, tmp_path, content):
    shutil.copytree(trained, tmp_path / "run")
    (tmp_path / "run" / "settings.json").write_text(content, encoding="latin-1")
    ran = van("train", "classify", "--out", tmp_path / "run", "--resume")
    assert ran.status == 1
    assert re.match(r"van: .*/run/settings\.json: .*--out\n$", ran.err)


def test_resume_without_a_run_starts_one_with_a_note(van, colors, tmp_path):
    ran = van("train", "classify", "--data", colors, "--out", tmp_path / "run", "--resume", *QUICK)
    assert ran.status == 0
    assert f"--resume: {tmp_path / 'run'} holds no run yet" in ran.err
    ran = van("train", "classify", "--out", tmp_path / "other", "--resume")
    assert ran.status == 2
    assert "--data" in ran.err


def test_a_folder_with_a_run_is_rejected_and_not_changed(van, trained, colors):
    before = {path: path.read_bytes() for path in trained.rglob("*") if path.is_file()}
    ran = van("train", "classify", "--data", colors, "--out", trained, *QUICK)
    assert ran.status == 2
    assert str(trained) in ran.err
    assert "--resume" in ran.err
    assert {path: path.read_bytes() for path in trained.rglob("*") if path.is_file()} == before


def test_an_out_that_is_a_file_or_cannot_be_created_is_reported(van, colors, tmp_path):
    (tmp_path / "file").write_text("mine")
    for out in (tmp_path / "file", tmp_path / "file" / "run"):
        ran = van("train", "classify", "--data", colors, "--out", out, *QUICK)
        assert ran.status in (1, 2)
        assert ran.err.startswith("van: ")
        assert str(out) in ran.err
    assert (tmp_path / "file").read_text() == "mine"


def test_digits_train_from_the_command_line(van, tmp_path):
    flags = ["--epochs", "1", "--batch-size", "700", "--image-size", "16", "--device", "cpu"]
    ran = van("train", "digits", "--out", tmp_path / "run", *flags)
    assert ran.status == 0, ran.err
    assert load_checkpoint(tmp_path / "run" / "best.safetensors").class_names == tuple("0123456789")


def test_classify_rejects_a_checkpoint_of_a_detector(van, checkpoint, tmp_path):
    stored = load_checkpoint(checkpoint)
    detector = tmp_path / "detector.safetensors"
    Checkpoint(
        task="detect", model="van_b0", class_names=stored.class_names, preprocess=stored.preprocess, state=stored.state
    ).save(detector)
    data = write_classes(tmp_path / "data", {"ant": 4, "bee": 4})
    ran = van("train", "classify", "--data", data, "--out", tmp_path / "run", "--init-from", detector)
    assert ran.status == 2
    assert re.search(r"van_b0.*'detect'", ran.err)
    assert not (tmp_path / "run").exists()


def test_segmentation_trains_prints_a_summary_and_resumes(van, scenes, tmp_path):
    out = tmp_path / "run"
    flags = [
        "--model",
        "van_b0",
        "--init-from",
        "scratch",
        "--min-size",
        "64",
        "--max-size",
        "128",
        "--crop-size",
        "64",
    ]
    flags += ["--epochs", "1", "--batch-size", "2", "--device", "cpu", "--scale", "0.5", "1.5"]
    ran = van("train", "segment", "--data", scenes, "--out", out, *flags)
    assert ran.status == 0, ran.err
    assert re.search(r"^best +mean_iou [01]\.\d{4}.*\(update 1 of 1\)$", ran.out, flags=re.M)
    assert ran.out.endswith(f"next        van predict {out}/best.safetensors IMAGES\n")
    before = recipe(out)
    assert (before["recipe"], before["crop_size"], before["scale"], before["init_from"]) == (
        "segment", 64, [0.5, 1.5], "scratch",
    )  # fmt: skip
    ran = van("train", "segment", "--out", out, "--resume")
    assert (ran.status, "already complete" in ran.out) == (0, True), ran.err
    assert recipe(out) == before
    ran = van("train", "detect", "--out", out, "--resume")
    assert ran.status == 2
    assert re.search(rf"{out}.*expected detect, got segment", ran.err)


def test_scenes_recipes_write_their_dataset_and_resume(van, tmp_path):
    flags = ["--train-scenes", "8", "--val-scenes", "2", "--init-from", "scratch", "--epochs", "1", "--device", "cpu"]
    ran = van("train", "scenes-segment", "--out", tmp_path / "run", *flags, "--min-size", "64")
    assert ran.status == 0, ran.err
    assert (tmp_path / "run" / "scenes" / "ade").is_dir()
    again = van("train", "scenes-segment", "--out", tmp_path / "run", "--resume")
    assert (again.status, "already complete" in again.out) == (0, True), again.err
