/* views.c - describes the caller's objects to the plan: arrays to write to, and tensors of other libraries.

   It checks one object at a time.  The plan checks conditions between arrays (shape, overlap). */
#define NO_IMPORT_ARRAY
#include "python/boundary.h"
#include "python/views.h"

int optimc_is_masked(PyObject *array)
{
    PyObject *bases = PyArray_CheckExact(array) ? NULL : Py_TYPE(array)->tp_mro;
    for (Py_ssize_t i = 0; bases && i < PyTuple_GET_SIZE(bases); i++)
        if (!strcmp(((PyTypeObject *)PyTuple_GET_ITEM(bases, i))->tp_name, "MaskedArray"))
            return 1;
    return 0;
}

int optimc_refuse_masked(PyObject *entry)
{
    return optimc_refuse(PyExc_TypeError, "%U: a masked array has no value where it is masked: pass x.filled(0) or "
        "x.data", entry, NULL, NULL);
}

int optimc_look_writable(PyObject *object, PyObject *entry, int part, struct view *view)
{
    if (!entry)
        return -1;
    if (!PyArray_Check(object))
        return optimc_refuse_kind(PyArray_IsScalar(object, Generic) || PyFloat_Check(object) || PyLong_Check(object)
            ? "%U: expected a NumPy array of floats, got a scalar of type %S, which no step can change"
            : "%U: expected a NumPy array of floats, got %S", entry, object);
    if (optimc_is_masked(object))
        return optimc_refuse_masked(entry);
    optimc_look((PyArrayObject *)object, view);
    const enum fault fault = optimc_plan_check(view, part);
    if (fault)
        return optimc_refuse_weight(fault, entry, (PyArrayObject *)object, NULL);
    Py_DECREF(entry);
    return 0;
}

static enum type type_of(const struct tensor *tensor)
{
    static const struct { int code, bits; enum type type; } types[] = {
        {TENSOR_FLOAT, 32, TYPE_F32}, {TENSOR_FLOAT, 64, TYPE_F64}, {TENSOR_FLOAT, 16, TYPE_F16},
        {TENSOR_BFLOAT, 16, TYPE_BF16}, {TENSOR_UINT, 8, TYPE_U8}, {TENSOR_UINT, 16, TYPE_U16},
        {TENSOR_INT, 16, TYPE_I16},
    };
    for (size_t k = 0; k < sizeof types / sizeof *types; k++)
        if (tensor->type.code == types[k].code && tensor->type.bits == types[k].bits && tensor->type.lanes == 1)
            return types[k].type;
    return TYPE_OTHER;
}

int optimc_look_tensor(const struct tensor_exchange *table, PyObject *object, PyObject *order,
    const char *argument, Py_ssize_t i, ptrdiff_t *room, int ndim, struct view *view)
{
    struct tensor tensor;
    if (table->look(object, &tensor)) {
        if (!PyErr_Occurred())
            PyErr_Format(PyExc_TypeError, "%s[%zd]: not a dense tensor", argument, i);
        return -1;
    }
    if (tensor.device.kind != TENSOR_ON_CPU) {
        PyErr_Format(PyExc_TypeError, "%s[%zd]: expected a tensor on the CPU", argument, i);
        return -1;
    }
    if (tensor.ndim != ndim) {
        PyErr_Format(PyExc_ValueError, "%s[%zd]: expected %d axes, as built, got %d", argument, i, ndim,
            (int)tensor.ndim);
        return -1;
    }
    view->type = (int)type_of(&tensor);
    view->itemsize = (size_t)tensor.type.bits / 8;
    view->data = (char *)tensor.data + tensor.byte_offset;
    view->ndim = ndim;
    view->shape = room;
    view->strides = room + ndim;
    ptrdiff_t dense = 1;
    int c_order = 1;
    for (int k = ndim; k-- > 0;) {
        const long axis = order == Py_None ? k : PyLong_AsLong(PyTuple_GET_ITEM(order, k));
        const ptrdiff_t length = (ptrdiff_t)tensor.shape[axis];
        const ptrdiff_t stride = tensor.strides ? (ptrdiff_t)tensor.strides[axis] : dense;
        c_order &= length == 1 || stride == dense;
        room[k] = length;
        room[ndim + k] = stride * (ptrdiff_t)view->itemsize;
        dense *= length;
    }
    view->swapped = 0;
    view->c_order = c_order || !dense;
    view->f_order = view->c_order && ndim < 2;
    view->aligned = !((uintptr_t)view->data % (view->itemsize ? view->itemsize : 1));
    view->writeable = 1;
    return 0;
}

PyDoc_STRVAR(address_doc, "address($module, array, /)\n--\n\n"
"Returns the address at which the memory of an array begins.");

static PyObject *core_address(PyObject *Py_UNUSED(module), PyObject *array)
{
    if (!PyArray_Check(array)) {
        PyErr_Format(PyExc_TypeError, "array: expected a NumPy array, got %s", Py_TYPE(array)->tp_name);
        return NULL;
    }
    return PyLong_FromVoidPtr(PyArray_DATA((PyArrayObject *)array));
}

PyMethodDef optimc_views_functions[] = {
    METHOD("address", core_address, METH_O, address_doc),
    {NULL, NULL, 0, NULL},
};
