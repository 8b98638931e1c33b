// Shared by all kernels. REAL (float or double) is defined when a file is compiled; the tests compile the same text with g++.
// Images are (N, H, W, C). No atomics anywhere: every sum has one order, so a run repeats bit for bit.

typedef REAL real;

#define KERNEL extern "C" __global__ void

// NVRTC compiles without <cmath>.
__device__ inline real infinity() { return __int_as_float(0x7f800000); }
__device__ inline real not_a_number() { return __int_as_float(0x7fc00000); }

// ---- threads

// A block of threads as (rows, columns): a row of threads takes a pixel, or a row of a matrix, its columns the channels.
__device__ inline long long first_row() { return (long long)blockIdx.x * blockDim.y + threadIdx.y; }
__device__ inline long long row_step() { return (long long)gridDim.x * blockDim.y; }

// The same for the pixels of one image; blockIdx.y: the image.
__device__ inline int first_pixel() { return blockIdx.x * blockDim.y + threadIdx.y; }
__device__ inline int pixel_step() { return gridDim.x * blockDim.y; }

// One value for each thread, in a grid of any size.
__device__ inline long long first_value() { return (long long)blockIdx.x * blockDim.x + threadIdx.x; }
__device__ inline long long value_step() { return (long long)gridDim.x * blockDim.x; }

// ---- P neighbouring values as one, which are read and written at once

template <int P> struct alignas(P * sizeof(real)) Values {
    real v[P];
};

#define WIDE (16 / (int)sizeof(real))

// Whether WIDE channels may be processed at a time.
__device__ inline bool is_wide(int channels, const void* a, const void* b)
{
    return channels % WIDE == 0 && ((size_t)a | (size_t)b) % 16 == 0;
}

// ---- windows

// Sizes of the window that are known when a file is compiled, so that loops unroll and divisions vanish; 0: only at run time.
#ifndef KERNEL_HEIGHT
#define KERNEL_HEIGHT 0
#define KERNEL_WIDTH 0
#define STRIDE_Y 0
#define STRIDE_X 0
#endif

// A kernel that slides over an image; see backend/window.py.
struct Window {
    int height, width, out_height, out_width;
    int given_height, given_width, given_stride_y, given_stride_x, dilation_y, dilation_x, top, left;

    __device__ int kernel_height() const { return KERNEL_HEIGHT ? KERNEL_HEIGHT : given_height; }
    __device__ int kernel_width() const { return KERNEL_WIDTH ? KERNEL_WIDTH : given_width; }
    __device__ int stride_y() const { return STRIDE_Y ? STRIDE_Y : given_stride_y; }
    __device__ int stride_x() const { return STRIDE_X ? STRIDE_X : given_stride_x; }
    __device__ int taps() const { return kernel_height() * kernel_width(); }
    __device__ int pixels() const { return height * width; }
    __device__ int positions() const { return out_height * out_width; }

    // The row, or column, of the image that an output meets at a tap: possibly in the padding.
    __device__ int row_at(int out_y, int tap_y) const { return out_y * stride_y() + tap_y * dilation_y - top; }
    __device__ int column_at(int out_x, int tap_x) const { return out_x * stride_x() + tap_x * dilation_x - left; }
    __device__ bool has_row(int y) const { return y >= 0 && y < height; }
    __device__ bool has_column(int x) const { return x >= 0 && x < width; }

    // The row, or column, of the outputs that meets a pixel at a tap; negative where there is none.
    __device__ int out_row_at(int y, int tap_y) const { return output_at(y + top - tap_y * dilation_y, stride_y(), out_height); }
    __device__ int out_column_at(int x, int tap_x) const
    {
        return output_at(x + left - tap_x * dilation_x, stride_x(), out_width);
    }

    __device__ static int output_at(int reach, int stride, int outputs)
    {
        const int output = reach / stride;
        return output * stride == reach && output < outputs ? output : -1;
    }
};

// The outputs along one axis whose windows contain a pixel: first to last, and the tap at which each meets it.
struct Windows {
    int first, last, reach, stride, dilation, taps;

    __device__ Windows(int pixel, int padding, int stride, int dilation, int taps, int outputs)
        : reach(pixel + padding), stride(stride), dilation(dilation), taps(taps)
    {
        const int before = reach - (taps - 1) * dilation;
        first = before > 0 ? (before + stride - 1) / stride : 0;
        last = reach / stride < outputs ? reach / stride : outputs - 1;
    }

    // -1: the pixel falls between the taps of a dilated window.
    __device__ int tap_of(int output) const
    {
        const int distance = reach - output * stride;
        return dilation == 1 ? distance : distance % dilation ? -1 : distance / dilation;
    }
};

__device__ inline Windows windows_above(const Window& w, int y)
{
    return Windows(y, w.top, w.stride_y(), w.dilation_y, w.kernel_height(), w.out_height);
}

__device__ inline Windows windows_beside(const Window& w, int x)
{
    return Windows(x, w.left, w.stride_x(), w.dilation_x, w.kernel_width(), w.out_width);
}
