// Products of matrices of any strides.
#include "product.h"
#include "team.h"

#define FEW 4 // rows: a tile of the transposed product would be mostly zeros
#define OWN 4096 // values of scratch memory on the stack: small products need no other
#define SUMMED 128 // terms of a chain: more are summed in blocks, so that few digits are lost, and B's part stays in L2

// C (m, n) = A B by blocks of terms; n is a multiple of PAD
static void in_blocks(const REAL* A, long row_a, long step_a, const REAL* B, long row_b, REAL* C, long row_c, long m, long n, long k)
{
    for (long p = 0; p < k; p += SUMMED) {
        const Factors f = plain(A + p * step_a, row_a, step_a, B + p * row_b, row_b, at_most(SUMMED, k - p));
        product(&f, C, row_c, m, n, p > 0);
    }
}

// C (m, n) = A B for A (m, k) and B (k, n), whose values are (row, column) apart, and with `bias` C += bias, with `rectify`
// max(C, 0). scratch: (k + n) padded(m) values, and no fewer than k padded(n) + 16 m; NULL if OWN are enough.
// That is what a Product describes; threads share it by blocks of columns.
typedef struct {
    const REAL *A, *B, *bias;
    REAL *C, *scratch;
    long row_a, column_a, row_b, column_b, row_c, rectify, m, n, k;
} Product;

static void add_bias_and_rectify(const Product* f)
{
    for (long i = 0; i < f->m; i++)
        for (long j = 0; j < f->n; j += LANES) {
            REAL* c = f->C + i * f->row_c + j;
            const long left = f->n - j;
            vec x = load_up_to(c, left);
            if (f->bias)
                x += load_up_to(f->bias + j, left);
            store_up_to(c, f->rectify ? relu(x) : x, left);
        }
}

static void multiply_alone(const Product* f)
{
    const long m = f->m, n = f->n, k = f->k, row_a = f->row_a, column_a = f->column_a, column_b = f->column_b, row_c = f->row_c;
    REAL own[OWN] __attribute__((aligned(64)));
    const REAL *A = f->A, *B = f->B;
    REAL *C = f->C, *scratch = f->scratch ? f->scratch : own;
    long row_b = f->row_b;
    if (column_b != 1 && m <= n && m > FEW) { // C' = B' A': the smaller factor is transposed
        const long width = padded(m);
        REAL *right = scratch, *result = scratch + k * width;
        transpose(A, row_a, column_a, m, k, right, width);
        in_blocks(B, column_b, row_b, right, width, result, width, n, width, k);
        for (long i0 = 0; i0 < m; i0 += 16)
            for (long j = 0; j < n; j++)
                for (long i = i0; i < at_most(m, i0 + 16); i++)
                    C[i * row_c + j] = result[j * width + i];
    } else {
        const long whole = n / PAD * PAD;
        REAL* tail = scratch + (column_b == 1 ? k * PAD : k * padded(n));
        if (column_b != 1) {
            transpose(B, column_b, row_b, n, k, scratch, padded(n));
            B = scratch, row_b = padded(n);
        }
        in_blocks(A, row_a, column_a, B, row_b, C, row_c, m, whole, k);
        if (whole < n) {
            const long rest = n - whole;
            if (column_b == 1) {
                pad_columns(B + whole, row_b, scratch, k, rest);
                B = scratch, row_b = PAD;
            } else {
                B += whole;
            }
            in_blocks(A, row_a, column_a, B, row_b, tail, PAD, m, PAD, k);
            for (long i = 0; i < m; i++)
                memcpy(C + i * row_c + whole, tail + i * PAD, rest * sizeof(REAL));
        }
    }
    for (long i = 0; k == 0 && i < m; i++)
        memset(C + i * row_c, 0, n * sizeof(REAL));
    if (f->bias || f->rectify)
        add_bias_and_rectify(f);
}

typedef struct {
    Product whole;
    long width, room;
} Blocks;

static void multiply_block(const void* job, long i)
{
    const Blocks* blocks = job;
    const long at = i * blocks->width;
    Product f = blocks->whole;
    f.n = at_most(blocks->width, f.n - at);
    f.B += at * f.column_b, f.C += at;
    f.bias = f.bias ? f.bias + at : NULL;
    f.scratch = f.scratch ? f.scratch + i * blocks->room : NULL;
    multiply_alone(&f);
}

// A Product in blocks of `width` columns, each with `room` values of scratch memory; an output is the same bits in any block
KERNEL multiply(const REAL* A, long row_a, long column_a, const REAL* B, long row_b, long column_b, REAL* C, long row_c, const REAL* bias,
                long rectify, long m, long n, long k, REAL* scratch, Team* team, long width, long room)
{
    const Product whole = {A, B, bias, C, scratch, row_a, column_a, row_b, column_b, row_c, rectify, m, n, k};
    const Blocks blocks = {whole, width, room};
    together(team, multiply_block, &blocks, width ? (n + width - 1) / width : 0);
}
