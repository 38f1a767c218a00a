/* shares.c - what a transaction does for steps over parts of weights whose other parts are elsewhere (optimc/mpi/).

   Such a step is entered first: its optimizer is locked, and then a plan of the whole weights says which weights take
   part.  The first half matches without a look into the gradients, whose values need not be there yet; the look
   follows; the second half runs in parts.  What a part has written stays, even if the transaction is not
   committed. */
#define NO_IMPORT_ARRAY
#include "python/boundary.h"
#include "plan/pool.h"
#include "python/transaction.h"
#include "python/views.h"

PyDoc_STRVAR(enter_doc, "enter($self, optimizer, plan, /)\n--\n\n"
"Locks an optimizer before its step is matched.  `plan`: one that no optimizer holds, used by this step alone from\n"
"now on.  The gradients that it matches are dropped when this step ends.");

static PyObject *transaction_enter_step(Transaction *self, PyObject *args)
{
    PyObject *object, *whole;
    const struct state *module = PyType_GetModuleState(Py_TYPE(self));
    if (!PyArg_ParseTuple(args, "OO!:enter", &object, module->plan_type, &whole))
        return NULL;
    struct checked *step = optimc_add_step(self, object);
    if (!step)
        return NULL;
    if (((Plan *)whole)->owner) {       /* only now: another thread may have bound it while this one waited */
        optimc_drop_step(self);
        PyErr_SetString(PyExc_ValueError, "the plan belongs to an optimizer");
        return NULL;
    }
    step->whole = (Plan *)Py_NewRef(whole);
    Py_RETURN_NONE;
}

/* The last step, if it is ENTERED and of this optimizer, or NULL. */
static struct checked *entered(const Transaction *self, PyObject *optimizer)
{
    struct checked *last = self->n_steps ? &self->steps[self->n_steps - 1] : NULL;
    return last && last->progress == ENTERED && (PyObject *)last->optimizer == optimizer
        && last->optimizer->owner == last->thread ? last : NULL;
}

PyDoc_STRVAR(match_doc, "match($self, optimizer, grads, weights, quiet, /)\n--\n\n"
"`check` without a look into the gradients, whose values need not be there yet.  Gives for each weight whether it\n"
"takes part.  quiet: do not warn of missing gradients.  A commit does not run a step that is matched only.");

static PyObject *transaction_match(Transaction *self, PyObject *args)
{
    PyObject *object, *grads, *weights, *taken = NULL;
    int quiet;
    if (!PyArg_ParseTuple(args, "OOOp:match", &object, &grads, &weights, &quiet) || optimc_refuse_use(self))
        return NULL;
    struct checked *before = entered(self, object), *step = before ? before : optimc_add_step(self, object);
    if (!step)
        return NULL;
    Optimizer *optimizer = step->optimizer;
    self->busy = CHECKING;
    if (!optimc_match_step(optimizer, grads, weights, quiet)) {
        optimc_make_request(optimizer, PROPAGATE);
        taken = optimc_taken(optimizer->plan);
    }
    if (taken)
        step->progress = TAKEN;
    else if (before)
        optimc_end_step(optimizer, 0);              /* it stays locked */
    else
        optimc_drop_step(self);
    self->busy = 0;
    return taken;
}

/* The step of an optimizer, if no part of it has run, or NULL with an error. */
static struct checked *step_to_look_at(Transaction *self, PyObject *optimizer)
{
    struct checked *step = optimc_step_of(self, optimizer);
    if (!step || step->progress != BEGUN)
        return step;
    PyErr_SetString(PyExc_RuntimeError, "the step has begun");
    return NULL;
}

PyDoc_STRVAR(survey_doc, "survey($self, optimizer, finite, /)\n--\n\n"
"After `match`, the rest of `check`, which says what it gives; an error does not end the step.");

