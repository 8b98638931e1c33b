// Optimisers: one sweep over stretches of the flat vectors, of which threads take parts.
#include "team.h"
#include "vector.h"

#define PART 16384 // values

typedef struct {
    REAL* p;
    const REAL* g;
    REAL *m, *v, b1, b2, eps, rate, decay;
    long nesterov, n;
} Update;

INLINE vec root(vec x)
{
    UNROLL for (int i = 0; i < LANES; i++) x[i] = SQRT(x[i]);
    return x;
}

#define EACH_VECTOR(n) for (long i = 0, left = n; left > 0; i += LANES, left -= LANES)
#define EACH_OF_PART(u, part) \
    for (long i = (part) * PART, left = at_most(PART, (u)->n - i); left > 0; i += LANES, left -= LANES)

static long parts(long n) { return (n + PART - 1) / PART; }

static void adam_part(const void* job, long part)
{
    const Update* u = job;
    const vec b1 = splat(u->b1), b2 = splat(u->b2), eps = splat(u->eps), rate = splat(-u->rate), decay = splat(u->decay);
    EACH_OF_PART(u, part)
    {
        const vec G = load_up_to(u->g + i, left);
        const vec M = fused(b1, load_up_to(u->m + i, left), G);
        const vec V = fused(b2, load_up_to(u->v + i, left), G * G);
        store_up_to(u->m + i, M, left);
        store_up_to(u->v + i, V, left);
        store_up_to(u->p + i, fused(rate, M / (root(V) + eps), decay * load_up_to(u->p + i, left)), left);
    }
}

// m <- b1 m + g, v <- b2 v + g^2, p <- decay p - rate m / (sqrt(v) + eps)
KERNEL adam(REAL* p, const REAL* g, REAL* m, REAL* v, REAL b1, REAL b2, REAL eps, REAL rate, REAL decay, long n, Team* team)
{
    const Update u = {.p = p, .g = g, .m = m, .v = v, .b1 = b1, .b2 = b2, .eps = eps, .rate = rate, .decay = decay, .n = n};
    together(team, adam_part, &u, parts(n));
}

static void rmsprop_part(const void* job, long part)
{
    const Update* u = job;
    EACH_OF_PART(u, part)
    {
        const vec G = load_up_to(u->g + i, left), before = load_up_to(u->v + i, left);
        const vec V = fused(splat(u->b2), fused(G, G, -before), before);
        store_up_to(u->v + i, V, left);
        store_up_to(u->p + i, fused(splat(-u->rate), G / (root(V) + splat(u->eps)), load_up_to(u->p + i, left)), left);
    }
}

// v <- v + (1 - alpha) (g^2 - v), p <- p - rate g / (sqrt(v) + eps);  rest: 1 - alpha
KERNEL rmsprop(REAL* p, const REAL* g, REAL* v, REAL rest, REAL eps, REAL rate, long n, Team* team)
{
    const Update u = {.p = p, .g = g, .v = v, .b2 = rest, .eps = eps, .rate = rate, .n = n};
    together(team, rmsprop_part, &u, parts(n));
}

static void sgd_part(const void* job, long part)
{
    const Update* u = job;
    EACH_OF_PART(u, part)
    {
        const vec G = load_up_to(u->g + i, left);
        vec step = G;
        if (u->v) {
            step = fused(splat(u->b1), load_up_to(u->v + i, left), G);
            store_up_to(u->v + i, step, left);
            step = u->nesterov ? fused(splat(u->b1), step, G) : step;
        }
        store_up_to(u->p + i, fused(splat(-u->rate), step, load_up_to(u->p + i, left)), left);
    }
}

// v <- momentum v + g, p <- p - rate v, or, with nesterov, p - rate (g + momentum v). v is null without momentum.
KERNEL sgd(REAL* p, const REAL* g, REAL* v, REAL rate, REAL momentum, long nesterov, long n, Team* team)
{
    const Update u = {.p = p, .g = g, .v = v, .b1 = momentum, .rate = rate, .nesterov = nesterov, .n = n};
    together(team, sgd_part, &u, parts(n));
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
