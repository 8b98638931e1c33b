// Softmax and cross-entropy. Sums over a row of k values have 16 lanes: lane i has every 16th value from i on, in order; then
// lanes i and i + 8, i + 4, i + 2, i + 1 are added.
#include "functions.h"

#define PARTS ((int)(PAD / LANES)) // vectors of 16 lanes

// For each vector of a row: where it is, how many values are left, and which of the lanes' vectors it belongs to
#define EACH_VECTOR(k)                                                                                                             \
    for (long at = 0, left = k, part = 0; left > 0; at += LANES, left -= LANES, part = (part + 1) % PARTS)

INLINE REAL fold(const vec* lanes)
{
    REAL lane[PAD];
    for (int part = 0; part < PARTS; part++)
        store(lane + part * LANES, lanes[part]);
    for (int half = PAD / 2; half > 0; half /= 2)
        for (int i = 0; i < half; i++)
            lane[i] += lane[i + half];
    return lane[0];
}

INLINE REAL largest(const REAL* z, long k)
{
    REAL top = -__builtin_inff();
    for (long i = 0; i < k; i++)
        top = z[i] > top ? z[i] : top;
    return top;
}

// e = exp(z - top); returns its sum
INLINE REAL exponentials(const REAL* z, REAL top, REAL* e, long k)
{
    vec lanes[PARTS] = {{0}};
    EACH_VECTOR(k)
    {
        const vec x = left >= LANES ? load(z + at) : load_some(z + at, left, -__builtin_inff()), y = vexp(x - splat(top));
        lanes[part] += y;
        store_up_to(e + at, y, left);
    }
    return fold(lanes);
}

// y = softmax(a) of each row
KERNEL softmax_rows(const REAL* a, REAL* y, long m, long k)
{
    for (long row = 0; row < m; row++, a += k, y += k) {
        const REAL sum = exponentials(a, largest(a, k), y, k);
        EACH_VECTOR(k) store_up_to(y + at, load_up_to(y + at, left) / splat(sum), left);
    }
}

// da = y (delta - sum of delta y)
KERNEL softmax_delta(const REAL* delta, const REAL* y, REAL* da, long m, long k)
{
    for (long row = 0; row < m; row++, delta += k, y += k, da += k) {
        vec lanes[PARTS] = {{0}};
        EACH_VECTOR(k) lanes[part] = fused(load_up_to(delta + at, left), load_up_to(y + at, left), lanes[part]);
        const vec mean = splat(fold(lanes));
        EACH_VECTOR(k) store_up_to(da + at, load_up_to(y + at, left) * (load_up_to(delta + at, left) - mean), left);
    }
}

// J = log(sum of exp z) - z[t] and delta = softmax(z), less 1 at the label t; J is NaN for a label that is none
KERNEL cross_entropy_of_labels(const REAL* z, const int64_t* t, REAL* losses, REAL* delta, long m, long k)
{
    for (long row = 0; row < m; row++, z += k, delta += k) {
        const REAL top = largest(z, k), sum = exponentials(z, top, delta, k);
        EACH_VECTOR(k) store_up_to(delta + at, load_up_to(delta + at, left) / splat(sum), left);
        const int is_label = t[row] >= 0 && t[row] < k;
        losses[row] = is_label ? vlog(splat(sum))[0] - (z[t[row]] - top) : __builtin_nanf("");
        if (is_label)
            delta[t[row]] -= 1;
    }
}

// J = w log(sum of exp z) - sum of q z and delta = w softmax(z) - q;  w: the sum of q, or 1 if it is known to be that
KERNEL cross_entropy(const REAL* z, const REAL* q, REAL* losses, REAL* delta, long m, long k, long sums_to_one)
{
    for (long row = 0; row < m; row++, z += k, q += k, delta += k) {
        const REAL top = largest(z, k), sum = exponentials(z, top, delta, k);
        vec weights[PARTS] = {{0}}, parts[PARTS] = {{0}};
        EACH_VECTOR(k)
        {
            const vec p = load_up_to(q + at, left), shifted = load_up_to(z + at, left) - splat(top);
            weights[part] += p;
            parts[part] += choose(p == 0, (vec){0}, p * shifted); // where q = 0, z may be -infinity
        }
        const REAL weight = sums_to_one ? 1 : fold(weights);
        losses[row] = vlog(splat(sum))[0] * weight - fold(parts);
        EACH_VECTOR(k)
        {
            const vec y = load_up_to(delta + at, left) / splat(sum);
            store_up_to(delta + at, y * weight - load_up_to(q + at, left), left);
        }
    }
}

// y = 1 / (1 + exp(-x)), and rest = log(1 + exp(-|x|))
INLINE vec logistic(vec x, vec* rest)
{
    const vec e = vexp(-vabs(x));
    *rest = vlog1p(e);
    return choose(x >= 0, splat(1), e) / (1 + e);
}

// J = q1 (max(-z, 0) + r) + q0 (max(z, 0) + r), r = log(1 + exp(-|z|)), and delta = y (q0 + q1) - q1, y = 1 / (1 + exp(-z)), with
// q1 = v1 t and q0 = v0 (1 - t); v1: one for each of C columns; n values
KERNEL weighted_binary_cross_entropy(const REAL* z, const REAL* t, REAL* losses, REAL* delta, REAL v0, const REAL* v1, long C, long n)
{
    for (long row = 0; row < n; row += C)
        for (long j = 0, at = row, left = at_most(C, n - row); left > 0; j += LANES, at += LANES, left -= LANES) {
            vec rest;
            const vec x = load_up_to(z + at, left), target = load_up_to(t + at, left), y = logistic(x, &rest);
            const vec q0 = v0 * (1 - target), q1 = load_up_to(v1 + j, left) * target;
            store_up_to(losses + at, q1 * (relu(-x) + rest) + q0 * (relu(x) + rest), left);
            store_up_to(delta + at, y * (q0 + q1) - q1, left);
        }
}

// J = max(z, 0) - z t + log(1 + exp(-|z|)) and delta = 1 / (1 + exp(-z)) - t, value by value
KERNEL binary_cross_entropy(const REAL* z, const REAL* t, REAL* losses, REAL* delta, long n)
{
    for (long at = 0, left = n; left > 0; at += LANES, left -= LANES) {
        vec rest;
        const vec x = load_up_to(z + at, left), target = load_up_to(t + at, left), y = logistic(x, &rest);
        store_up_to(losses + at, relu(x) - x * target + rest, left);
        store_up_to(delta + at, y - target, left);
    }
}
