"""Fuzzing of the image reader and the server: ``python tests/serving/fuzzing.py --seconds 600 --seed 0``.

Two targets, half of the time each. ``files``: the image reader, in its own process, which is restarted when a file
crashes it. ``http``: a running server, where every damaged file is sent between valid ones. Case n of a seed is always
the same file. Behavior that must not occur is a finding: it is printed, and with ``--keep FOLDER`` its file is stored.
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

from serving.damage import case
from van.errors import ImageError
from van.images import read_image
from van.serving.image_probe import quiet_pillow, read_image_header

MAX_PIXELS = 2_000_000
AFTERWARDS = -1
"""The case number of findings after all cases."""
MAX_CPU_S, TIMEOUT_S = 5.0, 60.0
MAX_MEMORY_BYTES = 160 << 20
"""Additional memory for one file: Pillow's own limit on text is 64 MiB, and 2 million pixels take 8 MB."""


@dataclasses.dataclass
class FuzzResult:
    """The result of one target: cases, outcomes by kind, findings as (case, description), memory in bytes over time."""

    cases: int = 0
    outcomes: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)
    findings: list[tuple[int, str]] = dataclasses.field(default_factory=list)
    memory: list[dict[str, int]] = dataclasses.field(default_factory=list)
    slowest_s: float = 0.0
    largest_bytes: int = 0

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, with the memory at the start, in the middle and at the end in MB."""
        samples = self.memory and [self.memory[0], self.memory[len(self.memory) // 2], self.memory[-1]]
        memory = {name: [round(sample[name] / 1e6) for sample in samples] for name in (samples[0] if samples else ())}
        fields = {"cases": self.cases, "outcomes": dict(self.outcomes.most_common()), "findings": self.findings[:100]}
        return {**fields, "memory_mb": memory, "slowest_s": self.slowest_s, "largest_mb": self.largest_bytes // 10**6}

    def growth_bytes(self, name: str) -> int:
        """Return the growth from the maximum of the middle third to the maximum of the last third."""
        third = len(self.memory) // 3
        middle, last = self.memory[third : 2 * third], self.memory[-third:]
        return max(sample[name] for sample in last) - max(sample[name] for sample in middle)


def status_bytes(pid: int | str, field: str) -> int:
    """Return a field of /proc/PID/status in bytes."""
    text = Path(f"/proc/{pid}/status").read_text()
    return 1024 * int(text.partition(f"{field}:")[2].split()[0])


def _open_files() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def check_file(data: bytes, path: Path) -> tuple[str, str]:
    """Read one file in both ways; returns the outcome and the finding, or ``""``; ``path`` is a scratch file."""
    results: list[tuple[tuple[int, int], str] | str] = []
    path.write_bytes(data)
    for source in (data, path):
        try:
            image = read_image(source, max_pixels=MAX_PIXELS, untrusted=True)
        except ImageError as error:
            results.append(error.reason)
            if not (0 < len(error.reason) < 500 and error.reason.isprintable()):
                return "rejected", f"the reason is {error.reason[:200]!r}"
        else:
            if image.mode != "RGB" or 0 in image.size:
                return "read", f"an image of mode {image.mode} and size {image.size}"
            results.append((image.size, hashlib.sha256(image.tobytes()).hexdigest()))
    if results[0] != results[1] and not all(isinstance(result, str) for result in results):
        return "read", f"two readings differ: {results}"
    result = results[0]
    try:
        size = read_image_header(data, "file")[:2]
    except ImageError:
        return ("rejected", "") if isinstance(result, str) else ("read", "it has no size, but is read")
    if isinstance(result, str):
        return ("too large" if "is too large" in result else "damaged"), ""
    return "read", "" if result[0] in (size, size[::-1]) else f"the size is {size}, and {result[0]} was read"


def child(seed: int, first: int) -> None:
    """Check cases in an endless loop, and print the outcome of each as a line of JSON."""
    errors: list[str] = []
    sys.unraisablehook = lambda raised: errors.append(f"unraisable: {raised.exc_value!r}")
    warnings.simplefilter("error")
    quiet_pillow()
    out = os.fdopen(os.dup(1), "w", buffering=1)
    case(seed, 0)
    with tempfile.TemporaryDirectory() as folder, tempfile.TemporaryFile() as console:
        os.dup2(console.fileno(), 1)
        os.dup2(console.fileno(), 2)
        path = Path(folder) / "file.png"
        check_file(case(seed, 0)[1], path)
        files = _open_files()
        for number in range(first, sys.maxsize):
            data = case(seed, number)[1]
            Path("/proc/self/clear_refs").write_text("5")  # reset the peak
            before, start, size = status_bytes("self", "VmRSS"), time.process_time(), os.fstat(2).st_size
            try:
                outcome, finding = check_file(data, path)
            except BaseException as error:
                outcome, finding = "raised", f"{type(error).__name__}: {error}"[:300]
            seconds, taken = time.process_time() - start, status_bytes("self", "VmHWM") - before
            checks = {
                "; ".join(errors): errors,
                f"took {seconds:.1f} s of CPU time": seconds > MAX_CPU_S,
                f"took {taken >> 20} MiB": taken > MAX_MEMORY_BYTES,
                "left files open": _open_files() > files,
                "wrote to the console": os.fstat(2).st_size > size,
            }
            finding = "; ".join([finding] * bool(finding) + [text for text, holds in checks.items() if holds])
            errors.clear()
            line = {"case": number, "outcome": outcome, "finding": finding, "seconds": seconds, "taken": taken}
            out.write(json.dumps({**line, "memory": status_bytes("self", "VmRSS")}) + "\n")


def fuzz_files(*, seconds: float, seed: int, first: int = 0) -> FuzzResult:
    """Run cases from ``first`` on, in their own processes."""
    result, end, number = FuzzResult(), time.monotonic() + seconds, first
    while time.monotonic() < end:
        command = [sys.executable, __file__, "--child", "--seed", str(seed), "--first", str(number)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
            number, exit_reason = _read_results(process, result, number, end)
            process.kill()
            _, stderr = process.communicate()
        if exit_reason:
            tail = stderr.decode(errors="replace")[-300:]
            status = process.returncode
            result.findings.append((number, f"the process {exit_reason}, exit status {status} {tail}"))
            result.outcomes["crashed"] += 1
            number += 1
    return result


def _read_results(process: subprocess.Popen[bytes], result: FuzzResult, number: int, end: float) -> tuple[int, str]:
    """Return the next case, and why the process stopped, or ``""`` when the time is over."""
    assert process.stdout is not None
    while time.monotonic() < end:
        wait_s = min(TIMEOUT_S, max(0.0, end - time.monotonic()))
        if not select.select([process.stdout], [], [], wait_s)[0]:
            return number, f"hung for {TIMEOUT_S:g} s" if wait_s == TIMEOUT_S else ""
        line = process.stdout.readline()
        if not line:
            return number, "exited"
        case_result = json.loads(line)
        number = case_result["case"] + 1
        result.cases += 1
        result.outcomes[case_result["outcome"]] += 1
        result.slowest_s = max(result.slowest_s, round(case_result["seconds"], 2))
        result.largest_bytes = max(result.largest_bytes, case_result["taken"])
        if case_result["finding"]:
            result.findings.append((case_result["case"], case_result["finding"]))
        if result.cases % 100 == 1:
            result.memory.append({"process": case_result["memory"]})
        _progress(f"files: {result.cases} cases, {len(result.findings)} findings", result.cases % 1000 == 0)
    return number, ""


def _progress(text: str, now: bool) -> None:
    if now and sys.stderr.isatty():
        print(f"\r{text}   ", end="", file=sys.stderr, flush=True)
    elif now:
        print(text, file=sys.stderr, flush=True)


@contextlib.contextmanager
def small_server() -> Iterator[Any]:
    """Run a server of a small model with small limits."""
    from explain.small_models import write_small
    from serving.server import running_server

    with tempfile.TemporaryDirectory() as folder:
        model = write_small(Path(folder) / "small.safetensors", image_size=64)
        limits = ["--max-megapixels", 1, "--max-body-mb", 24, "--max-memory-mb", 512, "--reload-interval-s", 0]
        with running_server(model, *limits, OMP_NUM_THREADS="1") as server:
            yield server


def main() -> int:
    """Run the targets and print their results."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--seconds", type=float, default=600, help="time for both targets together")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--first", type=int, default=0, help="first case")
    parser.add_argument("--targets", nargs="+", choices=("files", "http"), default=["files", "http"])
    parser.add_argument("--keep", type=Path, help="folder for the files of findings")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        child(arguments.seed, arguments.first)
    seconds, has_findings = arguments.seconds / len(arguments.targets), False
    for target in arguments.targets:
        if target == "files":
            result = fuzz_files(seconds=seconds, seed=arguments.seed, first=arguments.first)
        else:
            from serving.http_fuzzer import fuzz_http

            with small_server() as server:
                result = fuzz_http(
                    server, seconds=seconds, seed=arguments.seed, first=arguments.first, on_progress=_progress
                )
        print(f"\n{target}: {json.dumps(result.to_dict(), indent=1)}")
        has_findings |= bool(result.findings)
        for number in sorted({number for number, _ in result.findings} - {AFTERWARDS}):
            description, data = case(arguments.seed, number)
            print(f"case {number}: {description}")
            if arguments.keep:
                arguments.keep.mkdir(parents=True, exist_ok=True)
                (arguments.keep / f"seed-{arguments.seed}-case-{number}").write_bytes(data)
    return int(has_findings)


if __name__ == "__main__":
    sys.exit(main())
