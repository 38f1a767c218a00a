/* rows.c - gradients that are rows of their weight: which rows are present, and in which order they are visited.

   take copies the indices, so that whoever changes them later harms nothing.  Before the first phase that reads them
   they are sorted by row, stably: the values of a row stand together then, in order of occurrence, and are added up
   in that order.  Rows are visited in the order in which each first occurs, so that values stream from memory.

   While gradients are accumulated, the rows that have some wait.  They take their part in the sort of the next step
   behind its own indices.  Next: rows.inc, which visits rows. */

#include <string.h>

#include "plan/internal.h"

enum { DIGIT_BITS = 11, DIGITS = 1 << DIGIT_BITS, MAX_PASSES = 3 };
static const size_t MOST_ROWS = UINT32_MAX;     /* of a weight, and of indices: both have 32 bits of a key */

size_t optimc_rows_width(const struct weight *weight)
{
    return !weight->ndim ? 1 : weight->shape[0] ? weight->size / (size_t)weight->shape[0] : 0;
}

/* Makes room for n indices and a struct beside them.  FINE or FAULT_MEMORY; then all is as it was. */
static enum fault reserve(struct plan *plan, struct weight *weight, size_t n)
{
    struct rows *rows = weight->rows;
    if (rows && n <= rows->capacity)
        return FINE;
    if (!plan->by_rows)
        plan->by_rows = plan->memory.take(plan->capacity + 1, sizeof *plan->by_rows);
    if (!rows) {
        rows = plan->by_rows ? plan->memory.take(1, sizeof *rows) : NULL;
        if (!rows)
            return FAULT_MEMORY;
        weight->rows = rows;
    }
    size_t capacity = rows->capacity + rows->capacity / 2;
    capacity = capacity < n ? n : capacity;
    struct rows larger = *rows;
    larger.capacity = capacity;
    larger.keys = plan->memory.take(capacity + 1, sizeof *larger.keys);
    larger.spare = plan->memory.take(capacity + 1, sizeof *larger.spare);
    larger.visits = plan->memory.take(capacity + 1, sizeof *larger.visits);
    larger.sorted = plan->memory.take(capacity + 1, sizeof *larger.sorted);
    larger.waiting = plan->memory.take(capacity + 1, sizeof *larger.waiting);
    larger.shape = plan->memory.take((size_t)weight->ndim + 1, sizeof *larger.shape);
    if (!larger.keys || !larger.spare || !larger.visits || !larger.sorted || !larger.waiting || !larger.shape) {
        optimc_rows_drop(plan, &larger);
        return FAULT_MEMORY;
    }
    if (rows->n_waiting)
        memcpy(larger.waiting, rows->waiting, rows->n_waiting * sizeof *larger.waiting);
    optimc_rows_drop(plan, rows);
    *rows = larger;
    return FINE;
}

void optimc_rows_drop(struct plan *plan, struct rows *rows)
{
    plan->memory.give(rows->keys);
    plan->memory.give(rows->spare);
    plan->memory.give(rows->visits);
    plan->memory.give(rows->sorted);
    plan->memory.give(rows->waiting);
    plan->memory.give(rows->shape);
}

/* ------------------------------------------------------------------------------------------ taking - */

/* Copies n indices of one type; a negative one becomes larger than any row. */
#define COPY(type) \
    for (type index; i < n; keys[i++] = (uint64_t)index) \
        memcpy(&index, from + (ptrdiff_t)i * stride, sizeof index); \
    break

/* Makes keys of indices.  Returns how many of them are rows: all, or the first that is none. */
static size_t copy_indices(const struct view *indices, int is_signed, uint64_t length, uint64_t *keys)
{
    const size_t n = (size_t)indices->shape[0];
    const char *from = indices->data;
    const ptrdiff_t stride = indices->strides[0];
    size_t i = 0;
    switch (indices->itemsize << 1 | (size_t)is_signed) {
    case 1 << 1: COPY(uint8_t);
    case 2 << 1: COPY(uint16_t);
    case 4 << 1: COPY(uint32_t);
    case 8 << 1: COPY(uint64_t);
    case 1 << 1 | 1: COPY(int8_t);
    case 2 << 1 | 1: COPY(int16_t);
    case 4 << 1 | 1: COPY(int32_t);
    default: COPY(int64_t);
    }
    for (i = 0; i < n && keys[i] < length; i++)
        keys[i] = keys[i] << 32 | i;
    return i;
}

