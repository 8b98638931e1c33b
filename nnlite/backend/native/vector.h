// Vectors of VB bytes and what is done with them. REAL is float or double.
//
// The same bits for every VB, compiler and processor: every sum has one order, which the code states; what is rounded once
// instead of twice says so, by fused(), and -ffp-contract=off keeps compilers from fusing anything else. Columns are padded to
// 16 values and sums have 16 lanes, however many vectors that takes.
#pragma once
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#if !defined __clang__
#pragma GCC optimize("no-tree-sra") // which takes a lone sum of a register tile apart, lane by lane
#endif

#if !defined __FMA__ && !defined __aarch64__
#error "the kernels need a processor with fused multiply-add"
#endif

#ifdef DOUBLE
typedef double REAL;
typedef int64_t INT;
#define FMA __builtin_fma
#define SQRT __builtin_sqrt
#else
typedef float REAL;
typedef int32_t INT;
#define FMA __builtin_fmaf
#define SQRT __builtin_sqrtf
#endif

#ifndef VB // bytes of a vector: those of a register
#if defined __AVX512F__
#define VB 64
#elif defined __AVX__
#define VB 32
#else
#define VB 16
#endif
#endif

typedef REAL vec __attribute__((vector_size(VB)));
typedef INT ivec __attribute__((vector_size(VB)));
typedef REAL unaligned __attribute__((vector_size(VB), aligned(sizeof(REAL)), may_alias)); // in memory, at any address

#define LANES ((long)(VB / sizeof(REAL)))
#define PAD 16 // columns of scratch matrices are rounded up to a multiple of it
#define KERNEL __attribute__((visibility("default"))) void
#define INLINE static inline __attribute__((always_inline))
#define UNROLL _Pragma("GCC unroll 16")
#define AS_ONE _Pragma("GCC unroll 1") // a loop that becomes one instruction, unless it is unrolled first

// a b + c, rounded once: one instruction for a vector
#if defined __clang__
#define fused(a, b, c) __builtin_elementwise_fma(a, b, c)
#else
// A vector that is in one register: without it GCC takes some sums apart, lane by lane
#if defined __aarch64__
#define WHOLE(x) __asm__("" : "+w"(x))
#elif defined __AVX512F__
#define WHOLE(x) __asm__("" : "+v"(x))
#else
#define WHOLE(x) __asm__("" : "+x"(x))
#endif
INLINE vec fused(vec a, vec b, vec c)
{
    UNROLL for (int i = 0; i < LANES; i++) c[i] = FMA(a[i], b[i], c[i]);
    WHOLE(c);
    return c;
}
#endif

INLINE vec load(const REAL* p) { return *(const unaligned*)p; }
INLINE void store(REAL* p, vec x) { *(unaligned*)p = x; }
INLINE vec splat(REAL x) { return x - (vec){0}; } // exact, for -0, too
INLINE vec choose(ivec mask, vec a, vec b) { return (vec)((mask & (ivec)a) | (~mask & (ivec)b)); }
INLINE vec relu(vec x) { return choose(x <= 0, (vec){0}, x); } // NaN stays NaN

INLINE long padded(long n) { return (n + PAD - 1) / PAD * PAD; }
INLINE long at_most(long a, long b) { return a < b ? a : b; }
INLINE long at_least(long a, long b) { return a > b ? a : b; }

// The first n of LANES values; the others are `rest`. Both loops become a masked load or store.
INLINE vec load_some(const REAL* p, long n, REAL rest)
{
    REAL x[LANES];
    const INT some = at_most(n, LANES);
    AS_ONE for (INT i = 0; i < LANES; i++)
        x[i] = i < some ? p[i] : rest;
    return load(x);
}

INLINE void store_some(REAL* p, vec x, long n)
{
    REAL all[LANES];
    const INT some = at_most(n, LANES);
    store(all, x);
    AS_ONE for (INT i = 0; i < LANES; i++)
        if (i < some)
            p[i] = all[i];
}

// A vector, or the n values that are left of a row, and zeros behind
INLINE vec load_up_to(const REAL* p, long n) { return n >= LANES ? load(p) : load_some(p, n, 0); }
INLINE void store_up_to(REAL* p, vec x, long n)
{
    if (n >= LANES)
        store(p, x);
    else
        store_some(p, x, n);
}
