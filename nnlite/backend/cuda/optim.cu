// Optimisers: one sweep over the flat vectors. And the guards against a bad step: the norm of the gradients, and the undo.

// partial[block] = sum over this block's values of g^2, in double, so that no float overflows. A block of 256 threads.
__device__ inline void write_total(double sum, double* result)
{
    __shared__ double sums[256];
    sums[threadIdx.x] = sum;
    __syncthreads();
    for (int half = 128; half > 0; half /= 2) {
        if (threadIdx.x < half)
            sums[threadIdx.x] += sums[threadIdx.x + half];
        __syncthreads();
    }
    if (threadIdx.x == 0)
        *result = sums[0];
}

KERNEL squares(const real* g, double* partial, long long values)
{
    double sum = 0;
    for (long long i = first_value(); i < values; i += value_step())
        sum += (double)g[i] * g[i];
    write_total(sum, partial + blockIdx.x);
}

// norm = sqrt of the sum of the parts.
KERNEL finish_norm(const double* partial, double* norm, int parts)
{
    double sum = 0;
    for (int i = threadIdx.x; i < parts; i += 256)
        sum += partial[i];
    write_total(sum, norm);
    if (threadIdx.x == 0)
        *norm = sqrt(*norm);
}

// g <- g most / norm, where the norm is larger.
KERNEL scale_to_norm(real* g, const double* norm, double most, long long values)
{
    const double factor = most / (*norm + 1e-6);
    if (!(factor < 1))
        return;
    for (long long i = first_value(); i < values; i += value_step())
        g[i] = g[i] * factor;
}

// state: of `note_loss`. after <- before, if a loss or a gradient was bad: undoes what an update wrote.
KERNEL take_back(real* after, const real* before, const int* state, long long values)
{
    if (!state[1])
        return;
    for (long long i = first_value(); i < values; i += value_step())
        after[i] = before[i];
}

// m <- b1 m + g, v <- b2 v + g^2, p <- decay p - rate m / (sqrt(v) + eps)
KERNEL adam(real* p, const real* g, real* m, real* v, real b1, real b2, real eps, real rate, real decay, long long values)
{
    for (long long i = first_value(); i < values; i += value_step()) {
        m[i] = b1 * m[i] + g[i];
        v[i] = b2 * v[i] + g[i] * g[i];
        p[i] = decay * p[i] - rate * (m[i] / (sqrt(v[i]) + eps));
    }
}

// v <- v + (1 - alpha) (g^2 - v), p <- p - rate g / (sqrt(v) + eps)
KERNEL rmsprop(real* p, const real* g, real* v, real alpha, real eps, real rate, long long values)
{
    for (long long i = first_value(); i < values; i += value_step()) {
        v[i] += (1 - alpha) * (g[i] * g[i] - v[i]);
        p[i] -= rate * (g[i] / (sqrt(v[i]) + eps));
    }
}

// v <- momentum v + g, p <- p - rate v, or, with nesterov, p - rate (g + momentum v). v is null without momentum.
KERNEL sgd(real* p, const real* g, real* v, real rate, real momentum, int nesterov, long long values)
{
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
