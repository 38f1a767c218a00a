/* latch.h - locks that threads of Python and threads of frameworks take, the latter by number.

   One thread has a latch at a time, and if threads of both kinds wait, the kinds take turns.  Of Python's threads at
   most one uses a latch, the one whose turn it is (turns.c); latch.c sees to the others.  Numbers are never used
   again. */
#ifndef OPTIMC_LATCH_H
#define OPTIMC_LATCH_H

#include <stdint.h>

enum latch_holder { LATCH_FREE, LATCH_FOREIGN, LATCH_PYTHON };

struct latch {
    int64_t number;
    enum latch_holder holder, next;         /* who has it; who gets it next, LATCH_FREE: whoever comes */
    int foreign, python;                    /* threads that wait */
    int inside, closing;                    /* framework threads that wait or have it; whether it is to go */
    uintptr_t thread;                       /* Python's thread that has it */
};

/* Prepares latches to survive fork(); once per process.  0, or an errno. */
int optimc_latch_setup(void);

/* Numbers a latch, which Python's thread then has: 0, or -1 without memory. */
int optimc_latch_open(struct latch *latch);

/* Takes back its number, and waits until no framework's thread is inside. */
void optimc_latch_close(struct latch *latch);

/* A framework's thread takes a latch, waiting for it.  NULL: there is none of that number, or this very thread has it
   as Python's. */
struct latch *optimc_latch_enter(int64_t number);
void optimc_latch_leave(struct latch *latch);

/* Python's thread takes a latch: try does if no framework's has it or waits for it (1, else 0); take waits. */
int optimc_latch_try(struct latch *latch);
void optimc_latch_take(struct latch *latch);

/* Gives it back, if a thread of Python's has it. */
void optimc_latch_give(struct latch *latch);

#endif
