// Products of matrices by register tiles. An output is one chain of fused multiply-adds, segment by segment,
//
//     C[i][j] = sum over s < segments, p < k of A[at_row[i] + at_a[s] + p step_a] B[at_b[s] + p row_b + j],
//
// or that added to C, whatever the tile. In a plain product row i starts at i row_a, and there is one segment; in a convolution
// the rows are pixels and the segments rows of the window.
#pragma once
#include "vector.h"

// Memory that is read soon. A file that defines FETCHES before it includes this one gives two of them to each product, which fetches
// a line of 64 bytes to L2 with each step of a tile. Planes that wait in L3 instead cost a fifth of the time.
typedef struct {
    const char* at;
    long bytes;
} Soon;

typedef struct {
    const REAL* A;
    const long* at_row; // or NULL: row_a apart
    long row_a, step_a;
    const REAL* B;
    long row_b, k, segments;
    const long *at_a, *at_b;
    Soon* soon;
} Factors;

INLINE const REAL* row_of(const Factors* f, long i) { return f->A + (f->at_row ? f->at_row[i] : i * f->row_a); }

#ifdef FETCHES
#define LINES(f) const char* line = next_lines(f->soon, f->k * f->segments);
#define FETCH __builtin_prefetch(line, 0, 2), line += 64;
#else
#define LINES(f)
#define FETCH
#endif

INLINE Soon soon(const REAL* values, long n) { return (Soon){(const char*)values, n * (long)sizeof(REAL)}; }
INLINE Soon nothing(const REAL* known) { return soon(known, 0); }

INLINE const char* next_lines(Soon* soon, long lines)
{
    Soon* s = soon->bytes > 0 ? soon : soon + 1;
    const char* at = s->at;
    if ((s->bytes -= 64 * lines) > 0) // or the last ones once more
        s->at += 64 * lines;
    return at;
}

// R rows of Q vectors of C, which stay in registers
#define TILE(R, Q)                                                                                                      \
    INLINE void tile_##R##_##Q(const Factors* f, long i, const REAL* B, REAL* C, long row_c, int add)                   \
    {                                                                                                                   \
        vec sum[R][Q], b[Q];                                                                                            \
        const REAL *x[R], *row[R];                                                                                      \
        LINES(f)                                                                                                        \
        const long step_a = f->step_a, row_b = f->row_b, k = f->k, segments = f->segments;                              \
        UNROLL for (int r = 0; r < R; r++) row[r] = row_of(f, i + r);                                                   \
        UNROLL for (int r = 0; r < R; r++) UNROLL for (int q = 0; q < Q; q++) sum[r][q] = (vec){0};                     \
        for (long s = 0; s < segments; s++) {                                                                           \
            const REAL* y = B + f->at_b[s];                                                                             \
            UNROLL for (int r = 0; r < R; r++) x[r] = row[r] + f->at_a[s];                                              \
            for (long p = 0, at = 0; p < k; p++, at += step_a, y += row_b) {                                            \
                FETCH                                                                                                   \
                UNROLL for (int q = 0; q < Q; q++) b[q] = load(y + LANES * q);                                          \
                UNROLL for (int r = 0; r < R; r++) {                                                                    \
                    const vec a = splat(x[r][at]);                                                                      \
                    UNROLL for (int q = 0; q < Q; q++) sum[r][q] = fused(a, b[q], sum[r][q]);                           \
                }                                                                                                       \
            }                                                                                                           \
        }                                                                                                               \
        UNROLL for (int r = 0; r < R; r++) UNROLL for (int q = 0; q < Q; q++)                                           \
        {                                                                                                               \
            REAL* c = C + (i + r) * row_c + LANES * q;                                                                  \
            store(c, add ? load(c) + sum[r][q] : sum[r][q]);                                                            \
        }                                                                                                               \
    }

// m rows of Q vectors, R at a time
#define PANEL(R, Q)                                                                                                     \
    TILE(R, Q) TILE(4, Q) TILE(1, Q)                                                                                    \
    static __attribute__((noinline)) void panel_##Q(const Factors* f, long j, REAL* C, long row_c, long m, int add)     \
    {                                                                                                                   \
        long i = 0;                                                                                                     \
        for (; i + R <= m; i += R)                                                                                      \
            tile_##R##_##Q(f, i, f->B + j, C + j, row_c, add);                                                          \
        for (; i + 4 <= m; i += 4)                                                                                      \
            tile_4_##Q(f, i, f->B + j, C + j, row_c, add);                                                              \
        for (; i < m; i++)                                                                                              \
            tile_1_##Q(f, i, f->B + j, C + j, row_c, add);                                                              \
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
    return (Factors){A, NULL, row_a, step_a, B, row_b, k, 1, ORIGIN, ORIGIN, NULL};
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

// Rows of 16 values of the transpose of x, from `m` rows of `n` values, zeros behind; of each row of it `some` values are stored.
// Each row of x is read once: where a power of two is between them, few of them fit L1.
INLINE void transpose_block(const REAL* x, long row, long column, long m, long n, REAL* to, long width, long some)
{
    REAL block[16][16] = {0};
    for (long i = 0; i < m; i++)
        for (long j = 0; j < n; j++)
            block[j][i] = x[i * row + j * column];
    for (long j = 0; j < n; j++)
        for (long i = 0; i < some; i++)
            to[j * width + i] = block[j][i];
}

// The transpose of x (m, n), whose values are (row, column) apart, to n rows of `width` values, zeros behind
INLINE void transpose(const REAL* x, long row, long column, long m, long n, REAL* to, long width)
{
    for (long i = 0; i < width; i += 16)
        for (long j = 0; j < n; j += 16) {
            const REAL* from = x + i * row + j * column;
            if (i + 16 <= m && j + 16 <= n)
                transpose_block(from, row, column, 16, 16, to + j * width + i, width, 16);
            else
                transpose_block(from, row, column, at_most(16, m - i), at_most(16, n - j), to + j * width + i, width, at_most(16, width - i));
        }
}
