// The depthwise convolution: one filter for each channel. A row of threads takes one pixel of an output or of an image.

// z[n, y, x, c] = b[c] + sum over the taps of W[c, tap] a[n, pixel, c]; b may be null.
KERNEL depthwise(const real* a, const real* W, const real* b, real* z, const Window* window, int images, int channels)
{
    const Window w = *window;
    const int taps = w.kernel_height * w.kernel_width, positions = w.out_height * w.out_width;
    for (long long m = first_row(); m < (long long)images * positions; m += row_step()) {
        const int position = m % positions, y = position / w.out_width, x = position % w.out_width;
        const real* image = a + m / positions * w.height * w.width * channels;
        for (int c = threadIdx.x; c < channels; c += blockDim.x) {
            real sum = b ? b[c] : real(0);
            for (int tap = 0; tap < taps; tap++) {
                const Pixel p = pixel_of(w, y, x, tap);
                if (p.inside)
                    sum += W[c * taps + tap] * image[(p.y * w.width + p.x) * channels + c];
            }
            z[m * channels + c] = sum;
        }
    }
}

// da[n, y, x, c] = sum over the taps of W[c, tap] delta[n, output at the tap, c].
KERNEL depthwise_input(const real* delta, const real* W, real* da, const Window* window, int images, int channels)
{
    const Window w = *window;
    const int taps = w.kernel_height * w.kernel_width, pixels = w.height * w.width;
    const int positions = w.out_height * w.out_width;
    for (long long m = first_row(); m < (long long)images * pixels; m += row_step()) {
        const int y = m % pixels / w.width, x = m % w.width;
        const real* image = delta + m / pixels * positions * channels;
        for (int c = threadIdx.x; c < channels; c += blockDim.x) {
            real sum = 0;
            for (int tap = 0; tap < taps; tap++) {
                const Pixel p = output_at(w, y, x, tap);
                if (p.inside)
                    sum += W[c * taps + tap] * image[(p.y * w.out_width + p.x) * channels + c];
            }
            da[m * channels + c] = sum;
        }
    }
}

// partial[block, c, tap] = sum over this block's outputs of a[n, pixel, c] delta[n, y, x, c]; blockIdx.y: the tap.
// A block of (32, 8) threads: 32 channels at a time, 8 outputs in turn.
KERNEL depthwise_weight(const real* a, const real* delta, real* partial, const Window* window, int images, int channels)
{
    __shared__ real sums[8][32];
    const Window w = *window;
    const int taps = w.kernel_height * w.kernel_width, positions = w.out_height * w.out_width, tap = blockIdx.y;
    for (int first = 0; first < channels; first += 32) {
        const int c = first + threadIdx.x;
        real sum = 0;
        if (c < channels)
            for (long long m = first_row(); m < (long long)images * positions; m += row_step()) {
                const int position = m % positions;
                const Pixel p = pixel_of(w, position / w.out_width, position % w.out_width, tap);
                if (p.inside)
                    sum += a[((m / positions * w.height + p.y) * w.width + p.x) * channels + c] * delta[m * channels + c];
            }
        sums[threadIdx.y][threadIdx.x] = sum;
        __syncthreads();
        if (threadIdx.y == 0 && c < channels) {
            for (int i = 1; i < 8; i++)
                sum += sums[i][threadIdx.x];
            partial[((long long)blockIdx.x * channels + c) * taps + tap] = sum;
        }
        __syncthreads();
    }
}
