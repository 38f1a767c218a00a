/* pool.c - a pool of worker threads that spin for a moment and then park.

   A region is a task over chunks.  One 64-bit word, the gate, holds its generation and the range of
   chunks nobody has claimed: [low, high).  The caller claims from the front, workers from the back, so
   that from step to step a chunk stays with its core.  A claim is one compare-and-swap on the whole
   word: that it succeeds proves that the region was still live, and the caller cannot leave before the
   chunk is done.  The caller never waits for a worker that has claimed nothing.

   A worker without work spins for SPIN nanoseconds, yielding the processor between looks, then parks.
   Waking it costs the caller about 10 us, so a step uses the workers only if it is worth that, or if
   steps follow each other so closely that they will find the workers awake.

   Workers compute in the floating-point mode of the caller (rounding, flush to zero), so that bits do not depend on
   the thread that computes them.

   This file knows threads and fork, forks.c the locks of other files and fork; processors.c asks the system all
   else.  None knows what a chunk is: see run.c. */

#define _GNU_SOURCE
#include <stdatomic.h>

#if defined(_WIN32)
#include "plan/winthreads.h"
#else
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#endif

#if !defined(__x86_64__)
#include <fenv.h>
#endif

#include "plan/pool.h"
#include "plan/team.h"

/* The floating-point mode of a thread: how it rounds, and whether denormals are zero.  The C library reads and sets
   it on any machine, but needs a microsecond on x86, where the two control words take some nanoseconds. */
#if defined(__x86_64__)
struct mode { unsigned mxcsr; unsigned short x87; };
enum { MXCSR_FLAGS = 0x3F, MXCSR_MASKS = 0x1F80, X87_MASKS = 0x3F };

static struct mode own_mode(void)
{
    struct mode mode = {.mxcsr = __builtin_ia32_stmxcsr()};
    __asm__ volatile("fnstcw %0" : "=m"(mode.x87));
    return mode;
}

static void set_mode(const struct mode *mode)
{
    __builtin_ia32_ldmxcsr(mode->mxcsr);
    __asm__ volatile("fldcw %0" : : "m"(mode->x87));
}

static void set_mode_without_traps(const struct mode *mode)
{
    const struct mode quiet = {(mode->mxcsr | MXCSR_MASKS) & ~(unsigned)MXCSR_FLAGS, mode->x87 | X87_MASKS};
    set_mode(&quiet);
}
#else
struct mode { fenv_t environment; };

static struct mode own_mode(void)
{
    struct mode mode;
    fegetenv(&mode.environment);
    return mode;
}

static void set_mode(const struct mode *mode)
{
    fesetenv(&mode->environment);
}

static void set_mode_without_traps(const struct mode *mode)
{
    struct mode with_traps;
    set_mode(mode);
    feholdexcept(&with_traps.environment);
}
#endif

static const double SPIN = 50e3;            /* a worker looks for work this long before it parks */
static const double WORTH_AWAKE = 9e3;      /* work that is worth sharing with awake workers, ns */
static const double WORTH_WAKING = 110e3;   /* work that is worth waking many for, ns */
static const double WORTH_WAKING_ONE = 600e3;       /* or one alone: after a pause all comes from memory, of whose
                                               speed one core has most */

static const double LONG_WAIT = 100e3;      /* ns that show that another program has the processor of a worker */
enum { MOST_ALONE = 32 };

/* The gate: generation << 40 | high << 20 | low. */
enum { BITS = 20 };
static const uint64_t MASK = (1u << BITS) - 1;
_Static_assert(MAX_CHUNKS < 1 << BITS, "a chunk number must fit its field of the gate");

static struct {
    _Atomic uint64_t gate;
    _Atomic size_t done;                    /* chunks of this region that workers have finished */
    void (*task)(void *, size_t);
    void *context;
    struct mode mode;                       /* the caller's floating-point mode */

    _Atomic int set, usual;                 /* threads that were set, and those of the environment; 0: none */
    _Atomic int processors;                 /* 0: not asked for yet */
    _Atomic int threads;                    /* allowed in the last region, the caller included */
    _Atomic int running;                    /* workers started */
    _Atomic int parked;                     /* of these, asleep */
    _Atomic int eager;
    double last;                            /* when the last region worth sharing ended */
    int alone, penalty;                     /* regions that the caller still runs alone; how many the next time */

