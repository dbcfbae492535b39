"""Damaged pictures by the thousand: ``python tests/serve/fuzzing.py --seconds 600 --seed 0``.

Two targets, half of the time each. ``files``: what reads pictures, in a process of its own that is started anew when a
file ends it. ``http``: a running service, where every damaged file has good neighbours. Case n of a seed is always the
same file. What must not be is a finding: it is told, and with ``--keep FOLDER`` its file is stored.
"""

import argparse
import collections
import contextlib
import dataclasses
import hashlib
import json
import os
import select
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

if not __package__:
    sys.path[0] = str(Path(__file__).parents[1])

from serve.damage import case
from van.errors import PictureError
from van.pictures import read_picture
from van.serve.headers import quiet_pillow, read_head

MOST_PIXELS = 2_000_000
AFTERWARDS = -1
"""In the place of a case: what was found when all were over."""
CPU_S, HANGING_S = 5.0, 60.0
MEMORY_BYTES = 160 << 20
"""One file may take so much more than there was: Pillow's own bound on text is 64 MiB, 2 million pixels are 8 MB."""


@dataclasses.dataclass
class Found:
    """What a target has seen: cases, outcomes by kind, findings as (case, what), memory in bytes over time."""

    cases: int = 0
    outcomes: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)
    findings: list[tuple[int, str]] = dataclasses.field(default_factory=list)
    memory: list[dict[str, int]] = dataclasses.field(default_factory=list)
    slowest_s: float = 0.0
    largest_bytes: int = 0

    def to_dict(self) -> dict[str, Any]:
        """Memory at the start, in the middle and at the end, in MB."""
        places = self.memory and [self.memory[0], self.memory[len(self.memory) // 2], self.memory[-1]]
        memory = {name: [round(place[name] / 1e6) for place in places] for name in (places[0] if places else ())}
        plain = {"cases": self.cases, "outcomes": dict(self.outcomes.most_common()), "findings": self.findings[:100]}
        return {**plain, "memory_mb": memory, "slowest_s": self.slowest_s, "largest_mb": self.largest_bytes // 10**6}

    def growth_bytes(self, name: str) -> int:
        """From the largest of the middle third to the largest of the last."""
        third = len(self.memory) // 3
        middle, last = self.memory[third : 2 * third], self.memory[-third:]
        return max(place[name] for place in last) - max(place[name] for place in middle)


def status_bytes(pid: int | str, field: str) -> int:
    """A line of the system's account of a process."""
    text = Path(f"/proc/{pid}/status").read_text()
    return 1024 * int(text.partition(f"{field}:")[2].split()[0])


def _open_files() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def look_at(data: bytes, path: Path) -> tuple[str, str]:
    """What became of one file, and what is wrong with that; ``path`` is a file that may be used."""
    answers: list[tuple[tuple[int, int], str] | str] = []
    path.write_bytes(data)
    for source in (data, path):
        try:
            picture = read_picture(source, max_pixels=MOST_PIXELS)
        except PictureError as error:
            answers.append(error.reason)
            if not (0 < len(error.reason) < 500 and error.reason.isprintable()):
                return "refused", f"the reason is {error.reason[:200]!r}"
        else:
            if picture.mode != "RGB" or 0 in picture.size:
                return "read", f"a picture of mode {picture.mode} and size {picture.size}"
            answers.append((picture.size, hashlib.sha256(picture.tobytes()).hexdigest()))
    if answers[0] != answers[1] and not all(isinstance(answer, str) for answer in answers):
        return "read", f"two readings differ: {answers}"
    answer = answers[0]
    try:
        size = read_head(data, "file")[:2]
    except PictureError:
        return ("refused", "") if isinstance(answer, str) else ("read", "it has no size, but is read")
    if isinstance(answer, str):
        return ("too large" if "is too large" in answer else "damaged"), ""
    return "read", "" if answer[0] in (size, size[::-1]) else f"the size is {size}, and {answer[0]} was read"


def child(seed: int, first: int) -> None:
    """Look at cases for ever, and say of each on a line what became of it."""
    complaints: list[str] = []
    sys.unraisablehook = lambda raised: complaints.append(f"unraisable: {raised.exc_value!r}")
    warnings.simplefilter("error")
    quiet_pillow()
    out = os.fdopen(os.dup(1), "w", buffering=1)
    case(seed, 0)
    with tempfile.TemporaryDirectory() as folder, tempfile.TemporaryFile() as told:
        os.dup2(told.fileno(), 1)
        os.dup2(told.fileno(), 2)
        path = Path(folder) / "file.png"
        look_at(case(seed, 0)[1], path)
        files = _open_files()
        for number in range(first, sys.maxsize):
            data = case(seed, number)[1]
            Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here
            before, start, size = status_bytes("self", "VmRSS"), time.process_time(), os.fstat(2).st_size
            try:
                outcome, wrong = look_at(data, path)
            except BaseException as error:
                outcome, wrong = "raised", f"{type(error).__name__}: {error}"[:300]
            seconds, taken = time.process_time() - start, status_bytes("self", "VmHWM") - before
            checks = {
                "; ".join(complaints): complaints,
                f"took {seconds:.1f} s of the processor": seconds > CPU_S,
                f"took {taken >> 20} MiB": taken > MEMORY_BYTES,
                "left files open": _open_files() > files,
                "wrote to the console": os.fstat(2).st_size > size,
            }
            wrong = "; ".join([wrong] * bool(wrong) + [text for text, holds in checks.items() if holds])
            complaints.clear()
            said = {"case": number, "outcome": outcome, "wrong": wrong, "seconds": seconds, "taken": taken}
            out.write(json.dumps({**said, "memory": status_bytes("self", "VmRSS")}) + "\n")


def fuzz_files(*, seconds: float, seed: int, first: int = 0) -> Found:
    """Cases from ``first`` on, in processes of their own."""
    found, end, number = Found(), time.monotonic() + seconds, first
    while time.monotonic() < end:
        command = [sys.executable, __file__, "--child", "--seed", str(seed), "--first", str(number)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
            number, died = _listen(process, found, number, end)
            process.kill()
            _, last_words = process.communicate()
        if died:
            told = last_words.decode(errors="replace")[-300:]
            found.findings.append((number, f"the process ended: {died}, exit status {process.returncode} {told}"))
            found.outcomes["ended the process"] += 1
            number += 1
    return found


def _listen(process: subprocess.Popen[bytes], found: Found, number: int, end: float) -> tuple[int, str]:
    """The case that comes next, and why the process ended, or nothing when the time is over."""
    assert process.stdout is not None
    while time.monotonic() < end:
        patience_s = min(HANGING_S, max(0.0, end - time.monotonic()))
        if not select.select([process.stdout], [], [], patience_s)[0]:
            return number, f"no answer within {HANGING_S:g} s" if patience_s == HANGING_S else ""
        line = process.stdout.readline()
        if not line:
            return number, "it died"
        said = json.loads(line)
        number = said["case"] + 1
        found.cases += 1
        found.outcomes[said["outcome"]] += 1
        found.slowest_s = max(found.slowest_s, round(said["seconds"], 2))
        found.largest_bytes = max(found.largest_bytes, said["taken"])
        if said["wrong"]:
            found.findings.append((said["case"], said["wrong"]))
        if found.cases % 100 == 1:
            found.memory.append({"process": said["memory"]})
        _progress(f"files: {found.cases} cases, {len(found.findings)} findings", found.cases % 1000 == 0)
    return number, ""


def _progress(text: str, now: bool) -> None:
    if now and sys.stderr.isatty():
        print(f"\r{text}   ", end="", file=sys.stderr, flush=True)
    elif now:
        print(text, file=sys.stderr, flush=True)


@contextlib.contextmanager
def served() -> Iterator[Any]:
    """A service of a small network, with small limits."""
    from explain.small import write_small
    from serve.running import running

    with tempfile.TemporaryDirectory() as folder:
        model = write_small(Path(folder) / "small.safetensors", size_px=64)
        limits = ["--max-megapixels", 1, "--max-body-mb", 24, "--max-memory-mb", 512, "--watch-s", 0]
        with running(model, *limits, OMP_NUM_THREADS="1") as server:
            yield server


def main() -> int:
    """Run both targets and say what they found."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--seconds", type=float, default=600, help="for both targets together")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--first", type=int, default=0, help="the first case")
    parser.add_argument("--targets", nargs="+", choices=("files", "http"), default=["files", "http"])
    parser.add_argument("--keep", type=Path, help="folder for the files that were found")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.child:
        child(asked.seed, asked.first)
    seconds, wrong = asked.seconds / len(asked.targets), False
    for target in asked.targets:
        if target == "files":
            found = fuzz_files(seconds=seconds, seed=asked.seed, first=asked.first)
        else:
            from serve.asking import fuzz_http

            with served() as server:
                found = fuzz_http(server, seconds=seconds, seed=asked.seed, first=asked.first, say=_progress)
        print(f"\n{target}: {json.dumps(found.to_dict(), indent=1)}")
        wrong |= bool(found.findings)
        for number in sorted({number for number, _ in found.findings} - {AFTERWARDS}):
            what, data = case(asked.seed, number)
            print(f"case {number}: {what}")
            if asked.keep:
                asked.keep.mkdir(parents=True, exist_ok=True)
                (asked.keep / f"seed-{asked.seed}-case-{number}").write_bytes(data)
    return int(wrong)


if __name__ == "__main__":
    sys.exit(main())
