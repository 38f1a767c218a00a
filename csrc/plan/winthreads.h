/* winthreads.h - the POSIX names that pool.c and latch.c use, on Windows: slim locks, condition variables, threads.

   No other file includes it.  Windows has no fork() and sends no signals to threads, so what guards against these
   does nothing here. */
#ifndef OPTIMC_WINTHREADS_H
#define OPTIMC_WINTHREADS_H

#ifndef _WIN32_WINNT
#define _WIN32_WINNT 0x0602
#endif
#define WIN32_LEAN_AND_MEAN
#include <windows.h>

#include <errno.h>
#include <process.h>
#include <stdint.h>
#include <stdlib.h>

typedef SRWLOCK pthread_mutex_t;
typedef CONDITION_VARIABLE pthread_cond_t;
typedef HANDLE pthread_t;
typedef int sigset_t;
#define PTHREAD_MUTEX_INITIALIZER SRWLOCK_INIT
#define PTHREAD_COND_INITIALIZER CONDITION_VARIABLE_INIT
enum { SIG_SETMASK };

static inline int pthread_mutex_lock(pthread_mutex_t *mutex)
{
    AcquireSRWLockExclusive(mutex);
    return 0;
}

static inline int pthread_mutex_trylock(pthread_mutex_t *mutex)
{
    return TryAcquireSRWLockExclusive(mutex) ? 0 : EBUSY;
}

static inline int pthread_mutex_unlock(pthread_mutex_t *mutex)
{
    ReleaseSRWLockExclusive(mutex);
    return 0;
}

static inline int pthread_cond_wait(pthread_cond_t *condition, pthread_mutex_t *mutex)
{
    return SleepConditionVariableSRW(condition, mutex, INFINITE, 0) ? 0 : EINVAL;
}

static inline int pthread_cond_broadcast(pthread_cond_t *condition)
{
    WakeAllConditionVariable(condition);
    return 0;
}

struct winthread { void *(*run)(void *); void *argument; };

static unsigned __stdcall winthread_enter(void *own)
{
    const struct winthread start = *(struct winthread *)own;
    free(own);
    start.run(start.argument);
    return 0;
}

static inline int pthread_create(pthread_t *thread, const void *attributes, void *(*run)(void *), void *argument)
{
    (void)attributes;
    struct winthread *start = malloc(sizeof *start);
    if (!start)
        return ENOMEM;
    *start = (struct winthread){run, argument};
    *thread = (HANDLE)_beginthreadex(NULL, 0, winthread_enter, start, 0, NULL);
    if (*thread)
        return 0;
    free(start);
    return EAGAIN;
}

static inline int pthread_detach(pthread_t thread)
{
    return CloseHandle(thread) ? 0 : EINVAL;
}

static inline int sched_yield(void)
{
    return !SwitchToThread();
}

static inline void sigfillset(sigset_t *set)
{
    *set = 0;
}

static inline int pthread_sigmask(int how, const sigset_t *set, sigset_t *before)
{
    (void)how;
    if (before)
        *before = *set;
    return 0;
}

#endif
