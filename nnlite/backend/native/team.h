// Blocks of one kernel by several threads, which wait for them awake: to wake a sleeping one takes as long as a small product.
#pragma once
#include <sched.h>

typedef void Block(const void* job, long i);

// Zeros at first. next: the block to begin.  inside: helpers that may be in a block.  busy: whether a thread has called them.
typedef struct {
    Block* block;
    const void* job;
    long count, is_open, next, inside, busy;
} Team;
_Static_assert(sizeof(Team) <= 64, "team.py gives it 64 bytes");

#define NOW(place) __atomic_load_n(place, __ATOMIC_SEQ_CST)
#define SET(place, value) __atomic_store_n(place, value, __ATOMIC_SEQ_CST)
#define ADD(place, value) __atomic_fetch_add(place, value, __ATOMIC_SEQ_CST)

// Leave the core to its other thread for a moment, and to other processes now and then
static inline void wait_a_little(long turn)
{
#if defined __x86_64__
    __asm__ volatile("pause");
#elif defined __aarch64__
    __asm__ volatile("yield");
#endif
    if (turn % 1024 == 0)
        sched_yield();
}

static inline void do_blocks(Team* team)
{
    for (long i; (i = ADD(&team->next, 1)) < team->count;)
        team->block(team->job, i);
}

// block(job, 0) ... block(job, count - 1), in any order, by this thread and the helpers that are awake
static inline void together(Team* team, Block* block, const void* job, long count)
{
    if (count < 2 || !team || __atomic_exchange_n(&team->busy, 1, __ATOMIC_ACQUIRE)) { // they are another thread's
        for (long i = 0; i < count; i++)
            block(job, i);
        return;
    }
    team->block = block, team->job = job, team->count = count;
    SET(&team->next, 0);
    SET(&team->is_open, 1);
    do_blocks(team);
    SET(&team->is_open, 0);
    for (long turn = 1; NOW(&team->inside); turn++)
        wait_a_little(turn);
    __atomic_store_n(&team->busy, 0, __ATOMIC_RELEASE);
}
