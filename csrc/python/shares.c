/* shares.c - steps over parts of weights whose other parts are elsewhere (optimc/mpi/).

   The first half matches without a look into the gradients, the look follows, and the second half runs in parts. */
#define NO_IMPORT_ARRAY
#include "python/boundary.h"
#include "plan/pool.h"
#include "python/views.h"

PyDoc_STRVAR(match_doc, "_match_step($self, grads, trainable_variables, quiet, /)\n--\n\n"
"`_check` without a look into the gradients, whose values need not be there yet.  Gives for each weight\n"
"whether it takes part.  quiet: do not warn of missing gradients.  `_finish` must follow; not after an error.");

static PyObject *optimizer_match(Optimizer *self, PyObject *args)
{
    PyObject *grads, *weights, *taken = NULL;
    int quiet;
    if (!PyArg_ParseTuple(args, "OOp", &grads, &weights, &quiet) || optimc_lock(self))
        return NULL;
    if (!optimc_match_step(self, grads, weights, quiet)) {
        optimc_make_request(self, PROPAGATE);
        const size_t n = optimc_plan_weights(self->plan);
        taken = PyTuple_New((Py_ssize_t)n);
        for (size_t i = 0; taken && i < n; i++)
            PyTuple_SET_ITEM(taken, (Py_ssize_t)i,
                PyBool_FromLong(optimc_plan_takes(self->plan, &self->request, i)));
    }
    if (!taken) {
        optimc_end_step(self, 0);
        optimc_unlock(self);
    }
    return taken;
}

PyDoc_STRVAR(survey_doc, "_survey($self, finite, /)\n--\n\n"
"After `_match_step`, the rest of `_check`, which says what it gives; an error does not end the step.");

static PyObject *optimizer_survey(Optimizer *self, PyObject *argument)
{
    const int finite = PyObject_IsTrue(argument);
    const int checked = finite < 0 ? -1 : optimc_survey_step(self, NULL, NULL, finite ? SKIP : self->check_finite);
    return checked < 0 ? NULL : PyBool_FromLong(checked);
}

PyDoc_STRVAR(sums_doc, "_sums($self, /)\n--\n\n"
"The sums of squares that `_survey` made, one per SUM_BLOCK elements of each weight: bytes of doubles.");

static PyObject *optimizer_sums(Optimizer *self, PyObject *Py_UNUSED(ignored))
{
    size_t n = 0;
    const double *sums = self->plan ? optimc_plan_sums(self->plan, &n) : NULL;
    return PyBytes_FromStringAndSize((const char *)sums, (Py_ssize_t)(n * sizeof *sums));
}

PyDoc_STRVAR(refold_doc, "_refold($self, finite, sums, counts, /)\n--\n\n"
"Takes these sums of squares (contiguous doubles) instead of those `_survey` made: counts[i] (contiguous\n"
"64-bit integers) of them for weight i.  `finite` and what is returned: as `_survey`.");

static PyObject *optimizer_refold(Optimizer *self, PyObject *args)
{
    int finite;
    Py_buffer sums, counts;
    if (!PyArg_ParseTuple(args, "py*y*", &finite, &sums, &counts))
        return NULL;
    const size_t n = self->plan ? optimc_plan_weights(self->plan) : 0;
    int64_t needed = 0;
    int fits = (size_t)counts.len == n * sizeof needed;
    for (size_t i = 0; fits && i < n; i++) {
        needed += ((const int64_t *)counts.buf)[i];
        fits = ((const int64_t *)counts.buf)[i] >= 0 && needed <= sums.len / (Py_ssize_t)sizeof(double);
    }
    if (fits && n)
        optimc_plan_refold(self->plan, &self->request, sums.buf, counts.buf);
    else
        PyErr_SetString(PyExc_ValueError, "counts: expected one per weight, and together as many as there are sums");
    PyBuffer_Release(&sums);
    PyBuffer_Release(&counts);
    if (!fits || !n)
        return NULL;
    const int good = !self->request.overflow;
    if (!good && !finite && self->check_finite != SKIP && optimc_refuse_norm())
        return NULL;
    return PyBool_FromLong(good);
}

PyDoc_STRVAR(advance_doc, "_advance($self, double, begin, end, /)\n--\n\n"
"After `_survey`: steps elements begin .. end - 1 of all weights of one type (float64 if `double`), counted\n"
"in their order.  Every element must be stepped once before `_finish`.");

static PyObject *optimizer_advance(Optimizer *self, PyObject *args)
{
    int is_double;
    Py_ssize_t begin, end;
    if (!PyArg_ParseTuple(args, "pnn", &is_double, &begin, &end))
        return NULL;
    Py_ssize_t size = 0;
    const enum type real_type = is_double ? TYPE_F64 : TYPE_F32;
    for (size_t i = 0; self->plan && i < optimc_plan_weights(self->plan); i++)
        if (optimc_type_of((PyArrayObject *)PyTuple_GET_ITEM(self->weights, (Py_ssize_t)i)) == (int)real_type)
            size += (Py_ssize_t)optimc_plan_size(self->plan, i);
    if (!self->plan || begin < 0 || begin > end || end > size) {
        PyErr_Format(PyExc_IndexError, "expected elements from 0 to %zd, got %zd to %zd", size, begin, end);
        return NULL;
    }
    const int begun = self->begun;
    self->begun = 1;
    optimc_pool_enter();                            /* with the GIL: a fork comes before all of it or after */
    if (!begun)
        optimc_open_step(self);
    Py_BEGIN_ALLOW_THREADS
    if (!begun)
        optimc_plan_start(self->plan, &self->request);
    optimc_plan_span(self->plan, real_type, (size_t)begin, (size_t)end);
    optimc_pool_leave();
    Py_END_ALLOW_THREADS
    Py_RETURN_NONE;
}

PyMethodDef optimc_shares_methods[] = {
    METHOD("_match_step", optimizer_match, METH_VARARGS, match_doc),
    METHOD("_survey", optimizer_survey, METH_O, survey_doc),
    METHOD("_sums", optimizer_sums, METH_NOARGS, sums_doc),
    METHOD("_refold", optimizer_refold, METH_VARARGS, refold_doc),
    METHOD("_advance", optimizer_advance, METH_VARARGS, advance_doc),
    {NULL, NULL, 0, NULL},
};
