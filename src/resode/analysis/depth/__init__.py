"""Depth: whether a network of dynamic blocks is the differential equation that it discretises.

    depth(net, data)    refinement, other schemes, smoothness in depth, reversal, growth, and a verdict

`measurement` says what is measured, `verdict` how it is judged.
"""

from resode.analysis.depth.measurement import depth
from resode.analysis.depth.record import Depth, Thresholds

__all__ = ["Depth", "Thresholds", "depth"]
