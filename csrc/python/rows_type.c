/* rows_type.c - the type _core.Rows, a gradient that is rows of its weight, and its place in a step.

   Next: plan/rows.c, which sorts them. */
#define NO_IMPORT_ARRAY
#include "python/rows_type.h"

#include <structmember.h>

#include "python/views.h"

static int is_integer(PyArrayObject *array)
{
    return PyTypeNum_ISINTEGER(PyArray_TYPE(array)) && PyArray_TYPE(array) < NPY_USERDEF;
}

/* 1 if the two can be the arrays of a Rows. */
static int fit(PyArrayObject *indices, PyArrayObject *values)
{
    return is_integer(indices) && PyArray_ISNOTSWAPPED(indices) && PyArray_NDIM(indices) == 1
        && optimc_type_of(values) < FLOAT_TYPES && PyArray_NDIM(values)
        && PyArray_DIM(values, 0) == PyArray_DIM(indices, 0);
}

/* The error for two arrays that do not fit.  `prefix` comes before the name of one, and is released.  Returns -1. */
static int refuse_arrays(PyObject *prefix, PyArrayObject *indices, PyArrayObject *values)
{
    PyObject *dtype = (PyObject *)PyArray_DESCR(indices);
    if (!is_integer(indices))
        return optimc_refuse(PyExc_TypeError, "%Uindices: expected integers, got dtype %S", prefix, dtype, NULL);
    if (!PyArray_ISNOTSWAPPED(indices))
        return optimc_refuse(PyExc_TypeError, "%Uindices: expected integers in native byte order, got dtype %S",
            prefix, dtype, NULL);
    if (PyArray_NDIM(indices) != 1)
        return optimc_refuse_shape("%Uindices: expected one axis, got shape %S", prefix, indices, NULL);
    if (optimc_type_of(values) >= FLOAT_TYPES)
        return optimc_refuse(PyExc_TypeError, "%Uvalues: expected floating-point numbers, got dtype %S", prefix,
            (PyObject *)PyArray_DESCR(values), NULL);
    return optimc_refuse_shape("%Uvalues: expected a row for each of the indices, which have shape %S, got shape %S",
        prefix, indices, values);
}

/* ---------------------------------------------------------------------------------------- the type - */

PyDoc_STRVAR(rows_doc, "Rows(indices, values)\n--\n\n"
"A gradient that is zero but for some rows of its weight, as of an embedding.\n\n"
"It stands where a gradient stands: optimizer.apply([Rows(...)], [table]).  The step is lazy: rows that do not\n"
"occur are not touched, neither by the rule nor by decay, and their slots stay as they are.  Values of a row that\n"
"occurs several times are added up, in order of occurrence.\n\n"
"Args:\n"
"    indices: k integers of any width, from 0 to weight.shape[0] - 1, in any order.  A step copies them.\n"
"    values: an array of floats of shape `(k, *weight.shape[1:])`: values[i] belongs to row indices[i].\n\n"
"Raises:\n"
"    TypeError: the indices are no integers, or the values no floating-point numbers.\n"
"    ValueError: the indices do not have one axis, or the values not a row for each of them.\n\n"
"Example:\n"
"    >>> import numpy as np, optimc\n"
"    >>> table = np.zeros((1000, 2), np.float32)\n"
"    >>> grad = optimc.Rows([3, 7, 3], np.ones((3, 2), np.float32))\n"
"    >>> optimc.SGD(learning_rate=1.0).apply([grad], [table])\n"
"    >>> table[[3, 7]]\n"
"    array([[-2., -2.],\n"
"           [-1., -1.]], dtype=float32)");

/* An argument as an array: a new reference, or NULL with an error. */
static PyArrayObject *array_of(PyObject *object, const char *name)
{
    PyObject *array = PyArray_Check(object) ? Py_NewRef(object) : PyArray_FromAny(object, NULL, 0, 0, 0, NULL);
    if (array && optimc_is_masked(array)) {
        Py_CLEAR(array);
        optimc_refuse_masked(PyUnicode_FromString(name));
    }
    return (PyArrayObject *)array;
}

static PyObject *rows_new(PyTypeObject *type, PyObject *args, PyObject *kwargs)
{
    static char *names[] = {"indices", "values", NULL};
    PyObject *given[2];
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "OO:Rows", names, &given[0], &given[1]))
        return NULL;
    PyArrayObject *indices = array_of(given[0], "indices");
    PyArrayObject *values = indices ? array_of(given[1], "values") : NULL;
    if (values && !PyArray_Check(given[0]) && !PyArray_SIZE(indices) && PyArray_NDIM(indices) == 1)
        Py_SETREF(indices, (PyArrayObject *)PyArray_Cast(indices, NPY_INTP));        /* of an empty list */
    Rows *self = NULL;
    if (indices && values && (fit(indices, values) || !refuse_arrays(PyUnicode_FromString(""), indices, values)))
        self = (Rows *)type->tp_alloc(type, 0);
    if (self) {
        self->indices = indices;
        self->values = values;
        return (PyObject *)self;
    }
    Py_XDECREF(indices);
    Py_XDECREF(values);
    return NULL;
}

static void rows_dealloc(Rows *self)
{
    PyTypeObject *type = Py_TYPE(self);
    Py_XDECREF(self->indices);
    Py_XDECREF(self->values);
    type->tp_free(self);
    Py_DECREF(type);
}

static PyObject *rows_repr(Rows *self)
{
    return PyUnicode_FromFormat("Rows(indices=%R, values=%R)", self->indices, self->values);
}

