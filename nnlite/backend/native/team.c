// A helper's time with a team.
#include "team.h"
#include "vector.h"
#include <time.h>

#define PATIENCE 200000 // nanoseconds without work

static long nanoseconds(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * 1000000000L + t.tv_nsec;
}

// Do blocks until there were none for a while, or `calls` has changed.
KERNEL help(Team* team, const long* calls)
{
    const long before = NOW(calls);
    long until = nanoseconds() + PATIENCE;
    for (long turn = 1; NOW(calls) == before; turn++) {
        if (NOW(&team->is_open)) {
            ADD(&team->inside, 1);
            if (NOW(&team->is_open)) // else the caller, who waits for those inside, may be gone
                do_blocks(team);
            ADD(&team->inside, -1);
            until = nanoseconds() + PATIENCE;
        }
        if (turn % 64 == 0 && nanoseconds() > until)
            return;
        wait_a_little(turn);
    }
}
