"""Random weights as training leaves them, for models that have none of their own."""

from __future__ import annotations

from typing import TypeVar, cast

import torch
from torch import Tensor, nn

__all__ = ["settled", "trained"]

M = TypeVar("M", bound=nn.Module)

SCALES = ("gamma", "scale", "lambda", "alpha", "gain")


def trained(model: M, seed: int = 0) -> M:
    """Give a fresh model what training would leave: fresh batch norms are nearly the identity and hide mistakes.

    Biases become normal (standard deviation 0.1), running means too (0.3), running variances uniform in [0.5, 2],
    weights of norms and layer scales uniform in [0.5, 1.5], biases of norms normal (0.2). Other weights stay.

    Parameters
    ----------
    model : nn.Module
        Any model. It is changed in place, and keeps its mode.
    seed : int
        Of a generator of its own: the global one is neither read nor moved.

    Returns
    -------
    nn.Module
        The same model, in float64.
    """
    generator = torch.Generator().manual_seed(seed)

    def normal(tensor: Tensor, spread: float) -> None:
        tensor.copy_(torch.empty(tensor.shape, dtype=torch.float64).normal_(0, spread, generator=generator))

    def uniform(tensor: Tensor, low: float, high: float) -> None:
        tensor.copy_(torch.empty(tensor.shape, dtype=torch.float64).uniform_(low, high, generator=generator))

    model.double()
    with torch.no_grad():
        for module in model.modules():
            tensors: dict[str, Tensor] = dict(module.named_parameters(recurse=False))
            buffers = dict(module.named_buffers(recurse=False))
            if "running_var" in buffers:
                tensors |= buffers
            norm = isinstance(module, nn.LayerNorm) or ("weight" in tensors and tensors["weight"].ndim == 1)
            norm = norm and not isinstance(module, nn.PReLU)
            for name, tensor in tensors.items():
                if name == "running_mean":
                    normal(tensor, 0.3)
                elif name == "running_var":
                    uniform(tensor, 0.5, 2)
                elif name.endswith(("bias", "beta")):
                    normal(tensor, 0.2 if norm else 0.1)
                elif (norm and name == "weight") or any(word in name for word in SCALES):
                    uniform(tensor, 0.5, 1.5)
    return model


def settled(model: nn.Module, *inputs: Tensor) -> nn.Module:
    """Scale the running variances of a model's batch norms to what reaches them, as those of a trained model are.

    Without, values of a deep network with random statistics grow from layer to layer, and with them rounding errors.

    Parameters
    ----------
    model : nn.Module
        In evaluation mode. It is changed in place.
    *inputs : Tensor
        A batch.

    Returns
    -------
    nn.Module
        The same model.
    """

    def settle(norm: nn.Module, args: tuple[Tensor, ...]) -> None:
        mean, variance = cast(Tensor, norm.running_mean), cast(Tensor, norm.running_var)
        variance *= (args[0] - mean.reshape(-1, *(1,) * (args[0].ndim - 2))).square().mean()

    norms = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm) and m.track_running_stats]
    handles = [norm.register_forward_pre_hook(settle) for norm in norms]
    try:
        with torch.no_grad():
            model(*inputs)
    finally:
        for handle in handles:
            handle.remove()
    return model
