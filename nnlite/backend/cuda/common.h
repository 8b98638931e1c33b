// What the kernels share. REAL (float or double) is given when a file is compiled; the tests compile the same text by g++.
// Images are (N, H, W, C). No atomics anywhere: every sum has one order, so a run repeats bit for bit.

typedef REAL real;

#define KERNEL extern "C" __global__ void

// NVRTC compiles without <cmath>.
__device__ inline real infinity() { return __int_as_float(0x7f800000); }
__device__ inline real not_a_number() { return __int_as_float(0x7fc00000); }

// A kernel that slides over an image; see backend/window.py.
struct Window {
    int height, width, out_height, out_width;
    int kernel_height, kernel_width, stride_y, stride_x, dilation_y, dilation_x, top, left;
};

// The pixel of an image that an output (y, x) meets at a tap, and whether it lies inside.
struct Pixel {
    int y, x;
    bool inside;
};

__device__ inline Pixel pixel_of(const Window& w, int y, int x, int tap)
{
    Pixel p;
    p.y = y * w.stride_y + tap / w.kernel_width * w.dilation_y - w.top;
    p.x = x * w.stride_x + tap % w.kernel_width * w.dilation_x - w.left;
    p.inside = p.y >= 0 && p.y < w.height && p.x >= 0 && p.x < w.width;
    return p;
}

// The output that meets a pixel (y, x) at a tap, and whether there is one.
__device__ inline Pixel output_at(const Window& w, int y, int x, int tap)
{
    int down = y + w.top - tap / w.kernel_width * w.dilation_y;
    int right = x + w.left - tap % w.kernel_width * w.dilation_x;
    Pixel p;
    p.y = down / w.stride_y;
    p.x = right / w.stride_x;
    p.inside = down >= 0 && right >= 0 && down == p.y * w.stride_y && right == p.x * w.stride_x && p.y < w.out_height
               && p.x < w.out_width;
    return p;
}

// Threads of a block as (rows, columns): a row of threads takes a pixel, its columns the channels.
__device__ inline long long first_row() { return (long long)blockIdx.x * blockDim.y + threadIdx.y; }
__device__ inline long long row_step() { return (long long)gridDim.x * blockDim.y; }

// One value for each thread, in a grid of any size.
__device__ inline long long first_value() { return (long long)blockIdx.x * blockDim.x + threadIdx.x; }
__device__ inline long long value_step() { return (long long)gridDim.x * blockDim.x; }
