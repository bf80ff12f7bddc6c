"""Randomization: whether a heatmap changes when the class does, or the model's parameters."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor, nn

from ..errors import InputError
from ..given import check_choice, check_count, check_model
from ..models import duplicate
from ..relevance.seeds import Target
from .explaining import Explain, Explained, explained, fixed
from .pooling import Pool, pooled
from .scoring import check_seed, image_batch
from .similarity import Similarity, similarity_of

__all__ = ["LAYER_ORDERS", "Randomization", "parameter_randomization", "random_logit"]

LAYER_ORDERS = ("top_down", "bottom_up", "independent")

MOST_CLASSES = 1000
"""Among how many classes another is drawn, at most, where nothing tells their number but which of them are refused."""

_Model = TypeVar("_Model", bound=nn.Module)


def random_logit(
    explain: Explain,
    x: Tensor,
    target: Target,
    *,
    seed: int = 0,
    classes: int | None = None,
    similarity: Similarity = "ssim",
    pool: Pool = "sum",
    batch_size: int | None = 64,
) -> Tensor:
    """How alike the heatmaps of the class and of another, random one are.

    Sixt et al. 2020 (When explanations lie), used by Pahde et al. 2023, with the structural similarity of the pooled
    maps. The other class lies the same, random number of classes further (in a circle) for each image.

    Parameters
    ----------
    explain : callable
        A twin, or ``(x, target) -> relevance``, of images (n, C, H, W) and an int or ints (n,).
    x : Tensor
        The images, (B, C, H, W).
    target : int, sequence of int, array, Tensor or None
        The class of each image. None: that of the highest output, of a twin.
    seed : int
        Of the other class.
    classes : int or None
        How many there are. None: a twin says it. Of a function of images on the CPU, they are then those that it does
        not refuse with an error, a thousand at most, which takes some ten calls with one image.
    similarity : str or callable
        "ssim", "spearman", "pearson", or a function of two pooled maps (B, H, W) that returns (B,).
    pool : str or callable
        How the heatmap's channels become one: see `fxlrp.metrics.POOLS`.
    batch_size : int or None
        How many images go into one call, at most; None: all.

    Returns
    -------
    Tensor
        Shape (B,), in [-1, 1]; lower is better. NaN where there is nothing to compare, see
        `fxlrp.metrics.similarity`.

    Raises
    ------
    InputError
        If the images or options are not as above, there are not two classes, or nothing tells how many.
    TargetError
        If there is no class for each image.
    """
    check_seed(seed)
    check_count("classes", classes)
    alike, images = similarity_of(similarity), image_batch(x)
    first = explained(explain, images, target, batch_size)
    target = fixed(target, first)
    number = classes or _number_of_classes(explain, images, target, first)
    highest = int(target.max()) if isinstance(target, Tensor) else target
    if number < 2 or highest >= number:
        raise InputError(f"of {number} classes, there is no other than {highest} to compare with")
    further = int(torch.randint(1, number, (), generator=torch.Generator().manual_seed(seed)))
    other = explained(explain, images, (target + further) % number, batch_size)
    return alike(pooled(first.relevance, pool), pooled(other.relevance, pool))


def _number_of_classes(explain: Explain, images: Tensor, target: int | Tensor, first: Explained) -> int:
    """Of the output; or one more than the highest that is not refused, by bisection."""
    if first.output is not None and first.output.ndim > 1:
        return first.output.shape[1]
    if images.device.type != "cpu":
        raise InputError("nothing tells how many classes there are: give classes=, or a twin as explain")

    def refused(number: int) -> bool:
        try:
            explain(images[:1], number if isinstance(target, int) else torch.tensor([number]))
        # Whatever it raises of a class that is out of range.
        except Exception:
            return True
        return False

    low, high = int(target.max()) if isinstance(target, Tensor) else max(target, 0), MOST_CLASSES
    while high - low > 1:
        middle = high - 1 if high == MOST_CLASSES else (low + high) // 2
        low, high = (low, middle) if refused(middle) else (middle, high)
    return low + 1


class Randomization(NamedTuple):
    """How alike heatmaps are to the first, as more and more layers are random.

    Attributes
    ----------
    names : tuple of str
        The layers' paths, in the order in which they were randomized.
    values : Tensor
        The similarity after each, (B, L).
    """

    names: tuple[str, ...]
    values: Tensor


def parameter_randomization(
    explain_of: Callable[[Any], Explain],
    model: nn.Module,
    x: Tensor,
    target: Target,
    *,
    order: str = "top_down",
    seed: int = 0,
    similarity: Similarity = "spearman",
    pool: Pool = "sum",
    batch_size: int | None = 64,
) -> Randomization:
    """How alike heatmaps stay as the model's layers are randomized one after another.

    Adebayo et al. 2018 (Sanity checks for saliency maps), with Spearman's rank correlation of the pooled maps. A layer
    is a module with parameters of its own that the model calls; it is initialized anew by its `reset_parameters`, or
    without one gets its own parameters in a random arrangement. All of it happens on copies.

    Parameters
    ----------
    explain_of : callable
        ``model -> explain``: of a model, a twin, or ``(x, target) -> relevance``. It is called again for each layer.
    model : nn.Module
        The trained model.
    x : Tensor
        The images, (B, C, H, W).
    target : int, sequence of int, array, Tensor or None
        The class of each image. None: that of the trained model's highest output, of a twin.
    order : {"top_down", "bottom_up", "independent"}
        From the output to the input, cumulatively; from the input to the output; or from the output each by itself.
    seed : int
        Of the random parameters; PyTorch's own generators are left as they were.
    similarity : str or callable
        "spearman", "ssim", "pearson", or a function of two pooled maps (B, H, W) that returns (B,).
    pool : str or callable
        How the heatmap's channels become one: see `fxlrp.metrics.POOLS`.
    batch_size : int or None
        How many images go into one call, at most; None: all.

    Returns
    -------
    Randomization
        With `names` and `values` (B, L), in [-1, 1]; lower is better. NaN where a map is the same everywhere.

    Raises
    ------
    InputError
        If the model, images or options are not as above, or it has no layer with parameters.
    TargetError
        If there is no class for each image.

    Examples
    --------
    >>> import torch, fxlrp
    >>> from fxlrp import metrics
    >>> layers = torch.nn.Conv2d(1, 4, 3), torch.nn.ReLU(), torch.nn.Flatten(), torch.nn.Linear(144, 3)
    >>> model = torch.nn.Sequential(*layers).eval()
    >>> explain_of = lambda model: fxlrp.convert(model, "epsilon_plus")
    >>> found = metrics.parameter_randomization(explain_of, model, torch.rand(2, 1, 8, 8), 0)
    >>> found.names, found.values.shape
    (('3', '0'), torch.Size([2, 2]))
    """
    check_model(model, exported=False)
    check_choice("order", order, LAYER_ORDERS)
    check_seed(seed)
    alike, images = similarity_of(similarity), image_batch(x)
    first = explained(explain_of(model), images, target, batch_size)
    target = fixed(target, first)
    names = _layers(model, images[:1])
    if not names:
        raise InputError(f"{type(model).__name__} calls no layer with parameters: there is nothing to randomize")
    names = names if order == "bottom_up" else names[::-1]
    heat = pooled(first.relevance, pool)
    values = [
        alike(heat, pooled(explained(explain_of(random), images, target, batch_size).relevance, pool))
        for random in _randomized(model, names, seed, cumulative=order != "independent")
    ]
    return Randomization(tuple(names), torch.stack(values, 1))


def _randomized(model: nn.Module, names: list[str], seed: int, *, cumulative: bool) -> Iterator[nn.Module]:
    """Copies of the model with one layer after another initialized anew."""
    random = model
    for number, name in enumerate(names):
        random = duplicate(random if cumulative else model)
        with torch.random.fork_rng(range(torch.cuda.device_count())), torch.no_grad():
            torch.manual_seed(seed + number)
            _randomize(random.get_submodule(name))
        yield random


def _randomize(layer: nn.Module) -> None:
    reset: Any = getattr(layer, "reset_parameters", getattr(layer, "_reset_parameters", None))
    if callable(reset):
        reset()
        return
    for parameter in layer.parameters(recurse=False):
        parameter.copy_(parameter.flatten()[torch.randperm(parameter.numel()).to(parameter.device)].view_as(parameter))


def _layers(model: nn.Module, x: Tensor) -> list[str]:
    """The paths of modules with parameters of their own, in the order in which they are called first.

    One that is not called (its parameters may be read by the module around it) comes with the innermost module around
    it that is, and not at all if that is the model itself: a head for training.
    """
    copy = duplicate(model)
    at: dict[str, int] = {}

    def note(path: str) -> None:
        at.setdefault(path, len(at))

    for path, module in copy.named_modules():
        module.register_forward_pre_hook(lambda *_, path=path: note(path))
    with torch.no_grad():
        copy(x)
    found = []
    for path, module in copy.named_modules():
        around = path
        while around and around not in at:
            around = around.rpartition(".")[0]
        if list(module.parameters(recurse=False)) and (around or not path):
            found.append((at[around], len(found), path))
    return [path for *_, path in sorted(found)]
