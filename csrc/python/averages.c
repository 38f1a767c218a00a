/* averages.c - the type _core.Averaged: weights hold their averages, for a while or for good.

       with _core.Averaged(optimizers, averages_of):
           ...                                         the weights hold their averages, and steps are refused

   The trained weights are kept once, by their optimizer, whoever asks for the averages: the first context that is
   entered keeps them, and the last that is left puts them back, in whatever order contexts of several threads end.
   Entering is one call.  All that can fail comes first; then averages and weights change places.  No signal handler
   comes between, nor between that and the beginning of the block.  Leaving cannot fail and waits for nothing.  A
   context that is lost is left: its last reference does it. */
#define NO_IMPORT_ARRAY
#include "python/boundary.h"

#include <string.h>

#include "plan/pool.h"

enum { LONG_COPY = 1 << 20 };           /* bytes that are worth giving up the GIL for */

typedef struct {
    PyObject_HEAD
    PyObject *optimizers;               /* a tuple, in the order of their turns */
    PyObject *averages_of;              /* a function of an optimizer */
    PyObject *whole;                    /* a tuple of arrays that hold the weights and more, or NULL: the weights */
    struct evaluation *entered;         /* one for each optimizer, or NULL */
    int busy;
} Averaged;

/* The arrays that change places in an optimizer, tuples of one length. */
struct exchange {
    PyObject *weights, *values, *shown, *kept;  /* shown holds the weights; kept is memory for it, or NULL */
};

static void copy_all(PyObject *to, PyObject *from)
{
    for (Py_ssize_t i = 0; i < PyTuple_GET_SIZE(to); i++) {
        PyArrayObject *a = (PyArrayObject *)PyTuple_GET_ITEM(to, i), *b = (PyArrayObject *)PyTuple_GET_ITEM(from, i);
        if (PyArray_NBYTES(a) && PyArray_NBYTES(a) == PyArray_NBYTES(b))
            memcpy(PyArray_BYTES(a), PyArray_BYTES(b), (size_t)PyArray_NBYTES(a));
    }
}

static npy_intp bytes_of(PyObject *arrays)
{
    npy_intp bytes = 0;
    for (Py_ssize_t i = 0; arrays && i < PyTuple_GET_SIZE(arrays); i++)
        bytes += PyArray_NBYTES((PyArrayObject *)PyTuple_GET_ITEM(arrays, i));
    return bytes;
}

/* An array whose memory is laid out like a weight's. */
static PyObject *new_like(PyObject *weight)
{
    if (PyArray_Check(weight))
        return PyArray_NewLikeArray((PyArrayObject *)weight, NPY_KEEPORDER, NULL, 0);
    return PyErr_Format(PyExc_TypeError, "whole: expected arrays, got %s", Py_TYPE(weight)->tp_name);
}

static int lies_like(PyObject *object, PyArrayObject *weight)
{
    PyArrayObject *array = (PyArrayObject *)object;
    const int orders = NPY_ARRAY_C_CONTIGUOUS | NPY_ARRAY_F_CONTIGUOUS;
    return PyArray_Check(object) && PyArray_TYPE(array) == PyArray_TYPE(weight) && PyArray_ISNOTSWAPPED(array)
        && PyArray_SAMESHAPE(array, weight) && (PyArray_FLAGS(array) & PyArray_FLAGS(weight) & orders);
}

/* An average as its weight lies in memory: itself, or a copy. */
static PyObject *laid_out_like(PyObject *average, PyArrayObject *weight)
{
    if (lies_like(average, weight))
        return Py_NewRef(average);
    PyObject *copy = new_like((PyObject *)weight);
    if (copy && PyArray_CopyObject((PyArrayObject *)copy, average))
        Py_CLEAR(copy);
    return copy;
}

static void drop(struct exchange *exchange)
{
    Py_CLEAR(exchange->weights);
    Py_CLEAR(exchange->values);
    Py_CLEAR(exchange->shown);
    Py_CLEAR(exchange->kept);
}

/* A tuple with memory for each of some arrays. */
static PyObject *new_like_all(PyObject *arrays)
{
    PyObject *made = PyTuple_New(PyTuple_GET_SIZE(arrays));
    for (Py_ssize_t i = 0; made && i < PyTuple_GET_SIZE(arrays); i++) {
        PyTuple_SET_ITEM(made, i, new_like(PyTuple_GET_ITEM(arrays, i)));
        if (!PyTuple_GET_ITEM(made, i))
            Py_CLEAR(made);
    }
    return made;
}

