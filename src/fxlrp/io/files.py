"""Writes files whole or not at all, and says before the work whether it can."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

from ..errors import InputError, MissingExtraError

__all__ = ["check_output", "check_picture", "write_file"]


def check_output(path: str | Path, endings: Collection[str] = ()) -> None:
    """See that a file can be written, before the work whose result it is to hold.

    Parameters
    ----------
    path : str or Path
        The file.
    endings : collection of str
        Those that it may have, such as ".png". None given: any.

    Raises
    ------
    InputError
        If it has another ending or none, its folder is not there, or nothing can be written there.
    """
    path = Path(path)
    if endings and path.suffix.lower() not in endings:
        has = f"ends in {path.suffix}" if path.suffix else "has no ending"
        raise InputError(f"cannot write {path}: it {has}, and is to end in {', '.join(sorted(endings))}")
    target = _target(path)
    try:
        if not target.parent.is_dir():
            raise InputError(f"cannot write {path}: there is no folder {target.parent}")
        if target.exists():
            if not target.is_file():
                raise InputError(f"cannot write {path}: it is {'a folder' if target.is_dir() else 'not a file'}")
            target.open("ab").close()  # Not even a file that is protected is replaced.
        _temporary(target).open("wb").close()
    except OSError as error:
        raise InputError(f"cannot write {path}: {error.strerror or error}") from error
    finally:
        _remove(_temporary(target))


def check_picture(path: str | Path) -> None:
    """See that a picture can be written, before what it is to show is computed.

    Raises
    ------
    InputError
        If its ending is not that of a picture, or nothing can be written there.
    MissingExtraError
        If matplotlib is not installed.
    """
    try:
        from matplotlib.backend_bases import FigureCanvasBase
    except ImportError as error:
        raise MissingExtraError("drawing", "matplotlib", "plot") from error
    check_output(path, [f".{ending}" for ending in FigureCanvasBase.get_supported_filetypes()])


def write_file(path: str | Path, writing: Callable[[BinaryIO], object]) -> None:
    """Write a file whole or not at all: after an interruption, or on a full disk, the one before is still there.

    Parameters
    ----------
    path : str or Path
        The file.
    writing : callable
        Gets a binary file, to write to.

    Raises
    ------
    InputError
        If it cannot be written.
    """
    target = _target(Path(path))
    temporary = _temporary(target)
    try:
        with temporary.open("wb") as file:
            writing(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, target)
    # Where the disk is full, torch.save raises a RuntimeError that does not say so.
    except (OSError, RuntimeError) as error:
        reason = getattr(error, "strerror", None) or f"the disk may be full ({str(error).partition(chr(10))[0]})"
        raise InputError(f"cannot write {path}: {reason}") from error
    finally:
        _remove(temporary)


def _target(path: Path) -> Path:
    """Where a link leads: the link stays."""
    return Path(os.path.realpath(path))


def _temporary(path: Path) -> Path:
    """In the same folder, and of this process alone."""
    return path.with_name(f".{path.name}.{os.getpid()}.tmp")


def _remove(path: Path) -> None:
    with suppress(OSError):
        path.unlink()