/* FINE if a weight can be stepped by rows. */
static enum fault check_weight(const struct weight *weight)
{
    if (weight->variant & (MEASURED | FACTORED | WHOLE))
        return FAULT_WHOLE;
    if (weight->f_order || !weight->ndim || (uint64_t)weight->shape[0] > MOST_ROWS)
        return FAULT_ROWS;
    for (int k = 0; k < MAX_SLOTS; k++)
        if (weight->slots[k].type == TYPE_U8 && weight->slots[k].data && optimc_rows_width(weight) % CODE_BLOCK)
            return FAULT_BLOCKS;
    return FINE;
}

int optimc_plan_takes_rows(const struct plan *plan, size_t index)
{
    return check_weight(&plan->weights[index]) == FINE;
}

/* FINE if values have the shape (k, *weight.shape[1:]). */
static enum fault check_values(const struct weight *weight, const struct view *indices, const struct view *values)
{
    if (values->type >= FLOAT_TYPES)
        return FAULT_TYPE;
    if (values->ndim != weight->ndim || values->shape[0] != indices->shape[0])
        return FAULT_SHAPE;
    for (int k = 1; k < values->ndim; k++)
        if (values->shape[k] != weight->shape[k])
            return FAULT_SHAPE;
    return FINE;
}

enum fault optimc_plan_take_rows(struct plan *plan, size_t index, const struct row_views *given, size_t *at,
    struct place *overlap)
{
    struct weight *weight = &plan->weights[index];
    const struct view *indices = given->indices, *values = given->values;
    if (weight->seen == plan->step)
        return FAULT_REPEATED;
    enum fault fault = check_weight(weight);
    fault = fault ? fault : check_values(weight, indices, values);
    const size_t n = fault ? 0 : (size_t)indices->shape[0], all = weight->waiting == WAITS_WHOLE
        ? (size_t)weight->shape[0] : weight->rows ? weight->rows->n_waiting : 0;
    if (fault)
        return fault;
    if (n > MOST_ROWS - all)
        return FAULT_ROWS;
    if (n && (!indices->data || (optimc_view_size(values) && !values->data)))
        return FAULT_NO_MEMORY;
    if (n && (optimc_range_meets(plan, indices, overlap)
        || (optimc_view_size(values) && optimc_range_meets(plan, values, overlap))))
        return FAULT_OVERLAP;
    if (reserve(plan, weight, n + all))
        return FAULT_MEMORY;
    struct rows *rows = weight->rows;
    *at = copy_indices(indices, given->is_signed, (uint64_t)weight->shape[0], rows->keys);
    if (*at < n)
        return FAULT_INDEX;
    weight->seen = plan->step;
    weight->taken = rows->taken = plan->step;
    rows->given = n;
    rows->width = optimc_rows_width(weight);
    rows->ready = 0;
    memcpy(rows->shape, values->shape, (size_t)values->ndim * sizeof *rows->shape);
    optimc_source_set(weight, values, rows->shape);
    weight->clear_low = weight->clear_high = NULL;
    plan->cost += rows_cost(plan, weight, n + all);
    return FINE;
}

/* ----------------------------------------------------------------------------------------- sorting - */

/* Sorts keys by their rows, stably, by digits from the lowest. */
static void sort(struct rows *rows, size_t n, uint64_t length)
{
    int bits = 1, passes = 1;
    while (bits < 32 && (length - 1) >> bits)
        bits++;
    passes = (bits + DIGIT_BITS - 1) / DIGIT_BITS;
    bits = (bits + passes - 1) / passes;
    const uint64_t mask = (UINT64_C(1) << bits) - 1;
    for (int pass = 0; pass < passes; pass++) {
        const int shift = 32 + pass * bits;
        uint32_t starts[DIGITS] = {0}, sum = 0;
        for (size_t i = 0; i < n; i++)
            starts[rows->keys[i] >> shift & mask]++;
        for (uint64_t digit = 0; digit <= mask; digit++) {
            const uint32_t count = starts[digit];
            starts[digit] = sum;
            sum += count;
        }
        for (size_t i = 0; i < n; i++)
            rows->spare[starts[rows->keys[i] >> shift & mask]++] = rows->keys[i];
        uint64_t *const sorted = rows->spare;
        rows->spare = rows->keys;
        rows->keys = sorted;
    }
}

/* The keys of a row stand together: notes them as a visit, `sorted` in the order of rows. */
static void group(struct rows *rows, size_t n)
{
    size_t present = 0;
    uint32_t *const of_place = (uint32_t *)rows->spare;     /* 1 + the group whose first key has this place, or 0 */
    memset(of_place, 0, n * sizeof *of_place);
    for (size_t i = 0, end; i < n; i = end) {
        const uint64_t row = rows->keys[i] >> 32;
        size_t given = i;
        for (end = i; end < n && rows->keys[end] >> 32 == row; end++)
            given += (uint32_t)rows->keys[end] < rows->given;
        rows->sorted[present++] = (struct visit){.row = (uint32_t)row, .key = (uint32_t)i,
            .given = (uint32_t)(given - i), .place = (uint32_t)rows->keys[i]};
        of_place[(uint32_t)rows->keys[i]] = (uint32_t)present;
    }
    rows->present = present;
    present = 0;
    for (size_t place = 0; place < n; place++)
        if (of_place[place])
            rows->visits[present++] = rows->sorted[of_place[place] - 1];
}

