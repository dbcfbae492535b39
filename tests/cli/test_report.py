"""``van report`` writes the page of a run, atomically."""

import json
import shutil

import pytest

from report.synthetic_run import write_run


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory, colors):
    """A run on three colors. Read only."""
    return write_run(tmp_path_factory.mktemp("run") / "run", data=colors, class_names=("blue", "green", "red"))


def test_the_page_is_written_to_the_given_path(van, run_folder, tmp_path):
    out = tmp_path / "new" / "page.html"
    ran = van("report", run_folder, "--out", out, "--num-errors", "2", "--device", "cpu")
    assert (ran.status, ran.err) == (0, "")
    assert f"page: {out}" in ran.out
    assert "top1" in ran.out
    page = out.read_text(encoding="utf-8")
    assert page.startswith("<!doctype html>")
    assert "Inference speed" in page
    assert page.rstrip().endswith("</html>")
    assert [path.name for path in out.parent.iterdir()] == ["page.html"]
    assert not (run_folder / "report.html").exists()


def test_json_has_the_data_of_the_page(van, run_folder, tmp_path):
    out = tmp_path / "page.html"
    ran = van("report", run_folder, "--out", out, "--num-errors", "2", "--no-speed", "--json", "--device", "cpu")
    assert ran.status == 0
    data = json.loads(ran.out)
    assert (data["samples"], data["page"], data["speed"], data["missing"]) == (9, str(out), None, [])
    assert len(data["errors"]) == 2
    assert "Inference speed" not in out.read_text(encoding="utf-8")


def test_the_metrics_equal_those_of_van_eval(van, run_folder, colors, tmp_path):
    flags = ("--json", "--device", "cpu")
    report = json.loads(
        van("report", run_folder, "--out", tmp_path / "page.html", "--no-speed", "--num-errors", "0", *flags).out
    )
    evaluation = json.loads(van("eval", run_folder / "best.safetensors", "--data", colors, *flags).out)
    assert report["metrics"] == evaluation["metrics"]
    assert report["per_class"] == evaluation["per_class"]


def test_without_out_the_page_is_written_to_the_run_folder(van, run_folder, tmp_path):
    run = shutil.copytree(run_folder, tmp_path / "run")
    (run / "best.safetensors").unlink()
    ran = van("report", run)
    assert ran.status == 0
    assert "best.safetensors" in ran.err
    assert (run / "report.html").is_file()


def test_an_error_keeps_the_existing_page(van, run_folder, tmp_path):
    out = tmp_path / "page.html"
    out.write_text("before")
    ran = van("report", run_folder, "--out", out, "--data", tmp_path / "deleted")
    assert (ran.status, ran.out) == (1, "")
    assert f"van: {tmp_path / 'deleted'}: " in ran.err
    assert "no such folder" in ran.err
    assert out.read_text() == "before"
    assert [path.name for path in tmp_path.iterdir()] == ["page.html"]


def test_a_folder_without_a_run_and_several_processes_raise_and_nothing_is_written(
    van, run_folder, tmp_path, monkeypatch
):
    (tmp_path / "empty").mkdir()
    for source in (tmp_path / "nowhere", tmp_path / "empty"):
        ran = van("report", source)
        assert (ran.status, ran.out) == (1, "")
        assert str(source) in ran.err
        assert ran.err.count("\n") == 1
    monkeypatch.setenv("WORLD_SIZE", "2")
    ran = van("report", run_folder)
    assert ran.status == 2
    assert "torchrun" in ran.err
    assert [path.name for path in tmp_path.rglob("*")] == ["empty"]
