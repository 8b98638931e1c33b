// Elementwise operations.

// z += b by column, and with relu max(z, 0).
template <int P> __device__ void add_bias_by(Values<P>* z, const real* b, long long rows, int channels, int relu)
{
    for (int c = threadIdx.x; c < channels; c += blockDim.x) {
        Values<P> shift;
        for (int k = 0; k < P; k++)
            shift.v[k] = b[c * P + k];
        for (long long m = first_row(); m < rows; m += row_step()) {
            Values<P> value = z[m * channels + c];
            for (int k = 0; k < P; k++) {
                const real result = value.v[k] + shift.v[k];
                value.v[k] = relu && result < 0 ? real(0) : result;
            }
            z[m * channels + c] = value;
        }
    }
}

KERNEL add_bias(real* z, const real* b, long long rows, int channels, int relu)
{
    if (is_wide(channels, z, z))
        add_bias_by((Values<WIDE>*)z, b, rows, channels / WIDE, relu);
    else
        add_bias_by((Values<1>*)z, b, rows, channels, relu);
}

// a += weight (b - a)
KERNEL lerp(real* a, const real* b, real weight, long long values)
{
    for (long long i = first_value(); i < values; i += value_step())
        a[i] += weight * (b[i] - a[i]);
}

// da = delta where y > 0, else 0
KERNEL relu_delta(const real* delta, const real* y, real* da, long long values)
{
    for (long long i = first_value(); i < values; i += value_step())
        da[i] = y[i] > 0 ? delta[i] : real(0);
}

// y = a (1 + tanh u) / 2 with u = linear a (1 + cubic a^2)
KERNEL gelu_tanh(const real* a, real* y, real linear, real cubic, long long values)
{
    for (long long i = first_value(); i < values; i += value_step()) {
        const real t = 1 + tanh(linear * a[i] * (1 + cubic * a[i] * a[i]));
        y[i] = t == 0 ? real(0) : real(0.5) * a[i] * t; // a may be -infinity
    }
}

// da = delta (1 + t + (1 - t) (1 + t) a du/da) / 2, t = tanh u; where t is 1 or -1, du/da may be infinite
KERNEL gelu_tanh_delta(const real* delta, const real* a, real* da, real linear, real cubic, long long values)
{
    for (long long i = first_value(); i < values; i += value_step()) {
        const real t = tanh(linear * a[i] * (1 + cubic * a[i] * a[i])), bend = (1 - t) * (1 + t);
        const real slope = linear * (1 + 3 * cubic * a[i] * a[i]);
        da[i] = delta[i] * (1 + t + (bend == 0 ? real(0) : bend * a[i] * slope)) / 2;
    }
}

// ---- random bits: Philox 4x64-10 (Salmon et al. 2011), the words that NumPy draws; see backend/random.py

typedef unsigned long long word;

struct Counter {
    word w[4];
};

__device__ inline Counter philox(Counter c, word key0, word key1)
{
    for (int round = 0; round < 10; round++) {
        const word a = 0xD2E7470EE14C6C93ull, b = 0xCA5A826395121157ull;
        const Counter n = {
            {__umul64hi(b, c.w[2]) ^ c.w[1] ^ key0, b * c.w[2], __umul64hi(a, c.w[0]) ^ c.w[3] ^ key1, a * c.w[0]}};
        c = n;
        key0 += 0x9E3779B97F4A7C15ull;
        key1 += 0xBB67AE8584CAA73Bull;
    }
    return c;
}

// The 8 words of 32 bits of one counter: (row x blocks a row + block, 0, stream0, stream1).
__device__ inline Counter block_of(word key0, word key1, word stream0, word stream1, word place)
{
    const Counter c = {{place, 0, stream0, stream1}};
    return philox(c, key0, key1);
}

// bits[row, i]: the random table of `random_bits`, from row `start` on.
KERNEL random_bits(word key0, word key1, word stream0, word stream1, long long start, int rows, int words, unsigned* bits)
{
    const int blocks = (words + 7) / 8;
    for (long long i = first_value(); i < (long long)rows * blocks; i += value_step()) {
        const long long row = i / blocks;
        const int first = i % blocks * 8;
        const Counter c = block_of(key0, key1, stream0, stream1, (word)start * blocks + i);
        for (int j = first; j < first + 8 && j < words; j++)
            bits[row * words + j] = (unsigned)(c.w[(j - first) / 2] >> (j % 2 * 32));
    }
}

// mask[row, i] = 0 where the bits are below `threshold`, else scale.
KERNEL dropout_mask(word key0, word key1, word stream0, word stream1, long long start, int rows, int words,
    unsigned threshold, real scale, real* mask)
{
    const int blocks = (words + 7) / 8;
    for (long long i = first_value(); i < (long long)rows * blocks; i += value_step()) {
        const long long row = i / blocks;
        const int first = i % blocks * 8;
        const Counter c = block_of(key0, key1, stream0, stream1, (word)start * blocks + i);
        for (int j = first; j < first + 8 && j < words; j++)
            mask[row * words + j] = (unsigned)(c.w[(j - first) / 2] >> (j % 2 * 32)) < threshold ? real(0) : scale;
    }
}
