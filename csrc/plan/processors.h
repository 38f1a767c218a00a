/* processors.h - the processors this process may use, and its clock. */
#ifndef OPTIMC_PROCESSORS_H
#define OPTIMC_PROCESSORS_H

enum { MAX_THREADS = 1024 };

/* Processors this process may use: affinity and cgroup quota, 1 .. MAX_THREADS. */
int optimc_processors(void);

/* A monotonic clock. */
double optimc_nanoseconds(void);

#endif
