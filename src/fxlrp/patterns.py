"""Estimate the patterns of PatternAttribution: of each linear layer, how its inputs go with its output in data."""

from __future__ import annotations

import warnings
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.fx.node import map_arg
from zennit.canonizers import Canonizer
from zennit.core import Composite, Hook

from .composites import Pattern, PatternAttribution, place_of
from .errors import InputError
from .given import check_model
from .models import snapshot
from .ops import Call
from .ops.linear import TRANSPOSED, layer_of, scaled_weight
from .reading import unwrap
from .recipe import Method, Recipe
from .relevance.assign import Assignment
from .rules import HookRule

__all__ = ["pattern_attribution"]


def pattern_attribution(
    model: nn.Module,
    loader: Iterable[Tensor | tuple[Any, ...] | list[Any]],
    *,
    canonizers: list[Canonizer] | None = None,
) -> PatternAttribution:
    """PatternAttribution, with the patterns of a model estimated from data.

    The pattern of a unit ``y = w^T x`` says in which direction its inputs carry what it measures, w how it gets rid of
    the rest. By Kindermans et al. 2018 (arXiv 1705.05598), in front of a ReLU the two-component estimator
    ``a = c / w^T c`` with ``c = E+[x y] - E+[x] E[y]``, where E+ is over what opens the ReLU, and everywhere else the
    linear one, ``c = E[x y] - E[x] E[y]``. Of a convolution, the expectations are over all positions, too. A unit that
    never opens has no pattern: zero. Relevance is then the gradient with ``w * a`` in place of w, from the explained
    output's value on.

    With a large positive bias, w^T x may be negative in the mean of what opens the ReLU: then w^T c is negative, and
    the pattern turned around. Of networks whose batch norms are folded in this is common; there is a warning.

    Parameters
    ----------
    model : nn.Module
        The model, in the mode in which it is explained; it is not modified.
    loader : iterable
        Gives inputs, or tuples of which the first is the input; each batch is read once. Some thousand images.
    canonizers : list of zennit.canonizers.Canonizer or None
        For zennit's attributors. Patterns are of layers with their batch norms folded in: zennit has to merge these.

    Returns
    -------
    PatternAttribution
        A `zennit.core.Composite`, with `patterns`.

    Raises
    ------
    InputError
        If the loader gives nothing, or no tensors.
    FxlrpError
        As `fxlrp.convert`.

    Examples
    --------
    >>> import torch, fxlrp
    >>> from torch import nn
    >>> model = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2)).eval()
    >>> loader = torch.utils.data.DataLoader(torch.randn(100, 4), batch_size=50)
    >>> composite = fxlrp.composites.pattern_attribution(model, loader)
    >>> fxlrp.explain(model, torch.randn(1, 4), composite=composite).relevance.shape
    torch.Size([1, 4])
    """
    check_model(model)
    recipe = Recipe(snapshot(model), [Method(_Numbering())], trainable=False)
    recipe.check()
    graphs: dict[Any, _Watched] = {}
    layers: dict[int, _Layer] = defaultdict(_Layer)
    paths: dict[int, str] = {}
    for x in _inputs(loader):
        key = x.shape, x.dtype, x.device
        if key not in graphs:
            numbering = _Numbering()
            graphs[key] = _watched(Recipe(recipe.model, [Method(numbering)], trainable=False), x)
            paths |= numbering.paths
        with torch.inference_mode(False), torch.no_grad():
            graphs[key].observe(x, layers)
    if not graphs:
        raise InputError("the loader gave no images: patterns are estimated from data, some thousand images")
    estimated = {i: layer.pattern() for i, layer in layers.items()}
    turned, units = (sum(each[k] for _, each in estimated.values()) for k in range(2))
    if turned:
        warnings.warn(
            f"the patterns of {turned} of {units} units lie against their weights (w^T c < 0), made so by biases "
            "that are large beside w^T x, as of folded batch norms. Relevance changes its sign there",
            stacklevel=2,
        )
    patterns = {i: Pattern(path, estimated[i][0] if i in estimated else None) for i, path in paths.items()}
    return PatternAttribution(patterns, canonizers)


def _inputs(loader: Iterable[Any]) -> Iterator[Tensor]:
    for batch in loader:
        x = batch[0] if isinstance(batch, tuple | list) and len(batch) else batch
        if not isinstance(x, Tensor):
            raise InputError(
                f"the loader gave a {type(x).__name__}: it is to give tensors of images, or tuples that begin with one"
            )
        if len(x):
            yield x


class _Numbering(Composite):
    """Gives each linear layer its number for a rule."""

    def __init__(self) -> None:
        self.paths: dict[int, str] = {}
        super().__init__(module_map=self._rule_of)

    def _rule_of(self, context: dict[Any, Any], name: str, module: nn.Module) -> Hook | None:
        place = place_of(context, name, module)
        if place is None:
            return None
        self.paths[place.index] = name
        return _Number(place.index)


