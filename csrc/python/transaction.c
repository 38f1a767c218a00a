/* transaction.c - steps in two halves: check first, then run or give up, with Python code between. */
#define NO_IMPORT_ARRAY
#include "python/boundary.h"
#include "python/views.h"

/* For steps in two halves: notes (self, ready) in the caller's list, if there is one, before a signal handler can
   run, so that whoever has the list can finish.  On an error the step is given up. */
int optimc_note_started(Optimizer *self, PyObject *started, int ready)
{
    PyObject *entry = started ? Py_BuildValue("(OO)", self, ready ? Py_True : Py_False) : NULL;
    const int failed = started && (!entry || PyList_Append(started, entry));
    Py_XDECREF(entry);
    if (failed) {
        optimc_end_step(self, 0);
        optimc_unlock(self);
    }
    return failed ? -1 : 0;
}

PyDoc_STRVAR(check_doc, "_check($self, grads, trainable_variables, finite, started=None, /)\n--\n\n"
"The first half of a step: takes the lock and checks everything.  True if it may run; False, with\n"
"`finite`, if a gradient is not finite.  Not after an error, `_finish` must follow; or, if this has appended\n"
"(self, what it returns) to the list `started`, `finish`, even if a signal handler raised in between.");

static PyObject *optimizer_check(Optimizer *self, PyObject *args)
{
    PyObject *grads, *weights, *started = NULL;
    int finite;
    if (!PyArg_ParseTuple(args, "OOp|O!", &grads, &weights, &finite, &PyList_Type, &started) || optimc_lock(self))
        return NULL;
    const int checked = optimc_check_step(self, grads, weights, finite ? SKIP : self->check_finite);
    if (checked >= 0)
        return optimc_note_started(self, started, checked) ? NULL : PyBool_FromLong(checked);
    optimc_end_step(self, 0);
    optimc_unlock(self);
    return NULL;
}

PyDoc_STRVAR(pull_doc, "_pull($self, index, to, begin=-1, /)\n--\n\n"
"Between `_check` and `_finish`: writes the gradient of a weight, as its kernel will see it, into an array\n"
"like the weight; or, from element `begin` in the order of the weight's memory, into a vector.  False if the\n"
"weight has none in this step.");

static PyObject *optimizer_pull(Optimizer *self, PyObject *args)
{
    Py_ssize_t index, begin = -1;
    PyObject *to;
    struct view view;
    if (!PyArg_ParseTuple(args, "nO|n", &index, &to, &begin) || !optimc_is_weight(self, index)
        || optimc_look_writable(to, PyUnicode_FromString("to"), &view))
        return NULL;
    const size_t size = optimc_view_size(&view), start = begin < 0 ? 0 : (size_t)begin;
    const PyArrayObject *weight = (PyArrayObject *)PyTuple_GET_ITEM(self->weights, index);
    if (begin < 0 ? optimc_plan_same(self->plan, (size_t)index, &view) != FINE
        : view.ndim != 1 || view.type != optimc_type_of((PyArrayObject *)weight)
            || start > optimc_plan_size(self->plan, (size_t)index)
            || size > optimc_plan_size(self->plan, (size_t)index) - start) {
        PyErr_SetString(PyExc_ValueError, "to: expected an array like the weight");
        return NULL;
    }
    if (!optimc_plan_takes(self->plan, &self->request, (size_t)index))
        Py_RETURN_FALSE;
    optimc_plan_gradient(self->plan, &self->request, (size_t)index, start, start + size, view.data);
    Py_RETURN_TRUE;
}

PyDoc_STRVAR(finish_doc, "_finish($self, run, /)\n--\n\n"
"The second half of a step that was checked: runs it, or gives it up, and releases the lock.  What\n"
"`_advance` has begun is not run again.");

