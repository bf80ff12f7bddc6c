"""From a model to its first heatmap: the seconds of conversion, and of its parts."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any
from unittest.mock import patch

from torch import nn

import fxlrp

from .measuring import Figure, child
from .networks import composite, images, model_of
from .section import Row, Section, Settings, verdict

__all__ = ["CONVERSION", "converted"]

NETWORKS = ("resnet50", "densenet121", "efficientnet_b4", "swin_t", "densenet201", "efficientnet_v2_l")

PARTS = {
    "rehearse": "fxlrp.capture.rehearsed",
    "export": "fxlrp.capture.exported",
    "functional": "fxlrp.capture.as_functional",
    "canonize": "fxlrp.recipe.canonical_of",
    "emit": "fxlrp.recipe.emit",
    "rewrite": "fxlrp.recipe.optimize",
}


def converted(network: str, size: int) -> list[float]:
    """Seconds: of a first twin and its parts, a second one, another composite's, another size's."""
    # What Python imports when torch exports its first model is not the network's.
    small = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(4, 2)).eval()
    fxlrp.convert(small, composite("z+"), example_inputs=images(1, 3))
    model, x, parts = model_of(network), images(1, size), dict.fromkeys(PARTS, 0.0)
    with _timed(parts):
        first = _seconds(lambda: fxlrp.convert(model, composite("z+"), example_inputs=x))
    second = _seconds(lambda: fxlrp.convert(model, composite("z+"), example_inputs=x))
    other = _seconds(lambda: fxlrp.convert(model, composite("alpha2-beta1"), example_inputs=x))
    twin = fxlrp.convert(model, composite("z+"), example_inputs=x)
    resized = _seconds(lambda: twin.capture(images(1, size + 32)))
    return [first, *parts.values(), second, other, resized]


def _seconds(run: Callable[[], object]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


class _timed:
    """Adds up the time that functions take."""

    def __init__(self, found: dict[str, float]) -> None:
        self._patches = [patch(path, self._of(name, found)) for name, path in PARTS.items()]

    def _of(self, name: str, found: dict[str, float]) -> Callable[..., Any]:
        module, _, attribute = PARTS[name].rpartition(".")
        function = getattr(__import__(module, fromlist=[attribute]), attribute)

        def run(*args: Any, **kwargs: Any) -> Any:
            start = time.perf_counter()
            try:
                return function(*args, **kwargs)
            finally:
                found[name] += time.perf_counter() - start

        return run

    def __enter__(self) -> None:
        for each in self._patches:
            each.start()

    def __exit__(self, *_: object) -> None:
        for each in self._patches:
            each.stop()


def rows(settings: Settings) -> Iterator[Row]:
    size = settings.size or 224
    for network in settings.networks or NETWORKS:
        first, *rest = (Figure(each) for each in child("conversion", network, size))
        *parts, second, other, resized = rest
        yield {
            "network": network,
            "size": f"{size} x {size}",
            "first, s": first,
            "must reach": verdict(first, 4 if network == "resnet50" else 12),
            **dict(zip(PARTS, parts, strict=True)),
            "second": second,
            "must reach, second": verdict(second, 1),
            "other composite": other,
            "other size": resized,
        }


CONVERSION = Section(
    name="conversion",
    text="""Seconds of a conversion (z+), each network in a process of its own that has converted a small one before;
its parts; a second twin of the model; one with another composite (alpha2-beta1); and what the next size (256 x 256)
costs a twin.""",
    rows=rows,
    once=True,
)
