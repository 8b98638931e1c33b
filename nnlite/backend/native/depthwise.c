// Convolutions with one filter for each channel: weighted sums of shifted images, channel by channel.
#include "vector.h"

#define SUMMED 128 // outputs of a chain of the filters' gradients

// z[at_out[i]] = b + sum over taps of a[at_row[i] + at_tap[t]] W[t], C channels each, and with `rectify` max(z, 0)
KERNEL convolve_depthwise(const REAL* a, long image_a, const REAL* W, const int64_t* which, const REAL* bias, long rectify, REAL* z,
                          long image_z, long images, const int64_t* at_row, const int64_t* at_out, long rows, const int64_t* at_tap,
                          long taps, long C)
{
    for (long n = 0; n < images; n++, a += image_a, z += image_z)
        for (long c = 0; c < C; c += LANES) {
            const long some = C - c;
            const vec b = bias ? load_up_to(bias + c, some) : (vec){0};
            long i = 0;
            for (; i + 4 <= rows; i += 4) {
                vec sum[4] = {{0}, {0}, {0}, {0}};
                for (long t = 0; t < taps; t++) {
                    const vec w = load_up_to(W + which[t] * C + c, some);
                    UNROLL for (int r = 0; r < 4; r++)
                        sum[r] = fused(load_up_to(a + at_row[i + r] + at_tap[t] + c, some), w, sum[r]);
                }
                UNROLL for (int r = 0; r < 4; r++) {
                    const vec x = bias ? sum[r] + b : sum[r];
                    store_up_to(z + at_out[i + r] + c, rectify ? relu(x) : x, some);
                }
            }
            for (; i < rows; i++) {
                vec sum = {0};
                for (long t = 0; t < taps; t++)
                    sum = fused(load_up_to(a + at_row[i] + at_tap[t] + c, some), load_up_to(W + which[t] * C + c, some), sum);
                sum = bias ? sum + b : sum;
                store_up_to(z + at_out[i] + c, rectify ? relu(sum) : sum, some);
            }
        }
}

// dW[t] = sum over images and outputs of delta a[at_row[i] + at_tap[t]], C channels each, in chains of SUMMED outputs
KERNEL depthwise_gradient(const REAL* a, long image_a, const int64_t* at_row, long outputs, const int64_t* at_tap, long taps,
                          const REAL* delta, long images, long C, REAL* dW)
{
    memset(dW, 0, taps * C * sizeof(REAL));
    for (long n = 0; n < images; n++, a += image_a, delta += outputs * C)
        for (long c = 0; c < C; c += LANES)
            for (long t0 = 0; t0 < taps; t0 += 8)
                for (long first = 0; first < outputs; first += SUMMED) {
                    const long some = C - c, last = at_most(outputs, first + SUMMED), here = at_most(8, taps - t0);
                    vec sum[8] = {{0}, {0}, {0}, {0}, {0}, {0}, {0}, {0}};
                    for (long i = first; i < last; i++) {
                        const vec d = load_up_to(delta + i * C + c, some);
                        UNROLL for (int t = 0; t < 8; t++)
                            if (t < here)
                                sum[t] = fused(load_up_to(a + at_row[i] + at_tap[t0 + t] + c, some), d, sum[t]);
                    }
                    for (long t = 0; t < here; t++) {
                        REAL* w = dW + (t0 + t) * C + c;
                        store_up_to(w, load_up_to(w, some) + sum[t], some);
                    }
                }
}