/* Puts the rows that wait behind the indices of this step, sorts all, and cuts the visits for threads. */
static void prepare(const struct plan *plan, struct weight *weight)
{
    struct rows *rows = weight->rows;
    const int accumulates = plan->request->accumulate > 1;
    const int whole = accumulates && weight->waiting == WAITS_WHOLE && plan->request->update;
    size_t n = rows->taken == plan->step ? rows->given : 0;
    rows->given = n;
    const size_t waiting = whole ? (size_t)weight->shape[0] : accumulates ? rows->n_waiting : 0;
    for (size_t i = 0; i < waiting; i++, n++)
        rows->keys[n] = (uint64_t)(whole ? i : rows->waiting[i]) << 32 | n;
    sort(rows, n, (uint64_t)weight->shape[0]);
    group(rows, n);
    const size_t least = rows->width < ROW_CHUNK ? ROW_CHUNK / (rows->width + 1) + 1 : 1;
    size_t per_chunk = (rows->present + MAX_ROW_CHUNKS - 1) / MAX_ROW_CHUNKS;
    rows->per_chunk = per_chunk < least ? least : per_chunk;
    rows->n_chunks = (rows->present + rows->per_chunk - 1) / rows->per_chunk;
    rows->ready = 1;
}

void optimc_rows_prepare(struct plan *plan)
{
    plan->n_by_rows = plan->row_chunks = 0;
    for (size_t i = 0; i < plan->n_weights; i++) {
        struct weight *weight = &plan->weights[i];
        struct rows *rows = weight->rows;
        const int taken = rows && rows->taken == plan->step && weight->taken == plan->step;
        weight->by_rows = taken || (rows && weight->waiting == WAITS_BY_ROWS && plan->request->update
            && weight->taken != plan->step);
        if (!weight->by_rows)
            continue;
        if (!taken || !rows->ready)
            prepare(plan, weight);
        rows->first_chunk = plan->row_chunks;
        plan->row_chunks += rows->n_chunks;
        plan->by_rows[plan->n_by_rows++] = i;
    }
}

const struct weight *optimc_rows_chunk(const struct plan *plan, size_t *chunk)
{
    size_t a = 0, b = plan->n_by_rows;
    while (b - a > 1) {
        const size_t middle = a + (b - a) / 2;
        if (plan->weights[plan->by_rows[middle]].rows->first_chunk > *chunk)
            b = middle;
        else
            a = middle;
    }
    const struct weight *weight = &plan->weights[plan->by_rows[a]];
    *chunk -= weight->rows->first_chunk;
    return weight;
}

/* --------------------------------------------------------------------------------- rows that wait - */

void optimc_rows_end(const struct plan *plan, struct weight *weight)
{
    struct rows *rows = weight->rows;
    if (plan->request->update || !weight->by_rows) {
        rows->n_waiting = 0;
        return;
    }
    rows->n_waiting = rows->present;
    for (size_t u = 0; u < rows->present; u++)
        rows->waiting[u] = rows->visits[u].row;
}

/* 1 if an element of a row of the accumulator has any bit. */
static int row_waits(const char *row, size_t size)
{
    size_t i = 0;
    while (i < size && !row[i])
        i++;
    return i < size;
}

enum fault optimc_rows_recall(struct plan *plan, struct weight *weight)
{
    if (check_weight(weight)) {             /* it is, or lies, otherwise than when they were gathered */
        weight->waiting = WAITS_WHOLE;
        return FINE;
    }
    const size_t length = weight->ndim ? (size_t)weight->shape[0] : 0;
    const size_t size = optimc_rows_width(weight) * optimc_storage[weight->real_type].width;
    size_t n = 0;
    for (size_t row = 0; row < length && weight->accumulator.data; row++)
        n += (size_t)row_waits(weight->accumulator.data + row * size, size);
    if (reserve(plan, weight, n))
        return FAULT_MEMORY;
    for (size_t row = 0; row < length && weight->rows->n_waiting < n; row++)
        if (row_waits(weight->accumulator.data + row * size, size))
            weight->rows->waiting[weight->rows->n_waiting++] = (uint32_t)row;
    weight->rows->width = optimc_rows_width(weight);
    return FINE;
}
