/* plan.h - an optimizer's weights, their slots, and a step over them.

   A plan is made once from views of arrays and then stepped.  A step has two halves: everything that can be
   refused (find, take, survey) and everything that writes (run), so that a refused step has changed nothing.  The
   plan knows neither Python nor NumPy: it keeps pointers, and its owner keeps the arrays alive.

   Every array has a storage type, in which its elements lie in memory.  A weight has a real type too, float or
   double, in which its kernel computes.  A part that is stored in another type is decoded before the kernel and
   encoded after it, a block at a time. */
#ifndef OPTIMC_PLAN_H
#define OPTIMC_PLAN_H

#include "kernels/kernels.h"
#include "plan/values.h"

/* An array as its owner describes it. */
struct view {
    char *data;
    const ptrdiff_t *shape, *strides;       /* strides in bytes */
    size_t itemsize;
    int ndim;
    int type;                               /* enum type */
    int swapped;                            /* bytes in the other order */
    int c_order, f_order;                   /* contiguous so; both for one element or one axis */
    int aligned, writeable;
};

enum fault {
    FINE,
    FAULT_TYPE,                             /* no storage type of this part; for a gradient: not a float */
    FAULT_SHAPE,
    FAULT_READ_ONLY,
    FAULT_STRIDES,                          /* neither C nor Fortran order, or not the weight's */
    FAULT_ALIGNMENT,
    FAULT_OVERLAP,
    FAULT_NO_MEMORY,                        /* it has elements, and lies nowhere */
    FAULT_REPEATED,                         /* the weight, or its gradient, came twice in a step */
    FAULT_WHOLE,                            /* rows for a rule that looks at whole weights, */
    FAULT_ROWS,                             /* for a weight that has none in C order, or too many, */
    FAULT_BLOCKS,                           /* for one with a slot in 8 bits, whose blocks hold parts of several */
    FAULT_INDEX,                            /* an index that is no row */
    FAULT_MEMORY,
};

/* The parts of a weight: the weight itself, slot k, the average, the gradient accumulator, the master of a weight of
   16 bits. */
enum { PART_WEIGHT = -1, PART_AVERAGE = MAX_SLOTS, PART_ACCUMULATOR, PART_MASTER, PARTS };
struct place { size_t weight; int part; };

size_t optimc_view_size(const struct view *view);   /* elements */

/* The real type of weights of a storage type; TYPE_OTHER: no weight is stored so. */
enum type optimc_real_type(enum type storage);

/* The work of a step. */
struct request {
    struct group *groups;
    int64_t t;                              /* 1 for the first update */
    int update;                             /* 0: only accumulate the gradients */
    int accumulate;                         /* gradients per update, 1 without accumulation */
    int overwrite;                          /* the averages become the weights */
    int cautious;                           /* move only where the step agrees with the gradient */
    int coupled;                            /* weight decay is added to the gradient */
    int decay_as_factor;                    /* or it is one product: w (1 - weight_decay learning_rate) */
    int maximize;                           /* the gradient is negated */
    int check;                              /* look for gradients that are not finite */
    int surveyed;                           /* out: whether the gradients had to be read for a survey */
    enum { NO_NORM, OWN_NORM, GLOBAL_NORM } overflow;   /* out: which norm of finite gradients failed the check */
    double norm;                            /* out: their global norm, if so */
    uint64_t seed;                          /* of the random numbers that round codes */
};

struct plan;

/* The gradients that an accumulator holds since the last update: of the whole weight, or of rows only. */
enum waiting { WAITS_FOR_NONE, WAITS_WHOLE, WAITS_BY_ROWS };

/* The updates that a weight has taken part in, and the rule's scalars after the last of them. */
struct weight_progress { int64_t t; double scalars[MAX_SCALARS + 1]; };

/* The allocator of a plan: two functions like calloc and free of the C library. */
struct memory {
    void *(*take)(size_t n, size_t size);
    void (*give)(void *pointer);
};

/* An empty plan for `weights` weights, NULL without memory.  free accepts NULL. */
struct plan *optimc_plan_new(size_t weights, struct memory memory);
void optimc_plan_free(struct plan *plan);

/* Checks that a view can be this part of some weight: FINE, FAULT_TYPE, _READ_ONLY, _STRIDES, _ALIGNMENT or
   _NO_MEMORY. */
