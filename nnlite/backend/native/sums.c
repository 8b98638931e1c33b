// Sums over rows, pixels and vectors, in double, and the moments of columns.
#include "sums.h"

#define CANCELLED 4.0 // see `moments`

KERNEL column_sums(const REAL* x, long m, long C, double* sums)
{
    EACH_BLOCK(C)
    {
        Sums s;
        sum_columns(VALUES, x + at, x, (Norm){x}, C, m, n, &s);
        memcpy(sums + at, s.first, n * sizeof(double));
    }
}

// Of the products x y, value by value
KERNEL column_products(const REAL* x, const REAL* y, long m, long C, double* sums)
{
    EACH_BLOCK(C)
    {
        Sums s;
        sum_columns(PRODUCTS, x + at, y + at, (Norm){x}, C, m, n, &s);
        memcpy(sums + at, s.first, n * sizeof(double));
    }
}

// out[i] = the sum of the rows whose id is i, in double in their order; rows (m, C), out (n, C). Ids that are no i are left out.
// first (n), next (m), sum (C): scratch, the first row of each id, the next one of the same id, and a row
KERNEL add_rows(const int64_t* ids, const REAL* restrict rows, REAL* restrict out, long m, long n, long C, int64_t* first, int64_t* next,
                double* restrict sum)
{
    for (long i = 0; i < n; i++)
        first[i] = -1;
    for (long row = m - 1; row >= 0; row--)
        if (ids[row] >= 0 && ids[row] < n)
            next[row] = first[ids[row]], first[ids[row]] = row;
    for (long i = 0; i < n; i++, out += C) {
        for (long j = 0; j < C; j++)
            sum[j] = 0;
        for (long row = first[i]; row >= 0; row = next[row])
            for (long j = 0; j < C; j++)
                sum[j] += rows[row * C + j];
        for (long j = 0; j < C; j++)
            out[j] = sum[j];
    }
}

// Over the pixels of each image: images (n, pixels, C), sums (n, C)
KERNEL pixel_sums(const REAL* a, long images, long pixels, long C, double* sums)
{
    for (long i = 0; i < images; i++)
        column_sums(a + i * pixels * C, pixels, C, sums + i * C);
}

// Of each column of delta and of delta (a - mean), and with `rectified` of delta where max( , 0) of the normalised a is not 0:
// sums (2, C)
KERNEL delta_sums(const REAL* delta, const REAL* a, const REAL* mean, const REAL* scale, const REAL* shift, long rectified, long m,
                  long C, double* sums)
{
    const Norm by = {mean, scale, shift};
    EACH_BLOCK(C)
    {
        Sums s;
        sum_columns(rectified ? RECTIFIED : DELTAS, delta + at, a + at, from_channel(by, at), C, m, n, &s);
        memcpy(sums + at, s.first, n * sizeof(double));
        memcpy(sums + C + at, s.second, n * sizeof(double));
    }
}

// A guess at the means of n columns: about the first row, so that equal values have exactly their mean
static void guess_means(const REAL* x, long row, long m, long n, REAL* mean)
{
    REAL sums[BLOCK] = {0};
    for (long i = 1; i < PAD; i++)
        for (long j = 0; j < n; j++)
            sums[j] += x[m / PAD * i * row + j] - x[j];
    for (long j = 0; j < n; j++)
        mean[j] = x[j] + sums[j] / PAD;
}

// The mean and the sum of squared deviations of each column, by
//
//     sum of (x - mean)^2 = sum of (x - c)^2 - (sum of (x - c))^2 / m
//
// about a guess c. Where more than CANCELLED / sqrt(m) of the squares is left, no digits are lost, because their rounding errors
// cancel as well; else once more, about the mean that was found.
KERNEL moments(const REAL* x, long m, long C, REAL* mean, REAL* deviations)
{
    const double least = CANCELLED / __builtin_sqrt((double)at_most(m, 1 << 16));
    EACH_BLOCK(C)
    {
        Sums s;
        REAL center[BLOCK];
        int lost = 0;
        guess_means(x + at, C, m, n, center);
        sum_columns(DEVIATIONS, x + at, x, (Norm){center}, C, m, n, &s);
        for (long j = 0; j < n; j++)
            lost |= s.second[j] - s.first[j] * s.first[j] / m < least * s.second[j];
        if (lost) {
            for (long j = 0; j < n; j++)
                center[j] = center[j] + s.first[j] / m;
            sum_columns(DEVIATIONS, x + at, x, (Norm){center}, C, m, n, &s);
        }
        for (long j = 0; j < n; j++) {
            const double rest = s.second[j] - s.first[j] * s.first[j] / m;
            mean[at + j] = center[j] + s.first[j] / m;
            deviations[at + j] = rest < 0 ? 0 : rest;
        }
    }
}

// Whether no value is infinite or NaN
KERNEL all_finite(const REAL* x, long n, int64_t* result)
{
    ivec good = ~(ivec){0};
    for (long i = 0; i < n; i += LANES) {
        const vec v = load_up_to(x + i, n - i);
        good &= v - v == 0;
    }
    *result = 1;
    for (long i = 0; i < LANES; i++)
        *result &= good[i] != 0;
}
