/* values.h - the numbers that the kernels of a group read, and those that are carried from update to update. */
#ifndef OPTIMC_VALUES_H
#define OPTIMC_VALUES_H

#include "kernels/kernels.h"

/* The values of a group: struct options, then the rule's hyperparameters.  `products` holds, for a hyperparameter
   that varies, the product of its values over the updates, and NaN for the others.  `before` and `after` hold the
   rule's scalars before and after an update. */
struct group {
    double values[MAX_VALUES], products[MAX_HYPERS];
    double before[MAX_SCALARS + 1], after[MAX_SCALARS + 1];     /* the last is `end` */
    struct power powers[MAX_HYPERS];
};

/* A group whose hyperparameters have not varied. */
void optimc_group_clear(struct group *group);

/* Marks hyperparameter k as one that varies.  Its product continues from its power after `updates` updates. */
void optimc_group_vary(struct group *group, int k, int64_t updates);

/* Before an update: multiplies the product of hyperparameter k by its value, if the hyperparameter varies. */
void optimc_group_multiply(struct group *group, int k);

/* After an update: takes over the rule's scalars that the update has computed. */
void optimc_group_keep(struct group *group);

#endif
