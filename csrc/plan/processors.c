/* processors.c - the processors that this process may use, and a clock.  pool.c reads both.

   The affinity mask and the cgroup quota both limit the number: a container with two of 64 processors counts two. */

#define _GNU_SOURCE
#include <stdio.h>
#include <string.h>

#if defined(_WIN32)
#ifndef _WIN32_WINNT
#define _WIN32_WINNT 0x0602
#endif
#define WIN32_LEAN_AND_MEAN
#include <windows.h>
#else
#include <sched.h>
#include <time.h>
#include <unistd.h>
#endif

#include "plan/processors.h"

#if defined(_WIN32)
double optimc_nanoseconds(void)
{
    LARGE_INTEGER ticks, per_second;
    QueryPerformanceCounter(&ticks);
    QueryPerformanceFrequency(&per_second);
    return (double)ticks.QuadPart * 1e9 / (double)per_second.QuadPart;
}

/* Processors this process may run on.  With more than 64 processors the mask covers one processor group, or is
   empty. */
static long allowed_processors(void)
{
    DWORD_PTR own = 0, all = 0;
    long count = 0;
    if (GetProcessAffinityMask(GetCurrentProcess(), &own, &all))
        for (; own; own &= own - 1)
            count++;
    return count ? count : (long)GetActiveProcessorCount(ALL_PROCESSOR_GROUPS);
}
#else
double optimc_nanoseconds(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec * 1e9 + (double)now.tv_nsec;
}

/* Processors this process may run on. */
static long allowed_processors(void)
{
#if defined(__linux__)
    cpu_set_t set;
    if (!sched_getaffinity(0, sizeof set, &set))
        return CPU_COUNT(&set);
#endif
    return sysconf(_SC_NPROCESSORS_ONLN);
}
#endif

/* The processors that the cgroup quota allows, rounded up; `most` without a quota. */
static int quota(int most)
{
    char line[4096], path[4200];
    FILE *file = fopen("/proc/self/cgroup", "r");
    if (!file)
        return most;
    while (fgets(line, sizeof line, file)) {
        if (strncmp(line, "0::", 3))
            continue;
        line[strcspn(line, "\n")] = 0;
        /* Every ancestor may have a limit.  The mount may also show this process's group as its root. */
        for (char *end = line + strlen(line); end >= line + 3; end--) {
            if (*end && *end != '/')
                continue;
            *end = 0;
            snprintf(path, sizeof path, "/sys/fs/cgroup%s/cpu.max", line + 3);
            FILE *limit = fopen(path, "r");
            double allowed, period;
            if (limit) {
                if (fscanf(limit, "%lf %lf", &allowed, &period) == 2 && period > 0
                    && allowed / period < most)
                    most = (int)(allowed / period + 0.999);
                fclose(limit);
            }
        }
    }
    fclose(file);
    return most < 1 ? 1 : most;
}

int optimc_processors(void)
{
    const long most = allowed_processors();
    return quota(most < 1 ? 1 : most > MAX_THREADS ? MAX_THREADS : (int)most);
}
