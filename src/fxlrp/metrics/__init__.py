"""Metrics of heatmaps: localization, complexity, faithfulness, robustness, randomization; pure, batched, on any device.

Each takes and returns tensors, one number for each image, and changes nothing that it is given. A number that has no
meaning (an empty mask, nothing to divide by, NaN in the heatmap) is NaN. `ABOUT` says of each its source, its range,
and which way is better.
"""

from .about import ABOUT, About
from .complexity import sparseness
from .faithfulness import faithfulness_correlation
from .fills import FILLS
from .flipping import Curve, pixel_flipping
from .localization import inside_total_ratio, relevance_mass_accuracy, relevance_rank_accuracy
from .pooling import POOLS
from .randomization import Randomization, parameter_randomization, random_logit
from .robustness import sensitivity
from .similarity import SIMILARITIES

__all__ = [
    "ABOUT",
    "FILLS",
    "POOLS",
    "SIMILARITIES",
    "About",
    "Curve",
    "Randomization",
    "faithfulness_correlation",
    "inside_total_ratio",
    "parameter_randomization",
    "pixel_flipping",
    "random_logit",
    "relevance_mass_accuracy",
    "relevance_rank_accuracy",
    "sensitivity",
    "sparseness",
]
