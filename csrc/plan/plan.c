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
    plan->n_places = 2 * weights + 1;
    plan->places = plan->memory.take(plan->n_places, sizeof *plan->places);
    plan->ranges = plan->memory.take((weights ? weights : 1) * (PARTS + 1), sizeof *plan->ranges);
    if (!plan->weights || !plan->rows || !plan->places || !plan->ranges) {
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
        if (plan->weights[i].rows)
            optimc_rows_drop(plan, plan->weights[i].rows);
        plan->memory.give(plan->weights[i].rows);
    }
    plan->memory.give(plan->weights);
    plan->memory.give(plan->rows);
    plan->memory.give(plan->places);
    plan->memory.give(plan->progress);
    plan->memory.give(plan->pieces);
    plan->memory.give(plan->chunks);
    plan->memory.give(plan->ranges);
    plan->memory.give(plan->spare);
    plan->memory.give(plan->keys);
    plan->memory.give(plan->by_rows);
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

const struct storage optimc_storage[TYPE_OTHER + 1] = {
    [TYPE_F32] = {sizeof(float), TYPE_F32, FLOAT_TYPES},
    [TYPE_F64] = {sizeof(double), TYPE_F64, FLOAT_TYPES},
    [TYPE_F16] = {sizeof(uint16_t), TYPE_F32, TYPE_F32},
    [TYPE_BF16] = {sizeof(uint16_t), TYPE_F32, TYPE_I16},
    [TYPE_U8] = {sizeof(uint8_t), FLOAT_TYPES, FLOAT_TYPES},
    [TYPE_I16] = {sizeof(int16_t), FLOAT_TYPES, FLOAT_TYPES},
    [TYPE_U16] = {sizeof(uint16_t), FLOAT_TYPES, FLOAT_TYPES},
};

enum type optimc_real_type(enum type storage)
{
    return optimc_storage[storage].width ? optimc_storage[storage].real_type : FLOAT_TYPES;
}

enum fault optimc_plan_check(const struct view *view, int part)
{
    if (!optimc_storage[view->type].width || view->swapped
        || (part == PART_WEIGHT && optimc_real_type((enum type)view->type) == FLOAT_TYPES))
        return FAULT_TYPE;
    if (!view->writeable)
        return FAULT_READ_ONLY;
    if (!view->c_order && !view->f_order)
        return FAULT_STRIDES;
    return check_place(view, optimc_view_size(view));
}

static int is_same_row(const struct row *a, const struct row *b)
{
    return a->rule == b->rule && a->real_type == b->real_type && a->group == b->group && a->decay == b->decay
        && a->factor == b->factor && a->t == b->t && !memcmp(a->before, b->before, sizeof a->before);
}

/* The place of a row in plan->places where a search for it begins. */
static size_t first_place(const struct plan *plan, const struct row *row)
{
    uint64_t bits, scalar;
    memcpy(&bits, &row->factor, sizeof bits);
    memcpy(&scalar, row->before, sizeof scalar);
    bits = optimc_mixed(bits ^ row->group) + (uint64_t)row->t;
    bits = optimc_mixed(bits ^ scalar) + (((uint64_t)row->rule << 1 | (row->real_type == TYPE_F64)) << 8
        ^ (uint64_t)row->decay);
    return (size_t)(optimc_mixed(bits) >> 32) % plan->n_places;
}

size_t optimc_row_like(struct plan *plan, const struct row *wanted)
{
    size_t at = first_place(plan, wanted);
    for (; plan->places[at]; at = (at + 1) % plan->n_places)
        if (is_same_row(&plan->rows[plan->places[at] - 1], wanted))
            return plan->places[at] - 1;
    plan->rows[plan->n_rows] = *wanted;
    plan->places[at] = ++plan->n_rows;
    return plan->n_rows - 1;
}

/* The row of this rule, real type, group and decay. */
static size_t row_for(struct plan *plan, enum type real_type, const struct binding *binding)
{
    const struct row wanted = {.rule = rule_of[binding->kernel], .real_type = real_type, .group = binding->group,
        .decay = binding->decay, .factor = binding->factor};
    return optimc_row_like(plan, &wanted);
}

/* Slots that are not shaped like their weight lack one of its axes, counted from the last. */
static const struct { int variant, slot, axis; } factors[] = {
    {FACTORED, ROW_SLOT, 1},                /* a number for each row of its matrices ... */
    {FACTORED, COLUMN_SLOT, 2},             /* ... and for each column */
    {ROWWISE, 0, ALL_BUT_FIRST},
};

int optimc_slot_axis(enum kernel kernel, int slot)
{
    for (size_t i = 0; i < sizeof factors / sizeof *factors; i++)
        if (variant_of[kernel] & factors[i].variant && factors[i].slot == slot)
            return factors[i].axis;
    return 0;
}

