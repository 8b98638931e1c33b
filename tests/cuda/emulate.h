// Runs .cu files on a CPU, for the tests: g++ compiles the same source against this header.
//
// A block's threads are fibers that run until they meet a barrier or a shuffle; warps, and the lanes of a warp, take turns in
// a random order, one warp as far as it can go, so that a missing barrier shows as a wrong answer. A barrier that some
// threads never reach is an error. FIBERS 0: for files without barriers, threads are plain calls, in a random order.

#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <functional>
#include <string>
#include <vector>
#include <ucontext.h>

using std::isfinite;

struct Place {
    unsigned x, y, z;
};

static Place threadIdx, blockIdx, blockDim, gridDim;

#define __global__
#define __device__
#define __shared__ static

static std::uint64_t random_state = 1;

static unsigned random_below(unsigned n)
{
    random_state = random_state * 6364136223846793005ull + 1442695040888963407ull;
    return (random_state >> 33) % n;
}

static void shuffle(std::vector<int>& order)
{
    for (unsigned i = order.size() - 1; i > 0 && i < order.size(); i--)
        std::swap(order[i], order[random_below(i + 1)]);
}

static void place_thread(int t)
{
    threadIdx = {t % blockDim.x, t / blockDim.x % blockDim.y, t / (blockDim.x * blockDim.y)};
}

inline unsigned long long __umul64hi(unsigned long long a, unsigned long long b)
{
    return (unsigned long long)((unsigned __int128)a * b >> 64);
}

inline float __int_as_float(int bits)
{
    float value;
    std::memcpy(&value, &bits, sizeof value);
    return value;
}

static std::string failure;

#if FIBERS

enum State { READY, AT_BARRIER, AT_SHUFFLE, DONE };

struct Fiber {
    ucontext_t context;
    std::vector<char> stack;
    State state;
    double value; // what it gives to a shuffle, and takes from it
    int partner;
};

static std::vector<Fiber> fibers;
static ucontext_t scheduler;
static int running;
static const std::function<void()>* body;

static void wait_as(State state)
{
    const int me = running;
    fibers[me].state = state;
    swapcontext(&fibers[me].context, &scheduler);
}

static void enter()
{
    (*body)();
    wait_as(DONE);
}

static void __syncthreads() { wait_as(AT_BARRIER); }

static double __shfl_xor_sync(unsigned, double value, int mask)
{
    Fiber& me = fibers[running];
    me.value = value, me.partner = (running & ~31) | ((running & 31) ^ mask);
    wait_as(AT_SHUFFLE);
    return fibers[running].value;
}

static float __shfl_xor_sync(unsigned all, float value, int mask) { return __shfl_xor_sync(all, (double)value, mask); }

static bool exchange(int warp)
{
    for (int t = warp; t < warp + 32; t++)
        if (t >= (int)fibers.size() || fibers[t].state != AT_SHUFFLE)
            return false;
    double given[32];
    for (int t = 0; t < 32; t++)
        given[t] = fibers[warp + t].value;
    for (int t = warp; t < warp + 32; t++)
        fibers[t].value = given[fibers[t].partner - warp], fibers[t].state = READY;
    return true;
}

static void run_warp(int warp)
{
    std::vector<int> lanes;
    for (int t = warp; t < warp + 32 && t < (int)fibers.size(); t++)
        lanes.push_back(t);
    do {
        shuffle(lanes);
        for (int t : lanes)
            if (fibers[t].state == READY) {
                running = t;
                place_thread(t);
                swapcontext(&scheduler, &fibers[t].context);
            }
    } while (exchange(warp));
}

static void run_block(const std::function<void()>& thread)
{
    body = &thread;
    fibers.resize(blockDim.x * blockDim.y * blockDim.z);
    std::vector<int> warps;
    for (int t = 0; t < (int)fibers.size(); t++) {
        Fiber& f = fibers[t];
        f.stack.resize(1 << 16);
        getcontext(&f.context);
        f.context.uc_stack.ss_sp = f.stack.data(), f.context.uc_stack.ss_size = f.stack.size();
        makecontext(&f.context, enter, 0);
        f.state = READY;
        if (t % 32 == 0)
            warps.push_back(t);
    }
    for (;;) {
        shuffle(warps);
        for (int warp : warps)
            run_warp(warp);
        int counts[4] = {};
        for (const Fiber& f : fibers)
            counts[f.state]++;
        if (counts[DONE] == (int)fibers.size())
            return;
        if (counts[AT_BARRIER] != (int)fibers.size()) {
            failure = std::to_string(counts[AT_BARRIER]) + " threads at a barrier, " + std::to_string(counts[AT_SHUFFLE])
                + " at a shuffle, " + std::to_string(counts[DONE]) + " done, of " + std::to_string(fibers.size());
            return;
        }
        for (Fiber& f : fibers)
            f.state = READY;
    }
}

#else

static void run_block(const std::function<void()>& thread)
{
    std::vector<int> order;
    for (unsigned t = 0; t < blockDim.x * blockDim.y * blockDim.z; t++)
        order.push_back(t);
    shuffle(order);
    for (int t : order) {
        place_thread(t);
        thread();
    }
}

#endif

// Blocks in a random order, one at a time. Returns what went wrong, or null.
static const char* run_grid(const unsigned* grid, const unsigned* block, unsigned long long seed, std::function<void()> thread)
{
    gridDim = {grid[0], grid[1], grid[2]}, blockDim = {block[0], block[1], block[2]};
    random_state = seed;
    failure.clear();
    std::vector<int> order;
    for (unsigned b = 0; b < grid[0] * grid[1] * grid[2]; b++)
        order.push_back(b);
    shuffle(order);
    for (int b : order) {
        blockIdx = {b % gridDim.x, b / gridDim.x % gridDim.y, b / (gridDim.x * gridDim.y)};
        run_block(thread);
        if (!failure.empty())
            return failure.c_str();
    }
    return nullptr;
}