    pthread_mutex_t region;                 /* held while a region runs */
    pthread_mutex_t park;
    pthread_cond_t wake;

    pthread_mutex_t flights;                /* steps that run without the GIL */
    pthread_cond_t landed;
    int aloft;
    uint64_t forks;
} pool = {
    .penalty = 1,
    .region = PTHREAD_MUTEX_INITIALIZER,
    .park = PTHREAD_MUTEX_INITIALIZER,
    .wake = PTHREAD_COND_INITIALIZER,
    .flights = PTHREAD_MUTEX_INITIALIZER,
    .landed = PTHREAD_COND_INITIALIZER,
};

static void pause_briefly(void)
{
#if defined(__x86_64__) || defined(__i386__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ volatile("yield");
#endif
}

/* -------------------------------------------------------------------------------- workers ------ */

static uint64_t low_of(uint64_t gate) { return gate & MASK; }
static uint64_t high_of(uint64_t gate) { return gate >> BITS & MASK; }
static int open_gate(uint64_t gate) { return low_of(gate) < high_of(gate); }
static uint64_t generation_of(uint64_t gate) { return gate >> 2 * BITS; }

enum { NO_REGION = -1 };

/* Claims and runs one chunk from the back; 0 if there was none.  `region` is the generation whose floating-point
   mode the worker has, or NO_REGION.  Exceptions trap only in the caller's chunks: a worker has every signal blocked,
   and a trap that is blocked would end the process. */
static int work(int64_t *region)
{
    uint64_t gate = atomic_load(&pool.gate);
    while (open_gate(gate)) {
        if (atomic_compare_exchange_weak(&pool.gate, &gate, gate - (1u << BITS))) {
            if (*region != (int64_t)generation_of(gate))
                set_mode_without_traps(&pool.mode);
            *region = (int64_t)generation_of(gate);
            pool.task(pool.context, (size_t)high_of(gate) - 1);
            atomic_fetch_add(&pool.done, 1);
            return 1;
        }
    }
    return 0;
}

/* Sleeps until a region opens or the worker is no longer wanted. */
static void park(int index)
{
    pthread_mutex_lock(&pool.park);
    atomic_fetch_add(&pool.parked, 1);
    while (!open_gate(atomic_load(&pool.gate)) && index < atomic_load(&pool.threads))
        pthread_cond_wait(&pool.wake, &pool.park);
    atomic_fetch_sub(&pool.parked, 1);
    pthread_mutex_unlock(&pool.park);
}

static void *worker(void *argument)
{
    const int index = (int)(intptr_t)argument;      /* 1 .. threads - 1; the caller is 0 */
    double idle = optimc_nanoseconds();
    const struct mode own = own_mode();
    while (index < atomic_load(&pool.threads)) {
        int64_t region = NO_REGION;
        if (work(&region)) {
            while (work(&region))
                ;
            set_mode(&own);
            idle = optimc_nanoseconds();
            continue;
        }
        for (int i = 0; i < 32 && !open_gate(atomic_load(&pool.gate)); i++)
            pause_briefly();
        if (open_gate(atomic_load(&pool.gate)))
            continue;
        sched_yield();
        if (optimc_nanoseconds() - idle > SPIN) {
            park(index);
            idle = optimc_nanoseconds();
        }
    }
    atomic_fetch_sub(&pool.running, 1);
    return NULL;
}

/* Starts the workers that are missing, with every signal blocked; called with `region` held.  A system
   that gives no thread is no error: the caller does the work. */
static void start_workers(void)
{
    sigset_t all, before;
    sigfillset(&all);
    if (pthread_sigmask(SIG_SETMASK, &all, &before))
        return;
    int running;
    while ((running = atomic_load(&pool.running)) < atomic_load(&pool.threads) - 1) {
        pthread_t thread;
        atomic_fetch_add(&pool.running, 1);
        if (pthread_create(&thread, NULL, worker, (void *)(intptr_t)(running + 1))) {
            atomic_fetch_sub(&pool.running, 1);
            break;
        }
        pthread_detach(thread);
    }
    pthread_sigmask(SIG_SETMASK, &before, NULL);
}