enum fault optimc_plan_check(const struct view *view, int part);

/* The rounding that a slot of a kernel allows. */
enum rounding optimc_slot_rounding(enum kernel kernel, int slot);

/* The bytes of a slot of `size` elements in 8 bits, a vector: their codes in the order of the weight's memory, bytes
   of 0 up to a multiple of 4, and a float32 scale per CODE_BLOCK codes. */
size_t optimc_coded_size(size_t size);

/* Decodes all `n` elements of an array that this codec stores, or encodes them; element 0 is element `begin` of its
   weight.  `master` may be NULL for codes that have none. */
void optimc_decode_all(const struct isa *isa, enum codec codec, const struct view *codes, const struct view *master,
    size_t n, float *to);
void optimc_encode_all(const struct isa *isa, enum codec codec, uint64_t key, uint64_t begin, const float *from,
    size_t n, const struct view *codes, const struct view *master);

/* The key of the random numbers of a part of weight `number` at update t. */
uint64_t optimc_random_key(uint64_t seed, uint64_t number, int64_t t, int part);

/* A weight's kernel, values and state.  The views must have passed optimc_plan_check.  `slots` are MAX_SLOTS views;
   those that the kernel does not use are ignored.  average, accumulator and master may be NULL. */
struct binding {
    enum kernel kernel;
    size_t group;
    int decay;                              /* the index of its weight decay in the group's values, or -1 */
    double factor;                          /* its coefficients may depend on this beside the group */
    enum waiting waiting;                   /* its accumulator holds gradients */
    int to_nearest;                         /* 16 bits of its own and of its slots are rounded to nearest, and are
                                               all that is kept of it */
    uint64_t number, begin;                 /* its number; where it begins in the weight of this number: both choose
                                               random numbers */
    const struct view *slots, *average, *accumulator, *master;      /* a float16 weight without a master has gradients
                                               to read, and no step */
};

/* Adds the next weight: FINE, FAULT_MEMORY, or FAULT_TYPE, _SHAPE or _STRIDES.  `where` is then the part that does
   not match the weight. */
enum fault optimc_plan_add(struct plan *plan, const struct view *weight, const struct binding *binding,
    int *where);

/* The axis of its weight that a slot of a kernel lacks, counted from the last: a factor of matrices lacks 1 or 2, a
   number for each row ALL_BUT_FIRST.  0: the slot has the weight's shape. */
enum { ALL_BUT_FIRST = -1 };
int optimc_slot_axis(enum kernel kernel, int slot);

/* Completes a plan; no weight can be added after it.  FINE, FAULT_MEMORY, or FAULT_OVERLAP and the two places that
   share memory. */
enum fault optimc_plan_seal(struct plan *plan, const struct isa *isa, struct place overlap[2]);

size_t optimc_plan_group(const struct plan *plan, size_t index);    /* the group of a weight */
size_t optimc_plan_weights(const struct plan *plan);

/* Weights that count their own updates.  In a new plan request->t and the scalars of the groups are those of all
   weights.
   - count lets each weight go on from its progress; a weight that has no gradient rests.  FINE or FAULT_MEMORY.
   - progress gives that of a weight, or NULL if the weights do not count. */
enum fault optimc_plan_count(struct plan *plan, const struct weight_progress *progress);
const struct weight_progress *optimc_plan_progress(const struct plan *plan, size_t index);

/* The first half of a step.
   - begin forgets an earlier step.
   - find gives the index of the weight with this memory, or -1; it tries `hint` first.
   - same compares the weight's shape, type and order with those of the plan.
   - take notes the gradient of a weight for this step; NULL is a missing gradient. */
void optimc_plan_begin(struct plan *plan);
ptrdiff_t optimc_plan_find(const struct plan *plan, const struct view *weight, size_t hint);
enum fault optimc_plan_same(const struct plan *plan, size_t index, const struct view *weight);
/* For arrays that may lie elsewhere than at the last step, between begin and the first take:
   - place tells where a part of a weight lies now, and sets `moved` if that is elsewhere.  FINE, or the fault that
     makes it another than that of the plan.
   - move, once all are told, takes over those that do.  On FAULT_OVERLAP, with the two places that would share
     memory, all stay where they were. */
