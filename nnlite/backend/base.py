"""What a backend offers: operations on arrays, and plans for convolutions and pooling of fixed shapes."""

import math

from nnlite.backend.conv import ConvPlan
from nnlite.backend.operations import Operations
from nnlite.backend.pool import AveragePoolPlan, BlockMaxPoolPlan, MaxPoolPlan
from nnlite.backend.window import Pair, Window

LARGE = 256  # pixels of a pooling window above which reductions are faster than sweeps


class Backend(Operations):
    """Operations and plans. Subclasses override only what measurements justify."""

    def conv_plan(self, window: Window, filters: int, groups: int, bias: bool, pool: Pair = (1, 1)) -> ConvPlan:
        """The algorithm for a convolution of this shape, with the max-pooling after it: chosen by shape, never by timing."""
        return ConvPlan(self, window, filters, groups, bias, pool)

    def max_pool_plan(self, window: Window) -> MaxPoolPlan | BlockMaxPoolPlan:
        """The algorithm for max-pooling."""
        is_large = window.is_blockwise and math.prod(window.kernel) > LARGE
        return BlockMaxPoolPlan(self, window) if is_large else MaxPoolPlan(self, window)

    def average_pool_plan(self, window: Window, count_padding: bool = True) -> AveragePoolPlan:
        """The algorithm for average-pooling."""
        return AveragePoolPlan(self, window, count_padding)
