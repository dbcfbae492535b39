"""What a killed service leaves behind is deleted by the next one, and nothing else is."""

import os
import tempfile
from pathlib import Path

import pytest

from serve.running import Running
from van.errors import UsageError
from van.serve.folder import OwnFolder, remove_left_behind


@pytest.fixture
def temporary(tmp_path, monkeypatch) -> Path:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


def test_copies_of_a_service_that_was_killed_are_deleted_and_those_of_a_living_one_are_not(small_file, temporary):
    server = Running(small_file, OMP_NUM_THREADS="1", TMPDIR=str(temporary))
    try:
        [folder] = temporary.glob("van-serve-*")
        assert server.wait_until(lambda: list(folder.rglob("*.safetensors")), 30)
        assert remove_left_behind() == []
        assert list(folder.rglob("*.safetensors"))
    finally:
        server.kill()
    assert folder.is_dir()  # nobody could tidy up
    assert remove_left_behind() == [folder]
    assert list(temporary.glob("van-serve-*")) == []


def test_what_is_not_known_to_be_a_services_own_stays(temporary):
    """A folder without a lock, a file, a link to a folder elsewhere, and one of another user."""
    (temporary / "van-serve-mine").mkdir()
    (temporary / "van-serve-notes").write_text("notes")
    left = OwnFolder()
    elsewhere = left.path.rename(temporary / "elsewhere")
    os.close(left._lock)  # as if its process had ended
    (temporary / "van-serve-link").symlink_to(elsewhere)
    there = {"van-serve-mine", "van-serve-notes", "van-serve-link", "elsewhere"}
    if os.getuid() == 0:
        other = OwnFolder()
        os.close(other._lock)
        os.chown(other.path, 12345, 12345)
        there.add(other.path.name)
    assert remove_left_behind() == []
    assert {path.name for path in temporary.iterdir()} == there
    elsewhere.rename(temporary / "van-serve-again")  # the control: under its name it goes
    assert remove_left_behind() == [temporary / "van-serve-again"]


def test_a_folder_is_gone_when_its_service_ends_in_order(temporary):
    own = OwnFolder()
    (own.path / "model").write_text("weights")
    assert remove_left_behind() == []
    own.remove()
    own.remove()  # a service that is stopped twice
    assert list(temporary.iterdir()) == []


def test_where_nothing_can_be_written_the_way_out_is_told(temporary, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(temporary / "none"))
    with pytest.raises(UsageError, match="set TMPDIR"):
        OwnFolder()


def test_a_service_that_does_not_start_leaves_the_test_no_open_pipes(tmp_path):
    before = set(Path("/proc/self/fd").iterdir())
    with pytest.raises(AssertionError, match="no such file"):
        Running(tmp_path / "none.safetensors")
    assert set(Path("/proc/self/fd").iterdir()) <= before
