"""fxlrp: layer-wise relevance propagation as part of the model's own graph."""

from . import errors, rules, vocabulary
from .seeds import seed_relevance
from .twin import Explanation, Twin, convert, explain

__all__ = ["Explanation", "Twin", "convert", "errors", "explain", "rules", "seed_relevance", "vocabulary"]

__version__ = "0.1.0"
