// Batch normalisation: sums of columns in two kernels, and the elementwise kernels. Arrays are (rows, channels).
// A block of (32, 8) threads sums 32 columns (blockIdx.y) over every 8 gridDim.x-th row; one of (32, 16) adds the parts up.

struct Sums {
    real first, second;
};

__device__ inline void write_partial(Sums s, Sums* partial, int channels)
{
    __shared__ Sums sums[8][32];
    const int c = blockIdx.y * 32 + threadIdx.x;
    sums[threadIdx.y][threadIdx.x] = s;
    __syncthreads();
    if (threadIdx.y == 0 && c < channels) {
        for (int i = 1; i < 8; i++) {
            s.first += sums[i][threadIdx.x].first;
            s.second += sums[i][threadIdx.x].second;
        }
        partial[(long long)blockIdx.x * channels + c] = s;
    }
}

struct Totals {
    double first, second;
};

// The partial sums of a column, added up in double, in a fixed order; valid in the first row of threads.
__device__ inline Totals add_partial(const Sums* partial, int parts, int channels)
{
    __shared__ Totals totals[16][32];
    const int c = blockIdx.x * 32 + threadIdx.x;
    Totals t = {0, 0};
    for (int i = threadIdx.y; i < parts && c < channels; i += 16) {
        t.first += partial[(long long)i * channels + c].first;
        t.second += partial[(long long)i * channels + c].second;
    }
    totals[threadIdx.y][threadIdx.x] = t;
    __syncthreads();
    for (int i = 1; i < 16 && threadIdx.y == 0; i++) {
        t.first += totals[i][threadIdx.x].first;
        t.second += totals[i][threadIdx.x].second;
    }
    return t;
}

// The column that a thread finishes, or -1.
__device__ inline int column_to_finish(int channels)
{
    const int c = blockIdx.x * 32 + threadIdx.x;
    return threadIdx.y == 0 && c < channels ? c : -1;
}

// Of each column: the sum.
KERNEL column_sums(const real* a, Sums* partial, long long rows, int channels)
{
    const int c = blockIdx.y * 32 + threadIdx.x;
    Sums s = {0, 0};
    if (c < channels)
        for (long long m = first_row(); m < rows; m += row_step())
            s.first += a[m * channels + c];
    write_partial(s, partial, channels);
}

KERNEL finish_sums(const Sums* partial, real* sums, int parts, int channels)
{
    const Totals t = add_partial(partial, parts, channels);
    const int c = column_to_finish(channels);
    if (c >= 0)
        sums[c] = t.first;
}

// Of each column: the sums of d and of d^2, d = a - a[0]: nothing cancels where the mean is far from zero.
KERNEL column_moments(const real* a, Sums* partial, long long rows, int channels)
{
    const int c = blockIdx.y * 32 + threadIdx.x;
    Sums s = {0, 0};
    if (c < channels)
        for (long long m = first_row(); m < rows; m += row_step()) {
            const real d = a[m * channels + c] - a[c];
            s.first += d;
            s.second += d * d;
        }
    write_partial(s, partial, channels);
}

// mean, unbiased variance and 1 / sqrt(biased variance + eps), from `column_moments`; first_row: a[0].
KERNEL finish_moments(const Sums* partial, const real* first_row, real* mean, real* unbiased, real* inv_std, double eps,
    int parts, long long rows, int channels)
{
    const Totals t = add_partial(partial, parts, channels);
    const int c = column_to_finish(channels);
    if (c < 0)
        return;
    const double squares = t.second - t.first * t.first / rows;
    const double deviations = squares > 0 || squares != squares ? squares : 0;
    mean[c] = first_row[c] + t.first / rows;
    unbiased[c] = deviations / (rows > 1 ? rows - 1 : 1);
    inv_std[c] = 1 / sqrt(deviations / rows + eps);
}

// Of each column: the sums of delta and of delta (a - mean).
KERNEL column_deltas(const real* delta, const real* a, const real* mean, Sums* partial, long long rows, int channels)
{
    const int c = blockIdx.y * 32 + threadIdx.x;
    Sums s = {0, 0};
    if (c < channels)
        for (long long m = first_row(); m < rows; m += row_step()) {
            const real d = delta[m * channels + c];
            s.first += d;
            s.second += d * (a[m * channels + c] - mean[c]);
        }
    write_partial(s, partial, channels);
}

