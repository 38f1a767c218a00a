/* take.c - the first half of a step: finds weights, takes their gradients, and refuses unusable arrays.

   It writes to no array of the caller.  Next: run.c, the second half. */

#include <string.h>

#include "plan/internal.h"

ptrdiff_t optimc_plan_find(const struct plan *plan, const struct view *view, size_t hint)
{
    const int empty = !optimc_view_size(view);
    if (!empty && hint < plan->n_weights && plan->weights[hint].size
        && plan->weights[hint].self.data == view->data)
        return (ptrdiff_t)hint;
    if (empty) {                            /* empty arrays have no identity: takes any weight of this shape */
        for (size_t i = 0; i < plan->n_weights; i++) {
            const size_t k = (hint + i) % plan->n_weights;
            if (!plan->weights[k].size && plan->weights[k].seen != plan->step
                && !check_like(&plan->weights[k], view, plan->weights[k].self.type))
                return (ptrdiff_t)k;
        }
        return -1;
    }
    const size_t at = optimc_range_after(plan, view->data);
    if (at == plan->n_ranges || plan->ranges[at].low != view->data
        || plan->ranges[at].place.part != PART_WEIGHT)
        return -1;
    return (ptrdiff_t)plan->ranges[at].place.weight;
}

enum fault optimc_plan_same(const struct plan *plan, size_t index, const struct view *view)
{
    if (!view->writeable)
        return FAULT_READ_ONLY;
    const struct weight *weight = &plan->weights[index];
    return view->swapped ? FAULT_TYPE : check_like(weight, view, weight->self.type);
}

/* Ends the move of all arrays: they lie where they have moved to, or (stay) where the plan had them. */
static void settle(struct plan *plan, int stay)
{
    for (size_t i = 0; i < plan->n_ranges; i++) {
        struct array *array = array_at(plan, plan->ranges[i].place);
        if (array->next && !stay)
            array->data = array->next;
        array->next = NULL;
    }
    plan->moving = 0;
}

enum fault optimc_plan_place(struct plan *plan, struct place place, const struct view *view, int *moved)
{
    struct array *array = array_at(plan, place);
    const struct weight *weight = &plan->weights[place.weight];
    enum fault fault = optimc_part_check(weight, view, place.part);
    if (!fault && place.part >= 0 && place.part < MAX_SLOTS
        && optimc_slot_codec(weight, place.part, (enum type)view->type) != array->codec)
        fault = FAULT_TYPE;
    *moved = 0;
    return fault ? fault : optimc_plan_place_at(plan, place, view->data, moved);
}

enum fault optimc_plan_place_at(struct plan *plan, struct place place, char *data, int *moved)
{
    struct array *array = array_at(plan, place);
    *moved = data != array->data && array->n;
    if (!*moved)
        return FINE;
    if (!data)
        return FAULT_NO_MEMORY;
    const size_t width = optimc_storage[array->type].width;
    if ((uintptr_t)data % (array->type == TYPE_U8 ? sizeof(float) : width))
        return FAULT_ALIGNMENT;
    array->next = data;
    plan->moving = 1;
    return FINE;
}

size_t optimc_plan_bytes(const struct plan *plan, struct place place)
{
    const struct array *array = array_at(plan, place);
    return array->n * optimc_storage[array->type].width;
}

size_t optimc_plan_parts(const struct plan *plan)
{
    return plan->n_ranges;
}

void optimc_plan_wait(struct plan *plan, enum waiting waiting)
{
    for (size_t i = 0; i < plan->n_weights; i++)
        plan->weights[i].waiting = plan->weights[i].accumulator.data ? waiting : WAITS_FOR_NONE;
}

enum fault optimc_plan_move(struct plan *plan, struct place overlap[2])
{
    if (!plan->moving)
        return FINE;
    const enum fault fault = optimc_range_sort(plan, overlap);
    settle(plan, fault != FINE);
    for (size_t i = 0; i < plan->n_weights && !fault; i++)      /* a gradient may overlap a new range */
        plan->weights[i].clear_low = plan->weights[i].clear_high = NULL;
    return fault;
}

void optimc_plan_begin(struct plan *plan)
{
    plan->step++;
    plan->cost = 0;
    if (plan->moving)                       /* an earlier step was refused before it moved anything */
        settle(plan, 1);
}

void optimc_source_set(struct weight *weight, const struct view *view, const ptrdiff_t *shape)
{
    const int lies_like = !view->swapped && view->aligned && (weight->f_order ? view->f_order : view->c_order);
    weight->gradient = view->data;
    const int halves = view->type == TYPE_BF16 || view->type == TYPE_F16;
    weight->half_gradient = halves && lies_like ? view->data : NULL;
    if (view->type != (int)weight->real_type || !lies_like) {
        weight->gradient = NULL;
        ptrdiff_t *const strides = weight->shape + view->ndim;  /* a copy: the owner may reshape */
        if (view->ndim)
            memcpy(strides, view->strides, (size_t)view->ndim * sizeof *strides);
        weight->source = (struct source){view->data, shape, strides, view->itemsize,
            view->ndim, view->type, view->swapped, weight->f_order};
    }
}

enum fault optimc_plan_take(struct plan *plan, size_t index, const struct view *view,
    struct place *overlap)
{
    struct weight *weight = &plan->weights[index];
    if (weight->seen == plan->step)
        return FAULT_REPEATED;
    weight->seen = plan->step;
    if (!view)
        return FINE;
    if (view->type >= FLOAT_TYPES)
        return FAULT_TYPE;
    if (check_shape(weight, view, -1))
        return FAULT_SHAPE;
    if (weight->size) {
        if (!view->data)
            return FAULT_NO_MEMORY;
        const char *low, *high;
        optimc_extent(view, &low, &high);
        if (low != weight->clear_low || high != weight->clear_high) {
            if (optimc_range_meets(plan, view, overlap))
                return FAULT_OVERLAP;
            weight->clear_low = low;
            weight->clear_high = high;
        }
    }
    optimc_source_set(weight, view, weight->shape);
    weight->taken = plan->step;
    plan->cost += weight_cost(plan, weight);
    return FINE;
}

double optimc_plan_cost(const struct plan *plan)
{
    return plan->cost;
}

double optimc_plan_whole_cost(const struct plan *plan)
{
    return plan->whole_cost;
}

enum waiting optimc_plan_waits(const struct plan *plan, size_t index)
{
    return plan->weights[index].waiting;
}
