/* refuse.c - the errors: one line that names the entry, the expected value and the actual one.

   Each function raises and returns -1.  It releases the label that it is given.  An error that was raised while the
   label was made is kept. */
#define NO_IMPORT_ARRAY
#include "python/boundary.h"

#include "python/trees.h"
#include "python/views.h"

#define WEIGHT_TYPES "float32, float64, bfloat16 or float16"

/* "weights[1]" or "weights['bias']"; `keys` may be NULL. */
PyObject *optimc_label(const char *argument, PyObject *keys, Py_ssize_t i)
{
    if (keys && i < PyTuple_GET_SIZE(keys))
        return PyUnicode_FromFormat("%s[%R]", argument, PyTuple_GET_ITEM(keys, i));
    return PyUnicode_FromFormat("%s[%zd]", argument, i);
}

/* Raises `type` with a message made of an entry's label (%U; released here) and two more objects (%S), which it keeps
   meanwhile: one may be the dtype of an array, which code that runs as the message is made may change.  An error that
   is already raised is kept. */
int optimc_refuse(PyObject *type, const char *format, PyObject *entry, PyObject *a, PyObject *b)
{
    Py_XINCREF(a);
    Py_XINCREF(b);
    if (!PyErr_Occurred())
        PyErr_Format(type, format, entry, a, b);
    Py_XDECREF(entry);
    Py_XDECREF(a);
    Py_XDECREF(b);
    return -1;
}

/* optimc_refuse with attributes of two arrays; `b` may be NULL. */
static int refuse_with(const char *attribute, const char *format, PyObject *entry, PyArrayObject *a, PyArrayObject *b)
{
    PyObject *of_a = entry ? PyObject_GetAttrString((PyObject *)a, attribute) : NULL;
    PyObject *of_b = of_a && b ? PyObject_GetAttrString((PyObject *)b, attribute) : NULL;
    optimc_refuse(PyExc_ValueError, format, entry, of_a, of_b);
    Py_XDECREF(of_a);
    Py_XDECREF(of_b);
    return -1;
}

int optimc_refuse_shape(const char *format, PyObject *entry, PyArrayObject *a, PyArrayObject *b)
{
    return refuse_with("shape", format, entry, a, b);
}

/* The TypeError for an entry that is no array; %S is the name of its type. */
int optimc_refuse_kind(const char *format, PyObject *entry, PyObject *object)
{
    PyObject *name = PyType_GetName(Py_TYPE(object));
    optimc_refuse(PyExc_TypeError, format, entry, name, NULL);
    Py_XDECREF(name);
    return -1;
}

/* The error for an array that cannot be a weight or a slot.  `like`, if given, is the array it should resemble. */
int optimc_refuse_weight(enum fault fault, PyObject *entry, PyArrayObject *array, PyArrayObject *like)
{
    PyObject *dtype = (PyObject *)PyArray_DESCR(array);
    switch (fault) {
    case FAULT_TYPE:
        if (like)
            return optimc_refuse(PyExc_TypeError, "%U: expected dtype %S, as built, got %S", entry,
                (PyObject *)PyArray_DESCR(like), dtype);
        if (!PyArray_ISNOTSWAPPED(array))
            return optimc_refuse(PyExc_TypeError, "%U: expected " WEIGHT_TYPES " in native byte order, got %S", entry,
                dtype, NULL);
        return optimc_refuse(PyExc_TypeError, PyArray_TYPE(array) == NPY_USHORT
            ? "%U: expected an array of " WEIGHT_TYPES ", got %S: the bits of bfloat16 need their type, "
              "x.view(ml_dtypes.bfloat16)"
            : "%U: expected an array of " WEIGHT_TYPES ", got %S", entry, dtype, NULL);
    case FAULT_READ_ONLY:
        return optimc_refuse(PyExc_ValueError, "%U: expected a writable array, got a read-only one", entry, NULL,
            NULL);
    case FAULT_ALIGNMENT:
        return optimc_refuse(PyExc_ValueError, "%U: array is not aligned for %S", entry, dtype, NULL);
    case FAULT_NO_MEMORY:
        return optimc_refuse(PyExc_ValueError, "%U: the array has no memory", entry, NULL, NULL);
    case FAULT_SHAPE:
        return optimc_refuse_shape("%U: expected shape %S, as built, got %S", entry, like, array);
    case FAULT_STRIDES:
        return refuse_with("strides", like ? "%U: expected the memory order it was built with, got strides %S"
            : "%U: expected an array contiguous in C or Fortran order, got strides %S", entry, array, NULL);
    default:
        Py_XDECREF(entry);
        PyErr_NoMemory();
        return -1;
    }
}

