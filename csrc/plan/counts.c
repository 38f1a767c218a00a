/* counts.c - weights that count their own updates, because their gradients come and go.

   The coefficients of a weight depend on its count and on the scalars that its rule keeps, so weights of one row may
   need different ones.  Each update gives those that take part the row of their count: a copy of the row that they
   have in the plan, which run.c fills like any other.  Weights whose counts and scalars are equal share it.
   Next: run.c. */

#include <string.h>

#include "plan/internal.h"

/* Makes room for a row for each weight beside those of the plan: 0, or -1 without memory. */
static int make_room(struct plan *plan)
{
    const size_t n = plan->n_rows + plan->n_weights;
    struct row *rows = plan->memory.take(n + 1, sizeof *rows);
    struct weight_progress *progress = plan->memory.take(plan->n_weights + 1, sizeof *progress);
    size_t *places = plan->memory.take(plan->n_places, sizeof *places);
    if (!rows || !progress || !places) {
        plan->memory.give(rows);
        plan->memory.give(progress);
        plan->memory.give(places);
        return -1;
    }
    memcpy(rows, plan->rows, plan->n_rows * sizeof *rows);
    plan->memory.give(plan->rows);
    plan->rows = rows;
    plan->progress = progress;
    plan->places = places;
    plan->n_first_rows = plan->n_rows;
    return 0;
}

enum fault optimc_plan_count(struct plan *plan, const struct weight_progress *progress)
{
    if (!plan->progress && make_room(plan))
        return FAULT_MEMORY;
    memcpy(plan->progress, progress, plan->n_weights * sizeof *progress);
    return FINE;
}

const struct weight_progress *optimc_plan_progress(const struct plan *plan, size_t index)
{
    return plan->progress ? &plan->progress[index] : NULL;
}

void optimc_counts_share(struct plan *plan)
{
    plan->n_rows = plan->n_first_rows;
    memset(plan->places, 0, plan->n_places * sizeof *plan->places);
    for (size_t i = 0; i < plan->n_weights; i++) {
        struct weight *weight = &plan->weights[i];
        const struct weight_progress *progress = &plan->progress[i];
        weight->row = weight->first_row;
        if (!takes_part(plan, weight))
            continue;
        struct row wanted = plan->rows[weight->first_row];
        wanted.t = progress->t + 1;
        if (progress->t)                    /* no rule reads scalars before its first update */
            memcpy(wanted.before, progress->scalars, sizeof wanted.before);
        weight->row = optimc_row_like(plan, &wanted);
    }
}

void optimc_counts_advance(struct plan *plan)
{
    for (size_t i = 0; i < plan->n_weights; i++) {
        const struct weight *weight = &plan->weights[i];
        if (!takes_part(plan, weight))
            continue;
        plan->progress[i].t++;
        memcpy(plan->progress[i].scalars, plan->rows[weight->row].after, sizeof plan->progress[i].scalars);
    }
}
