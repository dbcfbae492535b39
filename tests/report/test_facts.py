"""What is gathered of a run, and what is said where something is missing."""

import hashlib
import json
import math
import shutil
import sys
from functools import partial

import pytest
import torch

from report.made_run import HOSTILE, LOG, write_run
from van.bench.costs import count
from van.checkpoint import load_checkpoint
from van.errors import DataError, UsageError
from van.models.load import create
from van.report.facts import Wanted, gather
from van.report.held_out import find_held_out
from van.report.page import render
from van.report.views import show

QUICK = Wanted(device="cpu", speed=False, mistakes=2)


@pytest.fixture(scope="module")
def facts(finished):
    return gather(finished, Wanted(device="cpu"))


def build(classes):
    with torch.device("meta"):
        return create("van_b0", num_classes=classes)


def test_a_finished_run_has_everything(facts, finished, pictures):
    assert (facts.gaps, facts.notes, facts.headline) == ((), (), "top1")
    assert facts.measured.found.samples == facts.measured.available == 6
    assert facts.measured.source == str(pictures)
    assert facts.checkpoint.sha256 == hashlib.sha256((finished / "best.safetensors").read_bytes()).hexdigest()
    assert set(facts.speed.timings) == {1, 16}
    assert all(timing.median_ms > 0 for timing in facts.speed.timings.values())
    assert facts.speed.fused
    assert facts.records == list(LOG)
    wrong = sum(shown.mistake.wrong for shown in facts.measured.mistakes)
    assert wrong == facts.measured.found.details["wrong"] == round(6 * (1 - facts.measured.found.metrics["top1"]))
    assert len(facts.measured.mistakes) == 6
    assert [len(shown.views) for shown in facts.measured.mistakes] == [3] * 6


def test_parameters_and_arithmetic_are_those_of_the_bench(facts):
    cost = count(partial(build, len(HOSTILE)), batch_size=1, size_px=32)
    assert (facts.network.parameters, facts.network.macs) == (cost.parameters, cost.macs)


def test_the_facts_are_json_without_nan(facts):
    plain = json.loads(json.dumps(facts.to_dict(), allow_nan=False))
    assert plain["samples"] == 6
    assert plain["metrics"]["top1"] == facts.measured.found.metrics["top1"]
    assert plain["network"]["macs"] == facts.network.macs
    assert len(plain["speed"]["batches"]) == 2
    assert {entry["truth"] for entry in plain["mistakes"]} <= set(HOSTILE)


def test_a_limit_is_kept_and_told(finished):
    few = gather(finished, Wanted(device="cpu", speed=False, mistakes=0, limit=4))
    assert (few.measured.found.samples, few.measured.available) == (4, 6)
    assert "Measured on 4 of 6 held-out pictures, evenly taken" in render(few, version="1")


def test_without_a_checkpoint_there_are_curves_and_the_log_s_best(tmp_path, pictures):
    run = write_run(tmp_path / "run", data=pictures, labels=None)
    facts = gather(run, QUICK)
    assert (facts.network, facts.checkpoint, facts.measured, facts.headline) == (None, None, None, "top1")
    assert "best.safetensors is missing, though the log has evaluations" in facts.gaps[0]
    page = render(facts, version="1")
    assert "The best of 2 evaluations during training, at step 20; not measured again here." in page
    assert json.dumps(facts.to_dict())


@pytest.mark.parametrize(
    ("log", "told"),
    [
        ("", "The log is empty"),
        ('{"kind": "train", "step": 5, "loss": 1.0, "lr": 0.1}\n{"kind": "eval", "st', "5 updates, no evaluation yet."),
        ('{"kind": "eval", "step": 5, "epoch": 1, "top1": NaN, "loss": NaN}\n', "No evaluation of this run has given"),
        ('[1]\n{"kind": "train"}\n{"kind": "eval", "step": 7, "top1": 0.25}\n', "25.00"),
        ("no JSON at all\n", "The log is empty"),
    ],
)
def test_a_log_in_any_state_makes_a_page(tmp_path, log, told):
    run = write_run(tmp_path / "run", data=None, labels=None)
    (run / "log.jsonl").write_text(log)
    facts = gather(run, QUICK)
    assert told in render(facts, version="1")
    assert ("is missing" in facts.gaps[0]) is ("0.25" in log)
    assert ("There is no best checkpoint yet" in facts.gaps[0]) is ("0.25" not in log)


