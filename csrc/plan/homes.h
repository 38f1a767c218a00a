/* homes.h - what an optimizer keeps between steps of a framework that only gives values and takes new ones.

   Small values are copied into a home and out again, so that the plan finds them at the same address each time.
   Large ones are lent: see lent.h.  A home is found by the number of its optimizer.  It goes when the optimizer does,
   and an operation that still knows it is told so. */
#ifndef OPTIMC_HOMES_H
#define OPTIMC_HOMES_H

#include <stddef.h>
#include <stdint.h>

struct lender;

/* Prepares to survive fork(); once per process.  0, or an errno. */
int optimc_homes_setup(void);

struct value {
    size_t size;                            /* bytes */
    size_t shift;                           /* of a value that is lent: see lent.h */
    char *data;                             /* at home; NULL: it is lent */
};

struct home {
    int64_t number;
    size_t n;
    struct value *values;
    struct lender *lender;
    struct housekeeping *own;
};

/* Makes the home of an optimizer: its owner's reference, or NULL without memory.  Values of `lent_from` bytes and
   more are lent, shifted so: see optimc_claim. */
struct home *optimc_home_open(int64_t number, const size_t *sizes, const size_t *shifts, size_t n, size_t lent_from);

/* The optimizer is gone: ends its owner's reference. */
void optimc_home_close(struct home *home);

struct home *optimc_home_find(int64_t number);      /* a reference, or NULL */
void optimc_home_release(struct home *home);

/* A thread enters a home, waiting for it: 1, or 0 if the optimizer is gone. */
int optimc_home_enter(struct home *home);
void optimc_home_leave(struct home *home);

#endif
