"""Which heatmap is right: composites compared by metrics over data, and searched for."""

from .compare import compare
from .explainer import explainer
from .search import search
from .space import SPACES, Range, Space, each_layer
from .study import Study, Trial
from .table import Difference, Summary, Table
from .truth import ImageFolder

__all__ = [
    "SPACES",
    "Difference",
    "ImageFolder",
    "Range",
    "Space",
    "Study",
    "Summary",
    "Table",
    "Trial",
    "compare",
    "each_layer",
    "explainer",
    "search",
]
