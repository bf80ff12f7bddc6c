"""ISNet: a classifier that gives its logits together with the heatmaps that its training penalizes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ..capture import Capture, Output
from ..compiled import CompiledModule
from ..compiler import Programs
from ..errors import InputError, ModulePathError, VariantError
from ..given import check_choice, check_count, check_flags, check_model, inputs_of, paths_of
from ..recipe import Recipe
from ..relevance.program import Program
from ..values import outside_inference_mode, widened
from .supervision import bottlenecks
from .variants import Bounds, Settings, variant_of

__all__ = ["ISNet", "ISNetOutput"]

INPUT = "input"
MU = {"bounded": 1e-2, "pairwise": 1e-5}


class ISNetOutput(NamedTuple):
    """What an ISNet returns.

    Attributes
    ----------
    logits : Tensor
        The model's output, shape (B, C).
    heatmaps : dict of str to Tensor
        Relevance at the input ("input") and at the inputs of supervised modules (their paths), shape (B, C, h, w); of a
        variant with K maps for each image, (B, K, C, h, w): original, one for each class; dual, z+ and then epsilon.
    """

    logits: Tensor
    heatmaps: dict[str, Tensor]


class ISNet(CompiledModule):
    """Wrap a classifier, so that each forward pass gives its logits and their heatmaps.

    The wrapped model is trained, and taken out again as ``isnet.model``; there is no parameter beside its own.
    Everything that gradients are needed for happens in `forward`, as `torch.nn.parallel.DistributedDataParallel` wants.

    In training mode, a batch norm is the layer that the batch's statistics define: no relevance goes to other samples
    through them, while the loss's gradient does.

    Parameters
    ----------
    model : nn.Module
        Any classifier that `fxlrp.convert` takes, which returns logits of shape (B, C).
    variant : {"selective", "stochastic", "dual", "original", "gradient_input"}
        Which maps are made: of the lowest class's bounded eta (section 2.3.2, eq. 32); of a logit drawn for each image
        (2.3.3); of all logits jointly, by z+ and by epsilon (2.3.1); of each logit (2.2); of the winning probability,
        by gradient x input (appendix D.1).
    epsilon : float
        Of LRP-epsilon and of LRP-z+, at every linear layer, pool and sum.
    first_layer : {None, "zbox"}
        "zbox": LRP-zB in the first layer, with `bounds`.
    bounds : tuple
        Lowest and highest value of the input: numbers, or tensors that broadcast to it.
    deep_supervision : bool or sequence of str
        LRP Deep Supervision (section 2.5): also give maps at the inputs of modules within. True: at the network's
        bottlenecks, found by `fxlrp.isnet.supervision.bottlenecks`; or these module paths.
    eta : {"bounded", "pairwise"}
        What "selective" explains: the bounded eta (eq. 32), or eta by eq. 8-10.
    mu : float or None
        The stabilizer in eq. 32, or eq. 9. None: 0.01, or 1e-5, as in the paper.
    flex : bool
        LRP-Flex (section 2.4, eq. 15-17): epsilon acts at the ReLUs alone, which must be the only activations.
    chunk_size : int or None
        How many of the original ISNet's maps are made at a time; they are made again in the backward pass, so that
        memory does not grow with their number. None: all at once.
    recompute : bool
        As of `fxlrp.convert`: for large images, a part of the memory (``docs/performance.md``).
    threshold_relu : bool
        As of `fxlrp.convert`. By default, a batch norm that no layer precedes stays a linear layer of its own.
    output : str, int, callable or None
        As of `fxlrp.convert`.
    unmatched : {"error", "gradient"}
        As of `fxlrp.convert`.

    Raises
    ------
    VariantError
        If there is no such variant or setting.
    ModulePathError
        If `deep_supervision` names a module that is not there.

    Examples
    --------
    >>> import torch, torchvision, fxlrp
    >>> model = torchvision.models.resnet18(num_classes=10)
    >>> isnet, loss = fxlrp.ISNet(model), fxlrp.ISNetLoss()
    >>> x, labels, masks = torch.rand(4, 3, 64, 64), torch.arange(4), torch.ones(4, 64, 64)
    >>> loss(isnet(x), labels, masks).total.backward()
    """

    def __init__(
        self,
        model: nn.Module,
        variant: str = "selective",
        epsilon: float = 1e-2,
        first_layer: str | None = None,
        bounds: Bounds = (0.0, 1.0),
        deep_supervision: bool | Sequence[str] = False,
        *,
        eta: str = "bounded",
        mu: float | None = None,
        flex: bool = False,
        chunk_size: int | None = None,
        recompute: bool = False,
        threshold_relu: bool = False,
        output: Output = None,
        unmatched: str = "error",
    ) -> None:
        super().__init__()
        check_model(model, exported=False)
        check_flags(flex=flex, recompute=recompute, threshold_relu=threshold_relu)
        check_choice("unmatched", unmatched, ("error", "gradient"))
        check_count("chunk_size", chunk_size)
        self.model = model
        self.training = model.training
        self.variant, self.chunk_size = variant, chunk_size
        by_itself = isinstance(deep_supervision, bool)
        self.deep_supervision = deep_supervision if by_itself else paths_of("deep_supervision", deep_supervision)
        mu = MU.get(eta, 0.0) if mu is None else mu
        self._settings = Settings(epsilon, first_layer, bounds, eta, mu, flex)
        self._options: dict[str, Any] = {
            "output": output,
            "unmatched": unmatched,
            "threshold_relu": threshold_relu,
            "recompute": recompute,
        }
        self._start()

    _made_by_start = ("_variant", "_programs")

    def _start(self) -> None:
        self._variant = variant_of(self.variant, self._settings)
        record = () if self.deep_supervision is False else self.deep_supervision
        recipe = Recipe(
            self.model,
            self._variant.methods,
            trainable=True,
            record=_bottlenecks if record is True else record,
            **self._options,
        )
        self._programs = Programs(recipe)

    def forward(self, x: Tensor) -> ISNetOutput:
        """Logits and heatmaps.

        Parameters
        ----------
        x : Tensor
            Images, shape (B, C, h, w) or with other spatial dimensions, floating-point.

        Returns
        -------
        ISNetOutput
            Differentiable with respect to the model's parameters and `x`.

        Raises
        ------
        InputError
            If `x` is not a floating-point tensor.
        VariantError
            If the model's output is not (B, C) with at least two classes.
        FxlrpError
            At the first call with such inputs, what `fxlrp.convert` raises.
        """
        if not isinstance(x, Tensor):
            raise InputError(f"an ISNet takes one tensor of images, not a {type(x).__name__}")
        inputs_of(x)
        program = self._programs.of((x,))
        with outside_inference_mode(x) as inputs:
            logits, values = program.forward(inputs)
            if logits.ndim != 2 or logits.shape[1] < 2:
                raise VariantError(
                    f"the model's output has the shape {tuple(logits.shape)}: an ISNet needs logits (B, C) of at least "
                    "two classes. Name the right output with output=..., or give the model two logits"
                )
            seeds = self._variant.seeds(widened(logits))
            found = [self._maps(program, values, seed, index) for index, seed in enumerate(seeds)]
        return ISNetOutput(logits, {name: self._joined([maps[name] for maps in found]) for name in found[0]})

    def _maps(self, program: Program, values: Mapping[int, object], seed: Tensor, method: int) -> dict[str, Tensor]:
        """Heatmaps by name; (K, B, ...) of K seeds."""

        def run(seed: Tensor) -> dict[str, Any]:
            relevance, recorded = program.relevance(values, seed, method)
            for path, value in recorded.items():
                if not isinstance(value, Tensor):
                    raise ModulePathError(
                        f"'{path}' has {len(value)} inputs, or is called several times: supervise a module with one"
                    )
            return {INPUT: relevance[0], **recorded}

        if seed.ndim == 2 or self.chunk_size is None or self.chunk_size >= len(seed):
            return run(seed)
        parts = [checkpoint(run, part, use_reentrant=False) for part in seed.split(self.chunk_size)]
        return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}

    def _joined(self, maps: Sequence[Tensor]) -> Tensor:
        """The maps of the methods, with K behind the batch."""
        if not self._variant.several:
            return maps[0]
        return torch.stack([*maps], 1) if len(maps) > 1 else maps[0].movedim(0, 1)

    def extra_repr(self) -> str:
        return f"variant={self.variant}, deep_supervision={self.deep_supervision}"


def _bottlenecks(captured: Capture) -> Sequence[str]:
    return [path for path in bottlenecks(captured) if path != INPUT]
