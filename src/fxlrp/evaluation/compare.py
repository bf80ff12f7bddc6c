"""Composites compared by metrics over data."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset
from zennit.core import Composite

from ..composites import Bounds
from ..composites.naming import BOX
from ..errors import InputError
from ..given import check_count, check_model
from ..io.console import make_error_console, progress_bar
from ..metrics.scoring import check_mode, classes_of, output_of
from .batches import Batch, batches, number_of
from .examples import Example
from .identity import described, digest_of_model
from .measures import Case, Found, Metric, measures_of
from .several import Explainer, Several, is_composite
from .storage import ImageRow, Storage
from .table import Table, rows_of

__all__ = ["classes_in", "compare"]

Way = Composite | str | Explainer | None


def compare(
    model: nn.Module,
    loader: Iterable[Any] | Dataset[Any],
    composites: Sequence[Composite | str | None] | Mapping[str, Way],
    metrics: Sequence[str] | Mapping[str, str | Metric] = ("flipping", "sparseness"),
    *,
    canonize: Sequence[bool] = (True,),
    options: Mapping[str, Mapping[str, Any]] | None = None,
    target: int | None = None,
    storage: str | Path | None = None,
    batch_size: int = 16,
    examples: int = 4,
    bounds: Bounds = BOX,
    progress: bool = True,
) -> Table:
    """Measure how good the heatmaps of several composites are, image by image.

    The model is captured once, and one forward pass of a batch serves all composites.

    Parameters
    ----------
    model : nn.Module
        A classifier in evaluation mode: it returns its outputs (B, C), or what holds them as ``logits`` or ``output``.
    loader : iterable or Dataset
        Gives batches: images (B, C, H, W), or (images, classes), or (images, classes, masks), classes (B,) of ints or
        None, masks (B, H, W) or (B, 1, H, W). A data set gives the same of one image, and is put into batches here; it
        may give None for the class or the mask of an image that has none. `fxlrp.evaluation.ImageFolder` is one.
    composites : sequence, or dict of str to Composite, str, callable or None
        zennit composites, names (see `fxlrp.composites.listed`), None for the default. Also functions
        ``(x, target) -> relevance`` of other methods, and what to hold all against: "random", "gradient_times_input".
        By names of one's own, if it is a dict.
    metrics : sequence of str, or dict of str to str or callable
        Of `fxlrp.evaluation.measures.MEASURES`: "flipping" (`fxlrp.metrics.pixel_flipping`, MoRF and LeRF),
        "inside_total_ratio", "inside_total_ratio_weighted", "relevance_mass_accuracy", "relevance_rank_accuracy" (which
        need masks), "sparseness", "faithfulness_correlation", "random_logit", "sensitivity_max", "sensitivity_mean"; or
        functions ``(model, x, relevance, target, mask) -> (B,)`` by names of one's own.
    canonize : sequence of bool
        True: composites get the canonical graph (`fxlrp.canonize`). False: they are zennit's own on the model as it is,
        without canonizers. With both, each composite is measured in both ways.
    options : dict of str to dict or None
        Keyword arguments of metrics by name: ``{"flipping": {"steps": 10, "fill": "mean"}}``.
    target : int or None
        The class that is explained. None: the loader's classes, or where it has none the model's own highest ones.
    storage : str, Path or None
        A file in which each image's numbers are kept as soon as there are any: what was interrupted goes on there.
    batch_size : int
        Of a data set.
    examples : int
        How many of the first images, with their heatmaps, are kept for `Table.save`.
    bounds : tuple
        The input's lowest and highest value, for composites that need them and are given by their names.
    progress : bool
        Whether a bar shows how far it is.

    Returns
    -------
    Table
        Printed, a table of means with 95 % intervals.

    Raises
    ------
    InputError
        If the loader gives something else, a metric is unknown, or the storage is of another evaluation.
    MaskError
        If masks are needed, and there are none or others than the images'.
    CompositeError
        If there is no such composite.
    MissingExtraError
        If a package that a metric needs is not installed.

    Examples
    --------
    >>> import torch, torchvision, fxlrp
    >>> model = torchvision.models.resnet18(num_classes=5).eval()
    >>> data = [(torch.randn(2, 3, 32, 32), torch.tensor([0, 3]))]
    >>> table = fxlrp.compare(model, data, ["epsilon_plus", "random"], ("sparseness",), progress=False)
    >>> table.values("sparseness", "epsilon_plus").shape
    (2,)
    """
    check_model(model, exported=False)
    check_mode(model)
    check_count("batch_size", batch_size)
    measured = measures_of(metrics, options or {})
    ways = named(composites)
    explained = _explained(model, ways, canonize, bounds)
    labels = [label for label, _, _ in explained]
    asked = {"metrics": list(measured), "options": options or {}, "target": target, "bounds": bounds}
    about = {} if storage is None else _about(model, {label: ways[name] for label, name, _ in explained}, asked)
    stored, kept = Storage(storage, about), list[Example]()
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    with progress_bar(make_error_console(), transient=True, disable=not progress) as bar:
        task = bar.add_task("comparing", total=number_of(loader, batch_size))
        for batch in batches(loader, device, batch_size):
            stored.check(batch)
            wanted = batch if len(kept) < examples else batch.without(stored.done)
            if wanted is not None:
                _measure(model, wanted, explained, measured, target, stored, kept, examples)
            bar.advance(task)
    if not stored.rows:
        raise InputError("the loader gave no images")
    return Table(sorted(stored.rows.values(), key=lambda row: row.image), labels, kept)


def _about(model: nn.Module, ways: Mapping[str, Way], asked: Mapping[str, Any]) -> dict[str, str]:
    """What numbers depend on beside images, in words."""
    return {name: described(each) for name, each in {"ways": ways, **asked}.items()} | {"model": digest_of_model(model)}


def named(given: Sequence[Composite | str | None] | Mapping[str, Way]) -> dict[str, Way]:
    """Ways of explaining by name: of a composite without one, its class's."""
    if isinstance(given, Mapping):
        return dict(given)
    if isinstance(given, str | Composite) or given is None:
        given = [given]
    found: dict[str, Way] = {}
    for each in given:
        name = (
            each
            if isinstance(each, str)
            else "default"
            if each is None
            else getattr(each, "__name__", type(each).__name__)
        )
        if name in found:
            raise InputError(f"two of the composites are called {name}: give a dict, with names of your own")
        found[name] = each
    return found


