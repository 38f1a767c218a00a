/* internal.h - how a plan lies in memory, and the questions that its files ask of it often enough to be inline.

   plan.c makes a plan, overlap.c keeps its ranges apart, take.c refuses, run.c reads and writes.  Nobody else
   includes this. */
#ifndef OPTIMC_PLAN_INTERNAL_H
#define OPTIMC_PLAN_INTERNAL_H

#include "plan/plan.h"

struct weight {
    char *data, *slots[MAX_SLOTS], *average, *accumulator;
    const char *gradient;                   /* of this step, if the kernel can read it as it is */
    struct source source;                   /* of this step, otherwise */
    uint64_t seen, taken;                   /* the last step that named it; that had a gradient */
    size_t size, row;
    size_t first, first_piece;              /* of its elements, among all of its lane type; of its pieces */
    enum kernel kernel;
    int variant;                            /* the flags of its kernel */
    int lane, f_order, ndim;
    ptrdiff_t *shape;                       /* and after it the strides of its source */
    const char *clear_low, *clear_high;     /* a gradient known to overlap nothing */
    size_t first_block;                     /* of its blocks in plan->sums */
    double square;                          /* of the norm of its gradient, in this step */
    int waiting;                            /* something was accumulated since its last update */
    double totals[MAX_SUMS];                /* what its MEASURE summed up in this step */
    double ratio;                           /* what a cautious step is multiplied by */
    size_t n_rows, n_columns;               /* of its matrices, if its second moment is factored */
    double *column_sums;
};

struct row {
    union { struct row_f32 f32; struct row_f64 f64; } lane_row;
    enum rule rule;
    int lane, decay, variants;              /* the last of all its kernels together */
    double factor;
    size_t group;
    double cost;                            /* nanoseconds per element on one thread, measured */
    int staged;                             /* in this step, gradients are prepared in scratch for its kernels ... */
    int by_norm;                            /* ... only to be clipped to a norm of 1: shorter ones stay as they are */
};

struct piece { size_t weight, begin, end; };
struct range { const char *low, *high; struct place place; };

struct plan {
    struct weight *weights;
    size_t n_weights, capacity;
    struct row *rows;
    size_t n_rows;
    struct piece *pieces;
    size_t n_pieces, piece_size;
    size_t *chunks;                         /* chunk k is pieces chunks[k] .. chunks[k + 1] - 1 */
    size_t n_chunks;
    struct range *ranges;                   /* all memory a step may write, sorted */
    size_t n_ranges;
    double *sums[MAX_SUMS];                 /* n_sums times a number per block of SUM_BLOCK elements */
    int n_sums;                             /* as many as a kernel measures, and at least 1 */
    size_t n_blocks, total;                 /* such blocks; elements */
    int measures, factors;                  /* whether a kernel is MEASURED by pieces; FACTORED */
    const struct isa *isa;
    struct memory memory;
    const struct request *request;          /* the one in progress */
    uint64_t step;
    double cost;
};

/* Bytes of an element. */
static inline size_t width(int lane)
{
    return lane == TYPE_F32 ? sizeof(float) : sizeof(double);
}

/* Blocks of SUM_BLOCK elements. */
static inline size_t blocks(size_t size)
{
    return (size + SUM_BLOCK - 1) / SUM_BLOCK;
}

static inline int same_shape(const struct weight *weight, const struct view *view)
{
    if (view->ndim != weight->ndim)
        return 0;
    for (int k = 0; k < view->ndim; k++)
        if (view->shape[k] != weight->shape[k])
            return 0;
    return 1;
}

/* FINE if `view` has the weight's type, shape and memory order. */
static inline enum fault alike(const struct weight *weight, const struct view *view)
{
    if (view->type != weight->lane)
        return FAULT_TYPE;
    if (!same_shape(weight, view))
        return FAULT_SHAPE;
    return (weight->f_order ? view->f_order : view->c_order) ? FINE : FAULT_STRIDES;
}

/* The slots of a factored second moment: of the weight's shape, without its last axis, without its last but one. */
enum { MOMENT_SLOT, ROW_SLOT, COLUMN_SLOT };

/* The memory that a step may write: ranges by address, which overlap.c keeps sorted and apart. */

/* Adds a range of the weight that is being added; an empty one is left out. */
void optimc_range_add(struct plan *plan, const char *data, size_t bytes, int part);

/* Sorts the ranges; FAULT_OVERLAP and the two places if any share memory. */
enum fault optimc_range_sort(struct plan *plan, struct place overlap[2]);

/* The range that holds the first byte at or after `low`, as an index; n_ranges if there is none. */
size_t optimc_range_after(const struct plan *plan, const char *low);

/* Moves the range of a weight to begin at `data`, and sorts. */
enum fault optimc_range_move(struct plan *plan, size_t index, char *data);

#endif
