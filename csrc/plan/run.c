/* run.c - the second half of a step: phases over the pieces, first those that read, then those that write.

   Nothing here can fail.  gradient.inc, measure.inc, factored.inc and run.inc hold what is done to a piece; they
   are stamped for float and for double. */

#include <math.h>
#include <string.h>

#include "plan/internal.h"
#include "plan/pool.h"

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
    const int early = (row->variants & (MEASURED | DECAYS_LATE)) == MEASURED || plan->request->cautious;
    return plan->request->coupled && early && !isnan(decay_of(plan, row));
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
#define TYPED f32
#define NAME(x) x##_f32
#include "plan/gradient.inc"
#include "plan/measure.inc"
#include "plan/factored.inc"
#include "plan/run.inc"

#define real double
#define TYPED f64
#define NAME(x) x##_f64
#include "plan/gradient.inc"
#include "plan/measure.inc"
#include "plan/factored.inc"
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

static void measure(void *plan, size_t chunk)
{
    each_piece(plan, chunk, measure_f32, measure_f64);
}

/* Every MAX_CHUNKS-th weight: there may be more of them than the pool takes chunks. */
static void factored(void *context, size_t chunk)
{
    const struct plan *plan = context;
    for (size_t i = chunk; i < plan->n_weights; i += MAX_CHUNKS) {
        const struct weight *weight = &plan->weights[i];
        if (weight->variant & FACTORED && takes_part(plan, weight))
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

/* Sums up what the rules of the weights measure.  A factored weight is one task, others are measured by pieces. */
static void find_totals(struct plan *plan)
{
    if (plan->measures)
        optimc_pool_run(measure, plan, plan->n_chunks, plan->cost);
    if (plan->factors)
        optimc_pool_run(factored, plan, plan->n_weights < MAX_CHUNKS ? plan->n_weights : MAX_CHUNKS, plan->cost);
    for (size_t i = 0; i < plan->n_weights; i++) {
        struct weight *weight = &plan->weights[i];
        if (weight->variant & MEASURED && takes_part(plan, weight))
            for (int k = 0; k < plan->n_sums; k++)
                weight->totals[k] = total(plan, weight, k);
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
    if (request->update && (plan->measures || plan->factors))
        find_totals(plan);
    if (request->update && request->cautious)
        find_shares(plan);
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
