"""Several explanations of a batch: composites from one capture and one forward pass, and whatever else explains."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, TypeGuard

import torch
from torch import Tensor, nn
from zennit.core import Composite

from .. import composites
from ..compiler import Programs
from ..composites import Bounds
from ..errors import CompositeError
from ..given import check_model
from ..metrics.scoring import classes_of, output_of
from ..models import snapshot
from ..recipe import Method, Recipe
from ..relevance.seeds import seed_relevance

__all__ = ["BASELINES", "Explained", "Explainer", "Several", "gradient_times_input", "is_composite", "random"]

Explainer = Callable[[Tensor, Any], Any]
"""``(x, target) -> relevance``, or what holds it as `.relevance`."""


class Explained(NamedTuple):
    """Outputs and heatmaps of a batch."""

    output: Tensor
    relevance: Tensor


def random(x: Tensor, target: Any) -> Tensor:
    """A heatmap that knows nothing: the same noise for every image. What is no better explains nothing."""
    noise = torch.randn(x.shape[1:], generator=torch.Generator().manual_seed(0))
    return noise.to(x).expand_as(x)


def gradient_times_input(model: nn.Module) -> Explainer:
    """The gradient of the class's output, times the input (Shrikumar et al. 2016)."""

    def explain(x: Tensor, target: Any) -> Explained:
        with torch.enable_grad():
            leaf = x.detach().clone().requires_grad_()
            output = output_of(model(leaf))
            chosen = output.gather(1, classes_of(output, target)[:, None])
            (gradient,) = torch.autograd.grad(chosen.sum(), leaf)
        return Explained(output.detach(), leaf.detach() * gradient)

    return explain


BASELINES: dict[str, Callable[[nn.Module], Explainer]] = {
    "random": lambda model: random,
    "gradient_times_input": gradient_times_input,
}
"""What composites are held against, by name."""


def without_canonization(model: nn.Module, composite: Composite) -> Explainer:
    """What zennit makes of a model as it is, without canonizers: rules go to modules, functional ops have none."""
    changed, bare = copy.deepcopy(model), copy.copy(composite)
    bare.canonizers = []
    for module in changed.modules():
        # In place, a layer would overwrite what zennit's hooks keep.
        if getattr(module, "inplace", False):
            vars(module)["inplace"] = False

    def explain(x: Tensor, target: Any) -> Explained:
        with torch.enable_grad(), bare.context(changed) as modified:
            leaf = x.detach().clone().requires_grad_()
            output = output_of(modified(leaf))
            (relevance,) = torch.autograd.grad(output, leaf, seed_relevance(output.detach(), target))
        return Explained(output.detach(), relevance)

    return explain


def is_composite(way: object) -> TypeGuard[Composite | str | None]:
    """Whether this is a composite, its name or None, and not a baseline or a function."""
    return way is None or isinstance(way, Composite) or (isinstance(way, str) and way not in BASELINES)


class Several:
    """Explains batches in several ways.

    Parameters
    ----------
    model : nn.Module
        The model.
    ways : dict of str to Composite, str, callable or None
        As of `fxlrp.evaluation.compare`, by the names under which they are found again.
    canonized : bool
        Whether composites get the canonical graph; else they are zennit's own, on the model as it is.
    bounds : tuple
        Of the input, for composites that need them and are given by their names.
    """

    def __init__(
        self,
        model: nn.Module,
        ways: Mapping[str, Composite | str | Explainer | None],
        *,
        canonized: bool = True,
        bounds: Bounds,
    ) -> None:
        check_model(model, exported=False)
        self._found: dict[str, Composite] = {}
        self._others: dict[str, Explainer] = {}
        for name, way in ways.items():
            if is_composite(way):
                self._found[name] = composites.resolve(way, bounds)
            elif isinstance(way, str):
                self._others[name] = BASELINES[way](model)
            elif callable(way):
                self._others[name] = way
            else:
                raise CompositeError(
                    f"{name!r} is a {type(way).__name__}: give a composite, its name, None for the default, or a "
                    "function (x, target) -> relevance"
                )
        self._names = list(ways)
        self._model = snapshot(model) if canonized else model
        if not canonized:
            self._others |= {name: without_canonization(model, each) for name, each in self._found.items()}
            self._found = {}
        self._groups: list[tuple[list[str], Programs]] | None = None

    def __call__(self, x: Tensor, target: Any) -> dict[str, Tensor]:
        """The heatmaps (B, C, H, W) of a batch, by name.

        Parameters
        ----------
        x : Tensor
            Images, (B, C, H, W).
        target : int, Tensor or None
            Their classes.
        """
        with torch.no_grad():
            found = self.differentiable(x, target)
        for name, explain in self._others.items():
            explained = explain(x, target)
            found[name] = getattr(explained, "relevance", explained)
        return {name: found[name].detach().to(x.dtype) for name in self._names}

    def differentiable(self, x: Tensor, target: Any) -> dict[str, Tensor]:
        """Those of composites, on the canonical graph, by name: with derivatives with respect to what rules hold."""
        found: dict[str, Tensor] = {}
        for names, programs in self._grouped(x):
            _, relevances = programs.of((x,)).run_all((x,), target)
            found |= {name: _of_image(one) for name, one in zip(names, relevances, strict=True)}
        return found

    def alone(self, name: str) -> Explainer:
        """One of the ways, as a function of images and classes."""
        if name in self._others:
            return self._others[name]

        def explain(x: Tensor, target: Any) -> Explained:
            names, programs = next(group for group in self._grouped(x) if name in group[0])
            with torch.no_grad():
                program = programs.of((x,))
                output, relevances = program.run_all((x,), target, only=names.index(name))
            return Explained(output, _of_image(relevances[0]))

        return explain

    def _grouped(self, x: Tensor) -> list[tuple[list[str], Programs]]:
        """Those that share a canonical graph, together."""
        if self._groups is None:
            names = list(self._found)
            recipe = self._recipe(names)
            groups = recipe.sharing((x,)) if names else []
            self._groups = [(of, Programs(self._recipe(of))) for of in ([names[i] for i in group] for group in groups)]
        return self._groups

    def _recipe(self, names: list[str]) -> Recipe:
        methods = [Method(self._found[name]) for name in names]
        return Recipe(self._model, methods, trainable=False, final_activation="skip")


def _of_image(relevances: tuple[Tensor | None, ...]) -> Tensor:
    """Relevance of the one input, which the output depends on: else there was an error before."""
    (found,) = relevances
    assert found is not None
    return found
