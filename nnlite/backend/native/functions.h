// exp, expm1, log, log1p, tanh, erf and the logistic function of vectors: a reduced argument and a polynomial with coefficients of least error (Remez),
// without libm. Errors in units of the last place are below 2 everywhere; see tests/native/test_native_functions.py.
#pragma once
#include "vector.h"

#ifdef DOUBLE
#define MANTISSA 52
#define SIGN INT64_MIN
#define BIAS 1023
#define LOWEST_EXP (-746)
#define HIGHEST_EXP 710
#define SMALLEST 2.2250738585072014e-308 // that is not subnormal
#define ROUNDS 6755399441055744.0 // 1.5 2^52: added, it rounds to an integer, found in the low bits
#define LN2 0.6931471805599453094, 2.3190468138462995584e-17 // rounded, and what is missing
#define LN2_SHORT 0.6931471803691238165, 1.908214929270587700e-10 // exact when multiplied by an exponent
#define SQRT_HALF 0x3fe6a09e667f3bcdL
#define TANH_IS_ONE 20
#define ERF_IS_ONE 6

static const REAL EXP[] = {0.49999999999999999965, 0.16666666666666683845, 0.041666666666666724705, 0.0083333333333167385087,
                           0.0013888888888858429355, 0.00019841269897059076587, 0.000024801587373701267416, 2.7557234236779882389e-6,
                           2.7557233416715323881e-7, 2.5112239814569769343e-8, 2.0926922733461557954e-9};
static const REAL LOG[] = {0.66666666666667340794, 0.39999999999416230216, 0.28571428742132435209, 0.22222198592826667747,
                           0.18183563567474731309, 0.15314064498863284154, 0.14795856409435577575};
static const REAL ERF[] = {0.1283791670955125738, -0.37612638903183748177, 0.11283791670954884448, -0.026866170645077871074,
                           0.0052239776248283987674, -0.00085483269814241132127, 0.00012055331132916607167,
                           -0.000014925595771510586267, 1.6461008470897274053e-6, -1.6350396185651638924e-7,
                           1.4660328685329812743e-8, -1.13749563106000453e-9, 5.9606873654871381291e-11};
static const REAL ERFC[] = {-7.27327086682167888e-6, 0.56458142044566869422, 1.1186429960090333099, 2.1222952997599679783,
                            1.2988678523452146962, 13.919617661850760908, -61.173448544659471165, 235.83471325851716297,
                            -718.40052037196093558, 1421.3959899662417846, -1782.5798428389555331, 1379.7613675641992744,
                            -598.53364978678400006, 108.79944353053367493};
static const REAL TANH[] = {-0.33333333333333314066, 0.13333333333329918082, -0.053968253966146159009, 0.021869488470905751263,
                            -0.0088632343447265531994, 0.0035921142977401341648, -0.0014557277608310657097,
                            0.00058945914922409088093, -0.00023703140027996596262, 0.0000915917773067039707,
                            -0.0000302197224748616961, 6.0563170079360408444e-6};
#else
#define MANTISSA 23
#define SIGN INT32_MIN
#define BIAS 127
#define LOWEST_EXP (-104)
#define HIGHEST_EXP 89
#define SMALLEST 1.17549435e-38f
#define ROUNDS 12582912.0f // 1.5 2^23
#define LN2 0.693147182464599609375f, -1.9046542999157697e-9f
#define LN2_SHORT 0.693115234375f, 3.1946184945309417e-5f
#define SQRT_HALF 0x3f3504f3
#define TANH_IS_ONE 10
#define ERF_IS_ONE 4

static const REAL EXP[] = {0.50000000952858274852f, 0.16666518842928888105f, 0.04166620555585254116f, 0.0083688891240532800591f,
                           0.0013950504685517417313f};
static const REAL LOG[] = {0.66666665646566458762f, 0.40000335055952426589f, 0.28537312534787273788f, 0.23582137396765586525f};
static const REAL ERF[] = {0.1283791659139965233f, -0.37612627136863588059f, 0.11283600181235523897f, -0.02685444467477063778f,
                           0.0051895353477732217689f, -0.00080208404959550344998f, 0.000078891150107957629864f};
static const REAL ERFC[] = {0.0020735833298793324898f, 0.51415975350153886742f, 1.6326536609043168271f, -0.72519787890633038618f,
                            10.728609293284658485f, -8.1305914382489757871f, 0.42565149641703398065f};
static const REAL TANH[] = {-0.3333333091376531048f, 0.13333209957473744662f, -0.053947222601005330635f, 0.021703045182331492409f,
                            -0.0081828268745668039903f, 0.0021476487662946889349f};
#endif

static const REAL LN2_PARTS[] = {LN2}, LN2_SHORT_PARTS[] = {LN2_SHORT};

// c[0] + c[1] x + c[2] x^2 + ..., by Horner's rule
#define POLYNOMIAL(x, c) polynomial(x, c, sizeof c / sizeof *c)
INLINE vec polynomial(vec x, const REAL* c, int terms)
{
    vec p = splat(c[terms - 1]);
    UNROLL for (int i = terms - 2; i >= 0; i--) p = fused(p, x, splat(c[i]));
    return p;
}

