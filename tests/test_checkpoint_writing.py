"""Writing is atomic: kills, full disks and errors leave the previous file intact, and leftovers are removed."""

import os
import stat
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from van.checkpoint import Checkpoint, atomic_path, load_checkpoint, write_text
from van.errors import CheckpointError, ImageError
from van.preprocess import CenterCropPreprocess


def checkpoint(step: int, size: int = 1000) -> Checkpoint:
    return Checkpoint(
        task="classify", model="van_b0", class_names=("a",), preprocess=CenterCropPreprocess(),
        state={"w": torch.full((size,), float(step))}, training_state={"step": step},
    )  # fmt: skip


SCRIPT = """
import os, random, resource, signal, sys, time
from pathlib import Path
import torch
from van.checkpoint import Checkpoint, atomic_path, load_checkpoint, write_text
from van.errors import CheckpointError
from van.preprocess import CenterCropPreprocess

folder = Path(sys.argv[1])
path = folder / "last.safetensors"

def checkpoint(step, size):
    return Checkpoint(task="classify", model="van_b0", class_names=("a",), preprocess=CenterCropPreprocess(),
                      state={"w": torch.full((size,), float(step))}, training_state={"step": step})

def others():
    return sorted(entry.name for entry in folder.iterdir() if entry != path)
"""

KILLS = (
    SCRIPT
    + """
began = time.monotonic()
checkpoint(0, 1_000_000).save(path)
one_save_s = time.monotonic() - began
loaded_ids = set()
for kill in range(20):
    child = os.fork()
    if child == 0:
        if kill == 0:
            with atomic_path(path) as temporary:
                temporary.write_bytes(b"half of the file")
                os.kill(os.getpid(), signal.SIGKILL)
        step = 1000 * kill
        while True:
            step += 1
            checkpoint(step, 1_000_000).save(path)
    time.sleep(random.uniform(0, 3 * one_save_s))  # a random moment
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    loaded = load_checkpoint(path)
    assert loaded.state["w"].eq(loaded.training_state["step"]).all()
    assert all(name.startswith(".last.safetensors.") and name.endswith(".partial") for name in others()), others()
    loaded_ids.add(loaded.training_state["step"])
print(len(others()), len(loaded_ids))
"""
)

FULL_DISK = (
    SCRIPT
    + """
checkpoint(1, 1000).save(path)
(folder / "log").write_text("old")
resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, resource.RLIM_INFINITY))

def refused(write):
    try:
        write()
    except CheckpointError as error:
        return str(error)

print(refused(lambda: checkpoint(2, 100_000).save(path)))
print(refused(lambda: checkpoint(2, 100_000).save(folder / "new")))
print(refused(lambda: write_text(folder / "log", "x" * 30_000)))
assert load_checkpoint(path).training_state["step"] == 1
assert (folder / "log").read_text() == "old"
assert others() == ["log"], others()
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
checkpoint(3, 100_000).save(path)
assert load_checkpoint(path).training_state["step"] == 3
"""
)


def test_a_process_killed_while_it_saves_leaves_a_complete_checkpoint(run_python, tmp_path):
    """Twenty kills at random moments of back-to-back saves, the first one always in the middle of a save."""
    leftovers, different = map(int, run_python(KILLS, str(tmp_path), OMP_NUM_THREADS="1").split())
    assert leftovers >= 1  # kills did hit saves
    assert different >= 2  # and saves did happen between them


def test_a_full_disk_keeps_the_previous_checkpoint_and_the_error_names_it(run_python, tmp_path):
    old, new, text = run_python(FULL_DISK, str(tmp_path), OMP_NUM_THREADS="1").splitlines()
    for message, name in ((old, "last.safetensors"), (new, "new"), (text, "log")):
        assert str(tmp_path / name) in message
        assert "File too large" in message
    assert "previous last.safetensors" in old
    assert "previous" not in new


def test_the_leftovers_of_a_killed_save_are_removed_once_they_are_old(tmp_path):
    """A young leftover may belong to a running process, and one of another name to another save."""

    def leave(name: str, age_s: float) -> None:
        folder = tmp_path / name
        folder.mkdir()
        (folder / "a.safetensors").write_bytes(b"half")
        for path in (folder / "a.safetensors", folder):
            os.utime(path, (time.time() - age_s,) * 2)

    leave(".[a]*.old.partial", 3700)
    write_text(tmp_path / "[a]*", "x")
    assert [path.name for path in tmp_path.iterdir()] == ["[a]*"]
    (tmp_path / "[a]*").unlink()
    leave(".a.safetensors.old.partial", 3700)
    leave(".a.safetensors.young.partial", 3000)
    leave(".b.safetensors.old.partial", 9999)
    leave(".a.safetensors.busy.partial", 9999)
    os.utime(tmp_path / ".a.safetensors.busy.partial" / "a.safetensors")  # an old folder whose file is being written
    checkpoint(1).save(tmp_path / "a.safetensors")
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        ".a.safetensors.busy.partial", ".a.safetensors.young.partial", ".b.safetensors.old.partial", "a.safetensors",
    ]  # fmt: skip