// dJ/dbeta and dJ/dgamma, the sums of delta and of delta x, x = (a - mean) inv_std, from `column_deltas`, and both over
// count; dgamma and dbeta may be null.
KERNEL finish_deltas(const Sums* partial, const real* inv_std, real* dgamma, real* dbeta, real* mean_delta,
    real* mean_delta_x, double count, int parts, int channels)
{
    const Totals t = add_partial(partial, parts, channels);
    const int c = column_to_finish(channels);
    if (c < 0)
        return;
    const double total_x = t.second * inv_std[c];
    if (dbeta)
        dbeta[c] = t.first;
    if (dgamma)
        dgamma[c] = total_x;
    mean_delta[c] = t.first / count;
    mean_delta_x[c] = total_x / count;
}

// y = gamma (a - mean) inv_std + beta, and with relu max(y, 0); gamma and beta may be null.
template <int P>
__device__ void normalize_by(const Values<P>* a, const real* mean, const real* inv_std, const real* gamma, const real* beta,
    Values<P>* y, long long rows, int channels, int relu)
{
    for (int c = threadIdx.x; c < channels; c += blockDim.x) {
        Values<P> center, scale, shift;
        for (int k = 0; k < P; k++) {
            const int i = c * P + k;
            center.v[k] = mean[i];
            scale.v[k] = gamma ? gamma[i] * inv_std[i] : inv_std[i];
            shift.v[k] = beta ? beta[i] : real(0);
        }
        for (long long m = first_row(); m < rows; m += row_step()) {
            Values<P> value = a[m * channels + c];
            for (int k = 0; k < P; k++) {
                const real result = (value.v[k] - center.v[k]) * scale.v[k] + shift.v[k];
                value.v[k] = relu && result < 0 ? real(0) : result;
            }
            y[m * channels + c] = value;
        }
    }
}

KERNEL normalize(const real* a, const real* mean, const real* inv_std, const real* gamma, const real* beta, real* y,
    long long rows, int channels, int relu)
{
    if (is_wide(channels, a, y))
        normalize_by((const Values<WIDE>*)a, mean, inv_std, gamma, beta, (Values<WIDE>*)y, rows, channels / WIDE, relu);
    else
        normalize_by((const Values<1>*)a, mean, inv_std, gamma, beta, (Values<1>*)y, rows, channels, relu);
}

// da = gamma inv_std (delta - mean_delta - x mean_delta_x), x = (a - mean) inv_std; gamma may be null.
template <int P>
__device__ void normalize_delta_by(const Values<P>* delta, const Values<P>* a, const real* mean, const real* inv_std,
    const real* gamma, const real* mean_delta, const real* mean_delta_x, Values<P>* da, long long rows, int channels)
{
    for (int c = threadIdx.x; c < channels; c += blockDim.x) {
        Values<P> center, slope, shift, scale;
        for (int k = 0; k < P; k++) {
            const int i = c * P + k;
            center.v[k] = mean[i];
            slope.v[k] = inv_std[i] * mean_delta_x[i];
            shift.v[k] = mean_delta[i];
            scale.v[k] = gamma ? gamma[i] * inv_std[i] : inv_std[i];
        }
        for (long long m = first_row(); m < rows; m += row_step()) {
            Values<P> d = delta[m * channels + c];
            const Values<P> value = a[m * channels + c];
            for (int k = 0; k < P; k++)
                d.v[k] = scale.v[k] * (d.v[k] - shift.v[k] - (value.v[k] - center.v[k]) * slope.v[k]);
            da[m * channels + c] = d;
        }
    }
}

KERNEL normalize_delta(const real* delta, const real* a, const real* mean, const real* inv_std, const real* gamma,
    const real* mean_delta, const real* mean_delta_x, real* da, long long rows, int channels)
{
    if (is_wide(channels, a, da) && is_wide(channels, a, delta))
        normalize_delta_by((const Values<WIDE>*)delta, (const Values<WIDE>*)a, mean, inv_std, gamma, mean_delta, mean_delta_x,
            (Values<WIDE>*)da, rows, channels / WIDE);
    else
        normalize_delta_by((const Values<1>*)delta, (const Values<1>*)a, mean, inv_std, gamma, mean_delta, mean_delta_x,
            (Values<1>*)da, rows, channels);
}
