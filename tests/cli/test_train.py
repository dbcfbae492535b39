"""``van train``: few flags, a summary on one screen, and runs that go on without their flags."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest

from data.made import write_classes
from van import Checkpoint
from van.checkpoint import load_checkpoint
from van.recipes import RECIPES

QUICK = [
    *("--model", "van_b0", "--from", "scratch", "--size-px", "32", "--device", "cpu", "--freeze-backbone"),
    *("--epochs", "1", "--batch-size", "4", "--warmup-epochs", "0", "--set", "log_every=1"),
]


def recipe(out: Path) -> dict[str, Any]:
    return json.loads((out / "settings.json").read_text())["recipe"]


@pytest.fixture(scope="module")
def trained(colours, tmp_path_factory) -> Path:
    """A finished run in a folder ``run``; not to be changed."""
    from van.cli.main import main

    out = tmp_path_factory.mktemp("trained") / "run"
    flags = ["--scale", "0.5", "0.9", "--rand-augment", "rand-m5", "--seed", "3"]
    assert main(["train", "finetune", "--data", str(colours), "--out", str(out), *QUICK, *flags]) == 0
    return out


@pytest.mark.parametrize("name", RECIPES)
def test_help_fits_a_page_and_names_what_is_seldom_used(van, name, monkeypatch):
    monkeypatch.setenv("COLUMNS", "100")  # where there is much room, flags stand in two columns
    text = van("train", name, "--help").out
    flags = re.findall(r"^\W{0,3}(--[a-z][a-z-]+)", text, flags=re.M)  # each on a line of its own, -h, --help aside
    assert 20 < len(flags) <= 32
    assert len(set(flags)) == len(flags)
    assert "--log-every" not in text
    seldom = text.split("by --set NAME=VALUE: ")[1].split(".")[0].split(", ")
    assert {"milestones", "cooldown_epochs", "warmup_updates", "max_unreadable", "log_every"} <= set(seldom)
    assert ("random_erasing" in seldom) == (name in ("digits", "finetune", "imagenet1k"))
    assert ("largest_class" in seldom) != ("random_erasing" in seldom)


def test_what_is_seldom_used_is_accepted_all_the_same(van, colours, tmp_path):
    seldom = ["--set", "cooldown_epochs=0.5", "--set=random-erasing=0.2", "--set", "max_unreadable=0.5"]
    ran = van(
        "train", "finetune", "--data", colours, "--out", tmp_path / "run", *QUICK, *seldom, "--set", "save_every=2"
    )
    assert ran.status == 0, ran.err
    stored = recipe(tmp_path / "run")
    wanted = {"cooldown_epochs": 0.5, "random_erasing": 0.2, "max_unreadable": 0.5, "save_every": 2, "log_every": 1}
    assert {name: stored[name] for name in wanted} == wanted


def test_epochs_at_which_the_rate_falls_are_told_by_numbers(van, colours, tmp_path):
    flags = ["--schedule", "step", "--set", "milestones=1,2", "--epochs", "3"]
    ran = van("train", "finetune", "--data", colours, "--out", tmp_path / "run", *QUICK, *flags)
    assert ran.status == 0, ran.err
    assert recipe(tmp_path / "run")["milestones"] == [1, 2]
    log = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    rates = sorted({row["lr"] for row in log if row["kind"] == "train"})
    assert rates == pytest.approx([2e-6, 2e-5, 2e-4])
    assert van("train", "finetune", "--out", tmp_path / "run", "--resume").status == 0


def test_a_setting_that_a_recipe_does_not_have_is_refused_there(van, tmp_path):
    ran = van("train", "detect", "--data", tmp_path, "--out", tmp_path / "run", "--set", "random_erasing=0.2")
    assert ran.status == 2
    assert "--set random_erasing: wanted NAME=VALUE with NAME one of milestones, cooldown_epochs" in ran.err


def test_the_summary_says_how_good_how_long_where_and_what_next(van, colours, tmp_path):
    out = tmp_path / "run"
    ran = van("train", "finetune", "--data", colours, "--out", out, *QUICK)
    assert ran.status == 0
    assert re.search(r"^best     .*top1 [01]\.\d{4}.*\(update 3 of 3\)$", ran.out, flags=re.M)
    assert re.search(r"^time     0 min \d+ s, \d+ pictures/s in training$", ran.out, flags=re.M)
    assert ran.out.endswith(f"next     van predict {out}/best.safetensors PICTURES\n")
    assert "epoch 1/1: " in ran.err  # progress is no result
    assert "epoch 1/1" not in ran.out
    for name in ("curves", "network"):
        (path,) = re.findall(rf"^{name} +(\S+)$", ran.out, flags=re.M)
        assert Path(path).stat().st_size > 1000


def test_only_the_first_of_several_processes_sums_up(van, trained, monkeypatch):
    monkeypatch.setenv("RANK", "1")
    assert van("train", "finetune", "--out", trained, "--resume").out == ""


@pytest.mark.parametrize("form", ["--out {}", "--out={}"])
def test_a_run_goes_on_without_its_flags(van, trained, form):
    before = recipe(trained)
    ran = van("train", "finetune", *form.format(trained).split(), "--resume")
    assert ran.status == 0, ran.err
    assert "nothing was left to train" in ran.out
    assert recipe(trained) == before
    assert (before["scale"], before["rand_augment"], before["seed"]) == ([0.5, 0.9], "rand-m5", 3)


def test_a_changed_flag_is_refused_by_name(van, trained):
    before = {path: path.read_bytes() for path in trained.rglob("*") if path.is_file()}
    ran = van("train", "finetune", "--out", trained, "--resume", "--epochs", "2", "--seed", "4")
    assert ran.status == 2
    assert "epochs was 1 and is now 2, seed was 3 and is now 4; leave those flags out" in ran.err
    assert {path: path.read_bytes() for path in trained.rglob("*") if path.is_file()} == before


def test_flags_that_change_nothing_learnt_may_change(van, trained):
    ran = van("train", "finetune", "--out", trained, "--resume", "--workers", "1", "--set", "log_every=5")
    assert ran.status == 0, ran.err


def test_a_run_of_another_recipe_is_not_taken_over(van, trained):
    ran = van("train", "digits", "--out", trained, "--resume")
    assert (ran.status, ran.err) == (2, f"van: {trained} holds a run of 'finetune', not of 'digits'\n")


@pytest.mark.parametrize(
    "content", ["", "[]", '{"recipe": 3}', '{"recipe": {"recipe": "finetune", "epochs": null}}', "\xff"]
)
def test_damaged_settings_of_a_run_are_named(van, trained, tmp_path, content):
    shutil.copytree(trained, tmp_path / "run")
    (tmp_path / "run" / "settings.json").write_text(content, encoding="latin-1")
    ran = van("train", "finetune", "--out", tmp_path / "run", "--resume")
    assert ran.status == 1
    assert re.match(r"van: .*settings\.json is damaged \(.*\); the run cannot go on, start another --out\n$", ran.err)


def test_resuming_where_no_run_is_starts_one_and_says_so(van, colours, tmp_path):
    ran = van("train", "finetune", "--data", colours, "--out", tmp_path / "run", "--resume", *QUICK)
    assert ran.status == 0
    assert f"{tmp_path / 'run'} holds no run yet: --resume starts one" in ran.err
    ran = van("train", "finetune", "--out", tmp_path / "other", "--resume")
    assert ran.status == 2
    assert "--data" in ran.err


def test_a_folder_with_a_run_is_refused_and_stays_as_it_was(van, trained, colours):
    before = {path: path.read_bytes() for path in trained.rglob("*") if path.is_file()}
    ran = van("train", "finetune", "--data", colours, "--out", trained, *QUICK)
    assert ran.status == 2
    assert ran.err.endswith("already holds a run; go on with it by --resume, or choose another --out\n")
    assert {path: path.read_bytes() for path in trained.rglob("*") if path.is_file()} == before


def test_an_out_that_is_a_file_or_cannot_be_made_is_named(van, colours, tmp_path):
    (tmp_path / "file").write_text("mine")
    for out in (tmp_path / "file", tmp_path / "file" / "run"):
        ran = van("train", "finetune", "--data", colours, "--out", out, *QUICK)
        assert ran.status in (1, 2)
        assert ran.err.startswith("van: ")
        assert str(out) in ran.err
    assert (tmp_path / "file").read_text() == "mine"


def test_digits_train_from_the_command_line(van, tmp_path):
    flags = ["--epochs", "1", "--batch-size", "700", "--size-px", "16", "--device", "cpu"]
    ran = van("train", "digits", "--out", tmp_path / "run", *flags)
    assert ran.status == 0, ran.err
    assert load_checkpoint(tmp_path / "run" / "best.safetensors").labels == tuple("0123456789")


def test_a_checkpoint_of_another_kind_of_network_is_named(van, checkpoint, tmp_path):
    stored = load_checkpoint(checkpoint)
    odd = tmp_path / "odd.safetensors"
    Checkpoint(
        task="detect", model="van_b0", labels=stored.labels, preprocess=stored.preprocess, state=stored.state
    ).save(odd)
    data = write_classes(tmp_path / "data", {"ant": 4, "bee": 4})
    ran = van("train", "finetune", "--data", data, "--out", tmp_path / "run", "--from", odd)
    assert ran.status == 2
    assert ran.err.endswith("van: van_b0 was trained to detect; wanted a network that classifies\n")
    assert not (tmp_path / "run").exists()


def test_a_network_that_sees_whole_pictures_trains_sums_up_and_goes_on_without_its_flags(van, scenes, tmp_path):
    out = tmp_path / "run"
    flags = ["--model", "van_b0", "--from", "scratch", "--short-px", "64", "--long-px", "128", "--crop-px", "64"]
    flags += ["--epochs", "1", "--batch-size", "2", "--device", "cpu", "--scale", "0.5", "1.5"]
    ran = van("train", "segment", "--data", scenes, "--out", out, *flags)
    assert ran.status == 0, ran.err
    assert re.search(r"^best     mean_iou [01]\.\d{4}.*\(update 1 of 1\)$", ran.out, flags=re.M)
    assert ran.out.endswith(f"next     van predict {out}/best.safetensors PICTURES\n")
    before = recipe(out)
    assert (before["recipe"], before["crop_px"], before["scale"], before["start"]) == (
        "segment", 64, [0.5, 1.5], "scratch",
    )  # fmt: skip
    ran = van("train", "segment", "--out", out, "--resume")
    assert (ran.status, "nothing was left to train" in ran.out) == (0, True), ran.err
    assert recipe(out) == before
    ran = van("train", "detect", "--out", out, "--resume")
    assert (ran.status, ran.err) == (2, f"van: {out} holds a run of 'segment', not of 'detect'\n")


def test_scenes_are_trained_on_with_nothing_but_a_folder_and_a_length(van, tmp_path):
    flags = ["--train-scenes", "8", "--val-scenes", "2", "--from", "scratch", "--epochs", "1", "--device", "cpu"]
    ran = van("train", "scenes-segment", "--out", tmp_path / "run", *flags, "--short-px", "64")
    assert ran.status == 0, ran.err
    assert (tmp_path / "run" / "scenes" / "ade").is_dir()
    again = van("train", "scenes-segment", "--out", tmp_path / "run", "--resume")
    assert (again.status, "nothing was left to train" in again.out) == (0, True), again.err