static void wake_workers(void)
{
    pthread_mutex_lock(&pool.park);
    pthread_cond_broadcast(&pool.wake);
    pthread_mutex_unlock(&pool.park);
}

/* -------------------------------------------------------------------------------- regions ------ */

static void run_alone(void (*task)(void *, size_t), void *context, size_t chunks)
{
    for (size_t chunk = 0; chunk < chunks; chunk++)
        task(context, chunk);
}

/* Claims and runs chunks from the front until none is left; returns how many. */
static size_t run_front(void (*task)(void *, size_t), void *context)
{
    uint64_t gate;
    size_t mine = 0;
    while (open_gate(gate = atomic_load(&pool.gate))) {
        if (atomic_compare_exchange_weak(&pool.gate, &gate, gate + 1)) {
            task(context, (size_t)low_of(gate));
            mine++;
        }
    }
    return mine;
}

/* A region that runs in a team: see team.h. */
struct lent { void (*task)(void *, size_t); void *context; _Atomic int workers; size_t mine; double left; };

static void work_lent(void *context, int is_caller)
{
    struct lent *const lent = context;
    if (is_caller) {
        lent->mine = run_front(lent->task, lent->context);
        lent->left = optimc_nanoseconds();
    } else if (atomic_fetch_add(&lent->workers, 1) + 1 < atomic_load(&pool.threads)) {
        const struct mode own = own_mode();
        int64_t region = NO_REGION;
        while (work(&region))
            ;
        set_mode(&own);
    }
}

enum helpers { NOBODY, AWAKE, PARKED, TEAM };       /* who helps the caller */

/* Runs a region with helpers; returns how long the caller waited for them in the end, ns. */
static double run_shared(void (*task)(void *, size_t), void *context, size_t chunks, enum helpers helpers)
{
    pool.task = task;
    pool.context = context;
    pool.mode = own_mode();
    atomic_store(&pool.done, 0);
    atomic_store(&pool.gate, (generation_of(atomic_load(&pool.gate)) + 1) << 2 * BITS | (uint64_t)chunks << BITS);
    struct lent lent = {.task = task, .context = context};
    if (helpers == PARKED)
        wake_workers();
    if (helpers == TEAM)
        optimc_team_run(work_lent, &lent);
    else
        work_lent(&lent, 1);
    for (unsigned spins = 1; atomic_load(&pool.done) < chunks - lent.mine; spins++) {
        pause_briefly();
        if (spins % 64 == 0)
            sched_yield();
    }
    return optimc_nanoseconds() - lent.left;
}

static int is_worth_waking(double nanoseconds)
{
    return nanoseconds >= WORTH_WAKING && nanoseconds * (atomic_load(&pool.threads) - 1) >= WORTH_WAKING_ONE;
}

/* 1 if the caller's team should run a region: its workers are awake, or a region that is worth waking them shows who
   they are. */
static int is_for_team(double nanoseconds)
{
    const enum team team = optimc_team_state();
    const int fits = team != TEAM_NONE && atomic_load(&pool.threads) <= optimc_team_size();
    return fits && (team == TEAM_AWAKE
        || (team == TEAM_UNKNOWN && nanoseconds >= WORTH_WAKING && optimc_team_may_meet()));
}

/* Sets the threads of the regions that follow. */
static void allow(int threads)
{
    if (atomic_exchange(&pool.threads, threads) > threads)
        wake_workers();                     /* those no longer wanted leave */
}

/* Who helps in a region that may have helpers. */
static enum helpers choose(double nanoseconds, int eager)
{
    const int parked = atomic_load(&pool.parked), asleep = parked >= atomic_load(&pool.running);
    if (pool.alone && !eager) {
        pool.alone--;
        return NOBODY;
    }
    if (is_for_team(nanoseconds))
        return TEAM;
    if (asleep && !eager && !is_worth_waking(nanoseconds) && optimc_nanoseconds() - pool.last >= SPIN)
        return NOBODY;
    return parked ? PARKED : AWAKE;
}

/* A worker whose processor another program has taken in the midst of a chunk comes back after milliseconds.  The more
   often the caller waits so long, the more regions it runs alone before it tries again. */
