// Patches of images and their adjoint. A row of threads takes one pixel of an output or of an image.
// row: values of a row of patches, at least taps x channels; the rest is zero, so that rows begin at aligned addresses.

// P[(n, y, x), (tap, c)] = a[n, pixel of (y, x) at tap, c], zero in the padding.
template <int P>
__device__ void im2col_by(const Values<P>* a, Values<P>* patches, const Window& w, int images, int channels, int row)
{
    for (int n = blockIdx.y; n < images; n += gridDim.y) {
        const Values<P>* image = a + (long long)n * w.pixels() * channels;
        for (int m = first_pixel(); m < w.positions(); m += pixel_step()) {
            const int out_y = m / w.out_width, out_x = m - out_y * w.out_width;
            Values<P>* patch = patches + ((long long)n * w.positions() + m) * row;
            for (int tap_y = 0; tap_y < w.kernel_height(); tap_y++) {
                const int y = w.row_at(out_y, tap_y);
                for (int tap_x = 0; tap_x < w.kernel_width(); tap_x++, patch += channels) {
                    const int x = w.column_at(out_x, tap_x);
                    const bool inside = w.has_row(y) && w.has_column(x);
                    for (int i = threadIdx.x; i < channels; i += blockDim.x)
                        patch[i] = inside ? image[(y * w.width + x) * channels + i] : Values<P>{};
                }
            }
            for (int i = threadIdx.x; i < row - w.taps() * channels; i += blockDim.x)
                patch[i] = Values<P>{};
        }
    }
}

KERNEL im2col(const real* a, real* patches, int row, Window w, int images, int channels)
{
    if (is_wide(channels, a, patches) && row % WIDE == 0)
        im2col_by((const Values<WIDE>*)a, (Values<WIDE>*)patches, w, images, channels / WIDE, row / WIDE);
    else
        im2col_by((const Values<1>*)a, (Values<1>*)patches, w, images, channels, row);
}

// da[n, y, x, c] = sum over the taps of dP, at every output that meets the pixel: the adjoint, as a gather.
template <int P>
__device__ void col2im_by(const Values<P>* columns, Values<P>* da, const Window& w, int images, int channels, int row)
{
    for (int n = blockIdx.y; n < images; n += gridDim.y) {
        const Values<P>* image = columns + (long long)n * w.positions() * row;
        for (int m = first_pixel(); m < w.pixels(); m += pixel_step()) {
            const int y = m / w.width, x = m - y * w.width;
            for (int c = threadIdx.x; c < channels; c += blockDim.x) {
                Values<P> sum = {};
                for (int tap_y = 0; tap_y < w.kernel_height(); tap_y++) {
                    const int out_y = w.out_row_at(y, tap_y);
                    for (int tap_x = 0; tap_x < w.kernel_width(); tap_x++) {
                        const int out_x = w.out_column_at(x, tap_x), tap = tap_y * w.kernel_width() + tap_x;
                        if (out_y < 0 || out_x < 0)
                            continue;
                        const Values<P> part = image[(long long)(out_y * w.out_width + out_x) * row + tap * channels + c];
                        for (int k = 0; k < P; k++)
                            sum.v[k] += part.v[k];
                    }
                }
                da[((long long)n * w.pixels() + m) * channels + c] = sum;
            }
        }
    }
}

KERNEL col2im(const real* columns, real* da, int row, Window w, int images, int channels)
{
    if (is_wide(channels, columns, da) && row % WIDE == 0)
        col2im_by((const Values<WIDE>*)columns, (Values<WIDE>*)da, w, images, channels / WIDE, row / WIDE);
    else
        col2im_by((const Values<1>*)columns, (Values<1>*)da, w, images, channels, row);
}
