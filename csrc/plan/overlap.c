/* overlap.c - the ranges of memory that a step may write, sorted by address.  No two of them overlap.

   take.c looks up two things: the weight that begins at an address, and a range that a gradient overlaps. */

#include <stdlib.h>

#include "plan/internal.h"

void optimc_range_add(struct plan *plan, const struct array *array, int part)
{
    if (array->n)
        plan->ranges[plan->n_ranges++] = (struct range){
            array->data, array->data + array->n * optimc_storage[array->type].width, {plan->n_weights, part}};
}

static int by_address(const void *a, const void *b)
{
    const struct range *x = a, *y = b;
    return (x->low > y->low) - (x->low < y->low);
}

enum fault optimc_range_sort(struct plan *plan, struct place overlap[2])
{
    if (plan->n_ranges)
        qsort(plan->ranges, plan->n_ranges, sizeof *plan->ranges, by_address);
    for (size_t i = 1; i < plan->n_ranges; i++) {
        if (plan->ranges[i].low < plan->ranges[i - 1].high) {
            overlap[0] = plan->ranges[i - 1].place;
            overlap[1] = plan->ranges[i].place;
            return FAULT_OVERLAP;
        }
    }
    return FINE;
}

size_t optimc_range_after(const struct plan *plan, const char *low)
{
    size_t a = 0, b = plan->n_ranges;
    while (a < b) {
        const size_t middle = a + (b - a) / 2;
        if (plan->ranges[middle].high > low)
            b = middle;
        else
            a = middle + 1;
    }
    return a;
}

enum fault optimc_range_move(struct plan *plan, size_t index, char *data)
{
    struct place overlap[2];
    for (size_t i = 0; i < plan->n_ranges; i++) {
        struct range *range = &plan->ranges[i];
        if (range->place.weight == index && range->place.part == PART_WEIGHT) {
            range->high = data + (range->high - range->low);
            range->low = data;
            return optimc_range_sort(plan, overlap);
        }
    }
    return FINE;                            /* an empty weight has no range */
}