static PyObject *rows_reduce(Rows *self, PyObject *Py_UNUSED(ignored))
{
    return Py_BuildValue("O(OO)", Py_TYPE(self), self->indices, self->values);
}

static PyMethodDef rows_methods[] = {
    METHOD("__reduce__", rows_reduce, METH_NOARGS, NULL),
    {NULL, NULL, 0, NULL},
};

static PyMemberDef rows_members[] = {
    {"indices", T_OBJECT_EX, offsetof(Rows, indices), READONLY, "The rows, integers: an array of shape (k,)."},
    {"values", T_OBJECT_EX, offsetof(Rows, values), READONLY, "Their gradients: an array of shape (k, ...)."},
    {NULL, 0, 0, 0, NULL},
};

static PyType_Slot rows_slots[] = {
    {Py_tp_doc, (void *)rows_doc},
    {Py_tp_new, rows_new},
    {Py_tp_dealloc, rows_dealloc},
    {Py_tp_repr, rows_repr},
    {Py_tp_methods, rows_methods},
    {Py_tp_members, rows_members},
    {0, NULL},
};

static PyType_Spec rows_spec = {
    .name = "optimc.Rows", .basicsize = sizeof(Rows), .flags = Py_TPFLAGS_DEFAULT, .slots = rows_slots,
};

PyTypeObject *optimc_rows_type(PyObject *module)
{
    return (PyTypeObject *)PyType_FromModuleAndSpec(module, &rows_spec, NULL);
}

/* --------------------------------------------------------------------------------------- in a step - */

int optimc_is_rows(const Plan *plan, PyObject *object)
{
    const struct state *state = PyType_GetModuleState(Py_TYPE(plan));
    return Py_TYPE(object) == state->rows_type;
}

PyObject *optimc_rows_of(PyObject *gradient, PyObject *weight, PyObject *label)
{
    PyObject *module = label ? PyImport_ImportModule("optimc.base.rows") : NULL;
    PyObject *rows = module ? PyObject_CallMethod(module, "rows_of", "OOO", gradient, weight, label) : NULL;
    Py_XDECREF(module);
    Py_XDECREF(label);
    return rows;
}

/* The error for the k-th index, which is no row. */
static int refuse_index(PyObject *entry, size_t k, PyObject *index, PyArrayObject *weight)
{
    if (entry && PyArray_DIM(weight, 0))
        PyErr_Format(PyExc_ValueError, "%U.indices[%zu]: expected a row from 0 to %zd, got %S", entry, k,
            (Py_ssize_t)PyArray_DIM(weight, 0) - 1, index);
    else if (entry)
        PyErr_Format(PyExc_ValueError, "%U.indices[%zu]: expected none, for the weight has no rows, got %S", entry, k,
            index);
    Py_DECREF(index);
    Py_XDECREF(entry);
    return -1;
}

/* The error for rows that a weight cannot be stepped by. */
static int refuse_rows(Plan *plan, const struct pairs *pairs, size_t index, enum fault fault, Rows *rows, size_t at,
    struct place overlap)
{
    PyArrayObject *weight = (PyArrayObject *)PyTuple_GET_ITEM(plan->weights, (Py_ssize_t)index);
    /* A key may have code of its own, which may change the indices: what they hold comes first. */
    PyObject *wrong = fault == FAULT_INDEX
        ? PyArray_GETITEM(rows->indices, PyArray_GETPTR1(rows->indices, (npy_intp)at)) : NULL;
    if (fault == FAULT_INDEX && !wrong)
        return -1;
    PyObject *entry = optimc_pair_label(pairs, fault == FAULT_REPEATED ? "weights" : "grads");
    switch (fault) {
    case FAULT_WHOLE:
        return optimc_refuse(PyExc_ValueError, "%U: the rule of its weight looks at the whole weight, and takes no "
            "rows: pass an array, or train the weight with another optimizer", entry, NULL, NULL);
    case FAULT_ROWS:
        return optimc_refuse_shape("%U: rows need a weight in C order with 1 axis or more and fewer than 2**32 rows, "
            "got shape %S", entry, weight, NULL);
    case FAULT_BLOCKS:
        return optimc_refuse_shape("%U: its weight, of shape %S, has slots in 8 bits, whose blocks of 256 would hold "
            "parts of several rows: use state_dtype=\"bfloat16\"", entry, weight, NULL);
    case FAULT_INDEX:
        return refuse_index(entry, at, wrong, weight);
    case FAULT_SHAPE:
        return optimc_refuse_shape("%U.values: expected rows of a weight of shape %S, got shape %S", entry, weight,
            rows->values);
    default:
        return optimc_refuse_taken(fault, entry, plan->names, overlap);
    }
}

int optimc_take_rows(Plan *plan, const struct pairs *pairs, size_t index, Rows *rows)
{
    struct view indices, values;
    struct place overlap = {0, 0};
    size_t at = 0;
    if (!fit(rows->indices, rows->values)) {
        PyObject *entry = optimc_pair_label(pairs, "grads");
        PyObject *prefix = entry ? PyUnicode_FromFormat("%U.", entry) : NULL;
        Py_XDECREF(entry);
        return prefix ? refuse_arrays(prefix, rows->indices, rows->values) : -1;
    }
    optimc_look(rows->indices, &indices);
    optimc_look(rows->values, &values);
    const struct row_views views = {&indices, &values, PyArray_ISSIGNED(rows->indices)};
    const enum fault fault = optimc_plan_take_rows(plan->core, index, &views, &at, &overlap);
    return fault ? refuse_rows(plan, pairs, index, fault, rows, at, overlap) : 0;
}
