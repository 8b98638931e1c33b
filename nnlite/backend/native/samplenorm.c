// Means of rows. LayerNorm and GroupNorm: y = gamma x + beta, x = (a - mean) / sqrt(var + eps), with mean and variance of a row, or
// of an image over all its pixels and a group of channels.
//
// Means are taken about the first of the values, so that equal ones are exactly 0. A sum over a row has 16 lanes: LEAF values one
// after another in REAL, these partial sums one after another in double; then lanes i and i + 8, i + 4, i + 2, i + 1 are added.
#include "sums.h"

#define PARTS ((int)(PAD / LANES)) // vectors of 16 lanes

// For each vector of a row of k values: its place, and how many are left
#define EACH_VECTOR(k) for (long at = 0, left = k; left > 0; at += LANES, left -= LANES)

static const INT NUMBERS[PAD] = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};

// What is added for each value a of a row, with the b and c beside it; sums are about `first` or both constants
//    first:   a - first       0                     b c
//    second:  0               (a - first - mean)^2  a b c
enum { MEAN, VARIANCE, SLOPE };

typedef struct {
    vec first[PARTS], second[PARTS];
} Lanes;

// The first n values of a vector, and 0 behind
INLINE vec first_values(vec x, long n)
{
    ivec number;
    memcpy(&number, NUMBERS, sizeof number);
    return n >= LANES ? x : choose(number < (INT)n, x, (vec){0});
}

// 16 values, or the `left` that are left
INLINE void add_values(const int kind, const REAL* a, const REAL* b, const REAL* c, vec first, vec mean, long left, Lanes* lanes)
{
    UNROLL for (long p = 0; p < PARTS; p++, a += LANES, b += LANES, c += LANES, left -= LANES)
    {
        const vec v = load_up_to(a, left);
        if (kind == MEAN) {
            lanes->first[p] += first_values(v - first, left);
        } else if (kind == VARIANCE) {
            const vec d = first_values(v - first - mean, left);
            lanes->second[p] = fused(d, d, lanes->second[p]);
        } else {
            const vec d = load_up_to(b, left) * load_up_to(c, left);
            lanes->first[p] += d;
            lanes->second[p] = fused(v, d, lanes->second[p]);
        }
    }
}

INLINE void add_lanes(const vec* lanes, double* sums)
{
    REAL lane[PAD];
    UNROLL for (int p = 0; p < PARTS; p++) store(lane + p * LANES, lanes[p]);
    UNROLL for (int i = 0; i < PAD; i++) sums[i] += lane[i];
}

INLINE double fold(double* sums)
{
    UNROLL for (int half = PAD / 2; half > 0; half /= 2)
        UNROLL for (int i = 0; i < half; i++) sums[i] += sums[i + half];
    return sums[0];
}

// The two sums of a row of k values, over k
INLINE void two_means(const int kind, const REAL* a, const REAL* b, const REAL* c, vec first, vec mean, long k,
                      double* first_mean, double* second_mean)
{
    double sums[2][PAD] = {{0}};
    for (long piece = 0; piece < k; piece += LEAF * PAD) {
        const long end = at_most(k, piece + LEAF * PAD);
        Lanes lanes = {{{0}}, {{0}}};
        long at = piece;
        for (; at + PAD <= end; at += PAD)
            add_values(kind, a + at, b + at, c + at, first, mean, PAD, &lanes);
        if (at < end)
            add_values(kind, a + at, b + at, c + at, first, mean, end - at, &lanes);
        add_lanes(lanes.first, sums[0]);
        add_lanes(lanes.second, sums[1]);
    }
    *first_mean = fold(sums[0]) / k, *second_mean = fold(sums[1]) / k;
}

// The mean of each of m rows
KERNEL row_means(const REAL* a, REAL* means, long m, long k)
{
    for (long row = 0; row < m; row++) {
        double mean, none;
        two_means(MEAN, a + row * k, a, a, (vec){0}, (vec){0}, k, &mean, &none);
        means[row] = mean;
    }
}

