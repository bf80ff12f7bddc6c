"""Which heatmap is right: composites compared by metrics over data, and searched for."""

from .compare import compare
from .table import Difference, Summary, Table

__all__ = ["Difference", "Summary", "Table", "compare"]
