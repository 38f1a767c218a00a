/* bind.c - makes the plan of an optimizer from the arrays that Python chose, or forgets it.

   Nothing changes on an error.  Which kernel, slots and group a weight has is Python's to decide
   (optimc/base/optimizer.py). */
#define NO_IMPORT_ARRAY
#include "python/boundary.h"
#include "python/views.h"

void optimc_unbind(Optimizer *self)
{
    optimc_plan_free(self->plan);
    self->plan = NULL;
    PyMem_Free(self->gradients);
    self->gradients = NULL;
    PyMem_Free(self->room);
    self->room = NULL;
    Py_CLEAR(self->orders);
    Py_CLEAR(self->grad_name);
    Py_CLEAR(self->arrays);
    Py_CLEAR(self->weights);
    Py_CLEAR(self->names);
}

/* A tuple argument of length n. */
static int is_tuple(PyObject *object, Py_ssize_t n, const char *name)
{
    if (PyTuple_Check(object) && PyTuple_GET_SIZE(object) == n)
        return 1;
    PyErr_Format(PyExc_TypeError, "_bind: %s must be a tuple of length %zd", name, n);
    return 0;
}

PyDoc_STRVAR(bind_doc, "_bind($self, weights, names, kernels, slot_names, slots, averages, accumulators, "
"decays, factors, groups, waiting, held, counts=None, /)\n--\n\n"
"Makes the plan.  Tuples with an entry per weight: `weights`, arrays; `names`, str, or None for all;\n"
"`kernels`, indices; `slot_names` and `slots`, tuples in the order of the rule, None for a slot the kernel\n"
"does not keep; `averages` and `accumulators`, arrays, or None for all; `decays`, the index of the value\n"
"that is its weight decay, or -1; `factors`, what coefficients depend on beside the values; `groups`,\n"
"indices; `waiting`, as `_waiting` gives it.  Then `_take(held, counts)`.  Nothing changes on an error, and no\n"
"signal handler comes between.");

PyDoc_STRVAR(take_doc, "_take($self, held, counts=None, /)\n--\n\n"
"Sets attributes that are there already, from a dict, and counts, (`_calls`, `_skipped`, `_get_running()`), all in\n"
"one: nothing here takes memory, and no signal handler comes between.");

static PyObject *take_now(Optimizer *self, PyObject *args)
{
    PyObject *held, *counts = Py_None, *running = NULL, *key, *value;
    long long calls, skipped;
    if (!PyArg_ParseTuple(args, "O!|O", &PyDict_Type, &held, &counts)
        || (counts != Py_None && !PyArg_ParseTuple(counts, "LLO", &calls, &skipped, &running))
        || (running && optimc_set_running(self, running, 0)))
        return NULL;
    PyObject *attributes = PyObject_GenericGetDict((PyObject *)self, NULL);
    int failed = !attributes;
    for (Py_ssize_t i = 0; !failed && PyDict_Next(held, &i, &key, &value);)
        failed = PyDict_SetItem(attributes, key, value);
    Py_XDECREF(attributes);
    if (failed)
        return NULL;
    if (running) {
        if (optimc_set_running(self, running, 1))
            return NULL;
        self->calls = calls;
        self->skipped = skipped;
    }
    Py_RETURN_NONE;
}

BETWEEN_STEPS(take)

/* Looks at array i of a tuple that may be None; gives NULL for None. */
static int look_at_part(PyObject *arrays, Py_ssize_t i, PyObject *keys, int part,
    struct view *view, const struct view **kept)
{
    *kept = NULL;
    if (arrays == Py_None)
        return 0;
    *kept = view;
    return optimc_look_writable(PyTuple_GET_ITEM(arrays, i),
        optimc_place_name(keys, NULL, (struct place){(size_t)i, part}), view);
}

