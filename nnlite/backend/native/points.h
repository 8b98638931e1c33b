// Winograd's transforms at the pairs of points p and -p of PAIRS, at 0 where IN is even, and at infinity, in this order. Each is
// of one axis, in place: x[0], x[step], ...
//
// With M(x) the product of x - point over all points, the rows of B' are the coefficients of M(x) / (x - point), and those of M for
// infinity; the rows of A, and of G times M'(point), are 1, point, point^2, ... Even and odd powers stay apart until the last step,
// for p and -p together. Compilers fold everything that does not depend on x.
#pragma once
#include "vector.h"

#define IN (OUT + TAPS - 1)
#define HAS_ZERO (1 - IN % 2)
#define N ((IN - 1) / 2) // pairs

static const double PAIR[N] = PAIRS;

INLINE vec add_times(double factor, vec x, vec sum) { return fused(splat(factor), x, sum); }

// c[0] x[0] + c[1] x[2 step] + ..., n terms
INLINE vec sum_of_every_other(const double* c, int n, const vec* x, int step)
{
    vec sum = (REAL)c[0] * x[0];
    UNROLL for (int i = 1; i < n; i++) sum = add_times(c[i], x[2 * i * step], sum);
    return sum;
}

// Coefficients of the product of t - p^2 over the pairs but one, or all
INLINE void multiply_pairs(int but, double* c)
{
    UNROLL for (int i = 0; i <= N; i++) c[i] = i == 0;
    UNROLL for (int k = 0; k < N; k++)
        UNROLL for (int i = N; i >= 0; i--) c[i] = k == but ? c[i] : (i > 0 ? c[i - 1] : 0) - PAIR[k] * PAIR[k] * c[i];
}

// 1, p^2, p^4, ...
INLINE void powers(int k, double* c)
{
    c[0] = 1;
    UNROLL for (int i = 1; i <= N; i++) c[i] = c[i - 1] * PAIR[k] * PAIR[k];
}

INLINE void input_axis(vec* x, int step) // B'd
{
    vec y[IN];
    double c[N + 1];
    UNROLL for (int k = 0; k < N; k++)
    {
        multiply_pairs(k, c);
        const vec low = sum_of_every_other(c, N, x + HAS_ZERO * step, step), high = sum_of_every_other(c, N, x + (HAS_ZERO + 1) * step, step);
        y[2 * k] = add_times(PAIR[k], low, high), y[2 * k + 1] = add_times(-PAIR[k], low, high);
    }
    multiply_pairs(N, c);
    if (HAS_ZERO)
        y[2 * N] = sum_of_every_other(c, N + 1, x, step);
    y[IN - 1] = sum_of_every_other(c, N + 1, x + HAS_ZERO * step, step);
    UNROLL for (int i = 0; i < IN; i++) x[i * step] = y[i];
}

INLINE void input_delta_axis(vec* x, int step) // B v, its adjoint
{
    vec y[IN] = {0};
    double c[N + 1];
    multiply_pairs(N, c);
    UNROLL for (int i = 0; i <= N; i++)
    {
        y[2 * i + HAS_ZERO] = (REAL)c[i] * x[(IN - 1) * step];
        if (HAS_ZERO)
            y[2 * i] = (REAL)c[i] * x[2 * N * step];
    }
    UNROLL for (int k = 0; k < N; k++)
    {
        multiply_pairs(k, c);
        const vec high = x[2 * k * step] + x[(2 * k + 1) * step], low = (REAL)PAIR[k] * (x[2 * k * step] - x[(2 * k + 1) * step]);
        UNROLL for (int i = 0; i < N; i++)
        {
            y[2 * i + HAS_ZERO] = add_times(c[i], low, y[2 * i + HAS_ZERO]);
            y[2 * i + HAS_ZERO + 1] = add_times(c[i], high, y[2 * i + HAS_ZERO + 1]);
        }
    }
    UNROLL for (int i = 0; i < IN; i++) x[i * step] = y[i];
}

INLINE void to_points(vec* x, int step, int n) // A y or, but for the scales, G w: n -> IN
{
    vec y[IN];
    double c[N + 1];
    UNROLL for (int k = 0; k < N; k++)
    {
        powers(k, c);
        const vec even = sum_of_every_other(c, (n + 1) / 2, x, step), odd = sum_of_every_other(c, n / 2, x + step, step);
        y[2 * k] = add_times(PAIR[k], odd, even), y[2 * k + 1] = add_times(-PAIR[k], odd, even);
    }
    if (HAS_ZERO)
        y[2 * N] = x[0];
    y[IN - 1] = x[(n - 1) * step];
    UNROLL for (int i = 0; i < IN; i++) x[i * step] = y[i];
}

INLINE void from_points(vec* x, int step, int n) // its adjoint: IN -> n
{
    vec y[IN] = {0};
    double c[N + 1];
    if (HAS_ZERO)
        y[0] = x[2 * N * step];
    y[n - 1] = x[(IN - 1) * step];
    UNROLL for (int k = 0; k < N; k++)
    {
        powers(k, c);
        const vec even = x[2 * k * step] + x[(2 * k + 1) * step], odd = (REAL)PAIR[k] * (x[2 * k * step] - x[(2 * k + 1) * step]);
        UNROLL for (int i = 0; i < n; i++) y[i] = add_times(c[i / 2], i % 2 ? odd : even, y[i]);
    }
    UNROLL for (int i = 0; i < n; i++) x[i * step] = y[i];
}

INLINE REAL scale(int point) // 1 / M'(point), which G has
{
    double slope = 1;
    UNROLL for (int k = 0; k < N; k++)
        if (point == 2 * N && HAS_ZERO)
            slope *= -PAIR[k] * PAIR[k];
        else if (point < 2 * N)
            slope *= point / 2 == k ? (HAS_ZERO ? 2 * PAIR[k] * PAIR[k] : point % 2 ? -2 * PAIR[k] : 2 * PAIR[k])
                                    : PAIR[point / 2] * PAIR[point / 2] - PAIR[k] * PAIR[k];
    return 1 / slope;
}
