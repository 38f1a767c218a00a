/* plan.c - weights cut into pieces, and a step as phases over the pieces.

   A piece is a range of one weight; a chunk is a run of pieces that a thread claims at once, so that
   small arrays share a chunk and large ones are cut into many.  Each weight carries its kernel and its
   coefficient row; rows are filled once per step.  Cutting changes no result: kernels are elementwise.

   Everything here is plain memory: no Python, no NumPy, no allocation after optimc_plan_seal. */

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "plan/plan.h"
#include "plan/pool.h"

/* Elements of a piece.  Small enough that its arrays stay in a core's cache, and that a step of medium
   size gives every thread some; large enough that claiming costs nothing. */
enum { PIECE_LEAST = SUM_BLOCK, PIECE_MOST = 8192 };

struct weight {
    char *data, *slots[MAX_SLOTS], *average, *accumulator;
    const char *gradient;                   /* of this step, if the kernel can read it as it is */
    struct source source;                   /* of this step, otherwise */
    uint64_t seen, taken;                   /* the last step that named it; that had a gradient */
    size_t size, row;
    size_t first, first_piece;              /* of its elements, among all of its lane type; of its pieces */
    enum kernel kernel;
    int lane, f_order, ndim;
    ptrdiff_t *shape;                       /* and after it the strides of its source */
    const char *clear_low, *clear_high;     /* a gradient known to overlap nothing */
    size_t first_block;                     /* of its blocks in plan->sums */
    double square;                          /* of the norm of its gradient, in this step */
    int waiting;                            /* something was accumulated since its last update */
    double ratio, limit;                    /* what a phase before the update found for it */
    size_t n_rows, n_columns;               /* of its matrices, if its second moment is factored */
    double *column_sums;
};

struct row {
    union { struct row_f32 f32; struct row_f64 f64; } lane_row;
    enum rule rule;
    int lane, decay, variants;              /* the last of all its kernels together */
    double factor;
    size_t group;
    double cost;                            /* nanoseconds per element on one thread, measured */
    int staged;                             /* in this step, gradients are prepared in scratch for its kernels ... */
    int by_norm;                            /* ... only to be clipped to a norm of 1: shorter ones stay as they are */
};

struct piece { size_t weight, begin, end; };
struct range { const char *low, *high; struct place place; };

struct plan {
    struct weight *weights;
    size_t n_weights, capacity;
    struct row *rows;
    size_t n_rows;
    struct piece *pieces;
    size_t n_pieces, piece_size;
    size_t *chunks;                         /* chunk k is pieces chunks[k] .. chunks[k + 1] - 1 */
    size_t n_chunks;
    struct range *ranges;                   /* all memory a step may write, sorted */
    size_t n_ranges;
    double *sums[2];                        /* two numbers per block of SUM_BLOCK elements */
    size_t n_blocks, total;                 /* such blocks; elements */
    int variants;                           /* of all its kernels together */
    const struct isa *isa;
    struct memory memory;
    const struct request *request;          /* the one in progress */
    uint64_t step;
    double cost;
};

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

static size_t width(int lane)
{
    return lane == TYPE_F32 ? sizeof(float) : sizeof(double);
}

/* ------------------------------------------------------------------------------- exact helpers - */

enum { LOW_BITS = 63 };

static double square_up(double x, int64_t t)
{
    double result = 1;
    for (; t > 0; t >>= 1, x *= x)
        if (t & 1)
            result *= x;
    return result;
}

double optimc_plain_power(double x, int64_t t)
{
    return square_up(x, t & ~LOW_BITS) * square_up(x, t & LOW_BITS);
}

double optimc_power(const struct step *step, ptrdiff_t k, double x)
{
    struct power *memo = &step->powers[k];
    if (!isnan(step->products[k]))
        return step->products[k];
    if (memo->x != x || memo->high != (step->t & ~LOW_BITS))
        *memo = (struct power){x, step->t & ~LOW_BITS, square_up(x, step->t & ~LOW_BITS)};
    return memo->value * square_up(x, step->t & LOW_BITS);
}

