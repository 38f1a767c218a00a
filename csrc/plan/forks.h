/* forks.h - locks that survive fork(): no thread holds one when a child is made, and the child's are new. */
#ifndef OPTIMC_FORKS_H
#define OPTIMC_FORKS_H

#include <pthread.h>

/* Lets a mutex survive fork(): once for each, the outer one of two that are nested last.  in_child, or NULL, is
   called in the child, which has one thread.  0, or an errno. */
int optimc_survive_fork(pthread_mutex_t *mutex, void (*in_child)(void));

#endif