/* Makes the tuples of an exchange: 0 or -1. */
static int lay_out(Averaged *self, Optimizer *optimizer, PyObject *averages, int keep, struct exchange *exchange)
{
    const Py_ssize_t own = PyTuple_GET_SIZE(optimizer->plan->weights), given = PyTuple_GET_SIZE(averages);
    const Py_ssize_t masters = keep ? 0 : (given - own) / 2, n = own + masters;
    if (masters < 0 || given != own + 2 * masters) {
        PyErr_Format(PyExc_ValueError, "averages: expected %zd arrays, one per weight, got %zd", own, given);
        return -1;
    }
    PyObject *targets = PyTuple_GetSlice(averages, own, n);
    PyObject *weights = exchange->weights = targets ? PySequence_Concat(optimizer->plan->weights, targets) : NULL;
    Py_XDECREF(targets);
    if (!weights)
        return -1;
    exchange->shown = keep ? Py_NewRef(self->whole ? self->whole : weights) : NULL;
    exchange->kept = keep ? new_like_all(exchange->shown) : NULL;
    exchange->values = PyTuple_New(n);
    if (!exchange->values || (keep && !exchange->kept))
        return -1;
    for (Py_ssize_t i = 0; i < n; i++) {
        PyArrayObject *weight = (PyArrayObject *)PyTuple_GET_ITEM(weights, i);
        PyTuple_SET_ITEM(exchange->values, i, laid_out_like(
            PyTuple_GET_ITEM(averages, i < own ? i : i + masters), weight));
        if (!PyTuple_GET_ITEM(exchange->values, i))
            return -1;
    }
    return 0;
}

/* Everything of an exchange that can fail: 0 or -1.  Nothing is exchanged if the weights hold averages already. */
static int prepare(Averaged *self, Optimizer *optimizer, int keep, struct exchange *exchange)
{
    const int shown = optimizer->evaluating;
    PyObject *given = PyObject_CallOneArg(self->averages_of, (PyObject *)optimizer);
    PyObject *averages = given && !shown ? PySequence_Tuple(given) : NULL;
    Py_XDECREF(given);
    if (PyErr_Occurred())
        return -1;
    if (!averages)
        return 0;
    if (!optimizer->plan)
        PyErr_SetString(PyExc_ValueError, "the optimizer is not built: it has no weights yet");
    const int failed = !optimizer->plan || lay_out(self, optimizer, averages, keep, exchange);
    Py_DECREF(averages);
    return failed ? -1 : 0;
}

static Optimizer *showing;              /* those whose weights hold their averages: a list of borrowed references */

static void show_no_more(const Optimizer *self)
{
    Optimizer **place = &showing;
    while (*place && *place != self)
        place = &(*place)->next_shown;
    if (*place)
        *place = self->next_shown;
}

static void enter_one(Optimizer *optimizer, struct evaluation *evaluation)
{
    *evaluation = (struct evaluation){optimc_this_thread(), optimizer->evaluations};
    optimizer->evaluations = evaluation;
    optimizer->evaluating++;
}

/* Puts the averages into the weights.  It cannot fail.  A fork comes before all of it or after. */
static void exchange_all(Averaged *self, struct exchange *exchanges, struct evaluation *evaluations)
{
    const Py_ssize_t n = PyTuple_GET_SIZE(self->optimizers);
    npy_intp bytes = 0;
    for (Py_ssize_t i = 0; i < n; i++)
        bytes += bytes_of(exchanges[i].weights) + bytes_of(exchanges[i].shown);
    optimc_pool_enter();
    for (Py_ssize_t i = 0; evaluations && i < n; i++) {
        Optimizer *optimizer = (Optimizer *)PyTuple_GET_ITEM(self->optimizers, i);
        if (!exchanges[i].weights)
            continue;
        optimizer->shown = Py_NewRef(exchanges[i].shown);
        optimizer->kept = Py_NewRef(exchanges[i].kept);
        optimizer->next_shown = showing;
        showing = optimizer;
        enter_one(optimizer, &evaluations[i]);
    }
    PyThreadState *thread = bytes >= LONG_COPY ? PyEval_SaveThread() : NULL;
    for (Py_ssize_t i = 0; i < n; i++)          /* first all that is kept: optimizers may share a weight */
        if (exchanges[i].kept)
            copy_all(exchanges[i].kept, exchanges[i].shown);
    for (Py_ssize_t i = 0; i < n; i++)
        if (exchanges[i].weights)
            copy_all(exchanges[i].weights, exchanges[i].values);
    optimc_pool_leave();
    if (thread)
        PyEval_RestoreThread(thread);
}

void optimc_put_back(Optimizer *self)
{
    optimc_look_for_fork(self);             /* which may put them back too */
    PyObject *shown = self->shown, *kept = self->kept;
    if (shown) {
        /* Steps are refused until the end.  Only who has the turn may let other threads run meanwhile. */
        PyThreadState *thread = NULL;
        const int locked = !self->owner && bytes_of(shown) >= LONG_COPY && !optimc_take_turn(self);
        if (locked) {
            optimc_pool_enter();
            thread = PyEval_SaveThread();
        }
        copy_all(shown, kept);
        if (locked) {
            optimc_pool_leave();
            PyEval_RestoreThread(thread);
            optimc_unlock(self);
        }
    }
    show_no_more(self);
    self->evaluating = 0;
    self->shown = self->kept = NULL;
    Py_XDECREF(shown);
    Py_XDECREF(kept);
}