static PyObject *transaction_survey(Transaction *self, PyObject *args)
{
    PyObject *object;
    int finite;
    if (!PyArg_ParseTuple(args, "Op:survey", &object, &finite))
        return NULL;
    struct checked *step = step_to_look_at(self, object);
    if (!step)
        return NULL;
    self->busy = CHECKING;              /* the survey may give up the GIL */
    const int good = optimc_survey_step(step->optimizer, NULL, NULL, finite ? SKIP : step->optimizer->check_finite);
    self->busy = 0;
    return optimc_note_look(step, good, finite);
}

PyDoc_STRVAR(sums_doc, "sums($self, optimizer, /)\n--\n\n"
"The sums of squares that `survey` made, one per SUM_BLOCK elements of each weight: bytes of doubles.");

static PyObject *transaction_sums(Transaction *self, PyObject *object)
{
    struct checked *step = optimc_step_of(self, object);
    if (!step)
        return NULL;
    size_t n;
    const double *sums = optimc_plan_sums(step->optimizer->plan->core, &n);
    return PyBytes_FromStringAndSize((const char *)sums, (Py_ssize_t)(n * sizeof *sums));
}

PyDoc_STRVAR(refold_doc, "refold($self, optimizer, finite, sums, counts, /)\n--\n\n"
"Takes these sums of squares (contiguous doubles) instead of those `survey` made: counts[i] (contiguous\n"
"64-bit integers) of them for weight i.  `finite` and what is returned: as `survey`.");

/* Takes the sums, if their counts fit. */
static int refold(Optimizer *optimizer, const Py_buffer *sums, const Py_buffer *counts)
{
    const size_t n = optimc_plan_weights(optimizer->plan->core);
    int64_t needed = 0;
    int fits = n && (size_t)counts->len == n * sizeof needed;
    for (size_t i = 0; fits && i < n; i++) {
        needed += ((const int64_t *)counts->buf)[i];
        fits = ((const int64_t *)counts->buf)[i] >= 0 && needed <= sums->len / (Py_ssize_t)sizeof(double);
    }
    if (fits)
        optimc_plan_refold(optimizer->plan->core, &optimizer->plan->request, sums->buf, counts->buf);
    else
        PyErr_SetString(PyExc_ValueError, "counts: expected one per weight, and together as many as there are sums");
    return fits;
}

static PyObject *transaction_refold(Transaction *self, PyObject *args)
{
    PyObject *object;
    int finite;
    Py_buffer sums, counts;
    if (!PyArg_ParseTuple(args, "Opy*y*:refold", &object, &finite, &sums, &counts))
        return NULL;
    struct checked *step = step_to_look_at(self, object);
    int good = -1;
    if (step && refold(step->optimizer, &sums, &counts)) {
        good = !step->optimizer->plan->request.overflow;
        if (!good && !finite && step->optimizer->check_finite != SKIP)
            good = optimc_refuse_norm();
    }
    PyObject *noted = optimc_note_look(step, good, finite);
    PyBuffer_Release(&sums);            /* last: they may have code of their own */
    PyBuffer_Release(&counts);
    return noted;
}

PyDoc_STRVAR(skip_doc, "skip($self, optimizer, finite, /)\n--\n\n"
"Treats a step as one whose gradients `survey` found not finite: they are not, elsewhere.");

static PyObject *transaction_skip(Transaction *self, PyObject *args)
{
    PyObject *object;
    int finite;
    if (!PyArg_ParseTuple(args, "Op:skip", &object, &finite))
        return NULL;
    struct checked *step = step_to_look_at(self, object);
    if (!step)
        return NULL;
    Py_XDECREF(optimc_note_look(step, 0, finite));
    Py_RETURN_NONE;
}

PyDoc_STRVAR(rows_doc, "rows($self, optimizer, index, /)\n--\n\n"
"The rows of weight `index` that the step visits, once it has begun: bytes of 32-bit integers, none if the weight\n"
"is not stepped by rows.");

