/* tensors.c - steps over tensors of another library, through its DLPack exchange table.

   No array is made from a tensor; its address is read again at every step.  A plan made for tensors may depend on
   entries of dicts, which it watches.  If one of them has changed, the step does nothing and Python makes a new
   plan. */
#define NO_IMPORT_ARRAY
#include "python/boundary.h"
#include "python/views.h"

static const struct tensor_exchange *exchange_of(PyObject *capsule)
{
    const struct tensor_exchange *table = PyCapsule_GetPointer(capsule, TENSOR_CAPSULE);
    while (table && table->version.major != TENSOR_MAJOR)
        table = table->older;
    if (table && table->look)
        return table;
    if (!PyErr_Occurred())
        PyErr_SetString(PyExc_ValueError, "the exchange table has no version 1 that describes tensors");
    return NULL;
}

PyDoc_STRVAR(prepare_tensors_doc, "_prepare_tensors($self, orders, watched, /)\n--\n\n"
"Prepares steps over tensors; call it after `_bind`.  `orders` has for each weight None, or a tuple of its axes in\n"
"the order of memory.  `watched` is a tuple of (dict, key, value) that the plan depends on.  The item of the dict\n"
"must stay an equal number, a list of the same objects as a tuple, or else the same object.");

static PyObject *optimizer_prepare_tensors(Optimizer *self, PyObject *args)
{
    PyObject *orders, *watched;
    const size_t n = self->plan ? optimc_plan_weights(self->plan->core) : 0;
    if (!PyArg_ParseTuple(args, "O!O!", &PyTuple_Type, &orders, &PyTuple_Type, &watched))
        return NULL;
    if (!n || (size_t)PyTuple_GET_SIZE(orders) != n) {
        PyErr_SetString(PyExc_ValueError, "orders: expected an entry per weight");
        return NULL;
    }
    size_t axes = 0;
    for (size_t i = 0; i < n; i++)
        axes += (size_t)PyArray_NDIM((PyArrayObject *)PyTuple_GET_ITEM(self->plan->weights, (Py_ssize_t)i));
    if (!self->grad_name && !(self->grad_name = PyUnicode_InternFromString("grad")))
        return NULL;
    ptrdiff_t *room = PyMem_Calloc(4 * axes + 1, sizeof *room);
    if (!room)
        return PyErr_NoMemory();
    PyMem_Free(self->room);
    self->room = room;
    Py_XSETREF(self->orders, Py_NewRef(orders));
    Py_XSETREF(self->watched, Py_NewRef(watched));
    Py_RETURN_NONE;
}

/* 1 if a watched item is unchanged, else 0; -1 on an error.  Only numbers are compared by value, all else by
   identity. */
static int is_same(PyObject *now, PyObject *then)
{
    if (now == then)
        return 1;
    if (PyTuple_Check(then)) {
        if (!PyList_Check(now) || PyList_GET_SIZE(now) != PyTuple_GET_SIZE(then))
            return 0;
        for (Py_ssize_t i = 0; i < PyTuple_GET_SIZE(then); i++)
            if (PyList_GET_ITEM(now, i) != PyTuple_GET_ITEM(then, i))
                return 0;
        return 1;
    }
    return PyNumber_Check(then) ? PyObject_RichCompareBool(now, then, Py_EQ) : 0;
}

/* 1 if all watched items are unchanged, else 0; -1 on an error.  __eq__ of a number or a key may replace the item and
   what is watched. */
static int is_as_watched(const Optimizer *self)
{
    PyObject *watched = Py_XNewRef(self->watched);
    int same = 1;
    for (Py_ssize_t i = 0; watched && same > 0 && i < PyTuple_GET_SIZE(watched); i++) {
        PyObject *entry = PyTuple_GET_ITEM(watched, i);
        PyObject *now = PyDict_GetItemWithError(PyTuple_GET_ITEM(entry, 0), PyTuple_GET_ITEM(entry, 1));
        Py_XINCREF(now);
        same = now ? is_same(now, PyTuple_GET_ITEM(entry, 2)) : PyErr_Occurred() ? -1 : 0;
        Py_XDECREF(now);
    }
    Py_XDECREF(watched);
    return same;
}

PyDoc_STRVAR(is_as_watched_doc, "_is_as_watched($self, /)\n--\n\n"
"True if all items that `_prepare_tensors` was told to watch are unchanged.");

static PyObject *optimizer_is_as_watched(Optimizer *self, PyObject *Py_UNUSED(ignored))
{
    const int same = is_as_watched(self);
    return same < 0 ? NULL : PyBool_FromLong(same);
}

