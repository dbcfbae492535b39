"""``van report`` writes one page about a run, whole or not at all."""

import json
import shutil

import pytest

from report.made_run import write_run


@pytest.fixture(scope="module")
def made(tmp_path_factory, colours):
    """A run on three colours. Not to be changed."""
    return write_run(tmp_path_factory.mktemp("run") / "run", data=colours, labels=("blue", "green", "red"))


def test_the_page_is_written_where_it_was_asked_for(van, made, tmp_path):
    out = tmp_path / "new" / "page.html"
    ran = van("report", made, "--out", out, "--mistakes", "2", "--device", "cpu")
    assert (ran.status, ran.err) == (0, "")
    assert f"page: {out}" in ran.out
    assert "top1" in ran.out
    page = out.read_text(encoding="utf-8")
    assert page.startswith("<!doctype html>")
    assert "Speed on this machine" in page
    assert page.rstrip().endswith("</html>")
    assert [path.name for path in out.parent.iterdir()] == ["page.html"]
    assert not (made / "report.html").exists()


def test_json_tells_what_the_page_tells(van, made, tmp_path):
    out = tmp_path / "page.html"
    ran = van("report", made, "--out", out, "--mistakes", "2", "--no-speed", "--json", "--device", "cpu")
    assert ran.status == 0
    told = json.loads(ran.out)
    assert (told["samples"], told["page"], told["speed"], told["missing"]) == (9, str(out), None, [])
    assert len(told["mistakes"]) == 2
    assert "Speed on this machine" not in out.read_text(encoding="utf-8")


def test_the_figures_are_those_of_van_eval(van, made, colours, tmp_path):
    flags = ("--json", "--device", "cpu")
    ours = json.loads(van("report", made, "--out", tmp_path / "page.html", "--no-speed", "--mistakes", "0", *flags).out)
    theirs = json.loads(van("eval", made / "best.safetensors", "--data", colours, *flags).out)
    assert ours["metrics"] == theirs["metrics"]
    assert ours["per_class"] == theirs["per_class"]


def test_without_out_the_page_lies_in_the_run(van, made, tmp_path):
    run = shutil.copytree(made, tmp_path / "run")
    (run / "best.safetensors").unlink()
    ran = van("report", run)
    assert ran.status == 0
    assert "best.safetensors is missing" in ran.err
    assert (run / "report.html").is_file()


def test_a_failure_leaves_the_page_that_was_there(van, made, tmp_path):
    out = tmp_path / "page.html"
    out.write_text("before")
    ran = van("report", made, "--out", out, "--data", tmp_path / "gone")
    assert (ran.status, ran.out) == (1, "")
    assert ran.err == f"van: {tmp_path / 'gone'}: no such folder; give a folder of class folders\n"
    assert out.read_text() == "before"
    assert [path.name for path in tmp_path.iterdir()] == ["page.html"]


@pytest.mark.parametrize("name", ["nowhere", "best.safetensors", "empty"])
def test_what_is_no_run_folder_is_refused_in_a_line_and_nothing_is_written(van, made, tmp_path, name):
    (tmp_path / "empty").mkdir()
    source = made / name if name.startswith("best") else tmp_path / name
    ran = van("report", source)
    assert (ran.status, ran.out) == (1, "")
    assert f"is {source} a run folder?" in ran.err
    assert ran.err.count("\n") == 1
    assert [path.name for path in tmp_path.rglob("*")] == ["empty"]


def test_several_processes_are_refused(van, made, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    ran = van("report", made)
    assert (ran.status, ran.err) == (2, "van: a report is made by one process; start it without torchrun\n")
