"""What a model says of a class, of images of which parts are filled, a batch at a time."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import InputError, TargetError
from ..given import check_choice, check_count, inputs_of
from ..relevance.seeds import Target, as_tensor, is_given, seed_relevance
from ..values import widened
from .fills import Filled

__all__ = ["SCORES", "Model", "Score", "Scorer", "check_seed", "check_sizes", "classes_of", "image_batch"]

Model = Callable[[Tensor], Any]
"""A classifier: returns its outputs (n, C), or what holds them as `.logits` or `.output`."""

Score = str | Callable[[Tensor], Tensor]
"""What of an output (n, C) is looked at: "logit", "probability", or a function that returns (n,)."""

SCORES = ("logit", "probability")


class Scorer:
    """A model's scores of the class that is explained, for images and for versions of these.

    Parameters
    ----------
    model : callable
        A classifier, in evaluation mode; it is called without gradients, and its mode is not changed.
    x : Tensor
        The images, (B, C, H, W).
    target : int, sequence of int, array, Tensor or None
        The class of each image; None: that of the highest output for `x`.
    score : str or callable
        Of the output.
    batch_size : int or None
        How many images go into one call, at most.

    Attributes
    ----------
    original : Tensor
        The scores of `x` itself, (B,).

    Raises
    ------
    InputError
        If a layer of the model is in training mode, the output is not that of a classifier, or there is no such score.
    TargetError
        If the target does not fit the output.
    """

    def __init__(self, model: Model, x: Tensor, target: Target, score: Score, batch_size: int | None) -> None:
        check_mode(model)
        check_count("batch_size", batch_size)
        if not callable(score):
            check_choice("score", score, SCORES)
        self.model, self.images, self.score, self.batch_size = model, x, score, batch_size or sys.maxsize
        # Copies: a model's first op may work in place.
        outputs = torch.cat([self._outputs(images.clone()) for images in x.split(min(self.batch_size, len(x)))])
        self.classes = None if callable(score) and target is None else classes_of(outputs, target)
        self.original = self._scores(outputs, torch.arange(len(x), device=x.device))

    def of_filled(self, filled: Filled, masks: Callable[[int, slice], Tensor], steps: int) -> Tensor:
        """The scores of each image at each step, (B, S).

        Parameters
        ----------
        filled : callable
            From `fxlrp.metrics.fills.filling`.
        masks : callable
            Of an image's index and a slice of the steps, the masks (n, 1, H, W).
        steps : int
            How many there are.
        """
        total = len(self.images) * steps
        size = min(self.batch_size, total)
        # One piece of memory for all batches: most of the time would go to asking for new ones.
        room = self.images.new_empty(size, *self.images.shape[1:])
        found = []
        for start in range(0, total, size):
            at, stop = start, min(start + size, total)
            while at < stop:
                image, step = divmod(at, steps)
                end = min(stop, at - step + steps)
                filled(image, masks(image, slice(step, step + end - at)), room[at - start : end - start])
                at = end
            which = torch.arange(start, stop, device=self.images.device) // steps
            found.append(self._scores(self._outputs(room[: stop - start]), which))
        return torch.cat(found).reshape(-1, steps)

    def _outputs(self, images: Tensor) -> Tensor:
        outputs = widened(output_of(self.model(images)))
        if outputs.ndim == 1:
            outputs = outputs.unsqueeze(1)
        if len(outputs) != len(images) or (outputs.ndim != 2 and not callable(self.score)):
            raise InputError(
                f"the model's output for {len(images)} images is of shape {tuple(outputs.shape)}: a classifier's is "
                "(B, C). Of any other, give score= a function of the output that returns one number for each image"
            )
        return outputs

    def _scores(self, outputs: Tensor, which: Tensor) -> Tensor:
        if callable(self.score):
            found = self.score(outputs)
            if not isinstance(found, Tensor) or found.shape != outputs.shape[:1]:
                what = tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__
                raise InputError(f"score returns one number for each image, ({len(outputs)},), not {what}")
            return found.clone()  # It may be a view of the images.
        if self.score == "probability":
            if outputs.shape[1] == 1:
                raise InputError(
                    "a model with one output has no probability by softmax: give score=, such as a sigmoid"
                )
            outputs = outputs.softmax(1)
        assert self.classes is not None
        return outputs.gather(1, self.classes[which, None]).squeeze(1)


def output_of(found: Any) -> Tensor:
    """The outputs (B, C), of whatever a classifier returns: a tensor, `.logits`, `.output`, or the first of several.

    Raises
    ------
    InputError
        If there is no tensor in it.
    """
    if isinstance(found, Tensor):
        return found
    for name in ("logits", "output"):
        inner = found.get(name) if isinstance(found, Mapping) else getattr(found, name, None)
        if isinstance(inner, Tensor):
            return inner
    if isinstance(found, tuple | list) and found and isinstance(found[0], Tensor):
        return found[0]
    raise InputError(
        f"the model returns a {type(found).__name__}, in which no tensor is named 'logits' or 'output': give a "
        "function of the images that returns the outputs (B, C)"
    )


def classes_of(output: Tensor, target: Target) -> Tensor:
    """The class of each image, (B,), int64, on the output's device.

    Parameters
    ----------
    output : Tensor
        Shape (B, C, ...).
    target : int, sequence of int, array, Tensor or None
        As of `fxlrp.seed_relevance`, but for seeds: those are no classes.

    Returns
    -------
    Tensor
        Shape (B,).

    Raises
    ------
    TargetError
        If a class is out of range, there is not one for each image, or a seed was given.
    """
    target = as_tensor(target)
    if is_given(target):
        raise TargetError(
            "this looks at one class of each image, and a seed or a function of the output is none: give None, a class "
            "(int), or ints (B,)"
        )
    if target is None:
        return output.argmax(1)
    # On the CPU, where looking at a class that is out of range does no harm.
    one_each = torch.ones(output.shape[:2], device="cpu")
    return seed_relevance(one_each, target.cpu() if isinstance(target, Tensor) else target).argmax(1).to(output.device)


def check_mode(model: object) -> None:
    """Raise an `InputError` if a layer that acts otherwise in training mode is in it."""
    if not isinstance(model, nn.Module):
        return
    for path, module in model.named_modules():
        if module.training and isinstance(module, nn.modules.batchnorm._NormBase | nn.modules.dropout._DropoutNd):
            raise InputError(
                f"the model's {type(module).__name__} '{path}' is in training mode, where scores depend on chance or "
                "on the other images of a batch: call model.eval() first"
            )


def check_seed(seed: object) -> None:
    """Raise an `InputError` if `seed` is no whole number."""
    if isinstance(seed, bool) or not isinstance(seed, int):
        raise InputError(f"seed is a whole number, not {seed!r} ({type(seed).__name__})")


def check_sizes(**sizes: object) -> None:
    """Raise an `InputError` if one of these is no whole number of at least 1."""
    for name, value in sizes.items():
        if value is None:
            raise InputError(f"{name} is a whole number, at least 1, not None")
        check_count(name, value)


def image_batch(x: object, heat: Tensor | None = None) -> Tensor:
    """The images (B, C, H, W), detached, if they are such and belong to this pooled heatmap (B, H, W).

    Raises
    ------
    InputError
        If they do not.
    """
    (images,) = inputs_of(x if isinstance(x, Tensor) else (x,))
    if images.ndim != 4 or not images.is_floating_point() or not len(images):
        raise InputError(
            f"images are floating-point, of shape (B, C, H, W), and there is one: not {images.dtype}, "
            f"{tuple(images.shape)}"
        )
    if heat is not None and (len(images), *images.shape[2:]) != tuple(heat.shape):
        raise InputError(f"heatmaps {tuple(heat.shape)} (B, H, W) are not those of images {tuple(images.shape)}")
    return images.detach()
