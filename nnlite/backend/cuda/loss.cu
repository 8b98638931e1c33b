// Losses. Cross-entropy from logits: one warp per row (threadIdx.y: the row within the block), its lanes are the classes.

__device__ inline real warp_max(real v)
{
    for (int lane = 16; lane > 0; lane /= 2) {
        const real other = __shfl_xor_sync(0xffffffffu, v, lane);
        v = other > v || other != other ? other : v;
    }
    return v;
}

__device__ inline real warp_sum(real v)
{
    for (int lane = 16; lane > 0; lane /= 2)
        v += __shfl_xor_sync(0xffffffffu, v, lane);
    return v;
}

// losses[n] = -sum over c of q_c log y_c,  delta = y sum(q) - q,  y = softmax(z).
KERNEL cross_entropy(const real* z, const real* q, real* losses, real* delta, int rows, int classes, int sums_to_one)
{
    const long long row = first_row();
    if (row >= rows) // the whole warp
        return;
    z += row * classes, q += row * classes, delta += row * classes;
    real largest = -infinity();
    for (int c = threadIdx.x; c < classes; c += 32)
        largest = z[c] > largest || z[c] != z[c] ? z[c] : largest;
    largest = warp_max(largest);
    real sum = 0, weight = 0;
    for (int c = threadIdx.x; c < classes; c += 32) {
        sum += exp(z[c] - largest);
        weight += q[c];
    }
    sum = warp_sum(sum), weight = sums_to_one ? real(1) : warp_sum(weight);
    const real log_sum = log(sum);
    real loss = 0;
    for (int c = threadIdx.x; c < classes; c += 32) {
        const real shifted = z[c] - largest;
        if (q[c] != 0) // else the logit may be -inf
            loss -= q[c] * shifted;
        delta[c] = exp(shifted) / sum * weight - q[c];
    }
    loss = warp_sum(loss);
    if (threadIdx.x == 0)
        losses[row] = weight * log_sum + loss;
}

// q[n, c] = 1 at the label of n, else 0; NaN where the label is out of range.
KERNEL one_hot(const long long* t, real* q, long long rows, int classes)
{
    for (long long n = first_row(); n < rows; n += row_step()) {
        const long long label = t[n];
        const bool is_class = label >= 0 && label < classes;
        for (int c = threadIdx.x; c < classes; c += blockDim.x)
            q[n * classes + c] = is_class ? real(label == c) : not_a_number();
    }
}

// sums += (loss weight, weight); state = (losses so far, the first that was not finite, counted from 1, or 0).
// skip: losses that are not finite are left out of the sums, and state[1] says whether this one was left out.
KERNEL note_loss(const double* loss, double weight, double* sums, int* state, int skip)
{
    const bool bad = !isfinite(*loss);
    state[0]++;
    if (skip)
        state[1] = bad;
    else if (bad && !state[1])
        state[1] = state[0];
    if (bad && skip)
        return;
    sums[0] += *loss * weight;
    sums[1] += weight;
}

// The same for a number that is not a loss: the norm of the gradients of the step whose loss was noted last.
KERNEL note_number(const double* number, int* state)
{
    if (!isfinite(*number) && !state[1])
        state[1] = state[0] > 0 ? state[0] : 1;
}
