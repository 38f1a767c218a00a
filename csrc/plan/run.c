/* run.c - a step over all gradients taken: the survey, which reads, and the phases that write.

   A phase is a task over the pieces of the plan, and over the rows of weights that are stepped by rows, in chunks
   that the pool shares between threads.  The tasks are in gradient.inc, measure.inc, factored.inc, run.inc and
   rows.inc, stamped for float and for double.  Nothing here can fail:
   take.c has refused what cannot be stepped. */

#include <math.h>
#include <string.h>

#include "kernels/isa.h"
#include "plan/internal.h"
#include "plan/pool.h"

/* ---------------------------------------------------------------------------- helpers of the tasks - */

/* A function that is compiled for size: it runs for few optimizers or options, and what it calls does the work. */
#define SMALL __attribute__((cold))

/* The flags of a row of a ROWWISE kernel after SETTLE; those of kernels that decay in their update. */
enum { SETTLED = MEASURED | DECAYS_LATE, LATE = DECAYS_LATE | DECOUPLES_LATE };

static const struct options *options_of(const struct plan *plan, const struct row *row)
{
    return (const struct options *)plan->request->groups[row->group].values;
}

/* A row's weight decay, NaN for none. */
static double decay_of(const struct plan *plan, const struct row *row)
{
    return row->decay < 0 ? NAN : plan->request->groups[row->group].values[row->decay];
}

/* The number of this update for the weights of a row, 1 for the first. */
static int64_t update_of(const struct plan *plan, const struct row *row)
{
    return row->t ? row->t : plan->request->t;
}

/* 1 if coupled decay is added to the gradients of a row in scratch, because several passes read them or because a
   cautious step starts from zeros.  Other kernels add the decay in their loop. */
static int couples_early(const struct plan *plan, const struct row *row)
{
    const int early = (row->variants & (MEASURED | DECAYS_LATE)) == MEASURED || row->variants & ROWWISE
        || plan->request->cautious;
    return plan->request->coupled && early && !isnan(decay_of(plan, row));
}

/* The divisor of a gradient before any clipping: the loss scale, negative to maximize. */
static double divisor_of(const struct plan *plan, const struct row *row)
{
    const struct options *options = options_of(plan, row);
    const double scale = isnan(options->loss_scale_factor) ? 1 : options->loss_scale_factor;
    return plan->request->maximize ? -scale : scale;
}

/* 1 if dividing by x equals multiplying by 1 / x, bit for bit. */
static int is_power_of_two(double x)
{
    int exponent = 0;
    return fabs(x) == 1 || (fabs(frexp(x, &exponent)) == 0.5 && exponent > -100 && exponent < 100);
}

/* 1 if the hooks of a kernel unscale the gradient.  They do not if scratch is needed anyway, or if the division is
   not equal to a product. */
static int is_hooked(const struct plan *plan, const struct row *row)
{
    return plan->request->accumulate == 1 && !(options_of(plan, row)->clipnorm > 0)
        && is_power_of_two(divisor_of(plan, row));
}

/* Adds lanes up to one sum, in a fixed order. */
static double fold(double lanes[SUM_LANES])
{
    for (int half = SUM_LANES / 2; half; half /= 2)
        for (int j = 0; j < half; j++)
            lanes[j] += lanes[j + half];
    return lanes[0];
}

static double add_up(const double *numbers, size_t n)
{
    double sum = 0;
    for (size_t k = 0; k < n; k++)
        sum += numbers[k];
    return sum;
}

/* Adds up one sum of a phase over the blocks of a weight, in their order. */
static double total(const struct plan *plan, const struct weight *weight, int which)
{
    return add_up(plan->sums[which] + weight->first_block, blocks(weight->size));
}

/* The number of elements from i to the next cache line.  A store that crosses two lines costs two stores.  NumPy's
   memory begins within a line, and a slot begins at the same offset in a line as its weight. */
enum { WORTH_ALIGNING = 8192 };

/* The values of a row by rows that are asked for ahead of their turn. */
enum { VALUES_AHEAD = 4 };

static size_t to_line(const struct weight *weight, size_t i)
{
    const size_t size = optimc_storage[weight->self.type].width;
    return (size_t)(-((uintptr_t)weight->self.data + i * size) % LINE) / size;
}

/* The elements from i to the end of its block of codes, as a weight is cut that has codes; at most `n`. */
static size_t to_block(size_t i, size_t n)
{
    const size_t left = CODE_BLOCK - i % CODE_BLOCK;
    return left < n ? left : n;
}

/* The keys of the random numbers of a weight with codes in this step, by its slots; the last one is its own. */
struct keys { uint64_t of[MAX_SLOTS + 1]; };