/* The name of a place in the plan: "weights[0]", "slot 'm' of weights[0]". */
PyObject *optimc_part_name(PyObject *weight, PyObject *slot_names, int part)
{
    if (!weight || part == PART_WEIGHT)
        return weight;
    PyObject *name = NULL;
    if (part >= PART_AVERAGE)
        name = PyUnicode_FromFormat(part == PART_AVERAGE ? "the average of %U"
            : part == PART_MASTER ? "the master of %U" : "the gradient accumulator of %U", weight);
    else if (slot_names && part < PyTuple_GET_SIZE(slot_names))
        name = PyUnicode_FromFormat("slot %R of %U", PyTuple_GET_ITEM(slot_names, part), weight);
    else
        name = PyUnicode_FromFormat("a slot of %U", weight);
    Py_DECREF(weight);
    return name;
}

PyObject *optimc_place_name(PyObject *names, PyObject *slot_names, struct place place)
{
    return optimc_part_name(optimc_label("weights", names, (Py_ssize_t)place.weight), slot_names, place.part);
}

int optimc_refuse_taken(enum fault fault, PyObject *entry, PyObject *names, struct place overlap)
{
    if (fault == FAULT_REPEATED)
        return optimc_refuse(PyExc_ValueError, "%U: the same weight occurs twice", entry, NULL, NULL);
    if (fault == FAULT_NO_MEMORY)
        return optimc_refuse(PyExc_ValueError, "%U: the array has no memory", entry, NULL, NULL);
    if (fault == FAULT_OVERLAP) {
        PyObject *place = entry ? optimc_place_name(names, NULL, overlap) : NULL;
        optimc_refuse(PyExc_ValueError, "%U overlaps %S in memory", entry, place, NULL);
        Py_XDECREF(place);
        return -1;
    }
    Py_XDECREF(entry);
    PyErr_NoMemory();
    return -1;
}

/* 1 if an object can be a weight, else 0. */
static int can_be_weight(PyObject *object)
{
    struct view view;
    if (!PyArray_Check(object))
        return 0;
    optimc_look((PyArrayObject *)object, &view);
    return !optimc_plan_check(&view, PART_WEIGHT);
}

/* 1 if an object can be a gradient, but no weight; else 0. */
static int can_only_be_gradient(PyObject *object)
{
    if (PyArray_Check(object))
        return PyArray_ISFLOAT((PyArrayObject *)object) && !can_be_weight(object);
    return optimc_offers_array(object) > 0;
}

static int are_all(int (*are)(PyObject *), PyObject *tuple)
{
    Py_ssize_t i = 0;
    while (i < PyTuple_GET_SIZE(tuple) && are(PyTuple_GET_ITEM(tuple, i)))
        i++;
    return i == PyTuple_GET_SIZE(tuple);
}

void optimc_ask_swapped(PyObject *grads, PyObject *weights)
{
    PyObject *type, *value, *traceback, *text = NULL;
    struct leaves leaves;
    if (!PyErr_ExceptionMatches(PyExc_TypeError) && !PyErr_ExceptionMatches(PyExc_ValueError))
        return;
    PyErr_Fetch(&type, &value, &traceback);
    if (!optimc_flatten(grads, weights, 0, &leaves)) {
        if (are_all(can_be_weight, leaves.grads) && are_all(can_only_be_gradient, leaves.weights))
            text = PyUnicode_FromFormat("%S (are grads and weights swapped?)", value ? value : Py_None);
        optimc_drop_leaves(&leaves);
    } else if (!PyErr_ExceptionMatches(PyExc_Exception)) {      /* Ctrl-C, say */
        Py_XDECREF(type);
        Py_XDECREF(value);
        Py_XDECREF(traceback);
        return;
    }
    PyErr_Clear();
    if (text) {
        Py_XSETREF(value, text);
        Py_CLEAR(traceback);
    }
    PyErr_Restore(type, value, traceback);
}

const char optimc_infinite_norm[] = "the norm of all gradients is not finite";

int optimc_refuse_norm(void)
{
    PyErr_SetString(PyExc_FloatingPointError, optimc_infinite_norm);
    return -1;
}

int optimc_refuse_tensor(enum fault fault, const char *argument, size_t i)
{
    static const char *const of_weights[] = {
        [FAULT_TYPE] = "expected the dtype it was built with", [FAULT_SHAPE] = "expected the shape it was built with",
        [FAULT_READ_ONLY] = "it is read-only", [FAULT_STRIDES] = "expected the memory layout it was built with",
        [FAULT_ALIGNMENT] = "its memory is not aligned for its dtype", [FAULT_NO_MEMORY] = "the tensor has no memory",
        [FAULT_OVERLAP] = "overlaps another parameter or its state in memory",
    };
    static const char *const of_gradients[] = {
        [FAULT_TYPE] = "expected a floating-point gradient", [FAULT_SHAPE] = "expected the shape of its parameter",
        [FAULT_NO_MEMORY] = "the tensor has no memory",
        [FAULT_OVERLAP] = "overlaps a parameter or its state in memory",
    };
    const char *reason = *argument == 'g' ? of_gradients[fault] : of_weights[fault];
    PyErr_Format(fault == FAULT_TYPE ? PyExc_TypeError : PyExc_ValueError, "%s[%zu]: %s", argument, i, reason);
    return -1;
}