/* FINE if a view can be a slot of a weight in codes of 8 bits. */
static enum fault check_coded(const struct weight *weight, const struct view *view)
{
    if (view->ndim != 1 || (size_t)view->shape[0] != optimc_coded_size(weight->size))
        return FAULT_SHAPE;
    return !view->c_order ? FAULT_STRIDES : (uintptr_t)view->data % sizeof(float) ? FAULT_ALIGNMENT : FINE;
}

/* FINE if a view has the shape of a weight without an axis, counted from the last, or with a length of 1 there. */
static enum fault check_factor(const struct weight *weight, const struct view *view, int axis)
{
    if (weight->ndim < 2)
        return FAULT_SHAPE;
    const int at = weight->ndim - axis;
    if (view->ndim < weight->ndim)
        return check_shape(weight, view, at);
    for (int k = 0; k < weight->ndim; k++)
        if (view->ndim != weight->ndim || view->shape[k] != (k == at ? 1 : weight->shape[k]))
            return FAULT_SHAPE;
    return FINE;
}

enum fault optimc_part_check(const struct weight *weight, const struct view *view, int part)
{
    if (part == PART_WEIGHT || part == PART_MASTER)
        return check_like(weight, view, part == PART_MASTER ? optimc_storage[weight->self.type].master
            : weight->self.type);
    if (part == PART_AVERAGE || part == PART_ACCUMULATOR)
        return check_like(weight, view, weight->real_type);
    if (optimc_slot_codec(weight, part, (enum type)view->type))
        return view->type == TYPE_U8 ? check_coded(weight, view)
            : check_like(weight, view, (enum type)view->type);
    if (view->type != (int)weight->real_type)
        return FAULT_TYPE;
    const int axis = optimc_slot_axis(weight->kernel, part);
    if (!axis)
        return check_like(weight, view, weight->real_type);
    if (weight->f_order || !view->c_order)
        return FAULT_STRIDES;
    if (axis == ALL_BUT_FIRST)
        return view->ndim == (weight->ndim > 0) && (!view->ndim || view->shape[0] == weight->shape[0]) ? FINE
            : FAULT_SHAPE;
    return check_factor(weight, view, axis);
}

static struct array array_of(const struct view *view)
{
    return (struct array){.data = view->data, .n = optimc_view_size(view), .type = (enum type)view->type};
}

/* Binds the parts of a weight beside itself.  On a fault `where` is the part that has it. */
static enum fault add_parts(struct plan *plan, struct weight *weight, const struct binding *binding, int *where)
{
    struct { const struct view *view; struct array *array; } parts[PARTS];
    for (int k = 0; k < MAX_SLOTS; k++) {
        parts[k].view = slots_of[weight->kernel] & 1 << k ? &binding->slots[k] : NULL;
        parts[k].array = &weight->slots[k];
    }
    parts[PART_AVERAGE].view = binding->average;
    parts[PART_AVERAGE].array = &weight->average;
    parts[PART_ACCUMULATOR].view = binding->accumulator;
    parts[PART_ACCUMULATOR].array = &weight->accumulator;
    parts[PART_MASTER].view = binding->master;
    parts[PART_MASTER].array = &weight->master;
    for (int part = 0; part < PARTS; part++) {
        if (!parts[part].view)
            continue;
        *where = part;
        const enum fault fault = optimc_part_check(weight, parts[part].view, part);
        if (fault)
            return fault;
        *parts[part].array = array_of(parts[part].view);
        optimc_range_add(plan, parts[part].array, part);
    }
    return FINE;
}

/* Chooses the codecs of a weight and its slots. */
static void set_codecs(struct weight *weight)
{
    weight->self.codec = optimc_weight_codec(weight);
    weight->coded = weight->self.codec != NO_CODEC;
    for (int k = 0; k < MAX_SLOTS; k++) {
        struct array *slot = &weight->slots[k];
        slot->codec = slot->data ? optimc_slot_codec(weight, k, slot->type) : NO_CODEC;
        weight->coded |= slot->codec != NO_CODEC;
    }
}

/* Room for the sums of columns and the means of rows, for a weight whose second moment is factored. */
static enum fault add_columns(struct plan *plan, struct weight *weight)
{
    if (!(weight->variant & FACTORED) || !weight->slots[ROW_SLOT].data)
        return FINE;
    weight->n_rows = (size_t)weight->shape[weight->ndim - 2];
    weight->n_columns = (size_t)weight->shape[weight->ndim - 1];
    const size_t matrices = weight->size ? weight->size / weight->n_rows / weight->n_columns : 0;
    weight->column_sums = plan->memory.take(weight->n_columns + matrices + 1, sizeof *weight->column_sums);
    weight->row_means = weight->column_sums + weight->n_columns;
    return weight->column_sums ? FINE : FAULT_MEMORY;
}