static PyObject *bind_now(Optimizer *self, PyObject *args)
{
    PyObject *weights, *names, *slot_names, *slots, *averages, *accumulators, *decays, *groups;
    PyObject *kernels, *factors, *waiting, *held, *counts = Py_None;
    if ((self->matching && optimc_refuse_nested(self))
        || !PyArg_ParseTuple(args, "O!OO!O!O!OOO!O!O!O!O!|O", &PyTuple_Type, &weights, &names,
            &PyTuple_Type, &kernels, &PyTuple_Type, &slot_names, &PyTuple_Type, &slots, &averages,
            &accumulators, &PyTuple_Type, &decays, &PyTuple_Type, &factors, &PyTuple_Type, &groups,
            &PyTuple_Type, &waiting, &PyDict_Type, &held, &counts))
        return NULL;
    const Py_ssize_t n = PyTuple_GET_SIZE(weights);
    if ((names != Py_None && !is_tuple(names, n, "names")) || !is_tuple(slots, n, "slots")
        || (averages != Py_None && !is_tuple(averages, n, "averages"))
        || (accumulators != Py_None && !is_tuple(accumulators, n, "accumulators"))
        || !is_tuple(kernels, n, "kernels") || !is_tuple(slot_names, n, "slot_names")
        || !is_tuple(decays, n, "decays") || !is_tuple(factors, n, "factors")
        || !is_tuple(groups, n, "groups") || !is_tuple(waiting, n, "waiting"))
        return NULL;
    PyObject *keys = names == Py_None ? NULL : names;
    struct plan *plan = optimc_plan_new((size_t)n, (struct memory){PyMem_RawCalloc, PyMem_RawFree});
    PyObject **gradients = PyMem_Calloc((size_t)n + 1, sizeof *gradients);
    PyObject *arrays = PyTuple_Pack(4, weights, slots, averages, accumulators);
    PyObject *taken = PyTuple_Pack(2, held, counts), *done;
    if (!plan || !gradients || !arrays || !taken) {
        PyErr_NoMemory();
        goto fail;
    }
    for (Py_ssize_t i = 0; i < n; i++) {
        PyObject *array = PyTuple_GET_ITEM(weights, i), *own = PyTuple_GET_ITEM(slots, i);
        struct view view, slot_views[MAX_SLOTS] = {{0}}, average, accumulator;
        const size_t group = PyLong_AsSize_t(PyTuple_GET_ITEM(groups, i));
        const long kernel = PyLong_AsLong(PyTuple_GET_ITEM(kernels, i));
        const long decay = PyLong_AsLong(PyTuple_GET_ITEM(decays, i));
        const double factor = PyFloat_AsDouble(PyTuple_GET_ITEM(factors, i));
        PyObject *own_names = PyTuple_GET_ITEM(slot_names, i);
        if (group >= self->n_groups || kernel < 0 || kernel >= KERNELS || decay < -1
            || decay >= self->n_values || PyErr_Occurred() || !PyTuple_Check(own_names)) {
            if (!PyErr_Occurred())
                PyErr_Format(PyExc_IndexError, "_bind: bad group, kernel, decay or names of weight %zd", i);
            goto fail;
        }
        if (optimc_look_writable(array, optimc_label("params", keys, i), &view))
            goto fail;
        if (!is_tuple(own, PyTuple_GET_SIZE(own_names), "slots[i]"))
            goto fail;
        for (int k = 0; k < PyTuple_GET_SIZE(own) && k < MAX_SLOTS; k++) {
            PyObject *slot = PyTuple_GET_ITEM(own, k);
            if (slot != Py_None && optimc_look_writable(slot, optimc_place_name(keys, own_names,
                    (struct place){(size_t)i, k}), &slot_views[k]))
                goto fail;
        }
        struct binding binding = {.kernel = (enum kernel)kernel, .group = group, .slots = slot_views,
            .decay = (int)decay, .factor = factor,
            .waiting = PyTuple_GET_ITEM(waiting, i) == Py_True};
        if (look_at_part(averages, i, keys, PART_AVERAGE, &average, &binding.average)
            || look_at_part(accumulators, i, keys, PART_ACCUMULATOR, &accumulator,
                &binding.accumulator))
            goto fail;
        int where;
        const enum fault fault = optimc_plan_add(plan, &view, &binding, &where);
        if (fault) {
            PyObject *wrong = where == PART_AVERAGE ? PyTuple_GET_ITEM(averages, i)
                : where == PART_ACCUMULATOR ? PyTuple_GET_ITEM(accumulators, i)
                : where >= 0 ? PyTuple_GET_ITEM(own, where) : array;
            PyObject *entry = optimc_place_name(keys, own_names, (struct place){(size_t)i, where});
            if (wrong == Py_None)
                optimc_refuse_kind("%U: expected an array, got %S", entry, wrong);
            else
                optimc_refuse_weight(fault, entry, (PyArrayObject *)wrong, (PyArrayObject *)array);
            goto fail;
        }
    }
    const struct state *state = optimc_state(self);
    if (!state)
        goto fail;
    struct place overlap[2];
    const enum fault fault = optimc_plan_seal(plan, state->isa, overlap);
    if (fault == FAULT_OVERLAP) {
        PyObject *a = optimc_place_name(keys, PyTuple_GET_ITEM(slot_names, overlap[0].weight), overlap[0]);
        PyObject *b = optimc_place_name(keys, PyTuple_GET_ITEM(slot_names, overlap[1].weight), overlap[1]);
        if (a && b)
            PyErr_Format(PyExc_ValueError, "%U and %U overlap in memory", a, b);
        Py_XDECREF(a);
        Py_XDECREF(b);
        goto fail;
    }
    if (fault) {
        PyErr_NoMemory();
        goto fail;
    }
    done = take_now(self, taken);
    if (!done)
        goto fail;
    Py_DECREF(done);
    Py_DECREF(taken);
    optimc_unbind(self);
    self->plan = plan;
    self->gradients = gradients;
    self->arrays = arrays;
    self->weights = Py_NewRef(weights);
    self->names = Py_XNewRef(keys);
    Py_RETURN_NONE;

fail:
    optimc_plan_free(plan);
    PyMem_Free(gradients);
    Py_XDECREF(arrays);
    Py_XDECREF(taken);
    return NULL;
}