class _Number(Hook):
    def __init__(self, index: int) -> None:
        super().__init__()
        self.index = index

    def copy(self) -> _Number:
        return self


class _Watched(fx.Interpreter):
    """Runs a canonical graph, and looks at its linear layers.

    Parameters
    ----------
    canonical : fx.GraphModule
        The graph.
    numbered : dict of fx.Node to (Assignment, int, bool)
        Its linear layers with their numbers, and whether a ReLU alone reads what they give.
    """

    def __init__(self, canonical: fx.GraphModule, numbered: dict[fx.Node, tuple[Assignment, int, bool]]) -> None:
        super().__init__(canonical)
        self._numbered = numbered
        self._layers: dict[int, _Layer] = {}

    def observe(self, x: Tensor, layers: dict[int, _Layer]) -> None:
        """Have `layers` take note of what goes through them at an input."""
        self._layers = layers
        self.run(x)

    def run_node(self, n: fx.Node) -> Any:
        value = super().run_node(n)
        if n in self._numbered:
            step, index, gated = self._numbered[n]
            args, kwargs = map_arg(unwrap(n)[1:], lambda node: self.env[node])
            call = Call(step.site.op, step.site.target, args, kwargs, step.site.slots, step.site.names)
            self._layers[index].observe(call, value, gated)
        return value


def _watched(recipe: Recipe, x: Tensor) -> _Watched:
    canonical, steps = recipe.assigned((x,))
    readers: dict[fx.Node, list[Assignment]] = defaultdict(list)
    for step in steps:
        for operand in step.operands.values():
            readers[operand].append(step)
    gated = lambda node: bool(readers[node]) and all(each.site.op.shuts(each.node) for each in readers[node])
    return _Watched(
        canonical,
        {
            step.node: (step, step.rule.hook.index, gated(step.node))
            for step in steps
            if isinstance(step.rule, HookRule) and isinstance(step.rule.hook, _Number)
        },
    )


class _Layer:
    """Sums over what goes through a linear layer."""

    def __init__(self) -> None:
        self._sums: list[Tensor] = []
        self._at: _Weight | None = None

    def observe(self, call: Call, value: Tensor, gated: bool) -> None:
        """Take note of a call and its value.

        Parameters
        ----------
        call : Call
            Of a linear op.
        value : Tensor
            What it gives, with its bias.
        gated : bool
            Whether only what is positive counts: a ReLU reads it.
        """
        channels = call.op.channels
        assert channels is not None  # Of a layer with constant parameters.
        weight = call.params["weight"].detach().clone().requires_grad_()
        with torch.enable_grad():
            y = call.with_params({"weight": weight, "bias": None}).run()
        counted = (value > 0 if gated else torch.ones_like(value)).to(y)
        total = lambda t: t.double().movedim(channels.of_value, 0).flatten(1).sum(1)
        (inputs,) = torch.autograd.grad(y, weight, counted, retain_graph=True)
        (products,) = torch.autograd.grad(y, weight, counted * y.detach())
        y = y.detach()
        new = [products.double(), inputs.double(), total(counted), total(y), total(torch.ones_like(y))]
        self._sums = [a + b for a, b in zip(self._sums, new, strict=True)] if self._sums else new
        groups = call["groups"] if weight.ndim > 2 else 1
        self._at = _Weight(call.params["weight"].detach(), groups, layer_of(call.target) in TRANSPOSED)

    def pattern(self) -> tuple[Tensor, tuple[int, int]]:
        """The pattern of what was seen, of the weight's shape and dtype; zero of a unit that never counted.

        Also of how many units it lies against the weight, and how many there are.
        """
        assert self._at is not None
        products, inputs, counted, of_outputs, every = self._sums
        mean_of = self._at.scaled
        seen = counted.clamp(min=1).reciprocal()
        covariance = mean_of(products, seen) - mean_of(inputs, seen * of_outputs / every)
        along = self._at.per_channel(self._at.weight.double() * covariance)
        found = mean_of(covariance, torch.where(along == 0, 0.0, along.reciprocal())).to(self._at.weight)
        return found, (int((along < 0).sum()), len(along))


@dataclass(frozen=True)
class _Weight:
    """How a layer's weight has its output channels."""

    weight: Tensor
    groups: int
    transposed: bool

    def scaled(self, values: Tensor, factors: Tensor) -> Tensor:
        """Values of the weight's shape times a factor for each output channel."""
        return scaled_weight(values, factors, self.groups, self.transposed)

    def per_channel(self, values: Tensor) -> Tensor:
        """Sums of values of the weight's shape, for each output channel: how these factors would change their sum."""
        count = values.shape[1] * self.groups if self.transposed else values.shape[0]
        factors = torch.ones(count, dtype=values.dtype, device=values.device, requires_grad=True)
        with torch.enable_grad():
            (found,) = torch.autograd.grad(self.scaled(values, factors).sum(), factors)
        return found
