"""Thousands of damaged files affect neither the image reader nor the server; the fuzzer itself detects faults."""

import json
import subprocess
import sys

import pytest

from serving import damage, fuzzing
from serving.http_fuzzer import fuzz_http
from van.errors import ImageError
from van.images import read_image
from van.serving.api_error import ApiError
from van.serving.request_parsing import parse_json_images
from van.serving.settings import Limits


def test_a_case_is_determined_by_its_seed_and_number():
    first, again = ([damage.case(seed, number) for number in range(40)] for seed in (3, 3))
    assert first == again
    assert first != [damage.case(4, number) for number in range(40)]


def test_every_seed_file_is_readable_and_most_damage_reaches_a_decoder(tmp_path):
    for name, data in damage.seeds().items():
        assert 0 not in read_image(data).size, name
    outcomes = {fuzzing.check_file(damage.case(0, number)[1], tmp_path / "a.png")[0] for number in range(60)}
    assert outcomes == {"read", "damaged", "rejected"}


def test_faulty_readers_are_findings(tmp_path, monkeypatch):
    """A reader that returns another mode, another image each time, an empty reason, or another size."""
    path, file, real = tmp_path / "a.png", damage.seeds()["png"], read_image
    assert fuzzing.check_file(file, path) == ("read", "")

    def empty(source, **_):
        raise ImageError("a", "")

    angles = iter(range(9))
    for finding, reader in {
        "mode L": lambda source, **_: real(source).convert("L"),
        "two readings differ": lambda source, **_: real(source).rotate(next(angles)),
        "the reason is ''": empty,
        "was read": lambda source, **_: real(source).crop((0, 0, 5, 5)),
    }.items():
        monkeypatch.setattr(fuzzing, "read_image", reader)
        assert finding in fuzzing.check_file(file, path)[1]


def test_a_process_that_crashes_is_a_finding_and_the_next_case_runs(monkeypatch, tmp_path):
    """A child process that kills itself at case 3."""
    script = tmp_path / "child.py"
    script.write_text(
        "import json, os, sys, time\n"
        "for n in range(int(sys.argv[-1]), 1000):\n"
        "    if n == 3: os.kill(os.getpid(), 11)\n"
        "    line = dict(case=n, outcome='read', finding='', seconds=0, taken=0, memory=1)\n"
        "    print(json.dumps(line), flush=True)\n"
        "time.sleep(60)\n"
    )
    monkeypatch.setattr(fuzzing, "__file__", str(script))
    result = fuzzing.fuzz_files(seconds=0.6, seed=0)
    assert [number for number, _ in result.findings] == [3]
    assert "exit status -11" in result.findings[0][1]
    assert result.outcomes["read"] > 10


@pytest.mark.parametrize("piece", [b"{},", b"[],", b'"ab",', b"9,"])
def test_json_of_very_many_objects_is_rejected_before_it_takes_twenty_times_its_memory(piece):
    """Parsing 30 MB of empty objects would take 800 MB, and block the event loop for two seconds."""
    body = b'{"images": ["iVBORw0K"], "top": [' + piece * 200_000 + b"1]}"
    with pytest.raises(ApiError, match="JSON") as error:
        parse_json_images(body, Limits())
    assert (error.value.status, error.value.code) == (413, "json_too_complex")
    assert parse_json_images(body.replace(piece * 200_000, piece * 100), Limits())[0] == [("image 0", b"\x89PNG\r\n")]


@pytest.mark.slow
def test_half_a_minute_of_damaged_files_has_no_findings():
    """The case numbers differ from those of manual runs, which start at 0."""
    command = [sys.executable, fuzzing.__file__, "--targets", "files", "--seconds", "30", "--first", "1000000"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == 0, (done.stdout[-3000:], done.stderr[-3000:])
    result = json.loads(done.stdout.partition("files:")[2])
    assert result["cases"] > 300
    assert min(result["outcomes"][kind] for kind in ("read", "damaged", "rejected")) > 50


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_damaged_files_and_bodies_affect_neither_other_images_nor_the_server():
    with fuzzing.small_server() as server:
        result = fuzz_http(server, seconds=30, seed=0, first=1_000_000)
    assert result.findings == []
    assert result.outcomes["among_valid 200"] > 10, result.outcomes
    assert result.growth_bytes("front") < 64 << 20, result.memory
    assert result.growth_bytes("workers") < 64 << 20, result.memory
