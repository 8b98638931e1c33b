// Batch normalisation: sums of columns in two kernels, and what is done to each value. Arrays are (rows, channels).
// A block of (32, 8) threads sums 32 columns (blockIdx.y) over every 8 gridDim.x-th row.

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

// The partial sums added up, in their order, in double.
__device__ inline void add_partial(const Sums* partial, int parts, int channels, int c, double& first, double& second)
{
    first = second = 0;
    for (int i = 0; i < parts; i++) {
        first += partial[(long long)i * channels + c].first;
        second += partial[(long long)i * channels + c].second;
    }
}

// mean and sum of squared deviations, from `column_moments`.
KERNEL finish_moments(const Sums* partial, const real* a, real* mean, real* squares, int parts, long long rows, int channels)
{
    for (long long c = first_value(); c < channels; c += value_step()) {
        double sum, sum_of_squares;
        add_partial(partial, parts, channels, c, sum, sum_of_squares);
        mean[c] = a[c] + sum / rows;
        const double deviations = sum_of_squares - sum * sum / rows;
        squares[c] = deviations > 0 || deviations != deviations ? deviations : 0;
    }
}

// The sums of delta and of delta x, x = (a - mean) inv_std, from `column_deltas`.
KERNEL finish_deltas(const Sums* partial, const real* inv_std, real* total, real* total_x, int parts, int channels)
{
    for (long long c = first_value(); c < channels; c += value_step()) {
        double sum, sum_d;
        add_partial(partial, parts, channels, c, sum, sum_d);
        total[c] = sum;
        total_x[c] = sum_d * inv_std[c];
    }
}

// y = gamma (a - mean) inv_std + beta, and where relu is set max(y, 0) of it; gamma and beta may be null.
KERNEL normalize(const real* a, const real* mean, const real* inv_std, const real* gamma, const real* beta, real* y,
    long long values, int channels, int relu)
{
    for (long long i = first_value(); i < values; i += value_step()) {
        const int c = i % channels;
        const real scale = gamma ? gamma[c] * inv_std[c] : inv_std[c];
        const real result = (a[i] - mean[c]) * scale + (beta ? beta[c] : real(0));
        y[i] = relu && result < 0 ? real(0) : result;
    }
}

// da = gamma inv_std (delta - mean_delta - x mean_delta_x), x = (a - mean) inv_std; gamma may be null.
KERNEL normalize_delta(const real* delta, const real* a, const real* mean, const real* inv_std, const real* gamma,
    const real* mean_delta, const real* mean_delta_x, real* da, long long values, int channels)
{
    for (long long i = first_value(); i < values; i += value_step()) {
        const int c = i % channels;
        const real x = (a[i] - mean[c]) * inv_std[c];
        const real scale = gamma ? gamma[c] * inv_std[c] : inv_std[c];
        da[i] = scale * (delta[i] - mean_delta[c] - x * mean_delta_x[c]);
    }
}
