"""What `explain` and `audit` begin with: the model, the image and the class of a question."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image
from rich.console import Console
from torch import Tensor
from zennit.core import Composite

from ..composites import resolve
from ..conversion import convert
from ..errors import ModelError
from ..io.images import read_image
from ..twin import Twin
from ..zoo import LoadedModel, find_class, load
from .options import Question

__all__ = ["Subject", "load_subject", "twin_of"]


@dataclass(frozen=True)
class Subject:
    """What a question is about.

    Attributes
    ----------
    loaded : LoadedModel
        The model.
    composite : Composite
        The rules; one that needs the input's bounds has those of the model's own normalisation.
    picture : Image or None
        What the model is to look at, if an image was given.
    index : int or None
        The class; None for the most probable one.
    """

    loaded: LoadedModel
    composite: Composite
    picture: Image.Image | None
    index: int | None


def load_subject(console: Console, question: Question, image: Path | None) -> Subject:
    """Find what a question asks for. What is wrong is told before the work, not after.

    Raises
    ------
    CompositeError, ModelError, TargetError
        If there is no such composite, model or class.
    InputError
        If the image cannot be read.
    """
    resolve(question.composite)
    picture = None if image is None else read_image(image)
    with console.status("Loading the model …"):
        loaded = load(question.model, question.weights, classes=question.classes)
    index = None if question.target is None else find_class(loaded.classes, question.target)
    return Subject(loaded, resolve(question.composite, loaded.bounds), picture, index)


def twin_of(console: Console, subject: Subject, x: Tensor) -> Twin:
    """Convert the model.

    Raises
    ------
    ModelError
        If its output is not finite: there would be nothing to explain.
    """
    model = subject.loaded.model
    with torch.no_grad():
        if not model(x).isfinite().all():
            raise ModelError("the model's output is not finite (NaN or infinite): its weights are too large")
    with console.status("Converting the model …"):
        return convert(model, subject.composite, example_inputs=x)