static void avoid_rivals(double waited)
{
    if (waited < LONG_WAIT) {
        pool.penalty = 1;
        return;
    }
    pool.penalty = pool.penalty < MOST_ALONE ? pool.penalty * 2 : MOST_ALONE;
    pool.alone = pool.penalty;
}

void optimc_pool_run(void (*task)(void *context, size_t chunk), void *context, size_t chunks,
    double nanoseconds)
{
    const int eager = atomic_load(&pool.eager);
    const int threads = chunks < 2 || (nanoseconds < WORTH_AWAKE && !eager) ? 1 : optimc_pool_threads();
    if (threads < 2 || pthread_mutex_trylock(&pool.region)) {
        run_alone(task, context, chunks);
        return;
    }
    allow(threads);
    const enum helpers helpers = choose(nanoseconds, eager);
    if (helpers == NOBODY) {
        run_alone(task, context, chunks);
    } else {
        if (helpers != TEAM)
            start_workers();
        avoid_rivals(run_shared(task, context, chunks, helpers));
    }
    pool.last = optimc_nanoseconds();
    pthread_mutex_unlock(&pool.region);
}

/* -------------------------------------------------------------------------------- threads ------ */

int optimc_pool_threads(void)
{
    const int set = atomic_load(&pool.set);
    if (set)
        return set;
    int processors = atomic_load(&pool.processors), most = optimc_team_size();
    if (!processors)
        atomic_store(&pool.processors, processors = optimc_processors());
    if (!most)
        most = atomic_load(&pool.usual);
    return most && most < processors ? most : processors;
}

void optimc_pool_set_threads(int threads)
{
    atomic_store(&pool.set, threads);
    allow(optimc_pool_threads());
}

void optimc_pool_set_usual(int threads)
{
    atomic_store(&pool.usual, threads);
}

void optimc_pool_set_eager(int eager)
{
    atomic_store(&pool.eager, eager);
}

/* ----------------------------------------------------------------------------------- fork ------ */

void optimc_pool_enter(void)
{
    pthread_mutex_lock(&pool.flights);
    pool.aloft++;
    pthread_mutex_unlock(&pool.flights);
}

void optimc_pool_leave(void)
{
    pthread_mutex_lock(&pool.flights);
    if (--pool.aloft == 0)
        pthread_cond_broadcast(&pool.landed);
    pthread_mutex_unlock(&pool.flights);
}

void optimc_pool_land(void)
{
    pthread_mutex_lock(&pool.flights);
    while (pool.aloft)
        pthread_cond_wait(&pool.landed, &pool.flights);
    pthread_mutex_unlock(&pool.flights);
}

uint64_t optimc_pool_forks(void)
{
    return pool.forks;
}

#if defined(_WIN32)
int optimc_pool_setup(void)
{
    return 0;                               /* no fork() to survive */
}
#else
static void before_fork(void)
{
    pthread_mutex_lock(&pool.flights);
    while (pool.aloft)                      /* optimc_pool_land, but for the mutex, which stays locked */
        pthread_cond_wait(&pool.landed, &pool.flights);
    pthread_mutex_lock(&pool.region);
    pthread_mutex_lock(&pool.park);
}

static void after_fork_in_parent(void)
{
    pthread_mutex_unlock(&pool.park);
    pthread_mutex_unlock(&pool.region);
    pthread_mutex_unlock(&pool.flights);
}

/* The child has one thread: no worker is running, nobody holds or waits for anything. */
static void after_fork_in_child(void)
{
    pthread_mutex_init(&pool.flights, NULL);
    pthread_cond_init(&pool.landed, NULL);
    pthread_mutex_init(&pool.region, NULL);
    pthread_mutex_init(&pool.park, NULL);
    pthread_cond_init(&pool.wake, NULL);
    atomic_store(&pool.running, 0);
    atomic_store(&pool.parked, 0);
    optimc_team_leave();
    pool.forks++;
}

int optimc_pool_setup(void)
{
    static int done;
    if (done)
        return 0;
    const int error = pthread_atfork(before_fork, after_fork_in_parent, after_fork_in_child);
    done = !error;
    return error;
}
#endif

