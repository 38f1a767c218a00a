/* forks.c - see forks.h.  pool.c, which waits for steps in progress, has handlers of its own. */
#if !defined(_WIN32)
#include "plan/forks.h"

#include <errno.h>

enum { MOST = 4 };

static struct survivor { pthread_mutex_t *mutex; void (*in_child)(void); } survivors[MOST];
static int n;

static void before_fork(void)
{
    for (int i = n; i-- > 0;)
        pthread_mutex_lock(survivors[i].mutex);
}

static void after_fork_in_parent(void)
{
    for (int i = 0; i < n; i++)
        pthread_mutex_unlock(survivors[i].mutex);
}

static void after_fork_in_child(void)
{
    for (int i = 0; i < n; i++) {
        pthread_mutex_init(survivors[i].mutex, NULL);
        if (survivors[i].in_child)
            survivors[i].in_child();
    }
}

int optimc_survive_fork(pthread_mutex_t *mutex, void (*in_child)(void))
{
    int error = n < MOST ? 0 : ENOMEM;
    for (int i = 0; i < n; i++)
        if (survivors[i].mutex == mutex)
            return 0;
    if (!n)
        error = pthread_atfork(before_fork, after_fork_in_parent, after_fork_in_child);
    if (!error)
        survivors[n++] = (struct survivor){mutex, in_child};
    return error;
}
#endif
