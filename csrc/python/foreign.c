/* foreign.c - steps that threads of frameworks ask for: see foreign.h, and latch.c for how they wait.

   Python makes an optimizer ready for them by `_open_foreign`.  The step is that of apply.c without Python: it reads
   and writes fields of the Optimizer that Python's threads touch only in their turn, in which they have the latch
   too.  It asks for no reference and raises nothing; what it cannot do, it leaves to Python. */
#define NO_IMPORT_ARRAY
#include "python/boundary.h"

#include <stdio.h>

#include "plan/latch.h"
#include "plan/pool.h"
#include "python/foreign.h"

/* The arrays and numbers of a step. */
struct layout {
    struct foreign_size size;
    struct place *places;
    size_t *bytes;                          /* of each place */
    size_t parts;                           /* of the plan: the others are the optimizer's own memory */
};

struct foreign {
    struct latch latch;                     /* first: a latch is cast to what it is of */
    Optimizer *optimizer;                   /* borrowed */
    struct layout layout;
    int late;                               /* the first step is Python's */
    struct request request;                 /* of the last step: the plan remembers it */
};

/* ------------------------------------------------------------------------------- the step - */

struct foreign *optimc_foreign_enter(int64_t number)
{
    return (struct foreign *)(void *)optimc_latch_enter(number);
}

void optimc_foreign_leave(struct foreign *foreign)
{
    optimc_latch_leave(&foreign->latch);
}

struct foreign_size optimc_foreign_size(const struct foreign *foreign)
{
    return foreign->layout.size;
}

size_t optimc_foreign_bytes(const struct foreign *foreign, size_t place)
{
    return foreign->layout.bytes[place];
}

struct view optimc_view_in_order(char *data, int type, size_t width, int ndim, ptrdiff_t *room)
{
    ptrdiff_t stride = (ptrdiff_t)width;
    int long_axes = 0;
    for (int k = ndim; k-- > 0;) {
        room[ndim + k] = stride;
        stride *= room[k];
        long_axes += room[k] != 1;
    }
    return (struct view){.data = data, .shape = room, .strides = room + ndim, .itemsize = width, .ndim = ndim,
        .type = type, .c_order = 1, .f_order = long_axes < 2, .aligned = !width || !((uintptr_t)data % width)};
}

/* 1 if no Python code and no Python object has a part in the step. */
static int is_plain(const struct foreign *foreign, const struct foreign_step *step)
{
    const Optimizer *self = foreign->optimizer;
    return self->plan && self->plan->matching == IDLE && !self->evaluating && !self->n_sources && !self->tensors
        && !optimc_plan_progress(self->plan->core, 0)
        && step->calls >= 0 && step->calls < MOST_STEPS && (step->calls || !foreign->late)
        && (!step->rate || optimc_is_in_range(&self->bounds[0], *step->rate))
        && optimc_plan_weights(self->plan->core) == foreign->layout.size.gradients
        && optimc_plan_parts(self->plan->core) == foreign->layout.parts
        && step->n_gradients == foreign->layout.size.gradients && step->n_places == foreign->layout.size.places
        && step->n_scalars == foreign->layout.size.scalars;
}

/* Moves the plan to where the arrays lie now: 1, or 0 if it cannot be there. */
static int move(const struct foreign *foreign, const struct foreign_step *step)
{
    Optimizer *self = foreign->optimizer;
    struct plan *plan = self->plan->core;
    struct place overlap[2];
    int any = 0;
    for (size_t i = 0; i < step->n_places; i++) {
        int moved;
        if (optimc_plan_bytes(plan, foreign->layout.places[i]) != foreign->layout.bytes[i]
            || optimc_plan_place_at(plan, foreign->layout.places[i], step->places[i], &moved))
            return 0;
        any |= moved;
    }
    if (any && optimc_plan_move(plan, overlap))
        return 0;
    self->moved |= any;
    return 1;
}

