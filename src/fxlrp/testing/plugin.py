"""``pytest --fxlrp-model package.module:factory`` runs fxlrp's checks on a model of yours."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, cast

import pytest

if TYPE_CHECKING:
    from torch import Tensor, nn
    from zennit.core import Composite

__all__ = ["pytest_addoption", "pytest_configure"]

DEFAULT = ("epsilon_plus", "epsilon_plus_flat", "epsilon_alpha2_beta1")


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the options."""
    group = parser.getgroup("fxlrp", "layer-wise relevance propagation")
    group.addoption(
        "--fxlrp-model",
        metavar="MODULE:FACTORY",
        help="a function without parameters that returns (model, example input or inputs), with a batch of two or more",
    )
    group.addoption(
        "--fxlrp-composite",
        action="append",
        metavar="NAME",
        help=f"a composite's name, or MODULE:FACTORY; may be given several times (default: {', '.join(DEFAULT)})",
    )


def pytest_configure(config: pytest.Config) -> None:
    """Collect the checks beside the user's own tests."""
    if config.getoption("--fxlrp-model"):
        config.args.append(str(Path(__file__).with_name("suite.py")))


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """One check for each composite."""
    if "fxlrp_composite" in metafunc.fixturenames:
        names = metafunc.config.getoption("--fxlrp-composite") or DEFAULT
        metafunc.parametrize("fxlrp_composite", names, scope="session", indirect=True)


@pytest.fixture(scope="session")
def fxlrp_composite(request: pytest.FixtureRequest) -> Composite | str:
    """A composite, or its name."""
    return cast("Composite", _made(request.param, "--fxlrp-composite")) if ":" in request.param else request.param


@pytest.fixture(scope="session")
def fxlrp_case(pytestconfig: pytest.Config) -> tuple[nn.Module, tuple[Tensor, ...]]:
    """The user's model, in float64 and evaluation mode, and its inputs (a tuple)."""
    import copy

    import torch
    from torch import Tensor, nn

    name = str(pytestconfig.getoption("--fxlrp-model"))
    made = _made(name, "--fxlrp-model")
    if not (isinstance(made, tuple) and len(made) == 2 and isinstance(made[0], nn.Module)):
        raise pytest.UsageError(f"{name} returned {type(made).__name__}, not (model, example input)")
    model, inputs = made
    inputs = (inputs,) if isinstance(inputs, Tensor) else tuple(inputs)
    # In float64, a mistake stands out from rounding.
    inputs = tuple(x.to(torch.float64) if x.is_floating_point() else x for x in inputs)
    return copy.deepcopy(model).double().eval(), inputs


def _made(name: str, option: str) -> object:
    module, _, factory = name.partition(":")
    try:
        return getattr(import_module(module), factory)()
    except (ImportError, AttributeError, ValueError) as error:
        raise pytest.UsageError(f"{option} {name}: {error}; it is written MODULE:FACTORY") from error
