"""fxlrp: layer-wise relevance propagation as part of the model's own graph."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from . import canonizers, composites, errors, evaluation, metrics, rules, testing, vocabulary
    from .canonizers import canonize
    from .conversion import convert, explain
    from .evaluation import compare, explainer, search
    from .isnet import ISNet, ISNetLoss, ISNetLosses, ISNetOutput, calibrate
    from .ledger import Ledger, audit
    from .preview import Preview, check
    from .relevance.seeds import seed_relevance
    from .twin import Explanation, Twin

__all__ = [
    "Explanation",
    "ISNet",
    "ISNetLoss",
    "ISNetLosses",
    "ISNetOutput",
    "Ledger",
    "Preview",
    "Twin",
    "audit",
    "calibrate",
    "canonize",
    "canonizers",
    "check",
    "compare",
    "composites",
    "convert",
    "errors",
    "evaluation",
    "explain",
    "explainer",
    "metrics",
    "rules",
    "search",
    "seed_relevance",
    "testing",
    "vocabulary",
]

__version__ = "0.1.0"

_HOMES = (
    dict.fromkeys(("ISNet", "ISNetLoss", "ISNetLosses", "ISNetOutput", "calibrate"), "isnet")
    | dict.fromkeys(("Explanation", "Twin"), "twin")
    | dict.fromkeys(("convert", "explain"), "conversion")
    | {
        "Ledger": "ledger",
        "Preview": "preview",
        "audit": "ledger",
        "canonize": "canonizers",
        "check": "preview",
        "compare": "evaluation",
        "explainer": "evaluation",
        "search": "evaluation",
        "seed_relevance": "relevance.seeds",
    }
)


def __getattr__(name: str) -> Any:
    # Imported when asked for: `fxlrp --help` is not to wait for torch.
    if name in _HOMES:
        return getattr(import_module(f".{_HOMES[name]}", __name__), name)
    if name in __all__:
        return import_module(f".{name}", __name__)
    raise AttributeError(f"module 'fxlrp' has no attribute '{name}'")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
