// Pooling: a row of threads takes one pixel, its columns the channels.

// y = the largest a of each window, and which tap it was, the first of equal ones. Padding counts as minus infinity.
KERNEL max_pool(const real* a, real* out, unsigned short* winner, const Window* window, int images, int channels)
{
    const Window w = *window;
    const int taps = w.kernel_height * w.kernel_width, positions = w.out_height * w.out_width;
    for (long long m = first_row(); m < (long long)images * positions; m += row_step()) {
        const int position = m % positions, y = position / w.out_width, x = position % w.out_width;
        const real* image = a + m / positions * w.height * w.width * channels;
        for (int c = threadIdx.x; c < channels; c += blockDim.x) {
            real best = -infinity();
            int first = 0;
            for (int tap = 0; tap < taps; tap++) {
                const Pixel p = pixel_of(w, y, x, tap);
                const real value = p.inside ? image[(p.y * w.width + p.x) * channels + c] : -infinity();
                if (value > best)
                    first = tap;
                if (value > best || value != value)
                    best = value;
            }
            out[m * channels + c] = best;
            if (winner)
                winner[m * channels + c] = first;
        }
    }
}

// Each delta goes to the pixel that won its window: every pixel asks the windows that it lies in.
KERNEL max_pool_delta(
    const real* delta, const unsigned short* winner, real* da, const Window* window, int images, int channels)
{
    const Window w = *window;
    const int taps = w.kernel_height * w.kernel_width, pixels = w.height * w.width;
    const int positions = w.out_height * w.out_width;
    for (long long m = first_row(); m < (long long)images * pixels; m += row_step()) {
        const int y = m % pixels / w.width, x = m % w.width;
        const long long outputs = m / pixels * positions;
        for (int c = threadIdx.x; c < channels; c += blockDim.x) {
            real sum = 0;
            for (int tap = 0; tap < taps; tap++) {
                const Pixel p = output_at(w, y, x, tap);
                const long long i = (outputs + p.y * w.out_width + p.x) * channels + c;
                if (p.inside && winner[i] == tap)
                    sum += delta[i];
            }
            da[m * channels + c] = sum;
        }
    }
}

// y = the mean of each window, padded zeros counted.
KERNEL average_pool(const real* a, real* out, const Window* window, int images, int channels)
{
    const Window w = *window;
    const int taps = w.kernel_height * w.kernel_width, positions = w.out_height * w.out_width;
    for (long long m = first_row(); m < (long long)images * positions; m += row_step()) {
        const int position = m % positions, y = position / w.out_width, x = position % w.out_width;
        const real* image = a + m / positions * w.height * w.width * channels;
        for (int c = threadIdx.x; c < channels; c += blockDim.x) {
            real sum = 0;
            for (int tap = 0; tap < taps; tap++) {
                const Pixel p = pixel_of(w, y, x, tap);
                if (p.inside)
                    sum += image[(p.y * w.width + p.x) * channels + c];
            }
            out[m * channels + c] = sum / taps;
        }
    }
}

// Each delta is shared out evenly over its window.
KERNEL average_pool_delta(const real* delta, real* da, const Window* window, int images, int channels)
{
    const Window w = *window;
    const int taps = w.kernel_height * w.kernel_width, pixels = w.height * w.width;
    const int positions = w.out_height * w.out_width;
    for (long long m = first_row(); m < (long long)images * pixels; m += row_step()) {
        const int y = m % pixels / w.width, x = m % w.width;
        const long long outputs = m / pixels * positions;
        for (int c = threadIdx.x; c < channels; c += blockDim.x) {
            real sum = 0;
            for (int tap = 0; tap < taps; tap++) {
                const Pixel p = output_at(w, y, x, tap);
                if (p.inside)
                    sum += delta[(outputs + p.y * w.out_width + p.x) * channels + c];
            }
            da[m * channels + c] = sum / taps;
        }
    }
}
