// Optimisers: one sweep over the flat vectors. `state`: of `note_loss`, or null; after a bad loss nothing is updated.

__device__ inline bool is_halted(const int* state) { return state && state[1]; }

// m <- b1 m + g, v <- b2 v + g^2, p <- decay p - rate m / (sqrt(v) + eps)
KERNEL adam(real* p, const real* g, real* m, real* v, const int* state, real b1, real b2, real eps, real rate, real decay,
    long long values)
{
    if (is_halted(state))
        return;
    for (long long i = first_value(); i < values; i += value_step()) {
        m[i] = b1 * m[i] + g[i];
        v[i] = b2 * v[i] + g[i] * g[i];
        p[i] = decay * p[i] - rate * (m[i] / (sqrt(v[i]) + eps));
    }
}

// v <- momentum v + g, p <- p - rate v, or, with nesterov, p - rate (g + momentum v). v is null without momentum.
KERNEL sgd(real* p, const real* g, real* v, const int* state, real rate, real momentum, int nesterov, long long values)
{
    if (is_halted(state))
        return;
    for (long long i = first_value(); i < values; i += value_step()) {
        real step = g[i];
        if (v) {
            step = v[i] = momentum * v[i] + g[i];
            if (nesterov)
                step = momentum * step + g[i];
        }
        p[i] -= rate * step;
    }
}
