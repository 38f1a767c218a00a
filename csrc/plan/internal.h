/* internal.h - the structures of a plan, and small functions that all its files use.

   plan.c makes a plan, overlap.c keeps its ranges apart, take.c refuses, rows.c sorts gradients that are rows, run.c
   reads and writes, counts.c keeps the counts of weights.  No other file includes this one. */
#ifndef OPTIMC_PLAN_INTERNAL_H
#define OPTIMC_PLAN_INTERNAL_H

#include "plan/plan.h"

/* A part of a weight: the weight itself, a slot, its average, its accumulator or its master.  `type` is its storage
   type; `data` is NULL if the weight has no such part. */
struct array {
    char *data, *next;                      /* next: where it lies now, if it has moved and the plan has not yet */
    size_t n;                               /* elements */
    enum type type;
    enum codec codec;                       /* NO_CODEC if the kernel reads and writes it in place */
};

/* The chunks of the rows of a weight, at most; the elements of one, about. */
enum { MAX_ROW_CHUNKS = 256, ROW_CHUNK = 8192 };

/* A row that is present in a step. */
struct visit {
    uint32_t row, key;                      /* its first key among the sorted */
    uint32_t given, place;                  /* how many values it has in this step; the place of the first */
};

/* The rows of a weight whose gradient is rows, or was: see rows.c. */
struct rows {
    size_t capacity, given, width;          /* room for indices; those of this step; elements of a row */
    uint64_t *keys, *spare;                 /* row << 32 | place among the indices, sorted; room for sorting */
    struct visit *visits, *sorted;          /* the rows present, as they first occur; by their numbers */
    size_t present, per_chunk, n_chunks, first_chunk;
    uint64_t taken;                         /* the last step with such a gradient */
    int ready;                              /* whether its keys are sorted */
    uint32_t *waiting;                      /* rows with gradients that were accumulated since the last update */
    size_t n_waiting;
    ptrdiff_t *shape;                       /* of the values */
    double agreed[MAX_ROW_CHUNKS];          /* elements that a cautious step moves, by chunks */
};

struct weight {
    struct array self;
    const char *gradient;                   /* of this step, if the kernel can read it as it is */
    const char *half_gradient;              /* of this step, if it has 16 bits and lies as the weight does */
    uint64_t seen, taken;                   /* the last step that named it; the last with a gradient for it */
    size_t size, row, first_row;            /* elements; the index of its row in this step; of that in the plan */
    const char *clear_low, *clear_high;     /* a gradient that is known to overlap nothing */
    ptrdiff_t *shape;                       /* and after it the strides of its source */
    enum type real_type;                    /* float or double: the type its kernel computes in */
    int f_order, ndim;
    enum kernel kernel;
    int variant;                            /* the flags of its kernel */
    enum waiting waiting;                   /* its accumulator holds gradients since its last update */
    struct rows *rows;                      /* NULL as long as no gradient was rows */
    int by_rows;                            /* in this step only its rows that are present are visited */
    int coded;                              /* it or a slot has a codec */
    int to_nearest;                         /* as in struct binding */
    const struct fused *fused, *fused_half; /* loops for its codes, and those of such a gradient; or NULL */
    uint64_t number, begin;                 /* as in struct binding */
    struct array slots[MAX_SLOTS], average, accumulator, master;
    struct source source;                   /* of this step, if its gradient must be converted */
    size_t first, first_piece;              /* its first element among all of its storage type; its first piece */
    size_t first_block;                     /* of its blocks in plan->sums */
    double square;                          /* of the norm of its gradient in this step */
    double totals[MAX_SUMS];                /* the sums of its MEASURE in this step */
    double ratio;                           /* the factor of its cautious step */
    size_t n_rows, n_columns;               /* of its matrices, if its second moment is factored */
    double *column_sums, *row_means;        /* room; the mean of the row means of each matrix, in this step */
};

/* Weights that share rule, real type, group and decay share their coefficients, if their progress is the same. */
struct row {
    union { struct row_f32 f32; struct row_f64 f64; } real_row;
    int64_t t;                              /* this update of weights that count, 1 for the first; or 0 */
    double before[MAX_SCALARS + 1], after[MAX_SCALARS + 1];     /* then their scalars; else the group has them */
    enum rule rule;
    enum type real_type;
    int decay;                              /* the index of its weight decay in the group's values, or -1 */
    int variants;                           /* the flags of all its kernels together */
    double factor;
    size_t group;
    double cost;                            /* nanoseconds per element on one thread, measured */
    int staged;                             /* in this step its gradients are prepared in scratch ... */
    int by_norm;                            /* ... only to clip them to a norm of 1: shorter ones stay as they are */
};