void optimc_leave_dead_evaluations(Optimizer *self)
{
    struct evaluation **place = &self->evaluations;
    while (*place)
        if (optimc_is_alive((*place)->thread)) {
            place = &(*place)->next;
        } else {
            *place = (*place)->next;
            self->evaluating--;
        }
    if (!self->evaluations)
        optimc_put_back(self);
}

PyDoc_STRVAR(leave_dead_doc, "leave_dead_evaluations($module, /)\n--\n\n"
"In a child process: ends the contexts of threads that it does not have, in all optimizers.");

static PyObject *core_leave_dead_evaluations(PyObject *Py_UNUSED(module), PyObject *Py_UNUSED(ignored))
{
    for (Optimizer *optimizer = showing; optimizer;) {
        if (optimizer->forks == optimc_pool_forks()) {
            optimizer = optimizer->next_shown;
            continue;
        }
        Py_INCREF(optimizer);
        optimc_look_for_fork(optimizer);
        Py_DECREF(optimizer);
        optimizer = showing;                /* any of them may be gone by now */
    }
    Py_RETURN_NONE;
}

PyMethodDef optimc_averages_functions[] = {
    METHOD("leave_dead_evaluations", core_leave_dead_evaluations, METH_NOARGS, leave_dead_doc),
    {NULL, NULL, 0, NULL},
};

/* Ends an evaluation.  In a child process it may have ended already. */
static void leave_one(Optimizer *optimizer, const struct evaluation *evaluation)
{
    optimc_look_for_fork(optimizer);
    struct evaluation **place = &optimizer->evaluations;
    while (*place && *place != evaluation)
        place = &(*place)->next;
    if (!*place)
        return;
    *place = evaluation->next;
    if (optimizer->evaluations)
        optimizer->evaluating--;
    else
        optimc_put_back(optimizer);
}

/* Prepares the exchange of an optimizer: 0 or -1.  If its weights hold averages already, it is entered at once: no
   other thread that leaves it may put the weights back. */
static int begin_one(Averaged *self, Optimizer *optimizer, struct exchange *exchange, struct evaluation *evaluation)
{
    if (optimizer->evaluating && evaluation)
        enter_one(optimizer, evaluation);
    if (!optimizer->evaluating || evaluation)
        return prepare(self, optimizer, evaluation != NULL, exchange);
    PyErr_SetString(PyExc_RuntimeError,
        "within averaged() the weights hold their averages for a while: finalize them after it");
    return -1;
}

/* Enters, or exchanges for good: 0 or -1.  The turns are taken. */
static int begin_all(Averaged *self, struct exchange *exchanges, struct evaluation *evaluations)
{
    const Py_ssize_t n = PyTuple_GET_SIZE(self->optimizers);
    Py_ssize_t i = 0;
    for (; i < n; i++)
        if (begin_one(self, (Optimizer *)PyTuple_GET_ITEM(self->optimizers, i), &exchanges[i],
                evaluations ? &evaluations[i] : NULL))
            break;
    if (i == n) {
        exchange_all(self, exchanges, evaluations);
        return 0;
    }
    for (i = 0; evaluations && i < n; i++)
        leave_one((Optimizer *)PyTuple_GET_ITEM(self->optimizers, i), &evaluations[i]);
    return -1;
}

static int begin(Averaged *self, int keep)
{
    if (self->entered || self->busy) {
        PyErr_SetString(PyExc_RuntimeError, "averaged(): the context is in use");
        return -1;
    }
    const Py_ssize_t n = PyTuple_GET_SIZE(self->optimizers);
    struct exchange *exchanges = PyMem_Calloc((size_t)n + 1, sizeof *exchanges);
    struct evaluation *evaluations = keep ? PyMem_Calloc((size_t)n + 1, sizeof *evaluations) : NULL;
    int failed = 1;
    self->busy = 1;
    if (!exchanges || (keep && !evaluations)) {
        PyErr_NoMemory();
    } else if (!optimc_lock_all(self->optimizers)) {
        failed = begin_all(self, exchanges, evaluations);
        if (!failed)
            self->entered = evaluations;
        optimc_unlock_all(self->optimizers);
    }
    self->busy = 0;
    for (Py_ssize_t i = 0; exchanges && i < n; i++)
        drop(&exchanges[i]);
    PyMem_Free(exchanges);
    if (failed)
        PyMem_Free(evaluations);
    return failed ? -1 : 0;
}

