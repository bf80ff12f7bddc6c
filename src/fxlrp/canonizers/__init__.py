"""Canonization: rewrite a captured graph into a form that LRP can be applied to, without changing f(x).

A rewrite is a function that edits a graph module in place. To add one: write it in a file of its own here, and name it
in `registry`; from outside, `register` it.
"""

from __future__ import annotations

from collections.abc import Callable
from time import perf_counter

from torch import Tensor, fx, nn
from torch.export import ExportedProgram

from ..capture import Output, capture
from ..given import check_flags, check_inputs, check_model, inputs_of
from ..graph import drop_dead_code
from ..listing import readable
from ..models import snapshot
from ..values import on_the_cpu
from .constants import fold_constants
from .history import History, Moment
from .registry import name_of, reads, register, remove, rewrites
from .report import Report, report

__all__ = [
    "CanonicalModule",
    "History",
    "canonize",
    "canonize_graph",
    "fold_constants",
    "reads",
    "register",
    "remove",
    "rewrites",
]


@on_the_cpu
def canonize_graph(
    graph_module: fx.GraphModule,
    *,
    threshold_relu: bool = True,
    note: Callable[[str, float], None] = lambda name, seconds: None,
) -> fx.GraphModule:
    """Run all rewrites on a captured graph, in place.

    Parameters
    ----------
    graph_module : fx.GraphModule
        As captured.
    threshold_relu : bool
        As for `absorb_affine_maps`.
    note : callable
        Called with the name of each rewrite behind it, and the seconds that it took.

    Returns
    -------
    fx.GraphModule
        The same object, recompiled.
    """
    for rewrite in rewrites(threshold_relu=threshold_relu):
        start = perf_counter()
        rewrite(graph_module)
        drop_dead_code(graph_module.graph)
        note(name_of(rewrite), perf_counter() - start)
    graph_module.graph.lint()
    graph_module.recompile()
    return graph_module


class CanonicalModule(fx.GraphModule):
    """A model's canonical graph, as a module of the same function; made by `canonize`.

    Attributes
    ----------
    history : History
        The graph after each rewrite; printed, code.
    """

    history: History

    @property
    def report(self) -> Report:
        """What became of each batch norm; printed, a table."""
        return report(self.graph)


def canonize(
    model: nn.Module | ExportedProgram,
    example_inputs: Tensor | tuple[Tensor, ...],
    *,
    threshold_relu: bool = True,
    trainable: bool = False,
    output: Output = None,
) -> CanonicalModule:
    """A model in the form that LRP is applied to: the same function, with batch norms folded into linear layers.

    Parameters
    ----------
    model : nn.Module or torch.export.ExportedProgram
        The model, which is not modified.
    example_inputs : Tensor or tuple of Tensor
        Inputs to capture it with. The batch size stays free where the model allows; the spatial size is fixed, because
        behind padding a bias becomes a feature map of that size.
    threshold_relu : bool
        What to do with a batch norm that is followed by a ReLU and then a linear layer (DenseNet). True: the layer
        takes it in, and the ReLU clips at a threshold. False: the batch norm stays, as a linear op.
    trainable : bool
        False: a snapshot, with folded weights as constants. True: the model's own parameters, and folded weights as
        expressions of them.
    output : str, int, callable or None
        Which output, of a model that returns several, see `fxlrp.convert`.

    Returns
    -------
    CanonicalModule
        A `torch.fx.GraphModule` that takes the model's inputs and returns its output. ``print(canonical.report)`` tells
        which batch norm went where, and which could not; ``print(canonical.history)`` shows the graph as code after
        each rewrite.

    Raises
    ------
    InputError
        If model, inputs or options are none.
    CaptureError
        If the model cannot be captured.

    References
    ----------
    Pahde et al., Optimizing Explanations by Network Canonization and Hyperparameter Search, (A.1)-(A.26).

    Examples
    --------
    >>> import fxlrp, torch
    >>> from torch import nn
    >>> first = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU())
    >>> model = nn.Sequential(first, nn.BatchNorm2d(8), nn.Conv2d(8, 8, 3)).eval()
    >>> canonical = fxlrp.canonize(model, torch.randn(2, 3, 16, 16))
    >>> print(canonical.report)
    batch norm  folded into  how
    -------------------------------------------
    0.1         0.0          linear -> BN (A.5)
    1           2            BN -> linear (A.9)
    """
    check_model(model)
    check_flags(threshold_relu=threshold_relu, trainable=trainable)
    inputs = inputs_of(example_inputs)
    check_inputs(inputs)
    if not trainable and not isinstance(model, ExportedProgram):
        model = snapshot(model)
    start, moments = perf_counter(), list[Moment]()
    captured = capture(model, inputs, output, keep=reads())
    canonical = CanonicalModule(captured.graph_module, captured.graph_module.graph, "Canonical")

    def note(name: str, seconds: float) -> None:
        ops = sum(node.op == "call_function" for node in canonical.graph.nodes)
        moments.append(Moment(name, seconds, readable(canonical.graph), ops))

    note("capture", perf_counter() - start)
    canonize_graph(canonical, threshold_relu=threshold_relu, note=note)
    if not trainable:
        start = perf_counter()
        fold_constants(canonical)
        note("fold_constants", perf_counter() - start)
        canonical.recompile()
    canonical.history = History(tuple(moments))
    return canonical