struct piece { size_t weight, begin, end; };
struct range { const char *low, *high; struct place place; };
struct key { const char *low; size_t at; };         /* where a range begins, while all are sorted; its index */

struct plan {
    struct weight *weights;
    size_t n_weights, capacity;
    struct row *rows;
    size_t n_rows;
    size_t *places, n_places;               /* a table to find rows by what they share, while rows are made: row k is
                                               in it as k + 1, and 0 is an empty place */
    struct weight_progress *progress;              /* of each weight, if they count; else NULL */
    size_t n_first_rows;                    /* then the rows without a count, which come before those with one */
    struct piece *pieces;
    size_t n_pieces, piece_size;
    size_t *chunks;                         /* chunk k is pieces chunks[k] .. chunks[k + 1] - 1 */
    size_t n_chunks;
    struct range *ranges, *spare;           /* all memory a step may write, sorted; room for as many */
    struct key *keys;                       /* room for twice as many */
    size_t n_ranges;
    int moving;                             /* whether an array has a `next` */
    double *sums[MAX_SUMS];                 /* n_sums times a number per block of SUM_BLOCK elements */
    int n_sums;                             /* as many as a kernel measures, and at least 1 */
    size_t n_blocks, total;                 /* such blocks; elements */
    int measures, factors;                  /* whether a kernel is MEASURED by pieces; FACTORED */
    const struct isa *isa;
    struct memory memory;
    const struct request *request;          /* the one in progress */
    uint64_t step;
    size_t *by_rows, n_by_rows;             /* the weights that are stepped by rows; NULL as long as none was */
    size_t row_chunks;                      /* of all of them */
    double cost, whole_cost;                /* of the gradients taken; of those of all weights */
};

/* The storage types of weights and their parts: a row for each type.  A type without a row has a width of 0. */
struct storage {
    size_t width;                           /* bytes of an element */
    enum type real_type;                    /* of weights that are stored so; FLOAT_TYPES: none is */
    enum type master;                       /* of the master of such a weight; FLOAT_TYPES: it has none */
};
extern const struct storage optimc_storage[TYPE_OTHER + 1];

/* Blocks of SUM_BLOCK elements. */
static inline size_t blocks(size_t size)
{
    return (size + SUM_BLOCK - 1) / SUM_BLOCK;
}

/* A part of a weight. */
static inline struct array *array_at(const struct plan *plan, struct place place)
{
    struct weight *weight = &plan->weights[place.weight];
    return place.part == PART_WEIGHT ? &weight->self : place.part == PART_AVERAGE ? &weight->average
        : place.part == PART_ACCUMULATOR ? &weight->accumulator
        : place.part == PART_MASTER ? &weight->master : &weight->slots[place.part];
}

/* 1 if this step updates the weight: it has a gradient, from this step or accumulated before. */
static inline int takes_part(const struct plan *plan, const struct weight *weight)
{
    return weight->taken == plan->step || (weight->waiting && plan->request->update);
}

/* The row that is like the one that is wanted in all that rows share; makes it if there is none. */
size_t optimc_row_like(struct plan *plan, const struct row *wanted);

/* Gives the weights of an update the rows of their counts. */
void optimc_counts_share(struct plan *plan);

/* After an update: counts it for these weights. */
void optimc_counts_advance(struct plan *plan);

/* FINE if a view has the shape of a weight, without the axis `left_out` (-1: with all its axes). */
static inline enum fault check_shape(const struct weight *weight, const struct view *view, int left_out)
{
    if (view->ndim != weight->ndim - (left_out >= 0))
        return FAULT_SHAPE;
    for (int k = 0; k < view->ndim; k++)
        if (view->shape[k] != weight->shape[k + (left_out >= 0 && k >= left_out)])
            return FAULT_SHAPE;
    return FINE;
}

