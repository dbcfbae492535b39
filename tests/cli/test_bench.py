"""``van bench ops`` prints a row a backend, and writes them with the machine and the date."""

import csv
import json
from pathlib import Path

import pytest
import torch

from van.bench import operators
from van.cli.main import main


@pytest.fixture(autouse=True)
def one_small_stage(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(operators, "STAGES", ((5, 9),))


def test_the_table_has_a_row_for_every_backend_and_the_threads_are_put_back(capsys: pytest.CaptureFixture[str]):
    before = torch.get_num_threads()
    assert main(["bench", "ops", "--rounds", "1", "--explain"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["operator", "shape", "direction", "backend", "ms", "iqr", "times", "error"]
    assert len(lines) == 1 + 2 * 3 * 2
    assert "the definition runs anywhere" in lines[3]
    assert torch.get_num_threads() == before


def test_json_is_one_object_a_line(capsys: pytest.CaptureFixture[str]):
    assert main(["bench", "ops", "--rounds", "1", "--json"]) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert {row["backend"] for row in rows} == {"cpu", "phases", "reference"}
    assert all(row["shape"] == [1, 5, 9, 9] for row in rows)


def test_the_csv_names_machine_versions_and_date(tmp_path: Path):
    path = tmp_path / "new" / "ops.csv"
    assert main(["bench", "ops", "--rounds", "1", "--batch-size", "2", "--csv", str(path)]) == 0
    rows = list(csv.DictReader(path.read_text().splitlines()))
    assert len(rows) == 12
    for row in rows:
        assert row["shape"] == "2x5x9x9"
        assert row["torch"] == torch.__version__
        assert row["machine"]
        assert len(row["date"]) == 10


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nets"], "there is no subject 'nets'; known: ops"),
        (["ops", "--rounds", "0"], "--rounds is 0; wanted at least 1"),
        (["ops", "--threads", "0"], "--threads is 0; wanted at least 1"),
        (["ops", "--batch-size", "-1"], "--batch-size is -1; wanted at least 1"),
    ],
)
def test_bad_usage_is_told_in_one_line(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]):
    assert main(["bench", *arguments]) == 2
    assert capsys.readouterr().err == f"van: {message}" + ("; see van bench --help\n" if "nets" in arguments else "\n")


def test_help_has_an_example(capsys: pytest.CaptureFixture[str]):
    assert main(["bench", "--help"]) == 0
    assert "van bench ops" in capsys.readouterr().out
