/* several.c - the turns of several optimizers at once.

   They are taken in one order, that of the objects' addresses, in which wrappers step too: threads that share
   optimizers wait in turn, and never for each other. */
#define NO_IMPORT_ARRAY
#include "python/boundary.h"

#include <stdlib.h>

static int by_address(const void *a, const void *b)
{
    const uintptr_t one = (uintptr_t)*(PyObject *const *)a, other = (uintptr_t)*(PyObject *const *)b;
    return (one > other) - (one < other);
}

PyObject *optimc_in_order(PyTypeObject *type, PyObject *optimizers)
{
    PyObject *list = PySequence_List(optimizers), *ordered = NULL;
    const Py_ssize_t n = list ? PyList_GET_SIZE(list) : 0;
    for (Py_ssize_t i = 0; i < n; i++)
        if (!PyObject_TypeCheck(PyList_GET_ITEM(list, i), type)) {
            PyErr_Format(PyExc_TypeError, "optimizers[%zd]: expected an optimizer, got %s", i,
                Py_TYPE(PyList_GET_ITEM(list, i))->tp_name);
            Py_DECREF(list);
            return NULL;
        }
    if (list && n)
        qsort(((PyListObject *)list)->ob_item, (size_t)n, sizeof(PyObject *), by_address);
    for (Py_ssize_t i = n; list && i-- > 1;)
        if (PyList_GET_ITEM(list, i) == PyList_GET_ITEM(list, i - 1) && PyList_SetSlice(list, i, i + 1, NULL))
            Py_CLEAR(list);
    if (list)
        ordered = PyList_AsTuple(list);
    Py_XDECREF(list);
    return ordered;
}

static void unlock_first(PyObject *optimizers, Py_ssize_t n)
{
    while (n-- > 0)
        optimc_unlock((Optimizer *)PyTuple_GET_ITEM(optimizers, n));
}

int optimc_lock_all(PyObject *optimizers)
{
    for (Py_ssize_t i = 0; i < PyTuple_GET_SIZE(optimizers); i++)
        if (optimc_lock((Optimizer *)PyTuple_GET_ITEM(optimizers, i))) {
            unlock_first(optimizers, i);
            return -1;
        }
    return 0;
}

void optimc_unlock_all(PyObject *optimizers)
{
    unlock_first(optimizers, PyTuple_GET_SIZE(optimizers));
}

PyDoc_STRVAR(locked_doc, "locked($module, optimizers, function, /, *args, **kwargs)\n--\n\n"
"Waits for steps of these optimizers in progress and returns what the function gives, while no other can start.");

static PyObject *core_locked(PyObject *module, PyObject *const *args, Py_ssize_t n, PyObject *names)
{
    if (n < 2) {
        PyErr_SetString(PyExc_TypeError, "locked() takes optimizers and a function");
        return NULL;
    }
    PyObject *optimizers = optimc_in_order(((struct state *)PyModule_GetState(module))->type, args[0]);
    PyObject *result = NULL;
    if (optimizers && !optimc_lock_all(optimizers)) {
        result = PyObject_Vectorcall(args[1], args + 2, (size_t)n - 2, names);
        optimc_unlock_all(optimizers);
    }
    Py_XDECREF(optimizers);
    return result;
}

PyMethodDef optimc_several_functions[] = {
    METHOD("locked", core_locked, METH_FASTCALL | METH_KEYWORDS, locked_doc),
    {NULL, NULL, 0, NULL},
};