BETWEEN_STEPS(bind)

PyDoc_STRVAR(waiting_doc, "_waiting($self, /)\n--\n\n"
"For each weight, whether gradients were accumulated since its last update.");

static PyObject *waiting_now(Optimizer *self, PyObject *Py_UNUSED(ignored))
{
    const size_t n = self->plan ? optimc_plan_weights(self->plan) : 0;
    PyObject *waiting = PyTuple_New((Py_ssize_t)n);
    for (size_t i = 0; waiting && i < n; i++)
        PyTuple_SET_ITEM(waiting, (Py_ssize_t)i, PyBool_FromLong(optimc_plan_waits(self->plan, i)));
    return waiting;
}

BETWEEN_STEPS(waiting)

PyDoc_STRVAR(unbind_doc, "_unbind($self)\n--\n\nForgets the plan; the optimizer is as before it was built.");

static PyObject *unbind_now(Optimizer *self, PyObject *Py_UNUSED(ignored))
{
    if (self->matching && optimc_refuse_nested(self))
        return NULL;
    optimc_unbind(self);
    Py_RETURN_NONE;
}

BETWEEN_STEPS(unbind)

PyMethodDef optimc_bind_methods[] = {
    METHOD("_bind", optimizer_bind, METH_VARARGS, bind_doc),
    METHOD("_take", optimizer_take, METH_VARARGS, take_doc),
    METHOD("_waiting", optimizer_waiting, METH_NOARGS, waiting_doc),
    METHOD("_unbind", optimizer_unbind, METH_NOARGS, unbind_doc),
    {NULL, NULL, 0, NULL},
};
