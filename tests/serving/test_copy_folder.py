"""Copies of models that a killed server leaves behind are deleted by the next one, and nothing else is."""

import os
import tempfile
from pathlib import Path

import pytest

from serving.server import ServerProcess
from van.errors import UsageError
from van.serving.copy_folder import CopyFolder, delete_stale_folders


@pytest.fixture
def temporary(tmp_path, monkeypatch) -> Path:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


def test_the_folder_of_a_killed_server_is_deleted_and_that_of_a_running_one_is_not(classifier_file, temporary):
    server = ServerProcess(classifier_file, OMP_NUM_THREADS="1", TMPDIR=str(temporary))
    try:
        [folder] = temporary.glob("van-serve-*")
        assert server.wait_until(lambda: list(folder.rglob("*.safetensors")), 30)
        assert delete_stale_folders() == []
        assert list(folder.rglob("*.safetensors"))
    finally:
        server.kill()
    assert folder.is_dir()  # a killed process cannot clean up
    assert delete_stale_folders() == [folder]
    assert list(temporary.glob("van-serve-*")) == []


def test_folders_that_may_belong_to_another_program_are_kept(temporary):
    """A folder without a lock, a file, a link to another folder, and a folder of another user."""
    (temporary / "van-serve-mine").mkdir()
    (temporary / "van-serve-notes").write_text("notes")
    stale = CopyFolder()
    elsewhere = stale.path.rename(temporary / "elsewhere")
    os.close(stale._lock)  # as if its process had exited
    (temporary / "van-serve-link").symlink_to(elsewhere)
    kept = {"van-serve-mine", "van-serve-notes", "van-serve-link", "elsewhere"}
    if os.getuid() == 0:
        other = CopyFolder()
        os.close(other._lock)
        os.chown(other.path, 12345, 12345)
        kept.add(other.path.name)
    assert delete_stale_folders() == []
    assert {path.name for path in temporary.iterdir()} == kept
    elsewhere.rename(temporary / "van-serve-again")  # negative control: under a server's name it is deleted
    assert delete_stale_folders() == [temporary / "van-serve-again"]


def test_a_server_that_stops_in_order_removes_its_folder(temporary):
    folder = CopyFolder()
    (folder.path / "model").write_text("weights")
    assert delete_stale_folders() == []
    folder.remove()
    folder.remove()  # a server may be stopped twice
    assert list(temporary.iterdir()) == []


def test_a_missing_temporary_folder_is_reported_with_tmpdir(temporary, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(temporary / "none"))
    with pytest.raises(UsageError, match="TMPDIR"):
        CopyFolder()


def test_a_server_that_does_not_start_leaves_no_open_pipes(tmp_path):
    before = set(Path("/proc/self/fd").iterdir())
    with pytest.raises(AssertionError, match=r"none\.safetensors"):
        ServerProcess(tmp_path / "none.safetensors")
    assert set(Path("/proc/self/fd").iterdir()) <= before
