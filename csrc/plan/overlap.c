/* overlap.c - the ranges of memory that a step may write, sorted by address.  No two of them overlap.

   take.c looks up two things: the weight that begins at an address, and a range that a gradient overlaps. */

#include "plan/internal.h"

void optimc_range_add(struct plan *plan, const struct array *array, int part)
{
    if (array->n)
        plan->ranges[plan->n_ranges++] = (struct range){
            array->data, array->data + array->n * optimc_storage[array->type].width, {plan->n_weights, part}};
}

/* Moves ranges[root] down until the n ranges are a heap again, the last by address on top. */
static void sift(struct range *ranges, size_t root, size_t n)
{
    const struct range moved = ranges[root];
    for (size_t child; (child = 2 * root + 1) < n; root = child) {
        child += child + 1 < n && ranges[child].low < ranges[child + 1].low;
        if (ranges[child].low <= moved.low)
            break;
        ranges[root] = ranges[child];
    }
    ranges[root] = moved;
}

/* Sorts n ranges by address, in n log n steps whatever their order and in no other memory, which qsort does not
   promise. */
static void sort(struct range *ranges, size_t n)
{
    for (size_t i = n / 2; i-- > 0;)
        sift(ranges, i, n);
    for (size_t last = n; last-- > 1;) {
        const struct range top = ranges[0];
        ranges[0] = ranges[last];
        ranges[last] = top;
        sift(ranges, 0, last);
    }
}

/* Sorts n ranges; FAULT_OVERLAP and the two places if any share memory. */
static enum fault set_apart(struct range *ranges, size_t n, struct place overlap[2])
{
    sort(ranges, n);
    for (size_t i = 1; i < n; i++) {
        if (ranges[i].low < ranges[i - 1].high) {
            overlap[0] = ranges[i - 1].place;
            overlap[1] = ranges[i].place;
            return FAULT_OVERLAP;
        }
    }
    return FINE;
}

enum fault optimc_range_sort(struct plan *plan, struct place overlap[2])
{
    return set_apart(plan->ranges, plan->n_ranges, overlap);
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

enum fault optimc_range_move(struct plan *plan, struct place overlap[2])
{
    struct range *const before = plan->ranges;
    for (size_t i = 0; i < plan->n_ranges; i++) {
        const struct array *array = array_at(plan, before[i].place);
        const char *low = array->next ? array->next : array->data;
        plan->spare[i] = (struct range){low, low + (before[i].high - before[i].low), before[i].place};
    }
    if (set_apart(plan->spare, plan->n_ranges, overlap))
        return FAULT_OVERLAP;
    plan->ranges = plan->spare;
    plan->spare = before;
    return FINE;
}