def test_names_with_special_characters_are_written(tmp_path, subtests):
    for name in ["[a]*?.safetensors", "a b", "-x", "ü"]:
        with subtests.test(name=str(name)):
            write_text(tmp_path / name, "text")
            assert (tmp_path / name).read_text() == "text"
            (tmp_path / name).unlink()
            assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("umask", [0o022, 0o027, 0o077, 0o000])
@pytest.mark.parametrize("write", [lambda path: checkpoint(1).save(path), lambda path: write_text(path, "x")])
def test_permissions_equal_those_of_a_plain_open(tmp_path, umask, write):
    before = os.umask(umask)
    try:
        (tmp_path / "plain").write_text("x")
        write(tmp_path / "ours")
    finally:
        os.umask(before)
    assert mode(tmp_path / "ours") == mode(tmp_path / "plain") == 0o666 & ~umask


def mode(path):
    return stat.S_IMODE(path.stat().st_mode)


def test_replacing_a_file_keeps_its_permissions(tmp_path):
    write_text(tmp_path / "a", "x")
    (tmp_path / "a").chmod(0o640)
    checkpoint(1).save(tmp_path / "a")
    assert mode(tmp_path / "a") == 0o640


def test_a_symbolic_link_is_followed_and_kept(tmp_path):
    (tmp_path / "big disk").mkdir()
    (tmp_path / "a").symlink_to(tmp_path / "big disk" / "real")
    checkpoint(1).save(tmp_path / "a")
    checkpoint(2).save(tmp_path / "a")
    assert (tmp_path / "a").is_symlink()
    assert load_checkpoint(tmp_path / "big disk" / "real").training_state == {"step": 2}


def test_missing_folders_are_created(tmp_path):
    checkpoint(1).save(tmp_path / "runs" / "one" / "a")
    assert load_checkpoint(tmp_path / "runs" / "one" / "a").training_state == {"step": 1}


def test_a_path_below_a_file_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(CheckpointError, match=r"file/a: .*(Not a directory|File exists)"):
        checkpoint(1).save(tmp_path / "file" / "a")
    assert (tmp_path / "file").read_text() == "x"


def test_a_name_too_long_cannot_be_written(tmp_path):
    with pytest.raises(CheckpointError, match="File name too long"):
        checkpoint(1).save(tmp_path / ("x" * 300))


def test_a_folder_and_a_pipe_are_not_replaced(tmp_path):
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "pipe")
    for name in ("folder", "pipe"):
        with pytest.raises(CheckpointError, match=rf"{name}: .*regular file"):
            checkpoint(1).save(tmp_path / name)
    assert stat.S_ISFIFO((tmp_path / "pipe").stat().st_mode)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["folder", "pipe"]


def test_an_error_in_the_block_propagates_and_nothing_is_replaced(tmp_path, subtests):
    for error in [ImageError("a.png", "is empty"), ValueError("x"), KeyboardInterrupt()]:
        with subtests.test(error=str(error)):
            write_text(tmp_path / "a", "old")

            def interrupted() -> None:
                with atomic_path(tmp_path / "a") as temporary:
                    temporary.write_text("new")
                    raise error

            with pytest.raises(type(error)) as caught:
                interrupted()
            assert caught.value is error
            assert (tmp_path / "a").read_text() == "old"
            assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_the_temporary_file_keeps_the_suffix(tmp_path):
    """Some writers choose the format by the suffix."""
    with atomic_path(tmp_path / "a.png") as temporary:
        assert temporary.name == "a.png"
        temporary.write_text("x")


def test_threads_that_save_the_same_path_leave_one_complete_file(tmp_path):
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda step: checkpoint(step).save(tmp_path / "a"), range(40)))
    loaded = load_checkpoint(tmp_path / "a")
    assert loaded.state["w"].eq(loaded.training_state["step"]).all()
    assert [path.name for path in tmp_path.iterdir()] == ["a"]
