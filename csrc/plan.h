/* plan.h - an optimizer's weights, their slots, and a step over them.

   A plan is made once from views of arrays and then stepped.  A step has two halves: everything that
   can be refused (find, take) and everything that writes (run), so that a refused step has changed
   nothing.  The plan knows neither Python nor NumPy: it keeps pointers, and whoever made it keeps the
   arrays alive. */
#ifndef OPTIMC_PLAN_H
#define OPTIMC_PLAN_H

#include "kernels.h"

/* An array as its owner describes it. */
struct view {
    char *data;
    const ptrdiff_t *shape, *strides;       /* strides in bytes */
    size_t itemsize;
    int ndim;
    int type;                               /* enum type */
    int swapped;                            /* bytes in the other order */
    int c_order, f_order;                   /* contiguous so; both for one element or one axis */
    int aligned, writeable;
};

enum fault {
    FINE,
    FAULT_TYPE,                             /* not a lane type; for a gradient: not a float */
    FAULT_SHAPE,
    FAULT_READ_ONLY,
    FAULT_STRIDES,                          /* neither C nor Fortran order, or not the weight's */
    FAULT_ALIGNMENT,
    FAULT_OVERLAP,
    FAULT_REPEATED,                         /* the weight, or its gradient, came twice in a step */
    FAULT_MEMORY,
};

/* The parts of a weight, for reporting an overlap: the weight itself, slot k, the average. */
enum { PART_WEIGHT = -1, PART_AVERAGE = MAX_SLOTS };
struct place { size_t weight; int part; };

size_t optimc_view_size(const struct view *view);   /* elements */

/* What a group of weights is stepped with: its hyperparameters (struct options, then the rule's own)
   and its step count, 1 for the first. */
struct group {
    double values[MAX_VALUES];
    struct power powers[MAX_HYPERS];
    struct step step;
};

struct plan;

/* An empty plan for `weights` weights, NULL without memory.  free accepts NULL. */
struct plan *optimc_plan_new(size_t weights);
void optimc_plan_free(struct plan *plan);

/* Whether a view can be a weight: FINE, FAULT_TYPE, _READ_ONLY, _STRIDES or _ALIGNMENT. */
enum fault optimc_plan_check(const struct view *view);

/* Adds the next weight with the slots its kernel uses (in order, `slots` counts MAX_SLOTS, unused ones
   are ignored) and, or NULL, its average: checked views of the weight's type, shape and order, or
   FAULT_SHAPE and `where`.  `decays` is 0 for a weight excluded from weight decay. */
enum fault optimc_plan_add(struct plan *plan, const struct view *weight, enum kernel kernel,
    size_t group, int decays, const struct view *slots, const struct view *average, int *where);

/* Ends the making: FINE, FAULT_MEMORY, or FAULT_OVERLAP and the two places that share memory. */
enum fault optimc_plan_seal(struct plan *plan, const struct isa *isa, struct place overlap[2]);

size_t optimc_plan_weights(const struct plan *plan);

/* The first half of a step.  begin forgets an earlier one.  find gives the index of the weight with
   this memory (`hint` is tried first) or -1, and verifies that shape, type and order are as bound.
   take notes the gradient of a weight for this step, or NULL for a missing one. */
void optimc_plan_begin(struct plan *plan);
ptrdiff_t optimc_plan_find(const struct plan *plan, const struct view *weight, size_t hint);
enum fault optimc_plan_same(const struct plan *plan, size_t index, const struct view *weight);
enum fault optimc_plan_take(struct plan *plan, size_t index, const struct view *gradient,
    struct place *overlap);

/* What the step taken so far would cost on one thread, in nanoseconds, roughly. */
double optimc_plan_cost(const struct plan *plan);

/* The second half: updates every weight taken.  Cannot fail. */
void optimc_plan_run(struct plan *plan, const struct group *groups);

#endif
