"""What a backend offers: operations on arrays, and plans for convolutions and pooling of fixed shapes."""

import math
from collections.abc import Callable

from nnlite.backend.conv import ConvPlan, DepthwisePlan, GroupedPlan, PointwisePlan
from nnlite.backend.operations import Operations
from nnlite.backend.pool import AveragePoolPlan, BlockMaxPoolPlan, MaxPoolPlan
from nnlite.backend.window import Pair, Window

LARGE = 256  # pixels of a pooling window above which reductions are faster than sweeps


class Backend(Operations):
    """Operations and plans. Subclasses override only what measurements justify."""

    pointwise_plan: Callable[..., ConvPlan] = PointwisePlan
    depthwise_plan: Callable[..., ConvPlan] = DepthwisePlan

    def conv_plan(self, window: Window, filters: int, groups: int, bias: bool, pool: Pair = (1, 1)) -> ConvPlan:
        """The algorithm for a convolution of this shape, with the max-pooling after it: chosen by shape, never by timing.

        Plain products for 1 x 1, sums for depthwise, blocks for groups, else `dense_plan`.
        """
        if pool == (1, 1) and groups == 1 and window.kernel == window.stride == (1, 1) and not window.is_padded:
            return self.pointwise_plan(self, window, filters, bias)
        if groups == filters == window.in_shape[2] > 1:
            return self.depthwise_plan(self, window, filters, bias)
        if groups > 1:
            return GroupedPlan(self, window, filters, groups, bias, self.conv_plan)
        return self.dense_plan(window, filters, bias, pool)

    def dense_plan(self, window: Window, filters: int, bias: bool, pool: Pair) -> ConvPlan:
        """The algorithm for a convolution without groups."""
        return ConvPlan(self, window, filters, 1, bias, pool)

    def max_pool_plan(self, window: Window) -> MaxPoolPlan | BlockMaxPoolPlan:
        """The algorithm for max-pooling."""
        is_large = window.is_blockwise and math.prod(window.kernel) > LARGE
        return BlockMaxPoolPlan(self, window) if is_large else MaxPoolPlan(self, window)

    def average_pool_plan(self, window: Window, count_padding: bool = True) -> AveragePoolPlan:
        """The algorithm for average-pooling."""
        return AveragePoolPlan(self, window, count_padding)
