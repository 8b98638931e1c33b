// Patches of images and their adjoint. A row of threads takes one pixel of an output or of an image.

// P[(n, y, x), (tap, c)] = a[n, pixel of (y, x) at tap, c], zero in the padding.
KERNEL im2col(const real* a, real* patches, const Window* window, int images, int channels)
{
    const Window w = *window;
    const int positions = w.out_height * w.out_width, row = w.kernel_height * w.kernel_width * channels;
    for (long long m = first_row(); m < (long long)images * positions; m += row_step()) {
        const int position = m % positions, y = position / w.out_width, x = position % w.out_width;
        const real* image = a + m / positions * w.height * w.width * channels;
        for (int i = threadIdx.x; i < row; i += blockDim.x) {
            const Pixel p = pixel_of(w, y, x, i / channels);
            patches[m * row + i] = p.inside ? image[(p.y * w.width + p.x) * channels + i % channels] : real(0);
        }
    }
}

// da[n, y, x, c] = sum over the taps of dP, at every output that meets the pixel: the adjoint, as a gather.
KERNEL col2im(const real* columns, real* da, const Window* window, int images, int channels)
{
    const Window w = *window;
    const int taps = w.kernel_height * w.kernel_width, pixels = w.height * w.width;
    const int positions = w.out_height * w.out_width;
    for (long long m = first_row(); m < (long long)images * pixels; m += row_step()) {
        const int y = m % pixels / w.width, x = m % w.width;
        const real* image = columns + m / pixels * positions * taps * channels;
        for (int c = threadIdx.x; c < channels; c += blockDim.x) {
            real sum = 0;
            for (int tap = 0; tap < taps; tap++) {
                const Pixel p = output_at(w, y, x, tap);
                if (p.inside)
                    sum += image[((long long)(p.y * w.out_width + p.x) * taps + tap) * channels + c];
            }
            da[m * channels + c] = sum;
        }
    }
}
