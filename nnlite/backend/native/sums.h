// Sums in one order, whatever the width of a vector. Down a column: up to LEAF rows one after another in REAL; more rows as the
// sum, in double, of two parts, of which the first has LEAF 2^i rows. A narrow matrix is summed as one whose rows are PAD of its
// rows; then parts i and i + 8, i + 4, i + 2, i + 1 are added. A vector is a matrix of one column.
#pragma once
#include "norm.h"

#define LEAF 32
#define BLOCK 64 // columns that are summed together, at most

// What is added for each x, with the y beside it and the mean of its column; what a kind does not read may be any pointer
//    first:   x       x y         x - mean       x             x where ReLU of the normalised y is not 0
//    second:  0       0           (x - mean)^2   x (y - mean)  that times (y - mean)
enum { VALUES, PRODUCTS, DEVIATIONS, DELTAS, RECTIFIED };

typedef struct {
    double first[BLOCK], second[BLOCK];
} Sums;

// Q vectors of at most LEAF rows, `row` values apart
INLINE void leaf_vectors(const int kind, const int Q, const REAL* x, const REAL* y, Norm by, long row, long m, Sums* s, long at)
{
    vec first[4], second[4], mean[4], scale[4], shift[4];
    UNROLL for (int q = 0; q < Q; q++)
    {
        first[q] = second[q] = (vec){0};
        mean[q] = kind >= DEVIATIONS ? load(by.mean + at + q * LANES) : (vec){0};
        scale[q] = kind == RECTIFIED ? load(by.scale + at + q * LANES) : (vec){0};
        shift[q] = kind == RECTIFIED ? load(by.shift + at + q * LANES) : (vec){0};
    }
    for (long i = 0; i < m; i++)
        UNROLL for (int q = 0; q < Q; q++)
        {
            const long place = i * row + at + q * LANES;
            const vec v = load(x + place);
            if (kind == PRODUCTS) {
                first[q] = fused(v, load(y + place), first[q]);
            } else if (kind == DEVIATIONS) {
                const vec d = v - mean[q];
                first[q] += d;
                second[q] = fused(d, d, second[q]);
            } else if (kind == RECTIFIED) {
                const vec d = load(y + place) - mean[q], delta = choose(fused(d, scale[q], shift[q]) > 0, v, (vec){0});
                first[q] += delta;
                second[q] = fused(delta, d, second[q]);
            } else {
                first[q] += v;
                if (kind == DELTAS)
                    second[q] = fused(v, load(y + place) - mean[q], second[q]);
            }
        }
    REAL sums[2][LANES];
    UNROLL for (int q = 0; q < Q; q++)
    {
        store(sums[0], first[q]);
        store(sums[1], second[q]);
        for (long j = 0; j < LANES; j++)
            s->first[at + q * LANES + j] = sums[0][j], s->second[at + q * LANES + j] = sums[1][j];
    }
}

// n columns, PAD to BLOCK; the last vector may overlap the one before it
INLINE void leaf(const int kind, const REAL* x, const REAL* y, Norm by, long row, long m, long n, Sums* s)
{
    long j = 0;
    for (; j + 4 * LANES <= n; j += 4 * LANES)
        leaf_vectors(kind, 4, x, y, by, row, m, s, j);
    for (; j < n; j += LANES)
        leaf_vectors(kind, 1, x, y, by, row, m, s, at_most(j, n - LANES));
}

static __attribute__((noinline, noclone)) void sum_wide(int kind, const REAL* x, const REAL* y, Norm by, long row, long m,
                                                        long n, Sums* s)
{
    if (m > LEAF) {
        Sums rest;
        long half = LEAF;
        while (2 * half < m)
            half *= 2;
        sum_wide(kind, x, y, by, row, half, n, s);
        sum_wide(kind, x + half * row, y + half * row, by, row, m - half, n, &rest);
        for (long j = 0; j < n; j++)
            s->first[j] += rest.first[j], s->second[j] += rest.second[j];
    } else if (kind == VALUES) {
        leaf(VALUES, x, y, by, row, m, n, s);
    } else if (kind == PRODUCTS) {
        leaf(PRODUCTS, x, y, by, row, m, n, s);
    } else if (kind == DEVIATIONS) {
        leaf(DEVIATIONS, x, y, by, row, m, n, s);
    } else if (kind == DELTAS) {
        leaf(DELTAS, x, y, by, row, m, n, s);
    } else {
        leaf(RECTIFIED, x, y, by, row, m, n, s);
    }
}

// All n < PAD columns of a matrix whose rows are one behind the other
static void sum_narrow(int kind, const REAL* x, const REAL* y, Norm by, long m, long n, Sums* s)
{
    const long width = PAD * n, whole = m / PAD, rest = m % PAD * n;
    REAL mean[PAD * PAD] = {0}, scale[PAD * PAD], shift[PAD * PAD];
    double first[PAD * PAD], second[PAD * PAD];
    for (long j = 0; j < width && kind >= DEVIATIONS; j++)
        mean[j] = j < n ? by.mean[j] : mean[j - n];
    for (long j = 0; j < width && kind == RECTIFIED; j++)
        scale[j] = by.scale[j % n], shift[j] = by.shift[j % n];
    by = (Norm){mean, scale, shift};
    for (long j = 0; j < width; j += BLOCK) {
        const long some = at_most(BLOCK, width - j);
        sum_wide(kind, x + j, y + j, from_channel(by, j), width, whole, some, s);
        memcpy(first + j, s->first, some * sizeof(double));
        memcpy(second + j, s->second, some * sizeof(double));
    }
    x += whole * width, y += whole * width;
    for (long j = 0; j < rest; j++) {
        const REAL own = x[j] - mean[j], other = kind >= DELTAS ? y[j] - mean[j] : 0;
        const REAL delta = kind == RECTIFIED && !(FMA(other, scale[j], shift[j]) > 0) ? 0 : x[j];
        first[j] += kind == PRODUCTS ? (double)x[j] * y[j] : kind == DEVIATIONS ? own : delta;
        second[j] += kind == DEVIATIONS ? (double)own * own : (double)delta * other;
    }
    for (long half = PAD / 2; half > 0; half /= 2)
        for (long j = 0; j < half * n; j++)
            first[j] += first[j + half * n], second[j] += second[j + half * n];
    memcpy(s->first, first, n * sizeof(double));
    memcpy(s->second, second, n * sizeof(double));
}

// n columns of m rows, `row` values apart: at most BLOCK columns, and fewer than PAD only if they are all
static void sum_columns(int kind, const REAL* x, const REAL* y, Norm by, long row, long m, long n, Sums* s)
{
    if (n < PAD)
        sum_narrow(kind, x, y, by, m, n, s);
    else
        sum_wide(kind, x, y, by, row, m, n, s);
}

// For each block of the C columns of a matrix: from which column, and how many. The last one may overlap the one before it.
#define EACH_BLOCK(C)                                                                                                              \
    for (long block = 0, at = 0, n = at_most(BLOCK, C); block < C;                                                                 \
         block += BLOCK, at = at_least(0, at_most(block, C - PAD)), n = at_most(BLOCK, C - at))
