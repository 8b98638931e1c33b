// Convolutions with one filter for each channel: weighted sums of shifted images, channel by channel.
#include "vector.h"

#define TAPS 8 // whose gradients are summed at a time
#define SUMMED 128 // outputs of a chain of these sums
#define CHAINS 32

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

// dW[t] = sum over images and outputs of delta a[at_row[i] + at_tap[t]], C channels each: chains of SUMMED outputs, CHAINS of them
// added one after another, and these sums in double
KERNEL depthwise_gradient(const REAL* a, long image_a, const int64_t* at_row, long outputs, const int64_t* at_tap, long taps,
                          const REAL* delta, long images, long C, REAL* dW)
{
    for (long c = 0; c < C; c += LANES)
        for (long t0 = 0; t0 < taps; t0 += TAPS) {
            const long some = C - c, here = at_most(TAPS, taps - t0);
            double total[TAPS][LANES] = {{0}};
            vec part[TAPS] = {{0}};
            long chains = 0;
            for (long n = 0; n < images; n++)
                for (long first = 0; first < outputs; first += SUMMED) {
                    const long last = at_most(outputs, first + SUMMED);
                    vec sum[TAPS] = {{0}};
                    for (long i = first; i < last; i++) {
                        const REAL* image = a + n * image_a + at_row[i] + c;
                        const vec d = load_up_to(delta + (n * outputs + i) * C + c, some);
                        UNROLL for (int t = 0; t < TAPS; t++)
                            if (t < here)
                                sum[t] = fused(load_up_to(image + at_tap[t0 + t], some), d, sum[t]);
                    }
                    chains = (chains + 1) % CHAINS;
                    const int is_last = n == images - 1 && last == outputs;
                    for (int t = 0; t < TAPS; t++) {
                        part[t] += sum[t];
                        if (chains == 0 || is_last) {
                            for (long i = 0; i < LANES; i++)
                                total[t][i] += part[t][i];
                            part[t] = (vec){0};
                        }
                    }
                }
            for (long t = 0; t < here; t++)
                for (long i = 0; i < at_most(LANES, some); i++)
                    dW[(t0 + t) * C + c + i] = (REAL)total[t][i];
        }
}
