/* pool.h - chunks over threads: one pool per process, started by the first step large enough. */
#ifndef OPTIMC_POOL_H
#define OPTIMC_POOL_H

#include <stddef.h>
#include <stdint.h>

#include "plan/processors.h"

enum { MAX_CHUNKS = 1 << 18 };

/* Prepares the pool to survive fork(); once per process, before any other call.  0, or an errno. */
int optimc_pool_setup(void);

/* Threads a step may use, the caller included: those that were set; else, of the processors, as many as the program's
   OpenMP runtime would use here; without one, as the environment says that it would. */
int optimc_pool_threads(void);

/* 0: none are set. */
void optimc_pool_set_threads(int threads);

/* Threads of OpenMP by the environment; 0: it does not say. */
void optimc_pool_set_usual(int threads);

/* For tests: every region of more than one chunk uses the workers, however small it is. */
void optimc_pool_set_eager(int eager);

/* Runs task(context, 0 .. chunks-1), each once, and returns when all are done.  `nanoseconds` is the time
   of the whole on one thread.  Below the thresholds, or if another region is running, the caller runs all
   chunks alone.  Chunks must not depend on each other.  chunks <= MAX_CHUNKS. */
void optimc_pool_run(void (*task)(void *context, size_t chunk), void *context, size_t chunks,
    double nanoseconds);

/* Around work done without the GIL: a fork() waits for it, so that a child never inherits half a step.
   The count of forks survived tells a lock's owner whether it still exists. */
void optimc_pool_enter(void);
void optimc_pool_leave(void);

/* Waits until no such work is in progress. */
void optimc_pool_land(void);
uint64_t optimc_pool_forks(void);

#endif
