"""The backend of the C kernels."""

from functools import cache
from typing import Any

from nnlite.backend.base import Backend
from nnlite.backend.conv import ConvPlan
from nnlite.backend.native.folded import FoldedPlan, best_fold
from nnlite.backend.native.norms import Norms
from nnlite.backend.native.operations import kernels
from nnlite.backend.native.pictures import Pictures
from nnlite.backend.native.plans import NativeDepthwisePlan, NativePlan
from nnlite.backend.native.pointwise import Pointwise
from nnlite.backend.native.pooled import NativePooledPlan
from nnlite.backend.native.pools import NativeAveragePoolPlan, NativeMaxPoolPlan
from nnlite.backend.native.sums import Sums
from nnlite.backend.native.updates import Updates
from nnlite.backend.native.winograd import NativeTilesPlan, best_tile
from nnlite.backend.window import Pair, Window


class NativeBackend(Norms, Pictures, Pointwise, Sums, Updates, Backend):
    """The operations of the C kernels, and their plans."""

    depthwise_plan = NativeDepthwisePlan

    def dense_plan(self, window: Window, filters: int, bias: bool, pool: Pair) -> ConvPlan:
        """Tiles for most 3 x 3, folded for most wider windows, else pixels in place; with pooling behind it, as one plan."""
        plan = self._unpooled_plan(window, filters, bias)
        return plan if pool == (1, 1) else NativePooledPlan(self, window, filters, bias, plan, pool)

    def _unpooled_plan(self, window: Window, filters: int, bias: bool) -> ConvPlan:
        if best_tile(window, filters) is not None:
            return NativeTilesPlan(self, window, filters, bias)
        if (fold := best_fold(window, filters)) is not None:
            return FoldedPlan(self, window, filters, bias, *fold)
        return NativePlan(self, window, filters, bias)

    def max_pool_plan(self, window: Window) -> NativeMaxPoolPlan:
        """Any window by one kernel."""
        return NativeMaxPoolPlan(self, window)

    def average_pool_plan(self, window: Window, count_padding: bool = True) -> NativeAveragePoolPlan:
        """Any window by one kernel."""
        return NativeAveragePoolPlan(self, window, count_padding)

    def __reduce__(self) -> Any:
        return get_native_backend, ()


@cache
def get_native_backend() -> NativeBackend:
    """The one backend of C kernels; raises DeviceError, saying why, if they can be neither found nor compiled."""
    kernels("float32")
    return NativeBackend()