/* An error that is set stays. */
static void leave(Averaged *self)
{
    struct evaluation *evaluations = self->entered;
    if (!evaluations)
        return;
    PyObject *type, *value, *traceback;
    PyErr_Fetch(&type, &value, &traceback);
    self->entered = NULL;
    PyObject *optimizers = Py_NewRef(self->optimizers);
    for (Py_ssize_t i = 0; i < PyTuple_GET_SIZE(optimizers); i++)
        leave_one((Optimizer *)PyTuple_GET_ITEM(optimizers, i), &evaluations[i]);
    Py_DECREF(optimizers);
    PyMem_Free(evaluations);
    PyErr_Restore(type, value, traceback);
}

static PyObject *averaged_enter(Averaged *self, PyObject *Py_UNUSED(ignored))
{
    return begin(self, 1) ? NULL : Py_NewRef(Py_None);
}

static PyObject *averaged_exit(Averaged *self, PyObject *const *Py_UNUSED(args), Py_ssize_t Py_UNUSED(n))
{
    if (!self->entered) {
        PyErr_SetString(PyExc_RuntimeError, "averaged(): the context was not entered");
        return NULL;
    }
    leave(self);
    Py_RETURN_FALSE;
}

PyDoc_STRVAR(finalize_doc, "finalize($self, /)\n--\n\n"
"Puts the averages into the weights for good.  After them, averages_of may give masters of weights, and then a new\n"
"value for each.");

static PyObject *averaged_finalize(Averaged *self, PyObject *Py_UNUSED(ignored))
{
    return begin(self, 0) ? NULL : Py_NewRef(Py_None);
}

static PyObject *averaged_new(PyTypeObject *type, PyObject *args, PyObject *kwargs)
{
    static char *names[] = {"optimizers", "averages_of", "whole", NULL};
    PyObject *given, *averages_of, *whole = NULL;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "OO|O!", names, &given, &averages_of, &PyTuple_Type, &whole))
        return NULL;
    PyObject *optimizers = optimc_in_order(((struct state *)PyType_GetModuleState(type))->type, given);
    Averaged *self = optimizers ? (Averaged *)type->tp_alloc(type, 0) : NULL;
    if (!self) {
        Py_XDECREF(optimizers);
        return NULL;
    }
    self->optimizers = optimizers;
    self->averages_of = Py_NewRef(averages_of);
    self->whole = Py_XNewRef(whole);
    return (PyObject *)self;
}

static int averaged_traverse(Averaged *self, visitproc visit, void *arg)
{
    Py_VISIT(Py_TYPE(self));
    Py_VISIT(self->optimizers);
    Py_VISIT(self->averages_of);
    Py_VISIT(self->whole);
    return 0;
}

static int averaged_clear(Averaged *self)
{
    leave(self);
    Py_CLEAR(self->averages_of);
    Py_CLEAR(self->whole);
    return 0;
}

static void averaged_dealloc(Averaged *self)
{
    PyTypeObject *type = Py_TYPE(self);
    PyObject_GC_UnTrack(self);
    averaged_clear(self);
    Py_CLEAR(self->optimizers);
    type->tp_free(self);
    Py_DECREF(type);
}

static PyMethodDef averaged_methods[] = {
    METHOD("__enter__", averaged_enter, METH_NOARGS,
        "__enter__($self, /)\n--\n\nPuts the averages into the weights."),
    METHOD("__exit__", averaged_exit, METH_FASTCALL,
        "__exit__($self, /, *args)\n--\n\nThe last context that is left puts the trained weights back."),
    METHOD("finalize", averaged_finalize, METH_NOARGS, finalize_doc),
    {NULL, NULL, 0, NULL},
};

static PyType_Slot averaged_slots[] = {
    {Py_tp_doc, "Averaged(optimizers, averages_of, whole=...)\n--\n\n"
        "A context in which weights hold their averages.  averages_of: a function of an optimizer that gives an\n"
        "array per weight.  It is called for an optimizer within another context too, but then not used.\n"
        "whole: contiguous arrays that hold the weights; they are kept and put back instead."},
    {Py_tp_new, averaged_new},
    {Py_tp_dealloc, averaged_dealloc},
    {Py_tp_traverse, averaged_traverse},
    {Py_tp_clear, averaged_clear},
    {Py_tp_methods, averaged_methods},
    {0, NULL},
};

static PyType_Spec averaged_spec = {
    .name = "optimc._core.Averaged",
    .basicsize = sizeof(Averaged),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_IMMUTABLETYPE,
    .slots = averaged_slots,
};

PyTypeObject *optimc_averaged_type(PyObject *module)
{
    return (PyTypeObject *)PyType_FromModuleAndSpec(module, &averaged_spec, NULL);
}
