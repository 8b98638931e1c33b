// Products of matrices of any strides.
#include "product.h"

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
KERNEL multiply(const REAL* A, long row_a, long column_a, const REAL* B, long row_b, long column_b, REAL* C, long row_c, const REAL* bias,
                long rectify, long m, long n, long k, REAL* scratch)
{
    REAL own[OWN] __attribute__((aligned(64)));
    scratch = scratch ? scratch : own;
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
    if (!bias && !rectify)
        return;
    for (long i = 0; i < m; i++)
        for (long j = 0; j < n; j += LANES) {
            REAL* c = C + i * row_c + j;
            const long some = at_most(LANES, n - j);
            vec x = some == LANES ? load(c) : load_some(c, some, 0);
            if (bias)
                x += some == LANES ? load(bias + j) : load_some(bias + j, some, 0);
            x = rectify ? relu(x) : x;
            if (some == LANES)
                store(c, x);
            else
                store_some(c, x, some);
        }
}
