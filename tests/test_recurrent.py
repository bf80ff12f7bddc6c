"""Recurrent layers are their steps: gates are constant, the signal gets all (Arras et al. 2017, arXiv 1706.07206)."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from zennit.composites import LayerMapComposite
from zennit.layer import Sum
from zennit.rules import Epsilon, Norm, Pass
from zennit.types import Activation

import fxlrp
from fxlrp.testing import trained
from fxlrp.testing.assertions import relative

# So small that relevance is, up to it, the gradient times the input of the layer with its gates held constant.
TINY = 1e-12
COMPOSITE = LayerMapComposite([(nn.Linear, Epsilon(TINY)), (Sum, Norm(TINY)), (Activation, Pass())])
X = torch.randn(2, 5, 3, dtype=torch.float64)


def passing(function, x):
    """A function whose relevance passes: a constant factor."""
    return x * (function(x) / x).detach()


def lstm_step(x, state, w, u, b):
    h, c = state
    i, f, g, o = (x @ w.T + h @ u.T + b).chunk(4, 1)
    i, f, o = (gate.sigmoid().detach() for gate in (i, f, o))
    c = f * c + i * passing(torch.tanh, g)
    return o * passing(torch.tanh, c), c


def gru_step(x, state, w, u, b):
    (h,) = state
    (r, z, n), (r_h, z_h, n_h) = (x @ w.T + b[0]).chunk(3, 1), (h @ u.T + b[1]).chunk(3, 1)
    z = (z + z_h).sigmoid().detach()
    # At the first step what it gates is a constant, and it is the one that depends on the input.
    r = (r + r_h).sigmoid().detach() if h.requires_grad else passing(torch.sigmoid, r + r_h)
    return ((1 - z) * passing(torch.tanh, n + r * n_h) + z * h,)


def rnn_step(x, state, w, u, b):
    return (passing(torch.tanh, x @ w.T + state[0] @ u.T + b),)


STEPS = {"LSTM": (lstm_step, 2), "GRU": (gru_step, 1), "RNN": (rnn_step, 1)}


class Recurrent(nn.Module):
    def __init__(self, kind, cell):
        super().__init__()
        self.cell, self.head = cell, nn.Linear(4, 2)
        self.recurrent = getattr(nn, f"{kind}Cell")(3, 4) if cell else getattr(nn, kind)(3, 4, batch_first=True)

    def forward(self, x):
        if not self.cell:
            return self.head(self.recurrent(x)[0][:, -1])
        state = None
        for step in x.unbind(1):
            state = self.recurrent(step, state)
        return self.head(state[0] if isinstance(state, tuple) else state)


@pytest.mark.parametrize("kind", STEPS)
@pytest.mark.parametrize("cell", [False, True], ids=["layer", "cell"])
def test_step_by_step(kind, cell):
    torch.manual_seed(0)
    model = trained(Recurrent(kind, cell)).eval()
    w, u, *b = (p for name, p in model.named_parameters() if name.startswith("recurrent"))
    step, states = STEPS[kind]
    state, x = [torch.zeros(2, 4).double()] * states, X.clone().requires_grad_()
    for part in x.unbind(1):
        state = step(part, state, w, u, b if kind == "GRU" else sum(b))
    output = model.head(state[0])
    expected = x * torch.autograd.grad(output[:, 1].sum(), x)[0]
    out = fxlrp.convert(model, COMPOSITE)(X, 1)
    assert relative(out.output, model(X)) < 1e-12
    torch.testing.assert_close(out.relevance, expected, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize(
    "kind", [pytest.param(kind, marks=[] if kind == "LSTM" else pytest.mark.slow) for kind in STEPS]
)
def test_layers_in_both_directions(kind):
    torch.manual_seed(0)

    class Both(nn.Module):
        def __init__(self):
            super().__init__()
            self.recurrent = getattr(nn, kind)(3, 4, num_layers=2, bidirectional=True)
            self.head = nn.Linear(8, 2)

        def forward(self, x):
            return self.head(self.recurrent(x.transpose(0, 1))[0].mean(0))

    model = trained(Both()).eval()
    twin = fxlrp.convert(model)
    assert relative(twin(X).output, model(X)) < 1e-12
    assert fxlrp.audit(twin, X).leak < 1e-12
    ours = fxlrp.convert(model, trainable=True)(X).output
    for a, b in zip(
        *(torch.autograd.grad(y[:, 1].sum(), [*model.parameters()]) for y in (ours, model(X))), strict=True
    ):
        torch.testing.assert_close(a, b)
