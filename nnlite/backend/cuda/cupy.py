"""The backend of a CUDA device."""

import functools
from typing import Any

from nnlite.backend.base import Backend
from nnlite.backend.conv import ConvPlan, GroupedPlan
from nnlite.backend.cuda.operations import CudaOperations, Precision
from nnlite.backend.cuda.plans import CudaAveragePoolPlan, CudaConvPlan, CudaDepthwisePlan, CudaMaxPoolPlan, CudaPointwisePlan
from nnlite.backend.window import Pair, Window


class CupyBackend(CudaOperations, Backend):
    """CUDA's operations and plans."""

    def conv_plan(self, window: Window, filters: int, groups: int, bias: bool, pool: Pair = (1, 1)) -> ConvPlan:
        """Plain products for 1 x 1, a kernel for depthwise, blocks for groups, else patches."""
        if groups == 1 and window.kernel == window.stride == (1, 1) and not window.is_padded:
            return CudaPointwisePlan(self, window, filters, bias)
        if groups == filters == window.in_shape[2] > 1:
            return CudaDepthwisePlan(self, window, filters, bias)
        if groups > 1:
            return GroupedPlan(self, window, filters, groups, bias, self.conv_plan)
        return CudaConvPlan(self, window, filters, bias)

    def max_pool_plan(self, window: Window) -> CudaMaxPoolPlan:
        """Max-pooling by a kernel."""
        return CudaMaxPoolPlan(self, window)

    def average_pool_plan(self, window: Window, count_padding: bool = True) -> CudaAveragePoolPlan:
        """Average-pooling by a kernel."""
        return CudaAveragePoolPlan(self, window, count_padding)

    # ---- batch normalisation: there is one part, the batch

    def __reduce__(self) -> Any:
        return get_cupy_backend, (self.precision,)


@functools.cache
def get_cupy_backend(precision: Precision = "float32") -> CupyBackend:
    """The one CUDA backend of a precision; raises DeviceError if there is no device."""
    return CupyBackend(precision)