/* Brings the optimizer to where the step's numbers are.  Gradients that are accumulated have none missing. */
static void settle(Optimizer *self, const struct foreign_step *step)
{
    const size_t each = self->n_groups ? step->n_scalars / self->n_groups : 0;
    self->calls = step->calls;
    if (step->rate)
        self->groups[0].values[0] = *step->rate;
    optimc_share_values(self);
    for (size_t i = 0; step->calls && each && i < self->n_groups; i++)
        memcpy(self->groups[i].before, step->scalars + i * each, each * sizeof *step->scalars);
    if (self->accumulate > 1)
        optimc_plan_wait(self->plan->core, step->calls % self->accumulate ? WAITS_WHOLE : WAITS_FOR_NONE);
}

/* Takes the gradients: 1, or 0 if one cannot be taken. */
static int take(const Optimizer *self, const struct foreign_step *step)
{
    struct plan *plan = self->plan->core;
    struct place overlap;
    size_t at;
    for (size_t i = 0; i < step->n_gradients; i++) {
        const struct foreign_gradient *gradient = &step->gradients[i];
        if (gradient->rows ? self->accumulate > 1 || optimc_plan_take_rows(plan, i, gradient->rows, &at, &overlap)
                : !gradient->whole || optimc_plan_take(plan, i, gradient->whole, &overlap))
            return 0;
    }
    return 1;
}

static enum foreign_answer refuse(Optimizer *self, const struct request *request, ptrdiff_t bad,
    struct foreign_step *step)
{
    if (self->check_finite == SKIP) {
        optimc_count_skipped(self, 1);
        return FOREIGN_SKIPPED;
    }
    if (request->overflow == GLOBAL_NORM)
        snprintf(step->message, sizeof step->message, "FloatingPointError: %s", optimc_infinite_norm);
    else
        snprintf(step->message, sizeof step->message, "FloatingPointError: %sgrads[%td] is not finite",
            request->overflow ? "the norm of " : "", bad);
    return FOREIGN_REFUSED;
}

/* The writing half.  A fork() comes before all of it or after. */
static void run(Optimizer *self, const struct request *request)
{
    optimc_pool_enter();
    optimc_count_step(self, request);
    optimc_plan_run(self->plan->core, request);
    optimc_keep_step(self, request);
    optimc_pool_leave();
}

enum foreign_answer optimc_foreign_step(struct foreign *foreign, struct foreign_step *step)
{
    Optimizer *self = foreign->optimizer;
    struct request *request = &foreign->request;
    if (!is_plain(foreign, step))
        return FOREIGN_NEEDS_PYTHON;
    optimc_plan_begin(self->plan->core);
    if (!move(foreign, step))
        return FOREIGN_NEEDS_PYTHON;
    settle(self, step);
    if (!take(self, step))
        return FOREIGN_NEEDS_PYTHON;
    *request = optimc_request_now(self);
    const ptrdiff_t bad = optimc_plan_survey(self->plan->core, request);
    if (bad >= 0)
        return refuse(self, request, bad, step);
    run(self, request);
    step->calls = self->calls;
    const size_t each = self->n_groups ? step->n_scalars / self->n_groups : 0;
    for (size_t i = 0; each && i < self->n_groups; i++)
        memcpy(step->scalars + i * each, self->groups[i].before, each * sizeof *step->scalars);
    return FOREIGN_DONE;
}

/* --------------------------------------------------------------------------------- Python - */

void optimc_await_foreign(Optimizer *self)
{
    struct latch *latch = &self->foreign->latch;
    if (optimc_latch_try(latch))
        return;
    Py_BEGIN_ALLOW_THREADS
    optimc_latch_take(latch);
    Py_END_ALLOW_THREADS
}

void optimc_admit_foreign(Optimizer *self)
{
    optimc_latch_give(&self->foreign->latch);
}

static void free_layout(const struct layout *layout)
{
    PyMem_RawFree(layout->places);
    PyMem_RawFree(layout->bytes);
}

void optimc_close_foreign(Optimizer *self)
{
    struct foreign *foreign = self->foreign;
    self->foreign = NULL;
    optimc_latch_close(&foreign->latch);
    free_layout(&foreign->layout);
    PyMem_RawFree(foreign);
}

static int by_place(const void *a, const void *b)
{
    const struct place *one = a, *other = b;
    return one->weight != other->weight ? (one->weight > other->weight) - (one->weight < other->weight)
        : one->part - other->part;
}

