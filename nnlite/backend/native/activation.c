// Activations: y = f(a), value by value, and da = delta f'(a), from a or from y. The equations are those of layers/activation.py.
#include "functions.h"

#define FAR 30 // beyond, Phi is 0 or 1, and a^2 might overflow
#define STEEP 1000 // beyond, exp(-|a|) is 0; both bounds are for infinite a, too: 0 times infinity would be NaN

#define EACH_VECTOR(n) for (long i = 0, left = n; left > 0; i += LANES, left -= LANES)
#define FORWARD(f, a, y, n)                                                                                                        \
    EACH_VECTOR(n)                                                                                                                 \
    {                                                                                                                              \
        const vec x = load_up_to(a + i, left), result = f;                                                                         \
        store_up_to(y + i, result, left);                                                                                          \
    }
#define BACKWARD(slope, delta, a, da, n)                                                                                           \
    EACH_VECTOR(n)                                                                                                                 \
    {                                                                                                                              \
        const vec x = load_up_to(a + i, left), result = load_up_to(delta + i, left) * (slope);                                     \
        store_up_to(da + i, result, left);                                                                                         \
    }

INLINE vec not_below(vec x, REAL least) { return choose(x < least, splat(least), x); }
INLINE vec not_above(vec x, REAL most) { return choose(x > most, splat(most), x); }
INLINE vec within(vec x, REAL most) { return not_above(not_below(x, -most), most); }

// slope x; 0 times infinity would be NaN
INLINE vec sloped(vec x, REAL slope) { return slope == 0 ? (vec){0} : x * slope; }

KERNEL leaky_relu(const REAL* a, REAL* y, REAL slope, long n) { FORWARD(choose(x <= 0, sloped(x, slope), x), a, y, n); }
KERNEL leaky_relu_delta(const REAL* delta, const REAL* y, REAL* da, REAL slope, long n)
{
    EACH_VECTOR(n)
    {
        const vec d = load_up_to(delta + i, left), result = choose(load_up_to(y + i, left) > 0, d, sloped(d, slope));
        store_up_to(da + i, result, left);
    }
}

KERNEL sigmoid_delta(const REAL* delta, const REAL* y, REAL* da, long n) { BACKWARD(x * (1 - x), delta, y, da, n); }
KERNEL tanh_delta(const REAL* delta, const REAL* y, REAL* da, long n) { BACKWARD(1 - x * x, delta, y, da, n); }

KERNEL elu(const REAL* a, REAL* y, REAL alpha, long n) { FORWARD(choose(x > 0, x, vexpm1(x) * alpha), a, y, n); }
KERNEL elu_delta(const REAL* delta, const REAL* y, REAL* da, REAL alpha, long n)
{
    BACKWARD(choose(x > 0, splat(1), x + alpha), delta, y, da, n);
}

KERNEL softplus(const REAL* a, REAL* y, long n) { FORWARD(vlog1p(vexp(-vabs(x))) + relu(x), a, y, n); }
KERNEL softplus_delta(const REAL* delta, const REAL* y, REAL* da, long n) { BACKWARD(-vexpm1(-x), delta, y, da, n); }

INLINE vec silu_slope(vec x)
{
    const vec s = vsigmoid(x);
    return s * (1 + within(x, STEEP) * (1 - s));
}

KERNEL silu(const REAL* a, REAL* y, long n) { FORWARD(not_below(x, -STEEP) * vsigmoid(x), a, y, n); }
KERNEL silu_delta(const REAL* delta, const REAL* a, REAL* da, long n) { BACKWARD(silu_slope(x), delta, a, da, n); }

INLINE vec Phi(vec x) { return (verf(x * (REAL)0.70710678118654752440) + 1) * (REAL)0.5; }
INLINE vec gelu_slope(vec x)
{
    x = within(x, FAR);
    return Phi(x) + x * vexp(x * (REAL)-0.5 * x) * (REAL)0.39894228040143267794; // phi: its factor is 1 / sqrt(2 pi)
}

KERNEL gelu(const REAL* a, REAL* y, long n) { FORWARD(not_below(x, -FAR) * Phi(within(x, FAR)), a, y, n); }
KERNEL gelu_delta(const REAL* delta, const REAL* a, REAL* da, long n) { BACKWARD(gelu_slope(x), delta, a, da, n); }

// y = a (1 + tanh u) / 2 with u = linear (a + cubic a^3)
KERNEL gelu_tanh(const REAL* a, REAL* y, REAL linear, REAL cubic, long n)
{
    EACH_VECTOR(n)
    {
        const vec x = load_up_to(a + i, left), t = vtanh(x * linear * fused(x * cubic, x, splat(1))) + 1;
        store_up_to(y + i, choose(t == 0, (vec){0}, x * t * (REAL)0.5), left); // a may be -infinity
    }
}

// da = delta (1 + t + (1 - t) (1 + t) a du/da) / 2, t = tanh u; where t is 1 or -1, du/da may be infinite
KERNEL gelu_tanh_delta(const REAL* delta, const REAL* a, REAL* da, REAL linear, REAL cubic, long n)
{
    EACH_VECTOR(n)
    {
        const vec x = load_up_to(a + i, left), t = vtanh(x * linear * fused(x * cubic, x, splat(1)));
        const vec bend = (1 - t) * (1 + t), steep = x * linear * fused(x * (3 * cubic), x, splat(1));
        const vec slope = 1 + t + choose(bend == 0, (vec){0}, bend * steep);
        store_up_to(da + i, load_up_to(delta + i, left) * slope * (REAL)0.5, left);
    }
}

// ---- with a slope for each of C columns; n values

#define EACH_COLUMN(n, C)                                                                                                          \
    for (long row = 0; row < n; row += C)                                                                                          \
        for (long j = 0, i = row, left = at_most(C, n - row); left > 0; j += LANES, i += LANES, left -= LANES)

KERNEL prelu(const REAL* a, REAL* y, const REAL* slopes, long C, long n)
{
    EACH_COLUMN(n, C)
    {
        const vec x = load_up_to(a + i, left), result = choose(x > 0, x, x * load_up_to(slopes + j, left));
        store_up_to(y + i, result, left);
    }
}

KERNEL prelu_delta(const REAL* delta, const REAL* a, REAL* da, const REAL* slopes, long C, long n)
{
    EACH_COLUMN(n, C)
    {
        const vec slope = choose(load_up_to(a + i, left) > 0, splat(1), load_up_to(slopes + j, left));
        store_up_to(da + i, load_up_to(delta + i, left) * slope, left);
    }
}
