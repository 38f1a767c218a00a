/* team.c - lends the workers of the program's OpenMP runtime to the pool.

   After parallel work of its own such a runtime lets its workers spin for milliseconds, on the very processors that
   the pool's workers would need.  While they spin they are the fastest that a region can have.  Once they sleep the
   pool is better: nobody waits in it for a worker that has not come, and a team waits for all.

   So a thread notes the workers of its team when it runs with them, and later asks the system by their CPU clocks
   whether they run. */

#define _GNU_SOURCE
#include <stdatomic.h>
#include <stddef.h>

#include "plan/team.h"

#if defined(__linux__)
#include <pthread.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

enum { LOOKED_AT = 4 };                     /* workers whose clocks are read, of a large team */
static const double BETWEEN_LOOKS = 1e3;    /* ns; a clock that stands still for so long is of a worker that waits */

static struct { _Atomic(team_run *) run; _Atomic(team_size *) size; } runtime;

/* The team of a thread, as it was when it last ran. */
struct known { int size; _Atomic int workers; clockid_t clocks[LOOKED_AT]; };      /* size 0: it has not run */
static _Thread_local struct known known;

struct call { void (*work)(void *, int); void *context; pthread_t caller; struct known *known; };

void optimc_team_use(team_run *run, team_size *size)
{
    atomic_store(&runtime.size, size);
    atomic_store(&runtime.run, run);
}

int optimc_team_size(void)
{
    team_size *const size = atomic_load(&runtime.size);
    const int threads = size ? size() : 0;
    return size && threads < 1 ? 1 : threads;
}

/* The CPU time of a thread in ns, -1 if it has ended. */
static double time_of(clockid_t clock)
{
    struct timespec time;
    return clock_gettime(clock, &time) ? -1 : (double)time.tv_sec * 1e9 + (double)time.tv_nsec;
}

static double wall(void)
{
    return time_of(CLOCK_MONOTONIC);
}

static void *nothing(void *argument)
{
    return argument;
}

int optimc_team_may_meet(void)
{
    pthread_t thread;
    return syscall(SYS_gettid) == getpid() && !pthread_create(&thread, NULL, nothing, NULL)
        && !pthread_join(thread, NULL);
}

enum team optimc_team_state(void)
{
    if (!atomic_load(&runtime.run))
        return TEAM_NONE;
    const int workers = atomic_load(&known.workers), looks = workers < LOOKED_AT ? workers : LOOKED_AT;
    double before[LOOKED_AT];
    if (known.size != optimc_team_size())
        return TEAM_UNKNOWN;
    const double begin = wall();
    for (int i = 0; i < looks; i++)
        if ((before[i] = time_of(known.clocks[i])) < 0)
            return TEAM_UNKNOWN;
    while (wall() - begin < BETWEEN_LOOKS)
        ;
    for (int i = 0; i < looks; i++)
        if (time_of(known.clocks[i]) <= before[i])
            return TEAM_ASLEEP;
    return looks ? TEAM_AWAKE : TEAM_ASLEEP;
}

/* Runs in each thread of the team. */
static void member(void *data)
{
    const struct call *const call = data;
    const int is_caller = pthread_equal(pthread_self(), call->caller) != 0;
    if (!is_caller) {
        const int i = atomic_fetch_add(&call->known->workers, 1);
        if (i < LOOKED_AT && pthread_getcpuclockid(pthread_self(), &call->known->clocks[i]))
            call->known->clocks[i] = CLOCK_REALTIME;
    }
    call->work(call->context, is_caller);
}

void optimc_team_run(void (*work)(void *context, int is_caller), void *context)
{
    struct call call = {work, context, pthread_self(), &known};
    team_run *const run = atomic_load(&runtime.run);
    if (!run) {                             /* another thread has just named none */
        work(context, 1);
        return;
    }
    atomic_store(&known.workers, 0);
    known.size = optimc_team_size();
    run(member, &call, 0, 0);
}

void optimc_team_leave(void)
{
    atomic_store(&runtime.run, NULL);
}

#else
void optimc_team_use(team_run *run, team_size *size)
{
    (void)run, (void)size;
}

int optimc_team_size(void)
{
    return 0;
}

int optimc_team_may_meet(void)
{
    return 0;
}

enum team optimc_team_state(void)
{
    return TEAM_NONE;
}

void optimc_team_run(void (*work)(void *context, int is_caller), void *context)
{
    work(context, 1);
}

void optimc_team_leave(void)
{
}
#endif
