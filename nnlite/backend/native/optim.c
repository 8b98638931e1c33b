// Optimisers: one sweep over stretches of the flat vectors.
#include "vector.h"

INLINE vec root(vec x)
{
    UNROLL for (int i = 0; i < LANES; i++) x[i] = SQRT(x[i]);
    return x;
}

#define EACH_VECTOR(n) for (long i = 0, left = n; left > 0; i += LANES, left -= LANES)

// m <- b1 m + g, v <- b2 v + g^2, p <- decay p - rate m / (sqrt(v) + eps)
KERNEL adam(REAL* p, const REAL* g, REAL* m, REAL* v, REAL b1, REAL b2, REAL eps, REAL rate, REAL decay, long n)
{
    EACH_VECTOR(n)
    {
        const vec G = load_up_to(g + i, left);
        const vec M = fused(splat(b1), load_up_to(m + i, left), G);
        const vec V = fused(splat(b2), load_up_to(v + i, left), G * G);
        store_up_to(m + i, M, left);
        store_up_to(v + i, V, left);
        store_up_to(p + i, fused(splat(-rate), M / (root(V) + splat(eps)), splat(decay) * load_up_to(p + i, left)), left);
    }
}

// v <- v + (1 - alpha) (g^2 - v), p <- p - rate g / (sqrt(v) + eps);  rest: 1 - alpha
KERNEL rmsprop(REAL* p, const REAL* g, REAL* v, REAL rest, REAL eps, REAL rate, long n)
{
    EACH_VECTOR(n)
    {
        const vec G = load_up_to(g + i, left), before = load_up_to(v + i, left);
        const vec V = fused(splat(rest), fused(G, G, -before), before);
        store_up_to(v + i, V, left);
        store_up_to(p + i, fused(splat(-rate), G / (root(V) + splat(eps)), load_up_to(p + i, left)), left);
    }
}

// v <- momentum v + g, p <- p - rate v, or, with nesterov, p - rate (g + momentum v). v is null without momentum.
KERNEL sgd(REAL* p, const REAL* g, REAL* v, REAL rate, REAL momentum, long nesterov, long n)
{
    EACH_VECTOR(n)
    {
        const vec G = load_up_to(g + i, left);
        vec step = G;
        if (v) {
            step = fused(splat(momentum), load_up_to(v + i, left), G);
            store_up_to(v + i, step, left);
            step = nesterov ? fused(splat(momentum), step, G) : step;
        }
        store_up_to(p + i, fused(splat(-rate), step, load_up_to(p + i, left)), left);
    }
}

// a <- a + weight (b - a)
KERNEL lerp(REAL* a, const REAL* b, REAL weight, long n)
{
    EACH_VECTOR(n)
    {
        const vec A = load_up_to(a + i, left);
        store_up_to(a + i, fused(splat(weight), load_up_to(b + i, left) - A, A), left);
    }
}