float optimc_bfloat(uint16_t bits)
{
    const uint32_t word = (uint32_t)bits << 16;
    float x;
    memcpy(&x, &word, sizeof x);
    return x;
}

float optimc_half(uint16_t bits)
{
    const uint32_t sign = (uint32_t)(bits & 0x8000u) << 16, rest = bits & 0x7fffu;
    float x;
    if (rest < 0x0400u) {                   /* zero and subnormals: an integer times 2^-24 */
        x = (float)rest * 0x1p-24f;
        return sign ? -x : x;
    }
    const uint32_t exponent = rest < 0x7c00u ? (rest >> 10) + 112 : 255;
    const uint32_t word = sign | exponent << 23 | (rest & 0x03ffu) << 13;
    memcpy(&x, &word, sizeof x);
    return x;
}

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
    plan->memory.give(plan->sums[0]);
    plan->memory.give(plan->sums[1]);
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
            && row->decay == parts->decay && !(row->factor < parts->factor)
            && !(row->factor > parts->factor))
            return i;
    }
    plan->rows[plan->n_rows++] = (struct row){.rule = rule, .lane = lane, .group = parts->group,
        .decay = parts->decay, .factor = parts->factor};
    return i;
}

static void add_range(struct plan *plan, const char *data, size_t bytes, int part)
{
    if (bytes)
        plan->ranges[plan->n_ranges++] = (struct range){
            data, data + bytes, {plan->n_weights, part}};
}

static int same_shape(const struct weight *weight, const struct view *view)
{
    if (view->ndim != weight->ndim)
        return 0;
    for (int k = 0; k < view->ndim; k++)
        if (view->shape[k] != weight->shape[k])
            return 0;
    return 1;
}

/* FINE if `view` has the weight's type, shape and memory order. */
static enum fault alike(const struct weight *weight, const struct view *view)
{
    if (view->type != weight->lane)
        return FAULT_TYPE;
    if (!same_shape(weight, view))
        return FAULT_SHAPE;
    return (weight->f_order ? view->f_order : view->c_order) ? FINE : FAULT_STRIDES;
}

/* Adafactor's factors: the weight's shape without its last axis, without its last but one. */
enum { ROW_SLOT = 1, COLUMN_SLOT = 2 };

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
    add_range(plan, view->data, bytes, PART_WEIGHT);
    for (int k = 0; k <= PART_ACCUMULATOR && !fault; k++) {
        const struct view *part = k == PART_AVERAGE ? parts->average
            : k == PART_ACCUMULATOR ? parts->accumulator
            : slots_of[parts->kernel] & 1 << k ? &parts->slots[k] : NULL;
        char **kept = k == PART_AVERAGE ? &weight->average
            : k == PART_ACCUMULATOR ? &weight->accumulator : &weight->slots[k];
        if (!part)
            continue;
        const int factor = variant_of[parts->kernel] & FACTORED && (k == ROW_SLOT || k == COLUMN_SLOT);
        fault = factor ? is_factor(weight, part, k) : alike(weight, part);
        *kept = part->data;
        add_range(plan, part->data, factor ? optimc_view_size(part) * part->itemsize : bytes, *where = k);
    }
    if (!fault && variant_of[parts->kernel] & FACTORED && weight->slots[ROW_SLOT]) {
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
    plan->rows[weight->row].variants |= variant_of[parts->kernel];
    plan->variants |= variant_of[parts->kernel];
    plan->n_weights++;
    return FINE;
}