def test_pictures_that_were_moved_are_told_and_the_rest_is_there(tmp_path):
    run = write_run(tmp_path / "run", data=tmp_path / "gone", labels=sorted(HOSTILE), validation_pictures=9)
    facts = gather(run, QUICK)
    assert facts.measured is None
    assert facts.network.parameters > 3e6
    (gap,) = facts.gaps
    assert f"{tmp_path / 'gone'}: no such folder" in gap
    assert "--data" in gap
    assert "Where it fails" not in render(facts, version="1")
    with pytest.raises(DataError, match="gone: no such folder"):  # who names a folder wants to know
        gather(run, Wanted(device="cpu", speed=False, data=tmp_path / "gone"))


def test_another_number_of_pictures_than_in_training_is_told(tmp_path, pictures):
    run = write_run(tmp_path / "run", data=pictures, labels=sorted(HOSTILE), validation_pictures=9)
    assert "6 pictures were found to measure on; when the run began it held out 9." in gather(run, QUICK).notes[0]


def test_a_damaged_checkpoint_is_told(tmp_path, finished):
    run = shutil.copytree(finished, tmp_path / "run")
    whole = (run / "best.safetensors").read_bytes()
    (run / "best.safetensors").write_bytes(whole[: len(whole) // 2])
    facts = gather(run, QUICK)
    assert "The checkpoint cannot be used" in facts.gaps[0]
    assert facts.network is None
    assert "cut off or damaged" in render(facts, version="1")


def test_a_network_of_nan_makes_a_page_that_says_so(tmp_path, finished):
    run = shutil.copytree(finished, tmp_path / "run")
    stored = load_checkpoint(run / "best.safetensors")
    stored.state["head.bias"].fill_(math.nan)
    stored.save(run / "best.safetensors")
    facts = gather(run, QUICK)
    assert "answers with NaN or infinity" in facts.notes[0]
    assert facts.measured.mistakes == ()
    assert json.dumps(facts.to_dict(), allow_nan=False)
    assert "so these figures mean nothing" in render(facts, version="1")


def test_an_unreadable_picture_is_named_and_in_no_figure(tmp_path, finished, pictures):
    copy = shutil.copytree(pictures, tmp_path / "classes")
    for path in copy.rglob("*.png"):
        if path.name == "3.png":
            path.write_bytes(b"")
    facts = gather(finished, Wanted(device="cpu", speed=False, mistakes=1, data=copy))
    assert facts.measured.found.samples == 9
    assert len(facts.measured.found.unreadable) == 3
    assert "3 pictures could not be read and count in no figure" in render(facts, version="1")


@pytest.mark.parametrize("content", [None, "{", "[]", '{"recipe": 3}'])
def test_what_is_no_run_folder_is_refused(tmp_path, content):
    if content is not None:
        (tmp_path / "settings.json").write_text(content)
    with pytest.raises(DataError, match=r"is .* a run folder|is no run folder"):
        gather(tmp_path, QUICK)


def test_a_device_that_is_not_here_is_refused(finished):
    with pytest.raises(UsageError, match="device"):
        gather(finished, Wanted(device="tpu"))


def test_without_the_package_for_it_there_is_no_grad_cam_and_that_is_told(finished, monkeypatch):
    monkeypatch.setitem(sys.modules, "pytorch_grad_cam", None)
    facts = gather(finished, QUICK)
    (gap,) = facts.gaps
    assert gap.startswith("There is no Grad-CAM: class activation maps needs the package 'grad-cam'")
    assert [len(shown.views) for shown in facts.measured.mistakes] == [1, 1]


def test_a_picture_that_is_gone_since_it_was_measured_costs_its_views_alone(finished, pictures, facts, tmp_path):
    copy = shutil.copytree(pictures, tmp_path / "classes")
    loaded = facts.network.loaded
    samples = find_held_out(finished, facts.recipe, loaded, data=copy).samples
    first, second = (shown.mistake for shown in facts.measured.mistakes[:2])
    (copy / first.name).unlink()
    shown, missing = show([first, second], samples, loaded, device=torch.device("cpu"))
    assert missing == ""
    assert (shown[0].views, len(shown[1].views), shown[1].problem) == ((), 3, "")
    assert shown[0].problem.endswith("no such file")