/* FINE if a view has this type, the weight's shape and its order of memory. */
static inline enum fault check_like(const struct weight *weight, const struct view *view, enum type type)
{
    if (view->type != (int)type)
        return FAULT_TYPE;
    if (check_shape(weight, view, -1))
        return FAULT_SHAPE;
    return (weight->f_order ? view->f_order : view->c_order) ? FINE : FAULT_STRIDES;
}

/* FINE if a view of `size` elements lies where a kernel can reach it. */
static inline enum fault check_place(const struct view *view, size_t size)
{
    if (!size)
        return FINE;
    return !view->data ? FAULT_NO_MEMORY : (uintptr_t)view->data % view->itemsize ? FAULT_ALIGNMENT : FINE;
}

/* FINE if a view has the type, shape and order of a part of a weight. */
enum fault optimc_part_check(const struct weight *weight, const struct view *view, int part);

/* The codec of a weight, and that of its slot number k if it is stored in this type. */
enum codec optimc_weight_codec(const struct weight *weight);
enum codec optimc_slot_codec(const struct weight *weight, int k, enum type type);

/* The loop for a weight with gradients of this type, NULL if there is none. */
const struct fused *optimc_fused(const struct isa *isa, const struct weight *weight, enum type gradient);

/* The codes of element i of a weight or of one of its slots, and what belongs to them.  Of 8 bits, i lies in the
   block that is meant. */
struct coded optimc_coded_at(const struct weight *weight, const struct array *array, size_t i);

/* 1 if a codec rounds at random. */
static inline int is_random(enum codec codec)
{
    return codec == CODEC_BF16_RANDOM || codec == CODEC_U8_RANDOM;
}

/* A rough cost of an update of a weight, in nanoseconds on one thread.  To decode and encode takes about as long as
   the rule. */
static inline double weight_cost(const struct plan *plan, const struct weight *weight)
{
    return (double)weight->size * plan->rows[weight->row].cost * (weight->coded ? 2 : 1);
}

/* The same for n rows of it: what lies in memory at random takes time of its own. */
static inline double rows_cost(const struct plan *plan, const struct weight *weight, size_t n)
{
    enum { FIND = 60 };
    const double row = weight->shape[0] ? weight_cost(plan, weight) / (double)weight->shape[0] : 0;
    return (double)n * (row + FIND);
}

/* Notes where the gradient of a weight lies, which has the shape of the weight, or `shape`. */
void optimc_source_set(struct weight *weight, const struct view *view, const ptrdiff_t *shape);

/* Rows.
   - width is the number of elements of a row.
   - prepare finds the weights that are stepped by rows, and sorts their rows; it can be called again.
   - chunk finds the weight that one of plan->row_chunks belongs to, and its number there.
   - end notes the rows that wait after a step.
   - recall finds them in an accumulator.  Sums of 0 are -0 there, so that they can be told from no gradients.
   - drop gives back the memory. */
size_t optimc_rows_width(const struct weight *weight);
void optimc_rows_prepare(struct plan *plan);
const struct weight *optimc_rows_chunk(const struct plan *plan, size_t *chunk);
void optimc_rows_end(const struct plan *plan, struct weight *weight);
enum fault optimc_rows_recall(struct plan *plan, struct weight *weight);
void optimc_rows_drop(struct plan *plan, struct rows *rows);

/* The slots of a factored second moment: of the weight's shape, without its last axis, without its last but one. */
enum { MOMENT_SLOT, ROW_SLOT, COLUMN_SLOT };

/* The memory that a step may write: ranges by address, which overlap.c keeps sorted and apart. */

/* Adds the memory of a part of the weight that is being added, unless it is empty. */
void optimc_range_add(struct plan *plan, const struct array *array, int part);

/* Sorts the ranges by where the arrays lie now.  FAULT_OVERLAP and two places if any share memory; then the ranges
   stay as they were. */
enum fault optimc_range_sort(struct plan *plan, struct place overlap[2]);

/* 1 if a view touches a range, whose place it then tells. */
int optimc_range_meets(const struct plan *plan, const struct view *view, struct place *overlap);

/* The bytes that a view touches. */
void optimc_extent(const struct view *view, const char **low, const char **high);

/* The range that holds the first byte at or after `low`, as an index; n_ranges if there is none. */
size_t optimc_range_after(const struct plan *plan, const char *low);

#endif
