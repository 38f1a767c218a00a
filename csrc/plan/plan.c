/* plan.c - makes a plan: weights with their slots, kernels and rows, cut into pieces.

   A piece is a range of one weight.  A chunk is a run of pieces that a thread claims at once: small arrays share a
   chunk, large ones are cut into many.  Each weight carries its kernel and the number of its coefficient row, which
   a step fills once.  Cutting changes no result: kernels are elementwise.

   Everything here is plain memory: no Python, no NumPy, no allocation after optimc_plan_seal.  Next: take.c, what
   refuses a step, and run.c, what writes one. */

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "plan/internal.h"
#include "plan/pool.h"

/* Elements of a piece.  Small enough that its arrays stay in a core's cache, and that a step of medium
   size gives every thread some; large enough that claiming costs nothing. */
enum { PIECE_LEAST = SUM_BLOCK, PIECE_MOST = 8192 };

static const enum rule rule_of[KERNELS] = {
#define KERNEL_ROW(kernel, rule, variant, used) RULE_##rule,
#include "optimizers.def"
#undef KERNEL_ROW
};

static const int slots_of[KERNELS] = {
#define KERNEL_ROW(kernel, rule, variant, used) used,
#include "optimizers.def"
#undef KERNEL_ROW
};

static const int variant_of[KERNELS] = {
#define KERNEL_ROW(kernel, rule, variant, used) variant,
#include "optimizers.def"
#undef KERNEL_ROW
};

/* --------------------------------------------------------------------------------- making a plan */

struct plan *optimc_plan_new(size_t weights, struct memory memory)
{
    struct plan *plan = memory.take(1, sizeof *plan);
    if (!plan)
        return NULL;
    plan->memory = memory;
    plan->capacity = weights;
    plan->weights = plan->memory.take(weights ? weights : 1, sizeof *plan->weights);
    plan->rows = plan->memory.take(weights ? weights : 1, sizeof *plan->rows);
    plan->ranges = plan->memory.take((weights ? weights : 1) * (MAX_SLOTS + 3), sizeof *plan->ranges);
    if (!plan->weights || !plan->rows || !plan->ranges) {
        optimc_plan_free(plan);
        return NULL;
    }
    return plan;
}

void optimc_plan_free(struct plan *plan)
{
    if (!plan)
        return;
    for (size_t i = 0; i < plan->n_weights; i++) {
        plan->memory.give(plan->weights[i].shape);
        plan->memory.give(plan->weights[i].column_sums);
    }
    plan->memory.give(plan->weights);
    plan->memory.give(plan->rows);
    plan->memory.give(plan->pieces);
    plan->memory.give(plan->chunks);
    plan->memory.give(plan->ranges);
    for (int k = 0; k < MAX_SUMS; k++)
        plan->memory.give(plan->sums[k]);
    plan->memory.give(plan);
}

size_t optimc_plan_group(const struct plan *plan, size_t index)
{
    return plan->rows[plan->weights[index].row].group;
}

size_t optimc_plan_weights(const struct plan *plan)
{
    return plan->n_weights;
}

size_t optimc_view_size(const struct view *view)
{
    size_t size = 1;
    for (int k = 0; k < view->ndim; k++)
        size *= (size_t)view->shape[k];
    return size;
}

enum fault optimc_plan_check(const struct view *view)
{
    if (view->type > TYPE_F64 || view->swapped)
        return FAULT_TYPE;
    if (!view->writeable)
        return FAULT_READ_ONLY;
    if (!view->c_order && !view->f_order)
        return FAULT_STRIDES;
    if ((uintptr_t)view->data % view->itemsize && optimc_view_size(view))
        return FAULT_ALIGNMENT;
    return FINE;
}

/* The row for these weights, made if it is new. */
static size_t row_for(struct plan *plan, int lane, const struct parts *parts)
{
    const enum rule rule = rule_of[parts->kernel];
    size_t i = 0;
    for (; i < plan->n_rows; i++) {
        const struct row *row = &plan->rows[i];
        if (row->rule == rule && row->lane == lane && row->group == parts->group
            && row->decay == parts->decay && row->factor == parts->factor)
            return i;
    }
    plan->rows[plan->n_rows++] = (struct row){.rule = rule, .lane = lane, .group = parts->group,
        .decay = parts->decay, .factor = parts->factor};
    return i;
}