/* The part of optimc_check_tensors that reads no element of a gradient. */
static int match_tensors(Optimizer *self, PyObject *tensors, const struct tensor_exchange *table,
    PyObject *grads)
{
    if (!self->plan || !self->orders || !PyList_Check(tensors)
        || (size_t)PyList_GET_SIZE(tensors) != optimc_plan_weights(self->plan->core)) {
        PyErr_SetString(PyExc_ValueError, "tensors: expected a list of the weights the plan was made for");
        return -1;
    }
    if (grads && (!PyList_Check(grads) || PyList_GET_SIZE(grads) != PyList_GET_SIZE(tensors))) {
        PyErr_SetString(PyExc_ValueError, "grads: expected a list with an entry per tensor");
        return -1;
    }
    const int same = is_as_watched(self);
    if (same <= 0)
        return same < 0 ? -1 : NOT_AS_PLANNED;
    if (optimc_ask_all(self))
        return -1;
    optimc_plan_begin(self->plan->core);
    self->plan->matching = BUSY;
    ptrdiff_t *room = self->room;
    Py_ssize_t missing = 0;
    const Py_ssize_t n = PyList_GET_SIZE(tensors);
    for (Py_ssize_t i = 0; i < n; i++) {
        PyObject *tensor = PyList_GET_ITEM(tensors, i), *order = PyTuple_GET_ITEM(self->orders, i);
        PyArrayObject *bound = (PyArrayObject *)PyTuple_GET_ITEM(self->plan->weights, i);
        const int ndim = PyArray_NDIM(bound);
        struct view view;
        if (optimc_look_tensor(table, tensor, order, "params", i, room, ndim, &view))
            return -1;
        room += 2 * ndim;
        enum fault fault = optimc_plan_same(self->plan->core, (size_t)i, &view);
        if (!fault)
            fault = optimc_plan_move(self->plan->core, (size_t)i, view.data);
        if (fault) {
            PyErr_Format(fault == FAULT_TYPE ? PyExc_TypeError : PyExc_ValueError, "params[%zd]: %s", i,
                fault == FAULT_TYPE ? "expected the dtype it was built with"
                : fault == FAULT_SHAPE ? "expected the shape it was built with"
                : fault == FAULT_OVERLAP ? "overlaps another parameter or its state in memory"
                : "expected the memory layout it was built with");
            return -1;
        }
        PyObject *grad = grads ? Py_NewRef(PyList_GET_ITEM(grads, i)) : PyObject_GetAttr(tensor, self->grad_name);
        if (!grad)
            return -1;
        if (grad == Py_None) {
            Py_DECREF(grad);
            missing++;
            continue;
        }
        self->plan->gradients[self->plan->n_gradients++] = grad;
        if (optimc_look_tensor(table, grad, order, "grads", i, room, ndim, &view))
            return -1;
        room += 2 * ndim;
        struct place overlap;
        fault = optimc_plan_take(self->plan->core, (size_t)i, &view, &overlap);
        if (fault) {
            PyErr_Format(fault == FAULT_TYPE ? PyExc_TypeError : PyExc_ValueError, "grads[%zd]: %s", i,
                fault == FAULT_TYPE ? "expected a gradient of floats"
                : fault == FAULT_SHAPE ? "expected the shape of its parameter"
                : "overlaps a parameter or its state in memory");
            return -1;
        }
    }
    if (missing == n)
        return NO_GRADIENTS;
    if (missing)
        return NOT_AS_PLANNED;
    return CHECKED;
}

int optimc_check_tensors(Optimizer *self, PyObject *tensors, PyObject *exchange, PyObject *grads)
{
    const struct tensor_exchange *table = exchange_of(exchange);
    const int found = table ? match_tensors(self, tensors, table, grads) : -1;
    if (found != CHECKED)
        return found;
    const int good = optimc_survey_step(self, NULL, NULL, self->check_finite);
    return good < 0 ? -1 : good ? CHECKED : NOT_FINITE;
}

PyDoc_STRVAR(apply_tensors_doc, "_apply_tensors($self, tensors, exchange, grads=None, /)\n--\n\n"
"Steps over tensors.  Returns CHECKED if the step has run.  Returns NO_GRADIENTS if no tensor has a gradient, or if\n"
"a gradient is not finite and the step was skipped.  Returns NOT_AS_PLANNED, having changed nothing, if only some\n"
"tensors have a gradient or a watched item has changed.  `grads`, a list of tensors of the same library, replaces\n"
"the tensors' own gradients.");

static PyObject *optimizer_apply_tensors(Optimizer *self, PyObject *const *args, Py_ssize_t n)
{
    if (n != 2 && n != 3) {
        PyErr_SetString(PyExc_TypeError, "_apply_tensors() takes 2 or 3 arguments");
        return NULL;
    }
    if (optimc_lock(self))
        return NULL;
    const int found = optimc_check_tensors(self, args[0], args[1], n == 3 && args[2] != Py_None ? args[2] : NULL);
    if (found == CHECKED)
        optimc_run_step(self);
    self->skipped += found == NOT_FINITE;
    optimc_end_step(self, found == CHECKED);
    optimc_unlock(self);
    return found < 0 ? NULL : PyLong_FromLong(found == NOT_FINITE ? NO_GRADIENTS : found);
}

PyMethodDef optimc_tensors_methods[] = {
    METHOD("_prepare_tensors", optimizer_prepare_tensors, METH_VARARGS, prepare_tensors_doc),
    METHOD("_is_as_watched", optimizer_is_as_watched, METH_NOARGS, is_as_watched_doc),
    METHOD("_apply_tensors", optimizer_apply_tensors, METH_FASTCALL, apply_tensors_doc),
    {NULL, NULL, 0, NULL},
};
