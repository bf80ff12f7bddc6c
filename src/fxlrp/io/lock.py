"""Keeps a folder to one process."""

from __future__ import annotations

import errno
import os
import platform
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from ..errors import InputError

__all__ = ["alone_in"]

LOCK = ".lock"

if sys.platform == "win32":
    import msvcrt

    def _lock(file: IO[str]) -> None:
        file.seek(2**20)  # What is locked cannot be read, and the name of the process is to be.
        msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)

else:
    import fcntl

    held: set[IO[str]] = set()
    # A process that was forked, as those that read images are, would keep the lock if this one is killed.
    os.register_at_fork(after_in_child=lambda: [file.close() for file in held])

    def _lock(file: IO[str]) -> None:
        held.add(file)
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


@contextmanager
def alone_in(folder: Path) -> Iterator[None]:
    """Keep a folder to this process, as long as the context lasts or the process lives.

    Parameters
    ----------
    folder : Path
        It is made if it is not there. It gets a file that is locked, and deleted in the end.

    Raises
    ------
    InputError
        If another process has it, or nothing can be written there.
    """
    path = folder / LOCK
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = _acquired(path)
    except OSError as error:
        raise InputError(f"cannot write to {folder}: {error.strerror or error}") from error
    try:
        yield
    finally:
        # First deleted, then let go: nobody gets a lock on a file that is deleted afterwards.
        with suppress(OSError):
            path.unlink()
        _close(file)


def _acquired(path: Path) -> IO[str]:
    while True:
        file = path.open("a+")
        try:
            _lock(file)
        except OSError as error:
            if error.errno in (errno.EAGAIN, errno.EACCES, errno.EDEADLK):
                raise _taken(path, file) from error
            warnings.warn(
                f"{path.parent} is on a file system without locks ({error.strerror}): see to it that no other process "
                "writes there",
                stacklevel=5,
            )
        if _is_there(path, file):
            file.truncate(0)
            file.write(f"process {os.getpid()} on {platform.node()}")
            file.flush()
            return file
        _close(file)


def _taken(path: Path, file: IO[str]) -> InputError:
    file.seek(0)
    who = file.read() or "another process"
    _close(file)
    return InputError(f"{path.parent} is in use by {who}: wait until that ends, end it, or write to another folder")


def _is_there(path: Path, file: IO[str]) -> bool:
    """Whether a path still leads to the file: whoever had it before may have deleted it."""
    try:
        return os.path.samestat(path.stat(), os.fstat(file.fileno()))
    except FileNotFoundError:
        return False


def _close(file: IO[str]) -> None:
    if sys.platform != "win32":
        held.discard(file)
    file.close()
