// Products of matrices by register tiles. An output is one chain of fused multiply-adds, segment by segment,
//
//     C[i][j] = sum over s < segments, p < k of A[i row_a + at_a[s] + p step_a] B[at_b[s] + p row_b + j],
//
// or that added to C, whatever the tile. A plain product has one segment, a convolution one for each row of its window.
#pragma once
#include "vector.h"

typedef struct {
    const REAL* A;
    long row_a, step_a;
    const REAL* B;
    long row_b, k, segments;
    const long *at_a, *at_b; // where segments start
} Factors;

// R rows of Q vectors of C, which stay in registers
#define TILE(R, Q)                                                                                                      \
    INLINE void tile_##R##_##Q(const Factors* f, const REAL* A, const REAL* B, REAL* C, long row_c, int add)            \
    {                                                                                                                   \
        vec sum[R][Q], b[Q];                                                                                            \
        const long row_a = f->row_a, step_a = f->step_a, row_b = f->row_b, k = f->k;                                    \
        UNROLL for (int r = 0; r < R; r++) UNROLL for (int q = 0; q < Q; q++) sum[r][q] = (vec){0};                     \
        for (long s = 0; s < f->segments; s++) {                                                                        \
            const REAL *x = A + f->at_a[s], *y = B + f->at_b[s];                                                        \
            for (long p = 0; p < k; p++, x += step_a, y += row_b) {                                                     \
                UNROLL for (int q = 0; q < Q; q++) b[q] = load(y + LANES * q);                                          \
                UNROLL for (int r = 0; r < R; r++) {                                                                    \
                    const vec a = splat(x[r * row_a]);                                                                  \
                    UNROLL for (int q = 0; q < Q; q++) sum[r][q] = fused(a, b[q], sum[r][q]);                           \
                }                                                                                                       \
            }                                                                                                           \
        }                                                                                                               \
        UNROLL for (int r = 0; r < R; r++) UNROLL for (int q = 0; q < Q; q++)                                           \
        {                                                                                                               \
            REAL* c = C + r * row_c + LANES * q;                                                                        \
            store(c, add ? load(c) + sum[r][q] : sum[r][q]);                                                            \
        }                                                                                                               \
    }

// m rows of Q vectors, R at a time
#define PANEL(R, Q)                                                                                                     \
    TILE(R, Q) TILE(4, Q) TILE(1, Q)                                                                                    \
    static __attribute__((noinline)) void panel_##Q(const Factors* f, long j, REAL* C, long row_c, long m, int add)     \
    {                                                                                                                   \
        const REAL *A = f->A, *B = f->B + j;                                                                            \
        long i = 0;                                                                                                     \
        for (C += j; i + R <= m; i += R)                                                                                \
            tile_##R##_##Q(f, A + i * f->row_a, B, C + i * row_c, row_c, add);                                          \
        for (; i + 4 <= m; i += 4)                                                                                      \
            tile_4_##Q(f, A + i * f->row_a, B, C + i * row_c, row_c, add);                                              \
        for (; i < m; i++)                                                                                              \
            tile_1_##Q(f, A + i * f->row_a, B, C + i * row_c, row_c, add);                                              \
    }

// C (m, n), rows row_c values apart; n is a multiple of PAD, and B has as many columns
#if VB == 64
PANEL(6, 4) PANEL(12, 2) PANEL(8, 1)
static void product(const Factors* f, REAL* C, long row_c, long m, long n, int add)
{
    long j = 0;
    for (; j + 4 * LANES <= n; j += 4 * LANES)
        panel_4(f, j, C, row_c, m, add);
    for (; j + 2 * LANES <= n; j += 2 * LANES)
        panel_2(f, j, C, row_c, m, add);
    for (; j < n; j += LANES)
        panel_1(f, j, C, row_c, m, add);
}
#elif VB == 32
PANEL(6, 2)
static void product(const Factors* f, REAL* C, long row_c, long m, long n, int add)
{
    for (long j = 0; j < n; j += 2 * LANES)
        panel_2(f, j, C, row_c, m, add);
}
#else
#if defined DOUBLE
#define WIDTH 2
PANEL(8, 2)
#define panel panel_2
#else
#define WIDTH 4
PANEL(6, 4)
#define panel panel_4
#endif
static void product(const Factors* f, REAL* C, long row_c, long m, long n, int add)
{
    for (long j = 0; j < n; j += WIDTH * LANES)
        panel(f, j, C, row_c, m, add);
}
#endif

static const long ORIGIN[1] = {0};

INLINE Factors plain(const REAL* A, long row_a, long step_a, const REAL* B, long row_b, long k)
{
    return (Factors){A, row_a, step_a, B, row_b, k, 1, ORIGIN, ORIGIN};
}

// `rows` rows of n values, `row` values apart, to rows of padded(n) values, zeros behind
INLINE void pad_columns(const REAL* x, long row, REAL* to, long rows, long n)
{
    const long width = padded(n);
    for (long i = 0; i < rows; i++) {
        memcpy(to + i * width, x + i * row, n * sizeof(REAL));
        memset(to + i * width + n, 0, (width - n) * sizeof(REAL));
    }
}

// The transpose of x (m, n), whose values are (row, column) apart, to n rows of `width` values, zeros behind
INLINE void transpose(const REAL* x, long row, long column, long m, long n, REAL* to, long width)
{
    for (long j0 = 0; j0 < n; j0 += 16) // in blocks that stay in L1
        for (long i0 = 0; i0 < width; i0 += 16)
            for (long j = j0; j < at_most(n, j0 + 16); j++)
                for (long i = i0; i < at_most(width, i0 + 16); i++)
                    to[j * width + i] = i < m ? x[i * row + j * column] : 0;
}
