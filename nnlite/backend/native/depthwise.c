// Convolutions with one filter for each channel: weighted sums of shifted images, channel by channel.
#include "vector.h"

#define ROWS 8 // outputs at a time
#define TAPS 9 // whose gradients are summed at a time: those of 3 x 3
#define SUMMED 128 // outputs of a chain of these sums
#define CHAINS 32

typedef struct {
    const REAL *a, *W;
    const int64_t *which, *at_row, *at_out, *at_tap;
    long taps, C, rectify;
} Sums;

// R outputs from output i on, `some` channels from c on; `rows` and `some` are constants where they can be
INLINE void outputs(const Sums* s, long i, long R, const REAL* bias, REAL* z, long c, long some)
{
    const vec b = bias ? load_up_to(bias + c, some) : (vec){0};
    const REAL* row[ROWS];
    vec sum[ROWS];
    UNROLL for (int r = 0; r < R; r++) row[r] = s->a + s->at_row[i + r] + c, sum[r] = (vec){0};
    for (long t = 0; t < s->taps; t++) {
        const vec w = load_up_to(s->W + s->which[t] * s->C + c, some);
        const long at = s->at_tap[t];
        UNROLL for (int r = 0; r < R; r++) sum[r] = fused(load_up_to(row[r] + at, some), w, sum[r]);
    }
    UNROLL for (int r = 0; r < R; r++) {
        const vec x = bias ? sum[r] + b : sum[r];
        store_up_to(z + s->at_out[i + r] + c, s->rectify ? relu(x) : x, some);
    }
}

INLINE void all_outputs(const Sums* s, long rows, const REAL* bias, REAL* z, long c, long some)
{
    long i = 0;
    for (; i + ROWS <= rows; i += ROWS)
        outputs(s, i, ROWS, bias, z, c, some);
    for (; i < rows; i++)
        outputs(s, i, 1, bias, z, c, some);
}

// z[at_out[i]] = b + sum over taps of a[at_row[i] + at_tap[t]] W[t], C channels each, and with `rectify` max(z, 0)
KERNEL convolve_depthwise(const REAL* a, long image_a, const REAL* W, const int64_t* which, const REAL* bias, long rectify, REAL* z,
                          long image_z, long images, const int64_t* at_row, const int64_t* at_out, long rows, const int64_t* at_tap,
                          long taps, long C)
{
    for (long n = 0; n < images; n++, a += image_a, z += image_z) {
        const Sums s = {a, W, which, at_row, at_out, at_tap, taps, C, rectify};
        long c = 0;
        for (; c + LANES <= C; c += LANES)
            all_outputs(&s, rows, bias, z, c, LANES);
        if (c < C)
            all_outputs(&s, rows, bias, z, c, C - c);
    }
}

// sum[t] = the sum of delta image[at_row[i] + at_tap[t]] over outputs i from `first` to `last`
INLINE void chain(const REAL* image, const int64_t* at_row, long first, long last, const int64_t* at_tap, long taps, const REAL* delta,
                  long C, vec* sum, long some)
{
    UNROLL for (int t = 0; t < TAPS; t++) sum[t] = (vec){0};
    for (long i = first; i < last; i++) {
        const REAL* pixel = image + at_row[i];
        const vec d = load_up_to(delta + i * C, some);
        UNROLL for (int t = 0; t < TAPS; t++)
            if (t < taps)
                sum[t] = fused(load_up_to(pixel + at_tap[t], some), d, sum[t]);
    }
}

// dW[t] = sum over images and outputs of delta a[at_row[i] + at_tap[t]], C channels each: chains of SUMMED outputs, CHAINS of them
// added one after another, and these sums in double
KERNEL depthwise_gradient(const REAL* a, long image_a, const int64_t* at_row, long outputs, const int64_t* at_tap, long taps,
                          const REAL* delta, long images, long C, REAL* dW)
{
    for (long c = 0; c < C; c += LANES)
        for (long t0 = 0; t0 < taps; t0 += TAPS) {
            const long some = at_most(LANES, C - c), here = at_most(TAPS, taps - t0);
            double total[TAPS][LANES] = {{0}};
            vec part[TAPS] = {{0}};
            long chains = 0;
            for (long n = 0; n < images; n++)
                for (long first = 0; first < outputs; first += SUMMED) {
                    const long last = at_most(outputs, first + SUMMED);
                    const REAL *image = a + n * image_a + c, *d = delta + n * outputs * C + c;
                    vec sum[TAPS];
                    if (some == LANES && here == TAPS)
                        chain(image, at_row, first, last, at_tap + t0, TAPS, d, C, sum, LANES);
                    else
                        chain(image, at_row, first, last, at_tap + t0, here, d, C, sum, some);
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
                for (long i = 0; i < some; i++)
                    dW[(t0 + t) * C + c + i] = (REAL)total[t][i];
        }
}
