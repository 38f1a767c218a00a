/* overlap.c - the ranges of memory that a step may write, sorted by address.  No two of them overlap.

   take.c looks up two things: the weight that begins at an address, and a range that a gradient overlaps. */

#include "plan/internal.h"

void optimc_range_add(struct plan *plan, const struct array *array, int part)
{
    if (array->n)
        plan->ranges[plan->n_ranges++] = (struct range){
            array->data, array->data + array->n * optimc_storage[array->type].width, {plan->n_weights, part}};
}

/* Merges two sorted runs, from[begin .. middle) and from[middle .. end), into to[begin .. end). */
static void merge(const struct key *from, size_t begin, size_t middle, size_t end, struct key *to)
{
    size_t a = begin, b = middle;
    for (size_t i = begin; i < end; i++)
        to[i] = a < middle && (b == end || from[a].low <= from[b].low) ? from[a++] : from[b++];
}

/* Sorts n keys by address, in n log n steps whatever their order, which qsort does not promise.  The result is in
   `keys` or in `other`, which has room for as many. */
static const struct key *sort(struct key *keys, struct key *other, size_t n)
{
    for (size_t run = 1; run < n; run *= 2) {
        for (size_t i = 0; i < n; i += 2 * run)
            merge(keys, i, i + run < n ? i + run : n, i + 2 * run < n ? i + 2 * run : n, other);
        struct key *const sorted = other;
        other = keys;
        keys = sorted;
    }
    return keys;
}

enum fault optimc_range_sort(struct plan *plan, struct place overlap[2])
{
    struct range *const before = plan->ranges, *const after = plan->spare;
    const size_t n = plan->n_ranges;
    for (size_t i = 0; i < n; i++) {
        const struct array *array = array_at(plan, before[i].place);
        plan->keys[i] = (struct key){array->next ? array->next : array->data, i};
    }
    const struct key *keys = sort(plan->keys, plan->keys + n, n);
    for (size_t i = 0; i < n; i++) {
        const struct range *range = &before[keys[i].at];
        after[i] = (struct range){keys[i].low, keys[i].low + (range->high - range->low), range->place};
        if (i && after[i].low < after[i - 1].high) {
            overlap[0] = after[i - 1].place;
            overlap[1] = after[i].place;
            return FAULT_OVERLAP;
        }
    }
    plan->ranges = after;
    plan->spare = before;
    return FINE;
}

void optimc_extent(const struct view *view, const char **low, const char **high)
{
    *low = view->data;
    *high = view->data + view->itemsize;
    for (int k = 0; k < view->ndim; k++) {
        const ptrdiff_t reach = view->strides[k] * (view->shape[k] - 1);
        if (reach < 0)
            *low += reach;
        else
            *high += reach;
    }
}

int optimc_range_meets(const struct plan *plan, const struct view *view, struct place *overlap)
{
    const char *low, *high;
    optimc_extent(view, &low, &high);
    const size_t at = optimc_range_after(plan, low);
    if (at == plan->n_ranges || plan->ranges[at].low >= high)
        return 0;
    *overlap = plan->ranges[at].place;
    return 1;
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