static enum fault is_factor(const struct weight *weight, const struct view *view, int slot)
{
    if (view->type != weight->lane)
        return FAULT_TYPE;
    if (weight->f_order || !view->c_order)
        return FAULT_STRIDES;
    const int left_out = weight->ndim - (slot == ROW_SLOT ? 1 : 2);
    if (weight->ndim < 2 || view->ndim != weight->ndim - 1)
        return FAULT_SHAPE;
    for (int k = 0; k < view->ndim; k++)
        if (view->shape[k] != weight->shape[k + (k >= left_out)])
            return FAULT_SHAPE;
    return FINE;
}

enum fault optimc_plan_add(struct plan *plan, const struct view *view, const struct parts *parts,
    int *where)
{
    struct weight *weight = &plan->weights[plan->n_weights];
    *weight = (struct weight){
        .data = view->data, .size = optimc_view_size(view), .kernel = parts->kernel,
        .variant = variant_of[parts->kernel],
        .lane = view->type, .f_order = !view->c_order, .ndim = view->ndim, .waiting = parts->waiting,
        .shape = plan->memory.take(2 * (size_t)view->ndim + 1, sizeof *weight->shape),
    };
    *where = PART_WEIGHT;
    if (!weight->shape)
        return FAULT_MEMORY;
    if (view->ndim)
        memcpy(weight->shape, view->shape, (size_t)view->ndim * sizeof *weight->shape);
    const size_t bytes = weight->size * width(view->type), ranges = plan->n_ranges;
    enum fault fault = FINE;
    optimc_range_add(plan, view->data, bytes, PART_WEIGHT);
    for (int k = 0; k <= PART_ACCUMULATOR && !fault; k++) {
        const struct view *part = k == PART_AVERAGE ? parts->average
            : k == PART_ACCUMULATOR ? parts->accumulator
            : slots_of[parts->kernel] & 1 << k ? &parts->slots[k] : NULL;
        char **kept = k == PART_AVERAGE ? &weight->average
            : k == PART_ACCUMULATOR ? &weight->accumulator : &weight->slots[k];
        if (!part)
            continue;
        const int factor = weight->variant & FACTORED && (k == ROW_SLOT || k == COLUMN_SLOT);
        fault = factor ? is_factor(weight, part, k) : alike(weight, part);
        *kept = part->data;
        optimc_range_add(plan, part->data, factor ? optimc_view_size(part) * part->itemsize : bytes, *where = k);
    }
    if (!fault && weight->variant & FACTORED && weight->slots[ROW_SLOT]) {
        weight->n_rows = (size_t)view->shape[view->ndim - 2];
        weight->n_columns = (size_t)view->shape[view->ndim - 1];
        weight->column_sums = plan->memory.take(weight->n_columns + 1, sizeof *weight->column_sums);
        fault = weight->column_sums ? FINE : FAULT_MEMORY;
    }
    if (fault) {
        plan->n_ranges = ranges;
        plan->memory.give(weight->shape);
        return fault;
    }
    weight->row = row_for(plan, weight->lane, parts);
    plan->rows[weight->row].variants |= weight->variant;
    plan->measures |= (weight->variant & (MEASURED | FACTORED)) == MEASURED;
    plan->factors |= (weight->variant & FACTORED) != 0;
    plan->n_weights++;
    return FINE;
}

/* Elements of a piece, for a plan of `total` elements: a multiple of SUM_BLOCK. */
static size_t piece_size(size_t total)
{
    size_t size = total / 8;
    size = size < PIECE_LEAST ? PIECE_LEAST : size > PIECE_MOST ? PIECE_MOST : size;
    const size_t least = total / (MAX_CHUNKS / 2) + 1;      /* never more chunks than the pool takes */
    size = size < least ? least : size;
    return (size + SUM_BLOCK - 1) / SUM_BLOCK * SUM_BLOCK;
}

