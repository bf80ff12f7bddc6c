"""What was measured of each image, in a file: an evaluation that was interrupted goes on where it was."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence, Set
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ..errors import InputError
from ..io.files import write_file
from .batches import Batch

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
    digest : str
        Of the image, its class and its mask.
    """

    image: int
    values: Mapping[str, Mapping[str, float]]
    curves: Mapping[str, Mapping[str, tuple[Sequence[float], Sequence[float]]]] = field(default_factory=dict)
    digest: str = ""


class Storage:
    """Rows of images by their numbers, in memory and, if there is a path, in a file of lines of JSON.

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
        self.path, self.rows = None if path is None else Path(path), dict[int, ImageRow]()
        if self.path is None:
            return
        header, text = json.dumps(about), self._read()
        self._check_header(text, header)
        whole = text[: text.rfind("\n") + 1]
        if whole != text:  # A last line that was broken off is taken away.
            write_file(self.path, lambda file: file.write(whole.encode()))
        if not whole:
            self._append(header)
        self.rows = {line["image"]: ImageRow(**line) for line in map(json.loads, whole.splitlines()[1:])}

    @property
    def done(self) -> Set[int]:
        """The images of which there is a row."""
        return self.rows.keys()

    def add(self, row: ImageRow) -> None:
        """Keep a row."""
        self.rows[row.image] = row
        if self.path is not None:
            self._append(json.dumps(asdict(row)))

    def check(self, batch: Batch) -> None:
        """See that the images of a batch are those of which there are rows.

        Raises
        ------
        InputError
            If one is another.
        """
        for i, number in enumerate(batch.numbers):
            if number in self.rows and self.rows[number].digest != batch.digest(i):
                raise InputError(
                    f"{self.path} holds numbers of another image {number}, class or mask than the loader gives: let "
                    "it give the same ones in the same order, without augmentation, or name another file"
                )

    def _append(self, line: str) -> None:
        assert self.path is not None
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("a") as file:
                file.write(f"{line}\n")
        except OSError as error:
            raise InputError(f"cannot write {self.path}: {error.strerror}") from error

    def _read(self) -> str:
        """What is in the file; nothing if there is none."""
        assert self.path is not None
        try:
            return self.path.read_text() if self.path.exists() else ""
        except UnicodeDecodeError as error:
            raise self._is_no_evaluation() from error
        except OSError as error:
            raise InputError(f"cannot read {self.path}: {error.strerror}") from error

    def _check_header(self, text: str, header: str) -> None:
        """Nothing is written into a file, or taken from it, that is not of this evaluation."""
        if text.startswith(f"{header}\n") or f"{header}\n".startswith(text):
            return
        try:
            found, about = json.loads(text.partition("\n")[0]), json.loads(header)
            differing = [name for name in {**about, **found} if about.get(name) != found.get(name)]
        except (TypeError, ValueError) as error:
            raise self._is_no_evaluation() from error
        raise InputError(
            f"{self.path} holds another evaluation, which differs in {', '.join(differing)}: name another file, or "
            "delete it"
        )

    def _is_no_evaluation(self) -> InputError:
        return InputError(f"{self.path} is no file of an evaluation: name one that is not there yet")
