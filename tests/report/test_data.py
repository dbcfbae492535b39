"""The data of a report, and the reasons for missing parts."""

import hashlib
import json
import math
import re
import shutil
import sys
from functools import partial

import pytest
import torch

from report.synthetic_run import HOSTILE, LOG, write_run
from van.bench.flops import count_flops
from van.checkpoint import load_checkpoint
from van.errors import DataError, UsageError
from van.heads import create_model
from van.report.data import ReportOptions, collect_report_data, find_validation_data
from van.report.page import render
from van.report.views import illustrate

QUICK = ReportOptions(device="cpu", speed=False, num_errors=2)


@pytest.fixture(scope="module")
def data(finished):
    return collect_report_data(finished, ReportOptions(device="cpu"))


def build(classes):
    with torch.device("meta"):
        return create_model("van_b0", num_classes=classes)


def test_the_data_of_a_finished_run_is_complete(data, finished, images):
    assert (data.missing, data.notes, data.monitor) == ([], [], "top1")
    assert data.evaluation.samples == data.available == 6
    assert data.source == str(images)
    assert data.checkpoint["sha256"] == hashlib.sha256((finished / "best.safetensors").read_bytes()).hexdigest()
    assert [batch["batch_size"] for batch in data.speed["batches"]] == [1, 16]
    assert all(batch["median_ms"] > 0 for batch in data.speed["batches"])
    assert data.speed["fused"]
    assert data.records == list(LOG)
    wrong = sum(shown.is_error for shown in data.errors)
    assert wrong == data.details["num_errors"] == round(6 * (1 - data.evaluation.metrics["top1"]))
    assert len(data.errors) == 6
    assert [len(shown.views) for shown in data.errors] == [3] * 6


def test_parameters_and_macs_equal_those_of_van_bench(data):
    cost = count_flops(partial(build, len(HOSTILE)), batch_size=1, image_size=32)
    assert (data.parameters, data.macs) == (cost.parameters, cost.macs)


def test_the_data_is_json_without_nan(data):
    plain = json.loads(json.dumps(data.to_dict(), allow_nan=False))
    assert plain["samples"] == 6
    assert plain["metrics"]["top1"] == data.evaluation.metrics["top1"]
    assert plain["network"]["macs"] == data.macs
    assert len(plain["speed"]["batches"]) == 2
    assert {entry["target"] for entry in plain["errors"]} <= set(HOSTILE)


def test_a_limited_evaluation_is_stated(finished):
    few = collect_report_data(finished, ReportOptions(device="cpu", speed=False, num_errors=0, limit=4))
    assert (few.evaluation.samples, few.available) == (4, 6)
    assert "Evaluated on 4 of 6 validation images, evenly spaced" in render(few, version="1")


def test_without_a_checkpoint_the_page_has_curves_and_the_best_logged_metric(tmp_path, images):
    run = write_run(tmp_path / "run", data=images, class_names=None)
    data = collect_report_data(run, QUICK)
    assert (data.model, data.checkpoint, data.evaluation, data.monitor) == (None, None, None, "top1")
    assert str(run / "best.safetensors") in data.missing[0]
    page = render(data, version="1")
    assert "Best of 2 evaluations during training, at step 20" in page
    assert json.dumps(data.to_dict())


def test_incomplete_and_damaged_logs_are_rendered(tmp_path):
    logs = {
        "": "The log is empty",
        '{"kind": "train", "step": 5, "loss": 1.0, "lr": 0.1}\n{"kind": "eval", "st': "5 updates, no evaluation yet.",
        '{"kind": "eval", "step": 5, "epoch": 1, "top1": NaN, "loss": NaN}\n': "No metrics yet",
        '[1]\n{"kind": "train"}\n{"kind": "eval", "step": 7, "top1": 0.25}\n': "25.00",
        "no JSON at all\n": "The log is empty",
    }
    run = write_run(tmp_path / "run", data=None, class_names=None)
    for log, text in logs.items():
        (run / "log.jsonl").write_text(log)
        data = collect_report_data(run, QUICK)
        assert text in render(data, version="1"), log
        reason = "is missing, although" if "0.25" in log else "There is no best checkpoint yet"
        assert reason in data.missing[0], log