// `layer_norm` of m rows of one value each: x is 0, or NaN where a is not finite
static void layer_norm_of_ones(const REAL* a, REAL gamma, REAL beta, REAL eps, REAL* x, REAL* inv_std, REAL* y, long m)
{
    const vec scale = splat(1 / SQRT(eps));
    EACH_VECTOR(m)
    {
        const vec first = load_up_to(a + at, left), zero = first - first, v = zero * scale, result = fused(v, splat(gamma), splat(beta));
        store_up_to(inv_std + at, zero + scale, left);
        if (x)
            store_up_to(x + at, v, left);
        store_up_to(y + at, result, left);
    }
}

// y, x and 1 / sqrt(var + eps) of each of m rows of k values; x may be null
KERNEL layer_norm(const REAL* a, const REAL* gamma, const REAL* beta, REAL eps, REAL* x, REAL* inv_std, REAL* y, long m, long k)
{
    if (k == 1) {
        layer_norm_of_ones(a, *gamma, *beta, eps, x, inv_std, y, m);
        return;
    }
    for (long row = 0; row < m; row++, a += k, y += k) {
        const vec first = splat(*a);
        double sum, var, none;
        two_means(MEAN, a, a, a, first, first, k, &sum, &none);
        const vec mean = splat(sum);
        two_means(VARIANCE, a, a, a, first, mean, k, &none, &var);
        const REAL scale = inv_std[row] = 1 / SQRT((REAL)var + eps);
        REAL* kept = x ? x + row * k : y;
        EACH_VECTOR(k)
        {
            const vec v = (load_up_to(a + at, left) - first - mean) * scale;
            const vec shift = load_up_to(beta + at, left), result = fused(v, load_up_to(gamma + at, left), shift);
            store_up_to(kept + at, v, left);
            store_up_to(y + at, result, left);
        }
    }
}

// `layer_norm_delta` of m rows of one value each
static void layer_norm_delta_of_ones(const REAL* delta, const REAL* x, REAL gamma, const REAL* inv_std, REAL* da, long m)
{
    EACH_VECTOR(m)
    {
        const vec d = load_up_to(delta + at, left) * splat(gamma), v = load_up_to(x + at, left);
        const vec result = fused(-(v * d), v, d - d) * load_up_to(inv_std + at, left);
        store_up_to(da + at, result, left);
    }
}

// da = (d - mean of d - x mean of (d x)) inv_std with d = gamma delta, for each row
KERNEL layer_norm_delta(const REAL* delta, const REAL* x, const REAL* gamma, const REAL* inv_std, REAL* da, long m, long k)
{
    if (k == 1) {
        layer_norm_delta_of_ones(delta, x, *gamma, inv_std, da, m);
        return;
    }
    const vec zero = {0};
    for (long row = 0; row < m; row++, delta += k, x += k, da += k) {
        double mean, slope;
        two_means(SLOPE, x, delta, gamma, zero, zero, k, &mean, &slope);
        const vec means = splat(mean), falls = splat(-slope);
        const REAL scale = inv_std[row];
        EACH_VECTOR(k)
        {
            const vec d = load_up_to(delta + at, left) * load_up_to(gamma + at, left) - means;
            store_up_to(da + at, fused(falls, load_up_to(x + at, left), d) * scale, left);
        }
    }
}

// ---- groups: images (n, m, C) of m pixels; rows of fewer than 16 channels are swept 16 at a time, and constants repeated for them

// The two sums of each channel of an image: see sums.h
INLINE void channel_sums(int kind, const REAL* a, const REAL* b, const REAL* c, long m, long C, double* first, double* second)
{
    EACH_BLOCK(C)
    {
        Sums s;
        sum_columns(kind, a + at, b + at, (Norm){c + at}, C, m, n, &s);
        memcpy(first + at, s.first, n * sizeof(double));
        memcpy(second + at, s.second, n * sizeof(double));
    }
}

// The length of rows that hold all channels: C, or PAD times that
INLINE long long_row(long C) { return C < PAD ? PAD * C : C; }

static void repeat(REAL* row, long C)
{
    for (long i = C; i < long_row(C); i++)
        row[i] = row[i - C];
}

// For each vector of an image: its place, its place j in a row, and how many values are left
#define EACH_PLACE(m, C)                                                                                                           \
    for (long row = 0; row < m * C; row += long_row(C))                                                                            \
        for (long j = 0, place = row, left = at_most(long_row(C), m * C - row); left > 0;                                          \
             j += LANES, place += LANES, left -= LANES)