def _explained(
    model: nn.Module, ways: Mapping[str, Way], canonize: Sequence[bool], bounds: Bounds
) -> list[tuple[str, str, Several]]:
    """Labels, names, and what explains."""
    kinds = tuple(canonize) if isinstance(canonize, Sequence) else (canonize,)
    if not kinds or any(not isinstance(kind, bool) for kind in kinds):
        raise InputError(f"canonize is True, False or both, such as (True, False), not {canonize!r}")
    found = []
    for kind in dict.fromkeys(kinds):
        of_kind = {name: way for name, way in ways.items() if kind or is_composite(way)}
        several = Several(model, of_kind, canonized=kind, bounds=bounds)
        found += [(name if kind else f"{name}, not canonized", name, several) for name in of_kind]
    return found


def _measure(
    model: nn.Module,
    batch: Batch,
    explained: Sequence[tuple[str, str, Several]],
    measured: Mapping[str, Any],
    target: int | None,
    stored: Storage,
    kept: list[Example],
    examples: int,
) -> None:
    """Explain a batch, measure those images that are not stored yet, and keep the first as examples."""
    classes = classes_in(model, batch, target)
    heatmaps = {several: several(batch.x, classes) for several in dict.fromkeys(each for _, _, each in explained)}
    of = {label: heatmaps[several][name] for label, name, several in explained}
    for i in range(min(len(batch.x), examples - len(kept))):
        kept.append(
            Example(
                batch.numbers[i],
                batch.x[i].cpu(),
                int(classes[i]),
                {label: relevance[i].cpu() for label, relevance in of.items()},
                None if batch.mask is None else batch.mask[i, 0].cpu() > 0,
            )
        )
    left = [i for i, number in enumerate(batch.numbers) if number not in stored.done]
    if not left:
        return
    x, chosen = batch.x[left], classes[left]
    mask = None if batch.mask is None else batch.mask[left]
    found: dict[str, list[Found]] = {}
    for label, name, several in explained:
        case = Case(model, x, of[label][left], chosen, mask, several.alone(name))
        found[label] = [measure(case) for measure in measured.values()]
    values = {label: {k: v for each in each_of for k, v in each.values.items()} for label, each_of in found.items()}
    numbers = [batch.numbers[i] for i in left]
    for i, row in enumerate(rows_of(values, numbers)):
        curves = {
            label: {
                order: (shares[i].tolist(), scores[i].tolist())
                for each in each_of
                for order, (shares, scores) in each.curves.items()
            }
            for label, each_of in found.items()
        }
        stored.add(ImageRow(numbers[i], row, curves, batch.digest(left[i]) if stored.path else ""))


def classes_in(model: nn.Module, batch: Batch, target: int | None) -> Tensor:
    """The class of each image, (B,)."""
    given = batch.target if target is None else None
    if given is not None and bool((given >= 0).all()):
        return given.long()
    with torch.no_grad():
        found = classes_of(output_of(model(batch.x.clone())), target)
    return found if given is None else torch.where(given >= 0, given.long(), found)
