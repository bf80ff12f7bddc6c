"""A call of `torch.export`, with what it stumbles over moved out of its way, and errors that say where and why."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from ..errors import CaptureError
from ..graph import replace_reads
from ..models import copy_sharing_tensors
from .conditions import conditions
from .failure import why_not

__all__ = ["LocalBatchNorm", "detached", "exported", "without_synchronization"]


class LocalBatchNorm(nn.BatchNorm2d, nn.SyncBatchNorm):
    """A `nn.SyncBatchNorm` that torch.export can follow on any device, and composites take for a batch norm."""

    forward = nn.modules.batchnorm._BatchNorm.forward
    _check_input_dim = nn.SyncBatchNorm._check_input_dim  # pyright: ignore[reportAssignmentType]


def without_synchronization(model: nn.Module) -> nn.Module:
    """The model; if there is a `nn.SyncBatchNorm` in it, a copy with the same tensors whose batch norms are local."""
    if not any(type(module) is nn.SyncBatchNorm for module in model.modules()):
        return model
    model = copy_sharing_tensors(model)
    for module in model.modules():
        if type(module) is nn.SyncBatchNorm:
            module.__class__ = LocalBatchNorm
    return model


def exported(model: nn.Module, inputs: tuple[Tensor, ...]) -> ExportedProgram:
    with conditions(model, inputs):
        inputs = tuple(x.detach().clone() for x in inputs)
        batch_free = tuple({0: Dim.AUTO} if x.ndim and x.shape[0] > 1 else {} for x in inputs)
        try:
            try:
                return torch.export.export(model, inputs, dynamic_shapes=(*batch_free,), strict=False)
            # Some models fix their batch size in a way that torch.export reports instead of following.
            except Exception:
                return torch.export.export(model, inputs, strict=False)
        except Exception as error:
            raise CaptureError(why_not(model, error)) from error


def detached(program: ExportedProgram) -> ExportedProgram:
    """What the model computes under `torch.no_grad` is detached: inlined, it would have gradients again.

    It is exported with gradients on: the regions that torch sets apart are those without.
    """
    graph = program.graph
    for region in graph.find_nodes(op="call_function", target=torch.ops.higher_order.wrap_with_set_grad_enabled):
        for value in list(region.users):
            with graph.inserting_after(value):
                stopped = graph.call_function(torch.ops.aten.detach.default, (value,))
            stopped.meta = copy.copy(value.meta)
            replace_reads(value, stopped)
    return program