// y, x and 1 / sqrt(var + eps) of each group of each image; x may be null.
// rows (6, long_row(C)), sums (2, C): scratch
KERNEL group_norm(const REAL* a, const REAL* gamma, const REAL* beta, REAL eps, REAL* x, REAL* inv_std, REAL* y, long images, long m,
                  long C, long groups, REAL* rows, double* sums)
{
    const long width = C / groups, length = long_row(C);
    REAL *first = rows, *mean = rows + length, *scale = rows + 2 * length, *g = rows + 3 * length, *b = rows + 4 * length;
    REAL* center = rows + 5 * length;
    memcpy(g, gamma, C * sizeof(REAL));
    memcpy(b, beta, C * sizeof(REAL));
    repeat(g, C);
    repeat(b, C);
    for (long n = 0; n < images; n++, a += m * C, y += m * C, inv_std += groups) {
        for (long c = 0; c < C; c++)
            first[c] = a[c / width * width];
        channel_sums(DEVIATIONS, a, a, first, m, C, sums, sums + C);
        for (long k = 0; k < groups; k++) {
            double total = 0;
            for (long c = k * width; c < (k + 1) * width; c++)
                total += sums[c];
            for (long c = k * width; c < (k + 1) * width; c++)
                mean[c] = total / (m * width), center[c] = first[c] + mean[c];
        }
        channel_sums(DEVIATIONS, a, a, center, m, C, sums, sums + C);
        for (long k = 0; k < groups; k++) {
            double rest = 0, squares = 0;
            for (long c = k * width; c < (k + 1) * width; c++)
                rest += sums[c], squares += sums[C + c];
            squares -= rest * rest / (m * width); // of what rounding the center has left
            inv_std[k] = 1 / SQRT((REAL)(squares < 0 ? 0 : squares / (m * width)) + eps);
            for (long c = k * width; c < (k + 1) * width; c++)
                scale[c] = inv_std[k];
        }
        repeat(first, C);
        repeat(mean, C);
        repeat(scale, C);
        REAL* kept = x ? x + n * m * C : y;
        EACH_PLACE(m, C)
        {
            const vec d = load_up_to(a + place, left) - load_up_to(first + j, left) - load_up_to(mean + j, left);
            const vec v = d * load_up_to(scale + j, left), shift = load_up_to(b + j, left);
            const vec result = fused(v, load_up_to(g + j, left), shift);
            store_up_to(kept + place, v, left);
            store_up_to(y + place, result, left);
        }
    }
}

// da = (d - mean of d - x mean of (d x)) inv_std with d = gamma delta, for each group of each image. rows, sums: scratch as above
KERNEL group_norm_delta(const REAL* delta, const REAL* x, const REAL* gamma, const REAL* inv_std, REAL* da, long images, long m, long C,
                        long groups, REAL* rows, double* sums)
{
    const long width = C / groups, length = long_row(C);
    REAL *zero = rows, *mean = rows + length, *fall = rows + 2 * length, *scale = rows + 3 * length, *g = rows + 4 * length;
    memset(zero, 0, C * sizeof(REAL));
    memcpy(g, gamma, C * sizeof(REAL));
    repeat(g, C);
    for (long n = 0; n < images; n++, delta += m * C, x += m * C, da += m * C, inv_std += groups) {
        channel_sums(DELTAS, delta, x, zero, m, C, sums, sums + C);
        for (long k = 0; k < groups; k++) {
            double total = 0, products = 0;
            for (long c = k * width; c < (k + 1) * width; c++)
                total += gamma[c] * sums[c], products += gamma[c] * sums[C + c];
            for (long c = k * width; c < (k + 1) * width; c++)
                mean[c] = total / (m * width), fall[c] = -products / (m * width), scale[c] = inv_std[k];
        }
        repeat(mean, C);
        repeat(fall, C);
        repeat(scale, C);
        EACH_PLACE(m, C)
        {
            const vec d = load_up_to(delta + place, left) * load_up_to(g + j, left) - load_up_to(mean + j, left);
            const vec v = fused(load_up_to(fall + j, left), load_up_to(x + place, left), d);
            store_up_to(da + place, v * load_up_to(scale + j, left), left);
        }
    }
}
