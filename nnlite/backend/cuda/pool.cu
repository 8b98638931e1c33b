// Pooling: a row of threads takes one pixel, its columns the channels.

// y = the largest a of each window, and which tap it was: the first of equal pixels, the first NaN if there is one, never padding.
KERNEL max_pool(const real* a, real* out, unsigned short* winner, Window w, int images, int channels)
{
    for (int n = blockIdx.y; n < images; n += gridDim.y) {
        const real* image = a + (long long)n * w.pixels() * channels;
        for (int m = first_pixel(); m < w.positions(); m += pixel_step()) {
            const int out_y = m / w.out_width, out_x = m - out_y * w.out_width;
            const long long place = ((long long)n * w.positions() + m) * channels;
            for (int c = threadIdx.x; c < channels; c += blockDim.x) {
                real best = -infinity();
                int first = -1;
                for (int tap_y = 0; tap_y < w.kernel_height(); tap_y++) {
                    const int y = w.row_at(out_y, tap_y);
                    for (int tap_x = 0; tap_x < w.kernel_width(); tap_x++) {
                        const int x = w.column_at(out_x, tap_x);
                        if (!w.has_row(y) || !w.has_column(x))
                            continue;
                        const real value = image[(y * w.width + x) * channels + c];
                        if (value > best || first < 0 || (value != value && best == best))
                            first = tap_y * w.kernel_width() + tap_x;
                        if (value > best || value != value)
                            best = value;
                    }
                }
                out[place + c] = best;
                if (winner)
                    winner[place + c] = first;
            }
        }
    }
}

// Each delta goes to the pixel that won its window: every pixel visits the windows that contain it.
KERNEL max_pool_delta(const real* delta, const unsigned short* winner, real* da, Window w, int images, int channels)
{
    for (int n = blockIdx.y; n < images; n += gridDim.y) {
        const long long outputs = (long long)n * w.positions();
        for (int m = first_pixel(); m < w.pixels(); m += pixel_step()) {
            const int y = m / w.width, x = m - y * w.width;
            const Windows above = windows_above(w, y), beside = windows_beside(w, x);
            for (int c = threadIdx.x; c < channels; c += blockDim.x) {
                real sum = 0;
                for (int out_y = above.first; out_y <= above.last; out_y++)
                    for (int out_x = beside.first; out_x <= beside.last; out_x++) {
                        const int tap_y = above.tap_of(out_y), tap_x = beside.tap_of(out_x);
                        const long long i = (outputs + out_y * w.out_width + out_x) * channels + c;
                        if (tap_y >= 0 && tap_x >= 0 && winner[i] == tap_y * w.kernel_width() + tap_x)
                            sum += delta[i];
                    }
                da[((long long)n * w.pixels() + m) * channels + c] = sum;
            }
        }
    }
}

// y = the sum of each window over counts, one for each output, or, if null, over the number of taps.
KERNEL average_pool(const real* a, const real* counts, real* out, Window w, int images, int channels)
{
    for (int n = blockIdx.y; n < images; n += gridDim.y) {
        const real* image = a + (long long)n * w.pixels() * channels;
        for (int m = first_pixel(); m < w.positions(); m += pixel_step()) {
            const int out_y = m / w.out_width, out_x = m - out_y * w.out_width;
            for (int c = threadIdx.x; c < channels; c += blockDim.x) {
                real sum = 0;
                for (int tap_y = 0; tap_y < w.kernel_height(); tap_y++) {
                    const int y = w.row_at(out_y, tap_y);
                    real of_row = 0; // summed by itself, so that a large window loses no digits
                    for (int tap_x = 0; tap_x < w.kernel_width(); tap_x++) {
                        const int x = w.column_at(out_x, tap_x);
                        if (w.has_row(y) && w.has_column(x))
                            of_row += image[(y * w.width + x) * channels + c];
                    }
                    sum += of_row;
                }
                out[((long long)n * w.positions() + m) * channels + c] = sum / (counts ? counts[m] : w.taps());
            }
        }
    }
}

// Each delta, over counts, is spread evenly over its window.
KERNEL average_pool_delta(const real* delta, const real* counts, real* da, Window w, int images, int channels)
{
    for (int n = blockIdx.y; n < images; n += gridDim.y) {
        const long long outputs = (long long)n * w.positions();
        for (int m = first_pixel(); m < w.pixels(); m += pixel_step()) {
            const int y = m / w.width, x = m - y * w.width;
            const Windows above = windows_above(w, y), beside = windows_beside(w, x);
            for (int c = threadIdx.x; c < channels; c += blockDim.x) {
                real sum = 0;
                for (int out_y = above.first; out_y <= above.last; out_y++)
                    for (int out_x = beside.first; out_x <= beside.last; out_x++) {
                        const int output = out_y * w.out_width + out_x;
                        if (above.tap_of(out_y) >= 0 && beside.tap_of(out_x) >= 0)
                            sum += delta[(outputs + output) * channels + c] / (counts ? counts[output] : real(1));
                    }
                da[((long long)n * w.pixels() + m) * channels + c] = counts ? sum : sum / w.taps();
            }
        }
    }
}
