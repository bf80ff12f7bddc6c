"""Pictures: of relevance, and of how it flows through a model."""

from __future__ import annotations

from .canvas import write
from .flow import flow
from .picture import Panel, clip, figure, heatmap, save

__all__ = ["Panel", "clip", "figure", "flow", "heatmap", "save", "write"]