enum fault optimc_plan_add(struct plan *plan, const struct view *view, const struct binding *binding,
    int *where)
{
    struct weight *weight = &plan->weights[plan->n_weights];
    const size_t ranges = plan->n_ranges;
    *where = PART_WEIGHT;
    *weight = (struct weight){
        .self = array_of(view), .real_type = optimc_real_type((enum type)view->type), .size = optimc_view_size(view),
        .kernel = binding->kernel, .variant = variant_of[binding->kernel],
        .waiting = binding->accumulator ? binding->waiting : WAITS_FOR_NONE,
        .f_order = !view->c_order, .ndim = view->ndim, .to_nearest = binding->to_nearest,
        .number = binding->number, .begin = binding->begin,
        .shape = plan->memory.take(2 * (size_t)view->ndim + 1, sizeof *weight->shape),
    };
    if (!weight->shape)
        return FAULT_MEMORY;
    if (view->ndim)
        memcpy(weight->shape, view->shape, (size_t)view->ndim * sizeof *weight->shape);
    optimc_range_add(plan, &weight->self, PART_WEIGHT);
    enum fault fault = add_parts(plan, weight, binding, where);
    if (!fault)
        fault = add_columns(plan, weight);
    if (fault) {
        plan->n_ranges = ranges;
        plan->memory.give(weight->shape);
        return fault;
    }
    if (weight->waiting == WAITS_BY_ROWS && optimc_rows_recall(plan, weight)) {
        plan->n_ranges = ranges;
        plan->memory.give(weight->rows);
        plan->memory.give(weight->column_sums);
        plan->memory.give(weight->shape);
        return FAULT_MEMORY;
    }
    set_codecs(weight);
    weight->row = weight->first_row = row_for(plan, weight->real_type, binding);
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
    size_t of_type[FLOAT_TYPES] = {0}, total = 0, pieces = 0, n_blocks = 0;
    plan->n_sums = 1;
    for (size_t i = 0; i < plan->n_weights; i++) {
        struct weight *weight = &plan->weights[i];
        total += weight->size;
        weight->fused = optimc_fused(plan->isa, weight, TYPE_F32);
        weight->fused_half = optimc_fused(plan->isa, weight, TYPE_BF16);
        weight->first = of_type[weight->self.type];
        of_type[weight->self.type] += weight->size;
        weight->first_block = n_blocks;
        n_blocks += blocks(weight->size);
        const int sums = weight->real_type == TYPE_F32 ? plan->isa->f32.measures[weight->kernel].sums
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

/* Times each row's first kernel over a little memory.  A step uses several threads only if its cost is worth it. */
static void measure(struct plan *plan)
{
    enum { SAMPLE = 512, TRIES = 3 };
    static const union { float f32[SAMPLE]; double f64[SAMPLE]; } zeros;
    union { float f32[SAMPLE]; double f64[SAMPLE]; } room[MAX_SLOTS + 1];
    memset(room, 0, sizeof room);
    for (size_t i = 0; i < plan->n_weights; i++) {
        struct row *row = &plan->rows[plan->weights[i].row];
        const enum kernel kernel = plan->weights[i].kernel;
        for (int try = 0; try < TRIES && (row->cost == 0 || try); try++) {
            const double start = optimc_nanoseconds();
            if (row->real_type == TYPE_F32)
                plan->isa->f32.kernels[kernel](SAMPLE, room[0].f32, zeros.f32, room[1].f32,
                    room[2].f32, room[3].f32, room[4].f32, &row->real_row.f32);
            else
                plan->isa->f64.kernels[kernel](SAMPLE, room[0].f64, zeros.f64, room[1].f64,
                    room[2].f64, room[3].f64, room[4].f64, &row->real_row.f64);
            const double cost = (optimc_nanoseconds() - start) / SAMPLE;
            row->cost = try && row->cost < cost ? row->cost : cost;
        }
        plan->whole_cost += weight_cost(plan, &plan->weights[i]);
    }
}

enum fault optimc_plan_seal(struct plan *plan, const struct isa *isa, struct place overlap[2])
{
    plan->isa = isa;
    plan->spare = plan->memory.take(plan->n_ranges + 1, sizeof *plan->spare);
    plan->keys = plan->memory.take(plan->n_ranges + 1, 2 * sizeof *plan->keys);
    if (!plan->spare || !plan->keys)
        return FAULT_MEMORY;
    if (optimc_range_sort(plan, overlap))
        return FAULT_OVERLAP;
    if (cut(plan))
        return FAULT_MEMORY;
    plan->memory.give(plan->places);
    plan->places = NULL;
    measure(plan);
    return FINE;
}
