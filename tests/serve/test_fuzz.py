"""Damaged files by the thousand leave what reads them, and the service, as they were; the fuzzer itself sees damage."""

import json
import subprocess
import sys

import pytest

from serve import damage, fuzzing
from serve.asking import fuzz_http
from van.errors import PictureError
from van.pictures import read_picture
from van.serve.reading import from_json
from van.serve.refusals import Refused
from van.serve.settings import Limits


def test_a_case_follows_from_its_seed_and_number():
    first, again = ([damage.case(seed, number) for number in range(40)] for seed in (3, 3))
    assert first == again
    assert first != [damage.case(4, number) for number in range(40)]


def test_every_seed_can_be_read_and_most_damage_reaches_a_decoder(tmp_path):
    for name, data in damage.seeds().items():
        assert 0 not in read_picture(data).size, name
    told = {fuzzing.look_at(damage.case(0, number)[1], tmp_path / "a.png")[0] for number in range(60)}
    assert told == {"read", "damaged", "refused"}


def test_what_must_not_be_is_found(tmp_path, monkeypatch):
    """A reader that gives another mode, another picture each time, an empty reason, or a size of its own."""
    path, file, real = tmp_path / "a.png", damage.seeds()["png"], read_picture
    assert fuzzing.look_at(file, path) == ("read", "")

    def empty(source, **_):
        raise PictureError("a", "")

    turns = iter(range(9))
    for wrong, reader in {
        "mode L": lambda source, **_: real(source).convert("L"),
        "two readings differ": lambda source, **_: real(source).rotate(next(turns)),
        "the reason is ''": empty,
        "was read": lambda source, **_: real(source).crop((0, 0, 5, 5)),
    }.items():
        monkeypatch.setattr(fuzzing, "read_picture", reader)
        assert wrong in fuzzing.look_at(file, path)[1]


def test_a_process_that_dies_is_a_finding_and_the_next_case_is_looked_at(monkeypatch, tmp_path):
    """A child that ends itself by a signal at case 3."""
    script = tmp_path / "child.py"
    script.write_text(
        "import json, os, sys, time\n"
        "for n in range(int(sys.argv[-1]), 1000):\n"
        "    if n == 3: os.kill(os.getpid(), 11)\n"
        "    said = dict(case=n, outcome='read', wrong='', seconds=0, taken=0, memory=1)\n"
        "    print(json.dumps(said), flush=True)\n"
        "time.sleep(60)\n"
    )
    monkeypatch.setattr(fuzzing, "__file__", str(script))
    found = fuzzing.fuzz_files(seconds=0.6, seed=0)
    assert [number for number, _ in found.findings] == [3]
    assert "exit status -11" in found.findings[0][1]
    assert found.outcomes["read"] > 10


@pytest.mark.parametrize("piece", [b"{},", b"[],", b'"ab",', b"9,"])
def test_json_of_very_many_parts_is_refused_before_it_takes_twenty_times_its_memory(piece):
    """Thirty megabytes of empty objects would be eight hundred of memory, and two seconds in which nobody is heard."""
    body = b'{"pictures": ["iVBORw0K"], "top": [' + piece * 200_000 + b"1]}"
    with pytest.raises(Refused, match="of the sign") as refused:
        from_json(body, Limits())
    assert refused.value.status == 413
    assert from_json(body.replace(piece * 200_000, piece * 100), Limits())[0] == [("picture 0", b"\x89PNG\r\n")]


@pytest.mark.slow
def test_a_minute_of_damaged_files_finds_nothing():
    """Half of it in a process of its own; case numbers are those of no run by hand that begins at 0."""
    command = [sys.executable, fuzzing.__file__, "--targets", "files", "--seconds", "30", "--first", "1000000"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == 0, (done.stdout[-3000:], done.stderr[-3000:])
    found = json.loads(done.stdout.partition("files:")[2])
    assert found["cases"] > 300
    assert min(found["outcomes"][kind] for kind in ("read", "damaged", "refused")) > 50


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_damaged_files_and_bodies_hurt_no_neighbour_and_leave_the_service_as_it_was():
    with fuzzing.served() as server:
        found = fuzz_http(server, seconds=30, seed=0, first=1_000_000)
    assert found.findings == []
    assert found.outcomes["beside 200"] > 10, found.outcomes
    assert found.growth_bytes("front") < 64 << 20, found.memory
    assert found.growth_bytes("workers") < 64 << 20, found.memory