enum fault optimc_plan_place(struct plan *plan, struct place place, const struct view *view, int *moved);
enum fault optimc_plan_move(struct plan *plan, struct place overlap[2]);
/* For owners that know where arrays like those of the plan lie now:
   - place_at is place for a part of the plan's type and shape at an address.
   - bytes gives the size of a part, 0 if there is none; parts, how many have a size. */
enum fault optimc_plan_place_at(struct plan *plan, struct place place, char *data, int *moved);
size_t optimc_plan_bytes(const struct plan *plan, struct place place);
size_t optimc_plan_parts(const struct plan *plan);
enum fault optimc_plan_take(struct plan *plan, size_t index, const struct view *gradient,
    struct place *overlap);

/* 1 if a weight can be stepped by rows: optimc_plan_take_rows says why one cannot. */
int optimc_plan_takes_rows(const struct plan *plan, size_t index);

/* A gradient that is rows of its weight: row indices[k] += values[k].  The indices are integers, of one axis. */
struct row_views { const struct view *indices, *values; int is_signed; };

/* The same as take.  On FAULT_INDEX `at` is the first index that is no row. */
enum fault optimc_plan_take_rows(struct plan *plan, size_t index, const struct row_views *given, size_t *at,
    struct place *overlap);

/* A rough cost of the gradients taken so far, and of those of all weights: nanoseconds on one thread. */
double optimc_plan_cost(const struct plan *plan);
double optimc_plan_whole_cost(const struct plan *plan);

/* The gradients of a weight that were accumulated since its last update. */
enum waiting optimc_plan_waits(const struct plan *plan, size_t index);

/* Tells what all accumulators hold, before a step: gradients of whole weights, or none. */
void optimc_plan_wait(struct plan *plan, enum waiting waiting);

/* Between the halves: reads the gradients once, for the norms that clipping needs.  With request->check it also
   checks that the gradients and the norms that clip them are finite.  Gradients that are only accumulated are checked
   too: an accumulator never holds a gradient that the update would have to refuse.  Returns the index of the first
   weight whose gradient fails, or -1. */
ptrdiff_t optimc_plan_survey(struct plan *plan, struct request *request);

/* For a step over shares of weights, of which other processes hold the rest.  sums gives the sums of squares that
   the survey made, `n` of them in the order of the weights.  refold makes the norms from other sums, counts[i] of
   them for weight i.  It sets request->overflow if the global norm fails the check. */
const double *optimc_plan_sums(const struct plan *plan, size_t *n);
void optimc_plan_refold(struct plan *plan, struct request *request, const double *sums,
    const int64_t *counts);

/* 1 if a weight takes part in an update: it has a gradient, from this step or accumulated before. */
int optimc_plan_takes(struct plan *plan, const struct request *request, size_t index);

/* Writes elements begin .. end - 1 of a weight's prepared gradient to `to`, an array of its real type. */
void optimc_plan_gradient(struct plan *plan, const struct request *request, size_t index, size_t begin,
    size_t end, void *to);

/* 1 if a view can hold the gradient of a weight in its real type: as the weight lies, or as a vector. */
int optimc_plan_holds_gradient(const struct plan *plan, size_t index, const struct view *view, int vector);

size_t optimc_plan_size(const struct plan *plan, size_t index);     /* elements of a weight */

/* The second half: updates every weight taken.  Cannot fail. */
void optimc_plan_run(struct plan *plan, const struct request *request);

/* The second half in spans: call start, then step_rows, which updates the weights that are stepped by rows, then span
   until every element of the others is covered once, then end.  A span is elements begin .. end - 1 of one storage
   type, counted over all weights of this type in their order; it passes over weights that are stepped by rows.  In a
   weight with parts that are encoded it begins and ends with a block, or with the weight. */
void optimc_plan_start(struct plan *plan, const struct request *request);
void optimc_plan_step_rows(struct plan *plan);
void optimc_plan_span(struct plan *plan, enum type type, size_t begin, size_t end);
void optimc_plan_end(struct plan *plan);

/* The rows of a weight that the step in progress visits, once it has started: writes their numbers unless `to` is
   NULL; returns how many.  None if the weight is not stepped by rows. */
size_t optimc_plan_rows_present(const struct plan *plan, size_t index, uint32_t *to);

#endif