static int by_address(const void *a, const void *b)
{
    const struct range *x = a, *y = b;
    return (x->low > y->low) - (x->low < y->low);
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

static size_t blocks(size_t size)
{
    return (size + SUM_BLOCK - 1) / SUM_BLOCK;
}

static enum fault cut(struct plan *plan)
{
    size_t of_lane[2] = {0}, total = 0, pieces = 0, n_blocks = 0;
    for (size_t i = 0; i < plan->n_weights; i++) {
        struct weight *weight = &plan->weights[i];
        total += weight->size;
        weight->first = of_lane[weight->lane == TYPE_F64];
        of_lane[weight->lane == TYPE_F64] += weight->size;
        weight->first_block = n_blocks;
        n_blocks += blocks(weight->size);
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
    plan->sums[0] = plan->memory.take(n_blocks + 1, sizeof **plan->sums);
    plan->sums[1] = plan->memory.take(plan->variants & LAYERWISE ? n_blocks + 1 : 1, sizeof **plan->sums);
    if (!plan->pieces || !plan->chunks || !plan->sums[0] || !plan->sums[1])
        return FAULT_MEMORY;
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

/* Sorts the ranges; FAULT_OVERLAP and the two places if any share memory. */
static enum fault sort_ranges(struct plan *plan, struct place overlap[2])
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

enum fault optimc_plan_seal(struct plan *plan, const struct isa *isa, struct place overlap[2])
{
    plan->isa = isa;
    if (sort_ranges(plan, overlap))
        return FAULT_OVERLAP;
    if (cut(plan))
        return FAULT_MEMORY;
    measure(plan);
    return FINE;
}

/* ------------------------------------------------------------------ a step: what can be refused - */

void optimc_plan_begin(struct plan *plan)
{
    plan->step++;
    plan->cost = 0;
}

/* The range that holds the first byte at or after `low`, as an index; n_ranges if there is none. */
static size_t range_after(const struct plan *plan, const char *low)
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

ptrdiff_t optimc_plan_find(const struct plan *plan, const struct view *view, size_t hint)
{
    const int empty = !optimc_view_size(view);
    if (!empty && hint < plan->n_weights && plan->weights[hint].size
        && plan->weights[hint].data == view->data)
        return (ptrdiff_t)hint;
    if (empty) {                            /* empty arrays have no identity: any like it will do */
        for (size_t i = 0; i < plan->n_weights; i++) {
            const size_t k = (hint + i) % plan->n_weights;
            if (!plan->weights[k].size && plan->weights[k].seen != plan->step
                && !alike(&plan->weights[k], view))
                return (ptrdiff_t)k;
        }
        return -1;
    }
    const size_t at = range_after(plan, view->data);
    if (at == plan->n_ranges || plan->ranges[at].low != view->data
        || plan->ranges[at].place.part != PART_WEIGHT)
        return -1;
    return (ptrdiff_t)plan->ranges[at].place.weight;
}

enum fault optimc_plan_same(const struct plan *plan, size_t index, const struct view *view)
{
    if (!view->writeable)
        return FAULT_READ_ONLY;
    return view->swapped ? FAULT_TYPE : alike(&plan->weights[index], view);
}

/* Moves the range of a weight to begin at `data`. */
static enum fault move_range(struct plan *plan, size_t index, char *data)
{
    struct place overlap[2];
    for (size_t i = 0; i < plan->n_ranges; i++) {
        struct range *range = &plan->ranges[i];
        if (range->place.weight == index && range->place.part == PART_WEIGHT) {
            range->high = data + (range->high - range->low);
            range->low = data;
            return sort_ranges(plan, overlap);
        }
    }
    return FINE;                            /* an empty weight has no range */
}

enum fault optimc_plan_move(struct plan *plan, size_t index, char *data)
{
    char *const before = plan->weights[index].data;
    if (data == before)
        return FINE;
    for (size_t i = 0; i < plan->n_weights; i++)        /* what was clear of the old ranges may not be now */
        plan->weights[i].clear_low = plan->weights[i].clear_high = NULL;
    if (move_range(plan, index, data)) {
        move_range(plan, index, before);
        return FAULT_OVERLAP;
    }
    plan->weights[index].data = data;
    return FINE;
}

/* The bytes a view touches. */
static void extent(const struct view *view, const char **low, const char **high)
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

enum fault optimc_plan_take(struct plan *plan, size_t index, const struct view *view,
    struct place *overlap)
{
    struct weight *weight = &plan->weights[index];
    if (weight->seen == plan->step)
        return FAULT_REPEATED;
    weight->seen = plan->step;
    if (!view)
        return FINE;
    if (view->type == TYPE_OTHER)
        return FAULT_TYPE;
    if (!same_shape(weight, view))
        return FAULT_SHAPE;
    if (weight->size) {
        const char *low, *high;
        extent(view, &low, &high);
        if (low != weight->clear_low || high != weight->clear_high) {
            const size_t at = range_after(plan, low);
            if (at < plan->n_ranges && plan->ranges[at].low < high) {
                *overlap = plan->ranges[at].place;
                return FAULT_OVERLAP;
            }
            weight->clear_low = low;
            weight->clear_high = high;
        }
    }
    weight->gradient = view->data;
    if (view->type != weight->lane || view->swapped || !view->aligned
        || !(weight->f_order ? view->f_order : view->c_order)) {
        weight->gradient = NULL;
        ptrdiff_t *const strides = weight->shape + view->ndim;  /* a copy: the owner may reshape */
        if (view->ndim)
            memcpy(strides, view->strides, (size_t)view->ndim * sizeof *strides);
        weight->source = (struct source){view->data, weight->shape, strides, view->itemsize,
            view->ndim, view->type, view->swapped, weight->f_order};
    }
    weight->taken = plan->step;
    plan->cost += (double)weight->size * plan->rows[weight->row].cost;
    return FINE;
}

double optimc_plan_cost(const struct plan *plan)
{
    return plan->cost;
}

int optimc_plan_waits(const struct plan *plan, size_t index)
{
    return plan->weights[index].waiting;
}

/* ------------------------------------------------------- a step: what is read before the writing - */

/* Whether this step updates the weight: it has a gradient, now or accumulated from before. */
static int takes_part(const struct plan *plan, const struct weight *weight)
{
    return weight->taken == plan->step || (weight->waiting && plan->request->update);
}

static const struct options *options_of(const struct plan *plan, const struct row *row)
{
    return (const struct options *)plan->request->groups[row->group].values;
}

/* A row's weight decay, NaN for none. */
static double decay_of(const struct plan *plan, const struct row *row)
{
    return row->decay < 0 ? NAN : plan->request->groups[row->group].values[row->decay];
}

/* Whether a row's weights are to be added to their gradients in scratch: several passes read those, or a step from
   another place is taken with them.  Other kernels add them in their loop. */
static int couples_early(const struct plan *plan, const struct row *row)
{
    return plan->request->coupled && (row->variants & (LAYERWISE | FACTORED) || plan->request->cautious)
        && !isnan(decay_of(plan, row));
}

/* What a gradient is divided by at first: the loss scale, negative to maximize. */
static double divisor_of(const struct plan *plan, const struct row *row)
{
    const struct options *options = options_of(plan, row);
    const double scale = isnan(options->loss_scale_factor) ? 1 : options->loss_scale_factor;
    return plan->request->maximize ? -scale : scale;
}

/* A power of two divides as exactly by its reciprocal, in a register. */
static int is_power_of_two(double x)
{
    int exponent = 0;
    return fabs(x) == 1 || (fabs(frexp(x, &exponent)) == 0.5 && exponent > -100 && exponent < 100);
}

/* Whether the unscaling is left to the hooks.  If anything follows it in scratch, or it is no factor, it is not. */
static int is_hooked(const struct plan *plan, const struct row *row)
{
    return plan->request->steps == 1 && !(options_of(plan, row)->clipnorm > 0)
        && is_power_of_two(divisor_of(plan, row));
}

/* Lanes to one sum, in a fixed order. */
static double fold(double lanes[SUM_LANES])
{
    for (int half = SUM_LANES / 2; half; half /= 2)
        for (int j = 0; j < half; j++)
            lanes[j] += lanes[j + half];
    return lanes[0];
}

/* Elements from i on before the first that begins a line of the cache.  NumPy's memory begins within one, and its
   slots like the weight: a store that crosses lines takes two. */
enum { LINE = 64, WORTH_ALIGNING = 8192 };

static size_t to_line(const struct weight *weight, size_t i)
{
    const size_t size = width(weight->lane);
    return (size_t)(-((uintptr_t)weight->data + i * size) % LINE) / size;
}

#define real float
#define LANE f32
#define ROOT sqrtf
#define NAME(x) x##_f32
#include "plan/run.inc"

#define real double
#define LANE f64
#define ROOT sqrt
#define NAME(x) x##_f64
#include "plan/run.inc"

/* Runs a task over the pieces of a chunk. */
typedef void piece_task(const struct plan *plan, const struct weight *weight, size_t begin, size_t end);

static void each_piece(const struct plan *plan, size_t chunk, piece_task *f32, piece_task *f64)
{
    for (size_t i = plan->chunks[chunk]; i < plan->chunks[chunk + 1]; i++) {
        const struct piece *piece = &plan->pieces[i];
        const struct weight *weight = &plan->weights[piece->weight];
        (weight->lane == TYPE_F32 ? f32 : f64)(plan, weight, piece->begin, piece->end);
    }
}

static void survey(void *plan, size_t chunk)
{
    each_piece(plan, chunk, survey_f32, survey_f64);
}

static double add_up(const double *numbers, size_t n)
{
    double sum = 0;
    for (size_t k = 0; k < n; k++)
        sum += numbers[k];
    return sum;
}

/* A number per block, added up over a weight in their order. */
static double total(const struct plan *plan, const struct weight *weight, int which)
{
    return add_up(plan->sums[which] + weight->first_block, blocks(weight->size));
}

/* The norm of all gradients together, from those of the weights. */
static double norm_of(const struct plan *plan)
{
    double sum = 0;
    for (size_t i = 0; i < plan->n_weights; i++)
        if (takes_part(plan, &plan->weights[i]))
            sum += plan->weights[i].square;
    return sqrt(sum);
}

static int clips_by_norm(const struct plan *plan, const struct row *row)
{
    const struct options *options = options_of(plan, row);
    return options->clipnorm > 0 || options->global_clipnorm > 0;
}

/* Whether the global norm is one that every weight which is clipped by it can read. */
static int has_good_norm(const struct plan *plan, const double norm)
{
    if (isfinite((float)norm))
        return 1;
    for (size_t i = 0; i < plan->n_weights; i++) {
        const struct weight *weight = &plan->weights[i];
        const struct options *options = options_of(plan, &plan->rows[weight->row]);
        if (takes_part(plan, weight) && options->global_clipnorm > 0 && !(options->clipnorm > 0)
            && (weight->lane == TYPE_F32 || !isfinite(norm)))
            return 0;
    }
    return 1;
}

static void set_norm(const struct plan *plan, struct request *request)
{
    request->norm = norm_of(plan);
    request->overflow = request->check && !has_good_norm(plan, request->norm) ? GLOBAL_NORM : NO_NORM;
}

ptrdiff_t optimc_plan_survey(struct plan *plan, struct request *request)
{
    int needed = request->check;
    plan->request = request;
    for (size_t i = 0; i < plan->n_rows && request->update && !needed; i++)
        needed = clips_by_norm(plan, &plan->rows[i]);
    if (!needed)
        return -1;
    optimc_pool_run(survey, plan, plan->n_chunks, plan->cost);
    for (size_t i = 0; i < plan->n_weights; i++) {
        struct weight *weight = &plan->weights[i];
        if (!takes_part(plan, weight))
            continue;
        weight->square = total(plan, weight, 0);
        if (request->check && !isfinite(weight->square)) {
            const int finite = weight->taken != plan->step
                || (weight->lane == TYPE_F32 ? finite_f32 : finite_f64)(plan, weight);
            request->overflow = finite ? OWN_NORM : NO_NORM;
            if (!finite || clips_by_norm(plan, &plan->rows[weight->row]))
                return (ptrdiff_t)i;
        }
    }
    request->surveyed = 1;
    set_norm(plan, request);
    return request->overflow ? 0 : -1;
}

const double *optimc_plan_sums(const struct plan *plan, size_t *n)
{
    *n = plan->n_blocks;
    return plan->sums[0];
}

void optimc_plan_refold(struct plan *plan, struct request *request, const double *sums,
    const int64_t *counts)
{
    for (size_t i = 0; i < plan->n_weights; sums += counts[i++])
        plan->weights[i].square = add_up(sums, (size_t)counts[i]);
    plan->request = request;
    set_norm(plan, request);
}

/* ------------------------------------------------------------------------ a step: what writes ---- */

/* The gradient is read in the phases before the update too, and no phase of one weight waits for another's:
   each phase is a region of its own, with a fold by weight after it. */

static void count(void *plan, size_t chunk)
{
    each_piece(plan, chunk, count_f32, count_f64);
}

static void layer(void *plan, size_t chunk)
{
    each_piece(plan, chunk, layer_f32, layer_f64);
}

/* Every MAX_CHUNKS-th weight: there may be more of them than the pool takes chunks. */
static void factored(void *context, size_t chunk)
{
    const struct plan *plan = context;
    for (size_t i = chunk; i < plan->n_weights; i += MAX_CHUNKS) {
        struct weight *weight = &plan->weights[i];
        if (variant_of[weight->kernel] & FACTORED && takes_part(plan, weight))
            (weight->lane == TYPE_F32 ? factored_f32 : factored_f64)(plan, weight);
    }
}

/* Pieces are cut at lines here, so that only the first of a weight must come to one. */
static void update(void *context, size_t chunk)
{
    const struct plan *plan = context;
    for (size_t i = plan->chunks[chunk]; i < plan->chunks[chunk + 1]; i++) {
        const struct piece *piece = &plan->pieces[i];
        const struct weight *weight = &plan->weights[piece->weight];
        const size_t head = weight->size >= WORTH_ALIGNING ? to_line(weight, 0) : 0;
        const size_t begin = piece->begin ? piece->begin + head : 0;
        const size_t end = piece->end + head < weight->size ? piece->end + head : weight->size;
        if (begin < end)
            (weight->lane == TYPE_F32 ? update_f32 : update_f64)(plan, weight, begin, end);
    }
}

/* The share of its elements that a cautious step moves, as the factor that makes up for it. */
static void find_shares(struct plan *plan)
{
    optimc_pool_run(count, plan, plan->n_chunks, plan->cost);
    for (size_t i = 0; i < plan->n_weights; i++)
        if (takes_part(plan, &plan->weights[i]))
            plan->weights[i].ratio = (double)plan->weights[i].size / (total(plan, &plan->weights[i], 0) + 1);
}

/* The trust ratio of each weight whose kernel is layerwise. */
static void find_ratios(struct plan *plan)
{
    optimc_pool_run(layer, plan, plan->n_chunks, plan->cost);
    for (size_t i = 0; i < plan->n_weights; i++) {
        struct weight *weight = &plan->weights[i];
        if (variant_of[weight->kernel] & LAYERWISE && takes_part(plan, weight))
            weight->ratio = (weight->lane == TYPE_F32 ? trust_f32 : trust_f64)(
                total(plan, weight, 0), total(plan, weight, 1));
    }
}

static void fill(const struct plan *plan)
{
    for (size_t i = 0; i < plan->n_rows; i++) {
        struct row *row = &plan->rows[i];
        (row->lane == TYPE_F32 ? fill_f32 : fill_f64)(plan, row);
    }
}

int optimc_plan_takes(struct plan *plan, const struct request *request, size_t index)
{
    plan->request = request;
    return request->update && takes_part(plan, &plan->weights[index]);
}

size_t optimc_plan_size(const struct plan *plan, size_t index)
{
    return plan->weights[index].size;
}

void optimc_plan_pull(struct plan *plan, const struct request *request, size_t index, size_t begin,
    size_t end, void *to)
{
    const struct weight *weight = &plan->weights[index];
    plan->request = request;
    fill(plan);
    if (weight->lane == TYPE_F32)
        pull_f32(plan, weight, begin, end, to);
    else
        pull_f64(plan, weight, begin, end, to);
}

void optimc_plan_start(struct plan *plan, const struct request *request)
{
    plan->request = request;
    fill(plan);
    if (request->update && plan->variants & LAYERWISE)
        find_ratios(plan);
    if (request->update && request->cautious)
        find_shares(plan);
    if (request->update && plan->variants & FACTORED)
        optimc_pool_run(factored, plan, plan->n_weights < MAX_CHUNKS ? plan->n_weights : MAX_CHUNKS,
            plan->cost);
}

void optimc_plan_end(struct plan *plan)
{
    const struct request *request = plan->request;
    if (request->steps > 1)
        for (size_t i = 0; i < plan->n_weights; i++)
            if (plan->weights[i].taken == plan->step || request->update)
                plan->weights[i].waiting = !request->update;
}

void optimc_plan_run(struct plan *plan, const struct request *request)
{
    optimc_plan_start(plan, request);
    optimc_pool_run(update, plan, plan->n_chunks, plan->cost);
    optimc_plan_end(plan);
}

/* Elements begin .. end - 1 of a lane type, and the first chunk that holds some. */
struct part {
    const struct plan *plan;
    int lane;
    size_t begin, end, chunk;
};

static void update_part(void *context, size_t chunk)
{
    const struct part *part = context;
    const struct plan *plan = part->plan;
    chunk += part->chunk;
    for (size_t i = plan->chunks[chunk]; i < plan->chunks[chunk + 1]; i++) {
        const struct piece *piece = &plan->pieces[i];
        const struct weight *weight = &plan->weights[piece->weight];
        const size_t low = weight->first + piece->begin, high = weight->first + piece->end;
        const size_t begin = low < part->begin ? part->begin : low;
        const size_t end = high < part->end ? high : part->end;
        if (weight->lane == part->lane && begin < end)
            (weight->lane == TYPE_F32 ? update_f32 : update_f64)(
                plan, weight, begin - weight->first, end - weight->first);
    }
}

/* The chunk that a piece is in. */
static size_t chunk_of(const struct plan *plan, size_t piece)
{
    size_t a = 0, b = plan->n_chunks;
    while (b - a > 1) {
        const size_t middle = a + (b - a) / 2;
        if (plan->chunks[middle] > piece)
            b = middle;
        else
            a = middle;
    }
    return a;
}

/* The piece that holds an element of a lane type. */
static size_t piece_of(const struct plan *plan, int lane, size_t element)
{
    const struct weight *weight = plan->weights;
    while (weight->lane != lane || weight->first + weight->size <= element)
        weight++;
    return weight->first_piece + (element - weight->first) / plan->piece_size;
}

void optimc_plan_part(struct plan *plan, int lane, size_t begin, size_t end)
{
    if (begin >= end)
        return;
    struct part part = {plan, lane, begin, end, chunk_of(plan, piece_of(plan, lane, begin))};
    const size_t last = chunk_of(plan, piece_of(plan, lane, end - 1));
    optimc_pool_run(update_part, &part, last + 1 - part.chunk,
        plan->cost * ((double)(end - begin) / (double)plan->total));
}
