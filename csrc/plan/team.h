/* team.h - the workers of an OpenMP runtime that the program has loaded, as torch has. */
#ifndef OPTIMC_TEAM_H
#define OPTIMC_TEAM_H

/* GOMP_parallel, which libgomp, libiomp5 and libomp have: runs work(data) in every thread of the calling thread's
   team, the caller included, and returns when all have; 0 threads: as many as the caller's setting says. */
typedef void team_run(void (*work)(void *data), void *data, unsigned threads, unsigned flags);
typedef int team_size(void);                /* omp_get_max_threads: what the caller's setting says */

enum team { TEAM_NONE, TEAM_UNKNOWN, TEAM_ASLEEP, TEAM_AWAKE };

/* Names the functions of the runtime, or NULL and NULL for none. */
void optimc_team_use(team_run *run, team_size *size);

/* Threads of the runtime's teams that begin in this thread; 0 without a runtime. */
int optimc_team_size(void);

/* The state of the calling thread's team.  Awake: each worker looked at is running on a processor just now, as those
   of OpenMP do for a while after the program's last parallel work.  Unknown: it has not run here yet. */
enum team optimc_team_state(void);

/* 1 if the calling thread may run with a team for the first time: it is the first thread of the process, and the
   system gives threads.  A runtime that gets none ends the process.  It takes as long as starting a thread. */
int optimc_team_may_meet(void);

/* Runs work(context, is_caller) in the threads of the team, and returns when all have returned. */
void optimc_team_run(void (*work)(void *context, int is_caller), void *context);

/* In the child of a fork, where a team has no workers: never uses a team again. */
void optimc_team_leave(void);

#endif
