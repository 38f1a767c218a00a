/* values.c - running products of hyperparameters that vary, and a rule's scalars, from update to update.

   Once a schedule or a callable gives a hyperparameter, its power beta^t becomes the product of its values.  The
   caller knows the source of each value.  Next: exact.c, which reads the products in place of powers. */

#include <math.h>
#include <string.h>

#include "plan/values.h"

void optimc_group_clear(struct group *group)
{
    memset(group, 0, sizeof *group);
    for (int k = 0; k < MAX_HYPERS; k++)
        group->products[k] = NAN;
}

void optimc_group_vary(struct group *group, int k, int64_t updates)
{
    const struct step step = {.t = updates, .powers = group->powers, .products = group->products};
    if (isnan(group->products[k]))
        group->products[k] = updates ? optimc_power(&step, k, group->values[OPTIONS + k]) : 1;
}

void optimc_group_multiply(struct group *group, int k)
{
    if (!isnan(group->products[k]))
        group->products[k] *= group->values[OPTIONS + k];
}

void optimc_group_keep(struct group *group)
{
    memcpy(group->before, group->after, sizeof group->before);
}