static PyObject *transaction_rows(Transaction *self, PyObject *args)
{
    PyObject *object;
    Py_ssize_t index;
    if (!PyArg_ParseTuple(args, "On:rows", &object, &index))
        return NULL;
    struct checked *step = optimc_step_of(self, object);
    if (!step)
        return NULL;
    const struct plan *plan = step->optimizer->plan->core;
    if (step->progress != BEGUN || index < 0 || (size_t)index >= optimc_plan_weights(plan)) {
        PyErr_SetString(PyExc_IndexError, "the step has not begun, or there is no such weight");
        return NULL;
    }
    const size_t n = optimc_plan_rows_present(plan, (size_t)index, NULL);
    PyObject *rows = PyBytes_FromStringAndSize(NULL, (Py_ssize_t)(n * sizeof(uint32_t)));
    if (rows)
        optimc_plan_rows_present(plan, (size_t)index, (uint32_t *)PyBytes_AS_STRING(rows));
    return rows;
}

/* Begins the second half of a step. */
static void start(Plan *plan)
{
    optimc_plan_start(plan->core, &plan->request);
    optimc_plan_step_rows(plan->core);
}

PyDoc_STRVAR(advance_doc, "advance($self, optimizer, type, begin, end, /)\n--\n\n"
"Runs elements begin .. end - 1 of all weights of one type (TYPE_F32, ...), counted in their order.  Every\n"
"element must run once before the commit, which then only counts the step; but the first call runs all weights that\n"
"are stepped by rows.");

static PyObject *transaction_advance(Transaction *self, PyObject *args)
{
    PyObject *object;
    int type;
    Py_ssize_t begin, end;
    if (!PyArg_ParseTuple(args, "Oinn:advance", &object, &type, &begin, &end))
        return NULL;
    struct checked *step = optimc_step_of(self, object);
    if (!step)
        return NULL;
    Optimizer *optimizer = step->optimizer;
    Py_ssize_t size = 0;
    for (size_t i = 0; i < optimc_plan_weights(optimizer->plan->core); i++)
        if (optimc_type_of((PyArrayObject *)PyTuple_GET_ITEM(optimizer->plan->weights, (Py_ssize_t)i))
                == type)
            size += (Py_ssize_t)optimc_plan_size(optimizer->plan->core, i);
    if (begin < 0 || begin > end || end > size) {
        PyErr_Format(PyExc_IndexError, "expected elements from 0 to %zd, got %zd to %zd", size, begin, end);
        return NULL;
    }
    const int begun = step->progress == BEGUN;
    step->progress = BEGUN;
    self->busy = CHECKING;                          /* no other thread may use the transaction meanwhile */
    optimc_pool_enter();                            /* with the GIL: a fork comes before all of it or after */
    if (!begun)
        optimc_open_step(optimizer);
    Py_BEGIN_ALLOW_THREADS
    if (!begun)
        start(optimizer->plan);
    optimc_plan_span(optimizer->plan->core, (enum type)type, (size_t)begin, (size_t)end);
    optimc_pool_leave();
    Py_END_ALLOW_THREADS
    self->busy = 0;
    Py_RETURN_NONE;
}

PyMethodDef optimc_shares_methods[] = {
    METHOD("enter", transaction_enter_step, METH_VARARGS, enter_doc),
    METHOD("match", transaction_match, METH_VARARGS, match_doc),
    METHOD("survey", transaction_survey, METH_VARARGS, survey_doc),
    METHOD("sums", transaction_sums, METH_O, sums_doc),
    METHOD("refold", transaction_refold, METH_VARARGS, refold_doc),
    METHOD("skip", transaction_skip, METH_VARARGS, skip_doc),
    METHOD("rows", transaction_rows, METH_VARARGS, rows_doc),
    METHOD("advance", transaction_advance, METH_VARARGS, advance_doc),
    {NULL, NULL, 0, NULL},
};
