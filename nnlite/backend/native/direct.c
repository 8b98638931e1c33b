// Convolutions of any window without patches: products whose rows are pixels, read in place, and whose segments are the runs of
// the window. Tables of offsets, made with the plan, say where rows and segments start.
#include "norm.h"
#include "product.h"

#define BLOCK 48 // rows of outputs that are finished while they are in L1
#define SUMMED 128 // terms of a chain
#define MOST_LINES 64 // rows of outputs in a chain of a gradient
#define CHAINS 32

// Images (H, W, C) inside zeros: (height, width, C), the first pixel at (top, left); with mean, scale and shift, max( , 0) of their
// normalisation by these
KERNEL add_border(const REAL* a, const REAL* mean, const REAL* scale, const REAL* shift, REAL* to, long images, long H, long W, long C, long top, long left, long height, long width)
{
    const long behind = (width - left - W) * C;
    for (long n = 0; n < images; n++, a += H * W * C, to += height * width * C) {
        memset(to, 0, top * width * C * sizeof(REAL));
        for (long y = 0; y < H; y++) {
            REAL* row = to + (top + y) * width * C;
            memset(row, 0, left * C * sizeof(REAL));
            if (scale)
                rectify_pixels(a + y * W * C, C, row + left * C, C, W, (Norm){mean, scale, shift});
            else
                memcpy(row + left * C, a + y * W * C, W * C * sizeof(REAL));
            memset(row + (left + W) * C, 0, behind * sizeof(REAL));
        }
        memset(to + (top + H) * width * C, 0, (height - top - H) * width * C * sizeof(REAL));
    }
}

// Rows of outputs, from scratch to their places, plus bias, and with `rectify` max( , 0)
INLINE void finish(const REAL* from, long width, REAL* z, const long* at_out, long rows, long n, const REAL* bias, long rectify)
{
    for (long j = 0; j < n; j += LANES) {
        const long some = at_most(LANES, n - j);
        const vec b = !bias ? (vec){0} : some == LANES ? load(bias + j) : load_some(bias + j, some, 0);
        for (long i = 0; i < rows; i++) {
            vec x = load(from + i * width + j);
            x = bias ? x + b : x;
            x = rectify ? relu(x) : x;
            if (some == LANES)
                store(z + at_out[i] + j, x);
            else
                store_some(z + at_out[i] + j, x, some);
        }
    }
}

// C (m, width) = the product, in chains of about SUMMED terms: whole segments, or pieces of long ones
INLINE void in_chains(Factors f, REAL* C, long width, long m)
{
    const long k = f.k, segments = f.segments, together = at_least(1, SUMMED / k);
    const REAL *A = f.A, *B = f.B;
    for (long s = 0; s < segments; s += together, f.at_a += together, f.at_b += together)
        for (long p = 0; p < k; p += SUMMED) {
            f.A = A + p, f.B = B + p * width;
            f.k = at_most(SUMMED, k - p);
            f.segments = at_most(together, segments - s);
            product(&f, C, width, m, width, s + p > 0);
        }
    if (segments == 0)
        memset(C, 0, m * width * sizeof(REAL));
}

// z = W patch(a) + b for each image: row i of `rows` starts at a[at_row[i]] and goes to z[at_out[i]], F values; filters (segments,
// k, padded(F)). scratch: BLOCK padded(F) values.
KERNEL convolve(const REAL* a, long image_a, const REAL* filters, const REAL* bias, long rectify, REAL* z, long image_z, long images,
                const int64_t* at_row, const int64_t* at_out, long rows, const int64_t* at_a, const int64_t* at_b, long segments,
                long k, long F, REAL* scratch)
{
    const long width = padded(F);
    for (long n = 0; n < images; n++, a += image_a, z += image_z)
        for (long i = 0; i < rows; i += BLOCK) {
            const long some = at_most(BLOCK, rows - i);
            const Factors f = {a, (const long*)at_row + i, 0, 1, filters, width, k, segments, (const long*)at_a, (const long*)at_b};
            in_chains(f, scratch, width, some);
            finish(scratch, width, z, (const long*)at_out + i, some, F, bias, rectify);
        }
}

// dW (F, taps): the sum over images and outputs of delta times the value of `a` under the tap, at a[at_tap[i]] for the first
// output, `step` further for the next in its row and row_a for the next row. `lines` rows of outputs are summed in one chain, and
// CHAINS chains before they are added to the total. scratch: (2 taps + outputs of an image) padded(F) values.
KERNEL filter_gradient(const REAL* a, long image_a, const int64_t* at_tap, long taps, long step, long row_a, const REAL* delta,
                       long images, long height, long width, long lines, long F, REAL* dW, REAL* scratch)
{
    const long columns = padded(F), outputs = height * width;
    REAL *total = scratch, *sums = scratch + taps * columns, *copy = sums + taps * columns;
    long starts_a[MOST_LINES], starts_b[MOST_LINES], chains = 0;
    memset(total, 0, taps * columns * sizeof(REAL));
    for (long n = 0; n < images; n++, a += image_a, delta += outputs * F) {
        const REAL* d = delta;
        if (F != columns)
            pad_columns(delta, F, copy, outputs, F), d = copy;
        for (long y = 0; y < height; y += lines) {
            const long some = at_most(lines, height - y);
            for (long s = 0; s < some; s++)
                starts_a[s] = s * row_a, starts_b[s] = s * width * columns;
            const Factors f = {a + y * row_a, (const long*)at_tap, 0, step, d + y * width * columns, columns, width, some, starts_a, starts_b};
            product(&f, sums, columns, taps, columns, chains > 0);
            chains = (chains + 1) % CHAINS;
            if (chains == 0 || (n == images - 1 && y + lines >= height))
                for (long i = 0; i < taps * columns; i += LANES)
                    store(total + i, load(total + i) + load(sums + i));
        }
    }
    transpose(total, columns, 1, taps, F, dW, taps);
}

// Filters W (F, kh, kw, C) as the matrices of `convolve`: forward (kh kw C, padded(F)), and, for the gradient of the inputs, each
// row of the window reversed, backward (kh, kw, F, padded(C))
KERNEL arrange_filters(const REAL* W, long F, long kh, long kw, long C, REAL* forward, REAL* backward)
{
    const long taps = kh * kw, columns = padded(C);
    transpose(W, taps * C, 1, F, taps * C, forward, padded(F));
    for (long f = 0; f < F; f++)
        for (long t = 0; t < taps; t++) {
            const long reversed = t / kw * kw + kw - 1 - t % kw;
            pad_columns(W + (f * taps + t) * C, C, backward + (reversed * F + f) * columns, 1, C);
        }
}
