/* values.h - the numbers that a group of weights is stepped with, and how they go from update to update. */
#ifndef OPTIMC_VALUES_H
#define OPTIMC_VALUES_H

#include "kernels/kernels.h"

/* The values of a group: struct options, then the rule's hyperparameters.  A hyperparameter that varies has a product
   of its values over the updates; the others have NaN.  The rule's scalars are those before an update and those
   after it. */
struct group {
    double values[MAX_VALUES], products[MAX_HYPERS];
    double before[MAX_SCALARS + 1], after[MAX_SCALARS + 1];     /* the last is `end` */
    struct power powers[MAX_HYPERS];
};

/* A group whose hyperparameters have not varied. */
void optimc_group_clear(struct group *group);

/* From now on hyperparameter k varies.  Its product goes on from its power after `updates` updates. */
void optimc_group_vary(struct group *group, int k, int64_t updates);

/* Before an update: multiplies its value into the product of hyperparameter k, if that varies. */
void optimc_group_multiply(struct group *group, int k);

/* After an update: the rule's scalars are those that the update left. */
void optimc_group_keep(struct group *group);

#endif