def test_missing_validation_images_are_reported_and_the_rest_is_collected(tmp_path):
    run = write_run(tmp_path / "run", data=tmp_path / "deleted", class_names=sorted(HOSTILE), validation_images=9)
    data = collect_report_data(run, QUICK)
    assert data.evaluation is None
    assert data.parameters > 3e6
    (reason,) = data.missing
    assert re.search(rf"{tmp_path / 'deleted'}: .*no such folder", reason)
    assert "--data" in reason
    assert "errors-title" not in render(data, version="1")
    with pytest.raises(DataError, match=r"deleted: .*no such folder"):  # an explicit folder must exist
        collect_report_data(run, ReportOptions(device="cpu", speed=False, data=tmp_path / "deleted"))


def test_another_number_of_validation_images_is_reported(tmp_path, images):
    run = write_run(tmp_path / "run", data=images, class_names=sorted(HOSTILE), validation_images=9)
    (note,) = collect_report_data(run, QUICK).notes
    assert "6 validation images" in note
    assert "on 9" in note


def test_a_damaged_checkpoint_is_reported(tmp_path, finished):
    run = shutil.copytree(finished, tmp_path / "run")
    whole = (run / "best.safetensors").read_bytes()
    (run / "best.safetensors").write_bytes(whole[: len(whole) // 2])
    data = collect_report_data(run, QUICK)
    assert "checkpoint" in data.missing[0]
    assert data.model is None
    assert "best.safetensors" in render(data, version="1")


def test_a_network_that_returns_nan_is_reported(tmp_path, finished):
    run = shutil.copytree(finished, tmp_path / "run")
    stored = load_checkpoint(run / "best.safetensors")
    stored.state["head.bias"].fill_(math.nan)
    stored.save(run / "best.safetensors")
    data = collect_report_data(run, QUICK)
    assert "NaN or infinity" in data.notes[0]
    assert data.errors == ()
    assert json.dumps(data.to_dict(), allow_nan=False)
    assert "NaN or infinity" in render(data, version="1")


def test_unreadable_images_are_listed_and_in_no_metric(tmp_path, finished, images):
    copy = shutil.copytree(images, tmp_path / "classes")
    for path in copy.rglob("*.png"):
        if path.name == "3.png":
            path.write_bytes(b"")
    data = collect_report_data(finished, ReportOptions(device="cpu", speed=False, num_errors=1, data=copy))
    assert data.evaluation.samples == 9
    assert len(data.evaluation.unreadable) == 3
    assert "3 unreadable images, not in the metrics" in render(data, version="1")


def test_a_folder_without_run_settings_and_an_unavailable_device_raise(tmp_path, finished):
    for content in (None, "{", "[]", '{"recipe": 3}'):
        if content is not None:
            (tmp_path / "settings.json").write_text(content)
        with pytest.raises(DataError, match=r"settings\.json"):
            collect_report_data(tmp_path, QUICK)
    with pytest.raises(UsageError, match="device"):
        collect_report_data(finished, ReportOptions(device="tpu"))


def test_without_grad_cam_the_missing_package_is_reported(finished, monkeypatch):
    monkeypatch.setitem(sys.modules, "pytorch_grad_cam", None)
    data = collect_report_data(finished, QUICK)
    (reason,) = data.missing
    assert "grad-cam" in reason
    assert [len(shown.views) for shown in data.errors] == [1, 1]


def test_an_image_deleted_after_the_evaluation_has_no_views(finished, images, data, tmp_path):
    copy = shutil.copytree(images, tmp_path / "classes")
    loaded = data.model
    samples, _ = find_validation_data(data, loaded, copy)
    first, second = data.errors[:2]
    (copy / first.name).unlink()
    shown, missing = illustrate([first, second], samples, loaded, device=torch.device("cpu"))
    assert missing == ""
    assert (shown[0].views, len(shown[1].views), shown[1].problem) == ((), 3, "")
    assert first.name in shown[0].problem