static PyObject *optimizer_finish(Optimizer *self, PyObject *argument)
{
    const int run = PyObject_IsTrue(argument);
    if (self->begun) {
        optimc_plan_end(self->plan);
        optimc_close_step(self);
    } else if (run > 0) {
        optimc_run_steps(self);
    }
    optimc_end_step(self, run > 0 || self->begun);
    self->begun = 0;
    optimc_unlock(self);
    if (run < 0)
        return NULL;
    Py_RETURN_NONE;
}

PyDoc_STRVAR(finish_all_doc, "finish($module, started, run, then=(), /)\n--\n\n"
"The second half of several steps, as `_check` noted them: runs those that are ready and counts the others as\n"
"skipped, or gives all up; makes the calls `then`, pairs of a function in C and a tuple of its arguments; releases\n"
"the locks.  No signal handler comes between.");

static PyObject *core_finish(PyObject *module, PyObject *args)
{
    PyObject *started, *then = NULL;
    int run, failed = 0;
    if (!PyArg_ParseTuple(args, "O!p|O!", &PyList_Type, &started, &run, &PyTuple_Type, &then))
        return NULL;
    PyTypeObject *type = ((struct state *)PyModule_GetState(module))->type;
    const Py_ssize_t n = PyList_GET_SIZE(started);
    for (Py_ssize_t i = 0; i < n; i++) {
        PyObject *entry = PyList_GET_ITEM(started, i);
        if (!PyTuple_Check(entry) || PyTuple_GET_SIZE(entry) != 2
                || !PyObject_TypeCheck(PyTuple_GET_ITEM(entry, 0), type))
            return PyErr_Format(PyExc_TypeError, "started: expected what _check notes");
    }
    for (Py_ssize_t i = 0; then && i < PyTuple_GET_SIZE(then); i++) {
        PyObject *call = PyTuple_GET_ITEM(then, i);
        if (!PyTuple_Check(call) || PyTuple_GET_SIZE(call) != 2 || !PyTuple_Check(PyTuple_GET_ITEM(call, 1)))
            return PyErr_Format(PyExc_TypeError, "then: expected pairs of a function and a tuple");
    }
    Optimizer *ready = NULL;
    for (Py_ssize_t i = n; run && i-- > 0;) {
        Optimizer *self = (Optimizer *)PyTuple_GET_ITEM(PyList_GET_ITEM(started, i), 0);
        if (PyTuple_GET_ITEM(PyList_GET_ITEM(started, i), 1) == Py_True) {
            self->together = ready;
            ready = self;
        } else {
            self->skipped++;
        }
    }
    if (ready)
        optimc_run_steps(ready);
    for (Py_ssize_t i = 0; then && !failed && i < PyTuple_GET_SIZE(then); i++) {
        PyObject *call = PyTuple_GET_ITEM(then, i);
        PyObject *result = PyObject_CallObject(PyTuple_GET_ITEM(call, 0), PyTuple_GET_ITEM(call, 1));
        failed = !result;
        Py_XDECREF(result);
    }
    for (Py_ssize_t i = n; i-- > 0;) {
        PyObject *entry = PyList_GET_ITEM(started, i);
        Optimizer *self = (Optimizer *)PyTuple_GET_ITEM(entry, 0);
        self->together = NULL;
        optimc_end_step(self, run && PyTuple_GET_ITEM(entry, 1) == Py_True);
        optimc_unlock(self);
    }
    if (failed || PyList_SetSlice(started, 0, n, NULL))
        return NULL;
    Py_RETURN_NONE;
}

PyMethodDef optimc_transaction_functions[] = {
    METHOD("finish", core_finish, METH_VARARGS, finish_all_doc),
    {NULL, NULL, 0, NULL},
};

PyMethodDef optimc_transaction_methods[] = {
    METHOD("_check", optimizer_check, METH_VARARGS, check_doc),
    METHOD("_pull", optimizer_pull, METH_VARARGS, pull_doc),
    METHOD("_finish", optimizer_finish, METH_O, finish_doc),
    {NULL, NULL, 0, NULL},
};
