"""The backend of the C kernels."""

from functools import cache
from typing import Any

from nnlite.backend.base import Backend
from nnlite.backend.conv import ConvPlan, GroupedPlan, PointwisePlan
from nnlite.backend.native.norms import Norms
from nnlite.backend.native.operations import kernels
from nnlite.backend.native.plans import NativeDepthwisePlan, NativePlan
from nnlite.backend.native.sums import Sums
from nnlite.backend.native.winograd import NativeWinogradPlan, best_tile
from nnlite.backend.window import Pair, Window


class NativeBackend(Norms, Sums, Backend):
    """The operations of the C kernels, and their plans."""

    def conv_plan(self, window: Window, filters: int, groups: int, bias: bool, pool: Pair = (1, 1)) -> ConvPlan:
        """Plain products for 1 x 1, sums for depthwise, blocks for groups, tiles for most 3 x 3, else pixels in place."""
        if groups == 1 and window.kernel == window.stride == (1, 1) and not window.is_padded:
            return PointwisePlan(self, window, filters, bias)
        if groups == filters == window.in_shape[2] > 1:
            return NativeDepthwisePlan(self, window, filters, bias)
        if groups > 1:
            return GroupedPlan(self, window, filters, groups, bias, self.conv_plan)
        m = best_tile(window, filters)
        return NativePlan(self, window, filters, bias) if m is None else NativeWinogradPlan(self, window, filters, bias, m)

    def __reduce__(self) -> Any:
        return get_native_backend, ()


@cache
def get_native_backend() -> NativeBackend:
    """The one backend of C kernels; raises DeviceError, saying why, if they can be neither found nor compiled."""
    kernels("float32")
    return NativeBackend()