static enum fault cut(struct plan *plan)
{
    size_t of_lane[2] = {0}, total = 0, pieces = 0, n_blocks = 0;
    plan->n_sums = 1;
    for (size_t i = 0; i < plan->n_weights; i++) {
        struct weight *weight = &plan->weights[i];
        total += weight->size;
        weight->first = of_lane[weight->lane == TYPE_F64];
        of_lane[weight->lane == TYPE_F64] += weight->size;
        weight->first_block = n_blocks;
        n_blocks += blocks(weight->size);
        const int sums = weight->lane == TYPE_F32 ? plan->isa->f32.measures[weight->kernel].sums
            : plan->isa->f64.measures[weight->kernel].sums;
        plan->n_sums = sums > plan->n_sums ? sums : plan->n_sums;
    }
    const size_t size = piece_size(total);
    for (size_t i = 0; i < plan->n_weights; i++) {
        plan->weights[i].first_piece = pieces;
        pieces += (plan->weights[i].size + size - 1) / size;
    }
    plan->piece_size = size;
    plan->n_blocks = n_blocks;
    plan->total = total;
    plan->pieces = plan->memory.take(pieces + 1, sizeof *plan->pieces);
    plan->chunks = plan->memory.take(pieces + 1, sizeof *plan->chunks);
    if (!plan->pieces || !plan->chunks)
        return FAULT_MEMORY;
    for (int k = 0; k < plan->n_sums; k++) {
        plan->sums[k] = plan->memory.take(n_blocks + 1, sizeof **plan->sums);
        if (!plan->sums[k])
            return FAULT_MEMORY;
    }
    size_t filled = 0;                      /* elements in the chunk being made */
    for (size_t i = 0; i < plan->n_weights; i++) {
        const size_t end = plan->weights[i].size;
        for (size_t begin = 0; begin < end; begin += size) {
            const struct piece piece = {i, begin, begin + size < end ? begin + size : end};
            if (!plan->n_chunks || filled + (piece.end - begin) > size) {
                plan->chunks[plan->n_chunks++] = plan->n_pieces;
                filled = 0;
            }
            filled += piece.end - begin;
            plan->pieces[plan->n_pieces++] = piece;
        }
    }
    plan->chunks[plan->n_chunks] = plan->n_pieces;
    return FINE;
}

/* Runs each row's first kernel over a little memory, to know what its steps are worth sharing. */
static void measure(struct plan *plan)
{
    enum { SAMPLE = 512, TRIES = 3 };
    static const union { float f32[SAMPLE]; double f64[SAMPLE]; } zeros;
    union { float f32[SAMPLE]; double f64[SAMPLE]; } room[MAX_SLOTS + 2];
    memset(room, 0, sizeof room);
    for (size_t i = 0; i < plan->n_weights; i++) {
        struct row *row = &plan->rows[plan->weights[i].row];
        const enum kernel kernel = plan->weights[i].kernel;
        for (int try = 0; try < TRIES && (row->cost == 0 || try); try++) {
            const double start = optimc_nanoseconds();
            if (row->lane == TYPE_F32)
                plan->isa->f32.kernels[kernel](SAMPLE, room[0].f32, zeros.f32, room[1].f32,
                    room[2].f32, room[3].f32, room[4].f32, NULL, &row->lane_row.f32);
            else
                plan->isa->f64.kernels[kernel](SAMPLE, room[0].f64, zeros.f64, room[1].f64,
                    room[2].f64, room[3].f64, room[4].f64, NULL, &row->lane_row.f64);
            const double cost = (optimc_nanoseconds() - start) / SAMPLE;
            row->cost = try && row->cost < cost ? row->cost : cost;
        }
    }
}

enum fault optimc_plan_seal(struct plan *plan, const struct isa *isa, struct place overlap[2])
{
    plan->isa = isa;
    if (optimc_range_sort(plan, overlap))
        return FAULT_OVERLAP;
    if (cut(plan))
        return FAULT_MEMORY;
    measure(plan);
    return FINE;
}
