"""The folder with the private copies of one server, and the removal of folders that killed servers left behind.

A server holds a lock on a file in its folder as long as it runs; the operating system releases the lock however the
process ends. The next server that starts deletes folders whose lock is free. A folder without a lock file, or of
another user, is kept, as it may belong to another program.
"""

import contextlib
import fcntl
import os
import shutil
import stat
import tempfile
from pathlib import Path

from van.errors import UsageError

_PREFIX, _LOCK_NAME = "van-serve-", ".held-by-van-serve"


class CopyFolder:
    """A new, locked folder of this process.

    Raises:
        UsageError: the folder cannot be created.
    """

    def __init__(self) -> None:
        try:
            self.path = Path(tempfile.mkdtemp(prefix=_PREFIX))
        except OSError as error:
            reason = error.strerror or str(error)
            raise UsageError(
                f"cannot create a folder for copies of the models ({reason}); set TMPDIR to a writable folder"
            ) from error
        self._lock = _create_lock(self.path)

    def remove(self) -> None:
        """Delete the folder with its contents and release the lock."""
        shutil.rmtree(self.path, ignore_errors=True)
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None


def delete_stale_folders() -> list[Path]:
    """Delete the folders of servers of this user that no longer run; returns them."""
    deleted = []
    for folder in Path(tempfile.gettempdir()).glob(f"{_PREFIX}*"):
        with contextlib.suppress(OSError), contextlib.ExitStack() as resources:
            if not stat.S_ISDIR(folder.lstat().st_mode) or folder.lstat().st_uid != os.getuid():
                continue
            lock = os.open(folder / _LOCK_NAME, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
            resources.callback(os.close, lock)
            if os.fstat(lock).st_uid != os.getuid():
                continue
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # raises OSError if its server still runs
            shutil.rmtree(folder)
            deleted.append(folder)
    return deleted


def _create_lock(folder: Path) -> int | None:
    """Create the lock file; returns its descriptor, or None where the file system has no locks."""
    unnamed = folder / f"{_LOCK_NAME}.new"
    with contextlib.suppress(OSError), contextlib.ExitStack() as resources:
        lock = os.open(unnamed, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        resources.callback(os.close, lock)
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        unnamed.rename(folder / _LOCK_NAME)  # only when locked, or another server could delete the folder meanwhile
        resources.pop_all()
        return lock
    return None
