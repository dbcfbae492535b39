"""The folder of a service's private copies, and those that services left which were killed.

A service holds a lock on a file in its folder for as long as it lives; the system opens the lock however the process
ends. The next service that starts deletes a folder whose lock is open. One without a lock file, or of another user, is
left alone: it may be anybody's.
"""

import contextlib
import fcntl
import os
import shutil
import stat
import tempfile
from pathlib import Path

from van.errors import UsageError

_PREFIX, _LOCK = "van-serve-", ".held-by-van-serve"


class OwnFolder:
    """A new folder of this process alone.

    Raises:
        UsageError: there is no place for it.
    """

    def __init__(self) -> None:
        try:
            self.path = Path(tempfile.mkdtemp(prefix=_PREFIX))
        except OSError as error:
            told = error.strerror or str(error)
            raise UsageError(
                f"no folder can be made for copies of the models ({told}); set TMPDIR to one that can be written"
            ) from error
        self._lock = _locked(self.path)

    def remove(self) -> None:
        """Delete it with all that is in it."""
        shutil.rmtree(self.path, ignore_errors=True)
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None


def remove_left_behind() -> list[Path]:
    """Delete the folders of this user's services that are no more; returns them."""
    removed = []
    for folder in Path(tempfile.gettempdir()).glob(f"{_PREFIX}*"):
        with contextlib.suppress(OSError), contextlib.ExitStack() as held:
            if not stat.S_ISDIR(folder.lstat().st_mode) or folder.lstat().st_uid != os.getuid():
                continue
            lock = os.open(folder / _LOCK, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
            held.callback(os.close, lock)
            if os.fstat(lock).st_uid != os.getuid():
                continue
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # an error where its service lives
            shutil.rmtree(folder)
            removed.append(folder)
    return removed


def _locked(folder: Path) -> int | None:
    """The lock, which is held before it has its name; None where locks are not to be had."""
    unnamed = folder / f"{_LOCK}.new"
    with contextlib.suppress(OSError), contextlib.ExitStack() as held:
        lock = os.open(unnamed, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        held.callback(os.close, lock)
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        unnamed.rename(folder / _LOCK)
        held.pop_all()
        return lock
    return None