static struct keys keys_of(const struct plan *plan, const struct weight *weight)
{
    struct keys keys = {{0}};
    for (int k = 0; k <= MAX_SLOTS && weight->coded; k++) {
        const int part = k < MAX_SLOTS ? k : PART_WEIGHT;
        if (is_random(k < MAX_SLOTS ? weight->slots[k].codec : weight->self.codec))
            keys.of[k] = optimc_random_key(plan->request->seed, weight->number,
                update_of(plan, &plan->rows[weight->row]), part);
    }
    return keys;
}

/* The tasks of one real type. */
typedef void piece_task(const struct plan *plan, const struct weight *weight, size_t begin, size_t end);
typedef void gradient_task(const struct plan *plan, const struct weight *weight, size_t begin, size_t end, void *to);
enum phase { SURVEY, COUNT, MEASURE, UPDATE, BEGIN_AVERAGE, PHASES };

struct tasks {
    void (*fill)(const struct plan *plan, struct row *row);
    piece_task *phases[PHASES], *row_phases[PHASES];        /* over elements; over rows that are present */
    int (*finite)(const struct plan *plan, const struct weight *weight);
    int (*rows_are_finite)(const struct plan *plan, const struct weight *weight);
    void (*factored)(const struct plan *plan, const struct weight *weight);
    gradient_task *gradient, *gradient_of_rows;
};

#define real float
#define TYPED f32
#define NAME(x) x##_f32
#include "plan/coded.inc"
#include "plan/gradient.inc"
#include "plan/measure.inc"
#include "plan/factored.inc"
#include "plan/run.inc"
#include "plan/rows.inc"

#define real double
#define TYPED f64
#define NAME(x) x##_f64
#include "plan/coded.inc"
#include "plan/gradient.inc"
#include "plan/measure.inc"
#include "plan/factored.inc"
#include "plan/run.inc"
#include "plan/rows.inc"

static const struct tasks *tasks_of(enum type real_type)
{
    return real_type == TYPE_F32 ? &tasks_f32 : &tasks_f64;
}

/* ------------------------------------------------------------------------------------------- phases - */

/* The elements of a weight before its first cache line, if it is worth aligning. */
static size_t head_of(const struct weight *weight)
{
    return weight->size >= WORTH_ALIGNING && !weight->coded ? to_line(weight, 0) : 0;
}

/* Runs a phase over the pieces of a chunk.  In an update the edges of pieces move to cache lines, so that only the
   first piece of a weight begins within a line. */
static void each_piece(const struct plan *plan, size_t chunk, enum phase phase)
{
    for (size_t i = plan->chunks[chunk]; i < plan->chunks[chunk + 1]; i++) {
        const struct piece *piece = &plan->pieces[i];
        const struct weight *weight = &plan->weights[piece->weight];
        if (weight->by_rows != (phase == BEGIN_AVERAGE))
            continue;
        const size_t head = phase == UPDATE ? head_of(weight) : 0;
        const size_t begin = piece->begin ? piece->begin + head : 0;
        const size_t end = piece->end + head < weight->size ? piece->end + head : weight->size;
        if (begin < end)
            tasks_of(weight->real_type)->phases[phase](plan, weight, begin, end);
    }
}

/* Runs a phase over rows: `chunk` counts over all weights that are stepped by rows. */
static void each_visit(const struct plan *plan, size_t chunk, enum phase phase)
{
    const struct weight *weight = optimc_rows_chunk(plan, &chunk);
    const struct rows *rows = weight->rows;
    const size_t begin = chunk * rows->per_chunk, end = begin + rows->per_chunk;
    tasks_of(weight->real_type)->row_phases[phase](plan, weight, begin, end < rows->present ? end : rows->present);
}

/* A phase in progress: its first tasks are runs of chunks of pieces, those after them runs of chunks of rows.  A step
   by rows passes over the thousands of chunks of a table, so that several are one task then. */
struct job { const struct plan *plan; enum phase phase; size_t runs, row_runs; };

static void run_task(void *context, size_t task)
{
    const struct job *job = context;
    const struct plan *plan = job->plan;
    if (job->runs == plan->n_chunks && task < job->runs) {
        each_piece(plan, task, job->phase);
        return;
    }
    const int rows = task >= job->runs;
    const size_t k = rows ? task - job->runs : task, runs = rows ? job->row_runs : job->runs;
    const size_t chunks = rows ? plan->row_chunks : plan->n_chunks;
    for (size_t i = k * chunks / runs; i < (k + 1) * chunks / runs; i++)
        (rows ? each_visit : each_piece)(plan, i, job->phase);
}

