/* latch.c - see latch.h.  One mutex guards all latches and the table of their numbers, for moments only. */

#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#if defined(_WIN32)
#include "plan/winthreads.h"
#else
#include "plan/forks.h"
#endif

#include "plan/latch.h"

static struct {
    pthread_mutex_t mutex;
    pthread_cond_t changed;
    struct latch **latches;                 /* by number, the lowest first */
    size_t n, room;
    int64_t last;                           /* the number given last */
} all = {.mutex = PTHREAD_MUTEX_INITIALIZER, .changed = PTHREAD_COND_INITIALIZER};

/* A number of this thread that no other thread has now. */
static uintptr_t this_thread(void)
{
#if defined(_WIN32)
    return GetCurrentThreadId();
#else
    return (uintptr_t)pthread_self();
#endif
}

/* The index of the first latch whose number is not lower. */
static size_t place_of(int64_t number)
{
    size_t a = 0, b = all.n;
    while (a < b) {
        const size_t middle = a + (b - a) / 2;
        if (all.latches[middle]->number < number)
            a = middle + 1;
        else
            b = middle;
    }
    return a;
}

static int make_room(void)
{
    if (all.n < all.room)
        return 0;
    const size_t room = 2 * all.room + 8;
    struct latch **latches = realloc(all.latches, room * sizeof(struct latch *));
    if (!latches)
        return -1;
    all.latches = latches;
    all.room = room;
    return 0;
}

int optimc_latch_open(struct latch *latch)
{
    pthread_mutex_lock(&all.mutex);
    const int failed = make_room();
    if (!failed) {
        *latch = (struct latch){.number = ++all.last, .holder = LATCH_PYTHON, .thread = this_thread()};
        all.latches[all.n++] = latch;
    }
    pthread_mutex_unlock(&all.mutex);
    return failed;
}

void optimc_latch_close(struct latch *latch)
{
    pthread_mutex_lock(&all.mutex);
    const size_t at = place_of(latch->number);
    memmove(&all.latches[at], &all.latches[at + 1], (--all.n - at) * sizeof(struct latch *));
    latch->closing = 1;
    pthread_cond_broadcast(&all.changed);
    while (latch->inside)
        pthread_cond_wait(&all.changed, &all.mutex);
    pthread_mutex_unlock(&all.mutex);
}

/* Waits for a latch, and takes it unless it is to go: 1 or 0. */
static int enter(struct latch *latch)
{
    latch->inside++;
    latch->foreign++;
    while (!latch->closing && (latch->holder || latch->next == LATCH_PYTHON))
        pthread_cond_wait(&all.changed, &all.mutex);
    latch->foreign--;
    if (latch->closing) {
        latch->inside--;
        pthread_cond_broadcast(&all.changed);
        return 0;
    }
    latch->holder = LATCH_FOREIGN;
    latch->next = LATCH_FREE;
    return 1;
}

struct latch *optimc_latch_enter(int64_t number)
{
    pthread_mutex_lock(&all.mutex);
    const size_t at = place_of(number);
    struct latch *latch = at < all.n && all.latches[at]->number == number ? all.latches[at] : NULL;
    if (latch && ((latch->holder == LATCH_PYTHON && latch->thread == this_thread()) || !enter(latch)))
        latch = NULL;
    pthread_mutex_unlock(&all.mutex);
    return latch;
}

void optimc_latch_leave(struct latch *latch)
{
    pthread_mutex_lock(&all.mutex);
    latch->holder = LATCH_FREE;
    latch->next = latch->python ? LATCH_PYTHON : LATCH_FREE;
    latch->inside--;
    if (latch->python || latch->inside || latch->closing)
        pthread_cond_broadcast(&all.changed);
    pthread_mutex_unlock(&all.mutex);
}

/* 1 if Python's thread must wait.  If one of Python's has it, that thread is gone, and its turn was ended. */
static int is_busy(const struct latch *latch)
{
    return latch->holder == LATCH_FOREIGN || latch->next == LATCH_FOREIGN;
}

static void hold(struct latch *latch)
{
    latch->holder = LATCH_PYTHON;
    latch->next = LATCH_FREE;
    latch->thread = this_thread();
}

int optimc_latch_try(struct latch *latch)
{
    pthread_mutex_lock(&all.mutex);
    const int free = !is_busy(latch);
    if (free)
        hold(latch);
    pthread_mutex_unlock(&all.mutex);
    return free;
}

void optimc_latch_take(struct latch *latch)
{
    pthread_mutex_lock(&all.mutex);
    latch->python++;
    while (is_busy(latch))
        pthread_cond_wait(&all.changed, &all.mutex);
    latch->python--;
    hold(latch);
    pthread_mutex_unlock(&all.mutex);
}

void optimc_latch_give(struct latch *latch)
{
    pthread_mutex_lock(&all.mutex);
    if (latch->holder == LATCH_PYTHON) {
        latch->holder = LATCH_FREE;
        latch->next = latch->foreign ? LATCH_FOREIGN : LATCH_FREE;
        if (latch->foreign)
            pthread_cond_broadcast(&all.changed);
    }
    pthread_mutex_unlock(&all.mutex);
}

#if defined(_WIN32)
int optimc_latch_setup(void)
{
    return 0;                               /* no fork() to survive */
}
#else
/* The child has none of the frameworks' threads.  turns.c ends the turns of Python's that it does not have. */
static void in_child(void)
{
    pthread_cond_init(&all.changed, NULL);
    for (size_t i = 0; i < all.n; i++) {
        struct latch *latch = all.latches[i];
        latch->next = LATCH_FREE;
        latch->foreign = latch->python = latch->inside = 0;
        if (latch->holder == LATCH_FOREIGN)
            latch->holder = LATCH_FREE;
    }
}

int optimc_latch_setup(void)
{
    return optimc_survive_fork(&all.mutex, in_child);
}
#endif
