/* lent.h - blocks of memory that a framework's tensors lie over, and whether one of them may be written.

   A framework's values are never written: a step gives a variable a new one.  Yet where nobody else holds the value
   that a variable gives up, its memory may be written.  To find out, a step has two halves:
     1. It claims the value of a variable: the block that the value lies over, or a new block with its content.  The
        framework gets a new tensor over this block, a *loan*, and the variable takes that in place of its value.
     2. It takes the block.  If its own loan is the only one left, and no other step claims the block, then the
        variable alone holds the memory, and it is written where it lies; else a copy is.
   A claim belongs to one run of a program, so that runs beside each other copy where they would meet.  A value
   that another thread reads after the tensors were handed out may change in the step: so that is done just before. */
#ifndef OPTIMC_LENT_H
#define OPTIMC_LENT_H

#include <stddef.h>

struct lender;                              /* the blocks of an optimizer */
struct block;
struct loan;

struct claim {
    struct block *block;                    /* NULL: there is none */
    struct loan *loan;
};

/* Prepares to survive fork(); once per process.  0, or an errno. */
int optimc_lent_setup(void);

/* A lender that keeps up to `most` bytes of blocks that nobody uses, for its next ones.  NULL without memory. */
struct lender *optimc_lender_new(size_t most);

/* Frees a lender; its blocks that are in use are freed when they no longer are. */
void optimc_lender_free(struct lender *lender);

/* Claims the block of a value.  `shift`, a multiple of 64: where in a page a new one is to lie.  0, or -1 without
   memory. */
int optimc_claim(struct claim *claim, struct lender *lender, const void *data, size_t size, size_t shift);

/* Lends the block: a loan, or NULL without memory.  The loan is the framework's, see optimc_end_loan. */
struct loan *optimc_lend(struct claim *claim);

/* Takes a block that was lent: its memory, which may be written; or NULL without memory. */
char *optimc_take_claimed(struct claim *claim, struct lender *lender);

void *optimc_claimed(const struct claim *claim);    /* the memory of the block */

void optimc_drop_claim(struct claim *claim);

/* The end of a loan, as frameworks call it. */
void optimc_end_loan(void *data, size_t size, void *loan);

/* Zeros that begin with a cache line, for free(); NULL without memory. */
void *optimc_lines(size_t size);

/* For tests: the blocks that there are, spare ones included, and how often one was written where it lay, copied
   because somebody else held it, and filled with a value that lay elsewhere. */
struct lent_counts { size_t blocks, in_place, shared, filled; };
struct lent_counts optimc_lent_counts(void);

#endif
