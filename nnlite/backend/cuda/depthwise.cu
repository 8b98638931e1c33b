// The depthwise convolution: one filter per channel. A row of threads takes one pixel of an output or of an image.

// z[n, y, x, c] = b[c] + sum over the taps of W[c, tap] a[n, pixel, c]; b may be null.
KERNEL depthwise(const real* a, const real* W, const real* b, real* z, Window w, int images, int channels)
{
    for (int n = blockIdx.y; n < images; n += gridDim.y) {
        const real* image = a + (long long)n * w.pixels() * channels;
        for (int m = first_pixel(); m < w.positions(); m += pixel_step()) {
            const int out_y = m / w.out_width, out_x = m - out_y * w.out_width;
            for (int c = threadIdx.x; c < channels; c += blockDim.x) {
                real sum = b ? b[c] : real(0);
                for (int tap_y = 0; tap_y < w.kernel_height(); tap_y++) {
                    const int y = w.row_at(out_y, tap_y);
                    for (int tap_x = 0; tap_x < w.kernel_width(); tap_x++) {
                        const int x = w.column_at(out_x, tap_x), tap = tap_y * w.kernel_width() + tap_x;
                        if (w.has_row(y) && w.has_column(x))
                            sum += W[c * w.taps() + tap] * image[(y * w.width + x) * channels + c];
                    }
                }
                z[((long long)n * w.positions() + m) * channels + c] = sum;
            }
        }
    }
}

// da[n, y, x, c] = sum over the taps of W[c, tap] delta[n, output at the tap, c].
KERNEL depthwise_input(const real* delta, const real* W, real* da, Window w, int images, int channels)
{
    for (int n = blockIdx.y; n < images; n += gridDim.y) {
        const real* image = delta + (long long)n * w.positions() * channels;
        for (int m = first_pixel(); m < w.pixels(); m += pixel_step()) {
            const int y = m / w.width, x = m - y * w.width;
            for (int c = threadIdx.x; c < channels; c += blockDim.x) {
                real sum = 0;
                for (int tap_y = 0; tap_y < w.kernel_height(); tap_y++) {
                    const int out_y = w.out_row_at(y, tap_y);
                    for (int tap_x = 0; tap_x < w.kernel_width(); tap_x++) {
                        const int out_x = w.out_column_at(x, tap_x), tap = tap_y * w.kernel_width() + tap_x;
                        if (out_y >= 0 && out_x >= 0)
                            sum += W[c * w.taps() + tap] * image[(out_y * w.out_width + out_x) * channels + c];
                    }
                }
                da[((long long)n * w.pixels() + m) * channels + c] = sum;
            }
        }
    }
}

// partial[block, c, tap] = sum over this block's outputs of a[n, pixel, c] delta[n, y, x, c]; blockIdx.y: the tap.
// A block of (32, 8) threads: 32 channels at a time, 8 outputs in turn. blockIdx.x takes images, blockIdx.z parts of them.
KERNEL depthwise_weight(const real* a, const real* delta, real* partial, Window w, int images, int channels)
{
    __shared__ real sums[8][32];
    const int tap = blockIdx.y, tap_y = tap / w.kernel_width(), tap_x = tap - tap_y * w.kernel_width();
    const long long block = (long long)blockIdx.z * gridDim.x + blockIdx.x;
    for (int first = 0; first < channels; first += 32) {
        const int c = first + threadIdx.x;
        real sum = 0;
        if (c < channels)
            for (int n = blockIdx.x; n < images; n += gridDim.x) {
                const real* image = a + (long long)n * w.pixels() * channels;
                const real* deltas = delta + (long long)n * w.positions() * channels;
                for (int m = blockIdx.z * 8 + threadIdx.y; m < w.positions(); m += gridDim.z * 8) {
                    const int out_y = m / w.out_width, out_x = m - out_y * w.out_width;
                    const int y = w.row_at(out_y, tap_y), x = w.column_at(out_x, tap_x);
                    if (w.has_row(y) && w.has_column(x))
                        sum += image[(y * w.width + x) * channels + c] * deltas[m * channels + c];
                }
            }
        sums[threadIdx.y][threadIdx.x] = sum;
        __syncthreads();
        if (threadIdx.y == 0 && c < channels) {
            for (int i = 1; i < 8; i++)
                sum += sums[i][threadIdx.x];
            partial[(block * channels + c) * w.taps() + tap] = sum;
        }
        __syncthreads();
    }
}