/* 1 if no part comes twice, else 0. */
static int differ(const struct layout *layout)
{
    const size_t n = layout->size.places;
    struct place *sorted = PyMem_RawMalloc((n + 1) * sizeof *sorted);
    if (!sorted)
        return 0;
    memcpy(sorted, layout->places, n * sizeof *sorted);
    qsort(sorted, n, sizeof *sorted, by_place);
    size_t i = 1;
    while (i < n && by_place(&sorted[i - 1], &sorted[i]))
        i++;
    PyMem_RawFree(sorted);
    return i >= n;
}

/* Reads the places: 0, or -1 with an error. */
static int read_places(struct layout *layout, const struct plan *plan, PyObject *given)
{
    const size_t n = (size_t)PyTuple_GET_SIZE(given);
    layout->size.places = n;
    layout->parts = optimc_plan_parts(plan);
    layout->places = PyMem_RawCalloc(n + 1, sizeof *layout->places);
    layout->bytes = PyMem_RawCalloc(n + 1, sizeof *layout->bytes);
    if (!layout->places || !layout->bytes) {
        PyErr_NoMemory();
        return -1;
    }
    for (size_t i = 0; i < n; i++) {
        Py_ssize_t weight;
        int part;
        PyObject *place = PyTuple_GET_ITEM(given, (Py_ssize_t)i);
        if (!PyTuple_Check(place)) {
            PyErr_Format(PyExc_TypeError, "places: expected tuples, got %s", Py_TYPE(place)->tp_name);
            return -1;
        }
        if (!PyArg_ParseTuple(place, "ni:_open_foreign", &weight, &part))
            return -1;
        if (weight < 0 || (size_t)weight >= optimc_plan_weights(plan) || part < PART_WEIGHT || part >= PARTS) {
            PyErr_SetString(PyExc_IndexError, "places: no such part");
            return -1;
        }
        layout->places[i] = (struct place){(size_t)weight, part};
        layout->bytes[i] = optimc_plan_bytes(plan, layout->places[i]);
    }
    if (differ(layout))
        return 0;
    PyErr_SetString(PyExc_ValueError, "places: a part comes twice");
    return -1;
}

PyDoc_STRVAR(open_foreign_doc, "_open_foreign($self, places, late, /)\n--\n\n"
"Lets threads of frameworks step the optimizer as its plan is: returns the number by which they know it, the same\n"
"each time.  places: the order of their arrays, a tuple of (weight, part).  late: the first step is Python's.");

static PyObject *open_foreign_now(Optimizer *self, PyObject *args)
{
    PyObject *places;
    int late;
    if (!PyArg_ParseTuple(args, "O!p:_open_foreign", &PyTuple_Type, &places, &late))
        return NULL;
    if (!self->plan) {
        PyErr_SetString(PyExc_ValueError, "the optimizer is not built");
        return NULL;
    }
    const size_t scalars = self->scalars ? (size_t)PyTuple_GET_SIZE(self->scalars) * self->n_groups : 0;
    struct layout layout = {.size = {.scalars = scalars, .gradients = optimc_plan_weights(self->plan->core)}};
    struct foreign *foreign = self->foreign;
    const int failed = read_places(&layout, self->plan->core, places);
    if (!failed && !foreign) {
        foreign = PyMem_RawCalloc(1, sizeof *foreign);
        if (!foreign || optimc_latch_open(&foreign->latch)) {
            PyMem_RawFree(foreign);
            foreign = NULL;
            PyErr_NoMemory();
        }
    }
    if (failed || !foreign) {
        free_layout(&layout);
        return NULL;
    }
    free_layout(&foreign->layout);
    foreign->optimizer = self;
    foreign->layout = layout;
    foreign->late = late;
    self->foreign = foreign;
    return PyLong_FromLongLong(foreign->latch.number);
}

BETWEEN_STEPS(open_foreign)

PyMethodDef optimc_foreign_methods[] = {
    METHOD("_open_foreign", optimizer_open_foreign, METH_VARARGS, open_foreign_doc),
    {NULL, NULL, 0, NULL},
};
