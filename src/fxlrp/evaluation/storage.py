"""What was measured of each image, in a file: an evaluation that was interrupted goes on where it was."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..errors import InputError
from ..io.files import write_file

__all__ = ["ImageRow", "Storage"]


@dataclass(frozen=True)
class ImageRow:
    """What was measured of one image.

    Attributes
    ----------
    image : int
        Its number in the loader.
    values : dict
        ``values[way][metric]``.
    curves : dict
        ``curves[way][order] = (shares, scores)``.
    """

    image: int
    values: Mapping[str, Mapping[str, float]]
    curves: Mapping[str, Mapping[str, tuple[Sequence[float], Sequence[float]]]] = field(default_factory=dict)


class Storage:
    """Rows of images, in memory and, if there is a path, in a file of lines of JSON.

    Parameters
    ----------
    path : str, Path or None
        The file; one that is there is read.
    about : dict
        What the rows depend on: of a file that says otherwise, nothing is read.

    Raises
    ------
    InputError
        If the file is of another evaluation, or none.
    """

    def __init__(self, path: str | Path | None, about: Mapping[str, Any]) -> None:
        self._path, self.rows = None if path is None else Path(path), list[ImageRow]()
        about = json.loads(json.dumps(about))
        if self._path is None:
            return
        if not self._path.exists():
            self._append(about)
            return
        lines = list(self._lines())
        if not lines or not isinstance(lines[0], dict):
            raise InputError(f"{path} is no file of an evaluation: name one that is not there yet")
        if differing := [name for name in {*about, *lines[0]} if about.get(name) != lines[0].get(name)]:
            raise InputError(
                f"{path} holds another evaluation, which differs in {', '.join(sorted(differing))}: name another file, "
                "or delete it"
            )
        self.rows = [ImageRow(line["image"], line["values"], line["curves"]) for line in lines[1:]]

    @property
    def done(self) -> set[int]:
        """The images of which there is a row."""
        return {row.image for row in self.rows}

    def add(self, row: ImageRow) -> None:
        """Keep a row."""
        self.rows.append(row)
        if self._path is not None:
            self._append({"image": row.image, "values": row.values, "curves": row.curves})

    def _append(self, line: Mapping[str, Any]) -> None:
        assert self._path is not None
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with self._path.open("a") as file:
                file.write(json.dumps(line) + "\n")
        except OSError as error:
            raise InputError(f"cannot write {self._path}: {error.strerror}") from error

    def _lines(self) -> Iterator[Any]:
        """What was written whole: a last line that was broken off is taken away."""
        assert self._path is not None
        text = self._path.read_text()
        whole = text[: text.rfind("\n") + 1]
        if whole != text:
            write_file(self._path, lambda file: file.write(whole.encode()))
        for line in whole.splitlines():
            try:
                yield json.loads(line)
            except ValueError as error:
                raise InputError(f"{self._path} is no file of an evaluation: name one that is not there yet") from error