INLINE vec vabs(vec x) { return (vec)((ivec)x & ~SIGN); }
INLINE vec with_sign_of(vec x, vec sign) { return (vec)(((ivec)x & ~SIGN) | ((ivec)sign & SIGN)); }
INLINE vec power_of_two(ivec k) { return (vec)((k + BIAS) << MANTISSA); }

// k and q = exp(r) - 1 with x = k ln 2 + r, |r| <= ln 2 / 2, for x that is not too large for k
INLINE vec reduced_exp_within(vec x, ivec* k)
{
    const vec magic = splat(ROUNDS), shifted = fused(x, splat((REAL)1.4426950408889634074), magic), n = shifted - magic;
    vec r = fused(n, splat(-LN2_PARTS[0]), x);
    r = fused(n, splat(-LN2_PARTS[1]), r);
    *k = (ivec)shifted - (ivec)magic;
    return fused(POLYNOMIAL(r, EXP), r * r, r);
}

INLINE vec reduced_exp(vec x, ivec* k)
{
    x = choose(x > HIGHEST_EXP, splat(HIGHEST_EXP), x);
    return reduced_exp_within(choose(x < LOWEST_EXP, splat(LOWEST_EXP), x), k);
}

INLINE vec vexp(vec x)
{
    ivec k;
    const vec q = reduced_exp(x, &k);
    const ivec half = k >> 1; // in two steps: subnormal results, and 2^128 on the way to infinity
    return (q + 1) * power_of_two(half) * power_of_two(k - half);
}

// 2^k q + 2^k - 1, divided by 2^(k - half) and multiplied again: 2^k may overflow
INLINE vec vexpm1(vec x)
{
    ivec k;
    const vec q = reduced_exp(x, &k);
    const ivec half = k >> 1;
    const vec first = power_of_two(half);
    return choose(x == 0, x, fused(q, first, first - power_of_two(half - k)) * power_of_two(k - half)); // -0, too
}

// x = 2^k (1 + f) with 1 + f in [sqrt(1/2), sqrt(2)), s = f / (2 + f):   log(1 + f) = f - f^2/2 + s (f^2/2 + s^2 LOG(s^2))
INLINE vec vlog(vec x)
{
    const ivec is_tiny = x < SMALLEST;
    const vec a = vabs(x), y = choose(is_tiny, a * (REAL)((INT)1 << MANTISSA), a);
    const ivec k = ((ivec)y - SQRT_HALF) >> MANTISSA;
    const vec f = (vec)((ivec)y - (k << MANTISSA)) - 1;
    const vec e = __builtin_convertvector(k - (is_tiny & MANTISSA), vec);
    const vec s = f / (2 + f), z = s * s, half_square = (REAL)0.5 * f * f, R = z * POLYNOMIAL(z, LOG);
    const vec rest = fused(e, splat(LN2_SHORT_PARTS[1]), s * (half_square + R));
    vec r = e * LN2_SHORT_PARTS[0] - ((half_square - rest) - f);
    r = choose(x > (REAL)(sizeof(REAL) == 4 ? 3.4028234663852886e38 : 1.7976931348623157e308), x, r);
    r = choose(x == 0, splat(-(REAL)__builtin_inf()), r);
    return choose(x >= 0, r, splat((REAL)__builtin_nan("")));
}

// log(u) + (x - (u - 1)) / u with u = 1 + x: what u has lost is added to first order
INLINE vec vlog1p(vec x)
{
    const vec u = 1 + x, lost = x - (u - 1), r = vlog(u) + lost / u;
    const ivec is_far = (x > (REAL)((INT)1 << MANTISSA)) | (u == 0);
    return choose(u == 1, x, choose(is_far, vlog(u), r));
}

// x + x^3 TANH(x^2) below 5/8, else 1 - 2 / (exp(2 |x|) + 1)
INLINE vec vtanh(vec x)
{
    ivec k;
    const vec a = vabs(x), z = x * x, small = fused(x * z, POLYNOMIAL(z, TANH), x);
    const vec q = reduced_exp_within(2 * choose(a > TANH_IS_ONE, splat(TANH_IS_ONE), a), &k);
    const vec large = 1 - 2 / ((q + 1) * power_of_two(k) + 1);
    return with_sign_of(choose(a < (REAL)0.625, small, large), x);
}

// 1 / (1 + exp(-x)), below zero exp(x) / (1 + exp(x)), with what rounding took from the sum
INLINE vec vsigmoid(vec x)
{
    const vec e = vexp(-vabs(x)), sum = e + 1, lost = e - (sum - 1), y = choose(x >= 0, splat(1), e) / sum;
    return fused(y * lost, choose(x >= 0, -y, y - 1), y); // as 1 / sum is y or 1 - y
}

// x + x ERF(x^2) below 1, else 1 - exp(-x^2) ERFC(1 / (|x| + 2))
INLINE vec verf(vec x)
{
    const vec a = vabs(x), far = choose(a > ERF_IS_ONE, splat(ERF_IS_ONE), a), near = choose(a < 1, x, (vec){0});
    const vec small = fused(near, POLYNOMIAL(near * near, ERF), near);
    const vec large = 1 - vexp(-far * far) * POLYNOMIAL(1 / (far + 2), ERFC);
    return choose(a < 1, small, with_sign_of(large, x));
}