/* Runs a phase over `runs` runs of the pieces, and over rows. */
static void run_job(const struct plan *plan, enum phase phase, size_t runs)
{
    enum { MOST = MAX_CHUNKS / 4 };
    const size_t rows = phase == BEGIN_AVERAGE ? 0 : plan->row_chunks < MOST ? plan->row_chunks : MOST;
    struct job job = {plan, phase, runs, rows};
    optimc_pool_run(run_task, &job, runs + rows, plan->cost);
}

static void run_phase(const struct plan *plan, enum phase phase)
{
    enum { RUNS = 64 };
    run_job(plan, phase, plan->n_by_rows && plan->n_chunks > RUNS ? RUNS : plan->n_chunks);
}

/* Begins a half of a step. */
static void begin_half(struct plan *plan, const struct request *request)
{
    plan->request = request;
    if (plan->by_rows)
        optimc_rows_prepare(plan);
}

/* ------------------------------------------------------------------------------- the survey, which reads - */

/* The norm of all gradients together, from the squares of the weights. */
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

/* 1 if the global norm is finite in the real type of every weight that it clips. */
static int has_good_norm(const struct plan *plan, const double norm)
{
    if (isfinite((float)norm))
        return 1;
    for (size_t i = 0; i < plan->n_weights; i++) {
        const struct weight *weight = &plan->weights[i];
        const struct options *options = options_of(plan, &plan->rows[weight->row]);
        if (takes_part(plan, weight) && options->global_clipnorm > 0 && !(options->clipnorm > 0)
            && (weight->real_type == TYPE_F32 || !isfinite(norm)))
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
    begin_half(plan, request);
    for (size_t i = 0; i < plan->n_rows && request->update && !needed; i++)
        needed = clips_by_norm(plan, &plan->rows[i]);
    if (!needed)
        return -1;
    for (size_t i = 0; plan->n_by_rows && i < plan->n_weights; i++)
        if (plan->weights[i].by_rows)       /* most of its blocks have no row that is present */
            memset(plan->sums[0] + plan->weights[i].first_block, 0,
                blocks(plan->weights[i].size) * sizeof **plan->sums);
    run_phase(plan, SURVEY);
    for (size_t i = 0; i < plan->n_weights; i++) {
        struct weight *weight = &plan->weights[i];
        if (!takes_part(plan, weight))
            continue;
        weight->square = total(plan, weight, 0);
        if (request->check && !isfinite(weight->square)) {
            const struct tasks *tasks = tasks_of(weight->real_type);
            const int finite = weight->taken != plan->step
                || (weight->by_rows ? tasks->rows_are_finite : tasks->finite)(plan, weight);
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

/* ------------------------------------------------------------------------ the phases that write - */

/* The phases before the update read the gradient too.  Each phase is a region of the pool; the sums of each weight
   are added up after it. */

/* Handles every MAX_CHUNKS-th weight, because a plan may have more weights than the pool takes chunks. */
static void factored(void *context, size_t chunk)
{
    const struct plan *plan = context;
    for (size_t i = chunk; i < plan->n_weights; i += MAX_CHUNKS) {
        const struct weight *weight = &plan->weights[i];
        if (weight->variant & FACTORED && takes_part(plan, weight))
            tasks_of(weight->real_type)->factored(plan, weight);
    }
}

/* Finds the factor of each weight's cautious step: its elements over the elements that the step moves; by rows, those
   of the rows that are present. */
static void find_shares(struct plan *plan)
{
    run_phase(plan, COUNT);
    for (size_t i = 0; i < plan->n_weights; i++) {
        struct weight *weight = &plan->weights[i];
        const struct rows *rows = weight->rows;
        if (!takes_part(plan, weight))
            continue;
        const size_t size = weight->by_rows ? rows->present * rows->width : weight->size;
        const double moved = weight->by_rows ? add_up(rows->agreed, rows->n_chunks) : total(plan, weight, 0);
        weight->ratio = (double)size / (moved + 1);
    }
}

/* Adds up the sums that the rules of the weights measure.  A factored weight is one task; others are measured by
   pieces. */
static void find_totals(struct plan *plan)
{
    if (plan->measures)
        run_phase(plan, MEASURE);
    if (plan->factors)
        optimc_pool_run(factored, plan, plan->n_weights < MAX_CHUNKS ? plan->n_weights : MAX_CHUNKS, plan->cost);
    for (size_t i = 0; i < plan->n_weights; i++) {
        struct weight *weight = &plan->weights[i];
        if (weight->variant & MEASURED && takes_part(plan, weight))
            for (int k = 0; k < plan->n_sums; k++)
                weight->totals[k] = total(plan, weight, k);
    }
}

static void fill(struct plan *plan)
{
    if (plan->progress)
        optimc_counts_share(plan);
    for (size_t i = 0; i < plan->n_rows; i++) {
        struct row *row = &plan->rows[i];
        tasks_of(row->real_type)->fill(plan, row);
    }
}

int optimc_plan_takes(struct plan *plan, const struct request *request, size_t index)
{
    plan->request = request;
    return request->update && takes_part(plan, &plan->weights[index]);
}

int optimc_plan_holds_gradient(const struct plan *plan, size_t index, const struct view *view, int vector)
{
    const struct weight *weight = &plan->weights[index];
    if (!vector)
        return optimc_part_check(weight, view, PART_ACCUMULATOR) == FINE;
    return view->ndim == 1 && view->type == (int)weight->real_type;
}

size_t optimc_plan_size(const struct plan *plan, size_t index)
{
    return plan->weights[index].size;
}

void optimc_plan_gradient(struct plan *plan, const struct request *request, size_t index, size_t begin,
    size_t end, void *to)
{
    const struct weight *weight = &plan->weights[index];
    begin_half(plan, request);
    fill(plan);
    const struct tasks *tasks = tasks_of(weight->real_type);
    (weight->by_rows ? tasks->gradient_of_rows : tasks->gradient)(plan, weight, begin, end, to);
}

void optimc_plan_start(struct plan *plan, const struct request *request)
{
    begin_half(plan, request);
    fill(plan);
    if (request->update && (plan->measures || plan->factors))
        find_totals(plan);
    if (request->update && request->cautious)
        find_shares(plan);
}

void optimc_plan_end(struct plan *plan)
{
    const struct request *request = plan->request;
    if (plan->progress && request->update)
        optimc_counts_advance(plan);
    if (request->accumulate == 1)
        return;
    for (size_t i = 0; i < plan->n_weights; i++) {
        struct weight *weight = &plan->weights[i];
        if (weight->taken != plan->step && !request->update)
            continue;
        if (weight->rows)
            optimc_rows_end(plan, weight);
        weight->waiting = request->update ? WAITS_FOR_NONE
            : weight->by_rows && weight->waiting != WAITS_WHOLE ? WAITS_BY_ROWS : WAITS_WHOLE;
    }
}

/* The first step begins the averages of the whole weights that it steps by rows. */
static void begin_averages(const struct plan *plan)
{
    if (plan->n_by_rows && plan->request->t == 1)
        run_phase(plan, BEGIN_AVERAGE);
}

void optimc_plan_run(struct plan *plan, const struct request *request)
{
    optimc_plan_start(plan, request);
    begin_averages(plan);
    run_phase(plan, UPDATE);
    optimc_plan_end(plan);
}

void optimc_plan_step_rows(struct plan *plan)
{
    if (!plan->n_by_rows)
        return;
    begin_averages(plan);
    run_job(plan, UPDATE, 0);
}

size_t optimc_plan_rows_present(const struct plan *plan, size_t index, uint32_t *to)
{
    const struct weight *weight = &plan->weights[index];
    const size_t n = weight->by_rows ? weight->rows->present : 0;
    for (size_t u = 0; to && u < n; u++)
        to[u] = weight->rows->visits[u].row;
    return n;
}

/* Elements begin .. end - 1 of a storage type, and the first chunk that holds any of them. */
struct span {
    const struct plan *plan;
    enum type type;
    size_t begin, end, chunk;
};

static void update_span(void *context, size_t chunk)
{
    const struct span *span = context;
    const struct plan *plan = span->plan;
    chunk += span->chunk;
    for (size_t i = plan->chunks[chunk]; i < plan->chunks[chunk + 1]; i++) {
        const struct piece *piece = &plan->pieces[i];
        const struct weight *weight = &plan->weights[piece->weight];
        const size_t low = weight->first + piece->begin, high = weight->first + piece->end;
        const size_t begin = low < span->begin ? span->begin : low;
        const size_t end = high < span->end ? high : span->end;
        if (weight->self.type == span->type && begin < end && !weight->by_rows)
            tasks_of(weight->real_type)->phases[UPDATE](plan, weight, begin - weight->first, end - weight->first);
    }
}

/* The chunk of a piece. */
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

/* The piece that holds an element of a storage type. */
static size_t piece_of(const struct plan *plan, enum type type, size_t element)
{
    const struct weight *weight = plan->weights;
    while (weight->self.type != type || weight->first + weight->size <= element)
        weight++;
    return weight->first_piece + (element - weight->first) / plan->piece_size;
}

void optimc_plan_span(struct plan *plan, enum type type, size_t begin, size_t end)
{
    if (begin >= end)
        return;
    struct span span = {plan, type, begin, end, chunk_of(plan, piece_of(plan, type, begin))};
    const size_t last = chunk_of(plan, piece_of(plan, type, end - 1));
    optimc_pool_run(update_span, &span, last + 1 - span.chunk,
        plan->cost * ((double)(end - begin) / (double)plan->total));
}
