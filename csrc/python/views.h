/* views.h - an array or a tensor as the plan sees it: pointer, shape, strides, type.

   Looking at an array is inline: a step looks at every weight and every gradient.  A look refuses nothing. */
#ifndef OPTIMC_VIEWS_H
#define OPTIMC_VIEWS_H

#include <string.h>

#include "python/boundary.h"
#include "python/dlpack.h"

static inline int optimc_type_of(PyArrayObject *array)
{
    const int num = PyArray_TYPE(array);
    if (num == NPY_FLOAT)
        return TYPE_F32;
    if (num == NPY_DOUBLE)
        return TYPE_F64;
    if (num == NPY_HALF)
        return TYPE_F16;
    if (num == NPY_LONGDOUBLE)
        return TYPE_LONG_DOUBLE;
    if (num >= NPY_USERDEF && PyArray_ITEMSIZE(array) == 2) {
        const char *name = PyArray_DESCR(array)->typeobj->tp_name, *dot = strrchr(name, '.');
        if (!strcmp(dot ? dot + 1 : name, "bfloat16"))
            return TYPE_BF16;
    }
    return num == NPY_UBYTE ? TYPE_U8 : num == NPY_SHORT ? TYPE_I16 : num == NPY_USHORT ? TYPE_U16 : TYPE_OTHER;
}

static inline void optimc_look(PyArrayObject *array, struct view *view)
{
    const int flags = PyArray_FLAGS(array);
    view->data = PyArray_BYTES(array);
    view->shape = PyArray_DIMS(array);
    view->strides = PyArray_STRIDES(array);
    view->itemsize = (size_t)PyArray_ITEMSIZE(array);
    view->ndim = PyArray_NDIM(array);
    view->type = optimc_type_of(array);
    view->swapped = !PyArray_ISNOTSWAPPED(array);
    view->c_order = (flags & NPY_ARRAY_C_CONTIGUOUS) != 0;
    view->f_order = (flags & NPY_ARRAY_F_CONTIGUOUS) != 0;
    view->aligned = (flags & NPY_ARRAY_ALIGNED) != 0;
    view->writeable = (flags & NPY_ARRAY_WRITEABLE) != 0;
}

/* Looks at an array that a step will write to, as this part of a weight; an error names `entry`, which is
   released. */
int optimc_look_writable(PyObject *object, PyObject *entry, int part, struct view *view);

/* Fills a view of a tensor of `ndim` axes, which are put in `order` (a tuple, or None for as they are); its shape and
   strides go into `room`.  An error names argument[i]. */
int optimc_look_tensor(const struct tensor_exchange *table, PyObject *object, PyObject *order,
    const char *argument, Py_ssize_t i, ptrdiff_t *room, int ndim, struct view *view);

/* 1 if an array is one of numpy.ma.  It asks the type for its name: no code of the caller's runs. */
int optimc_is_masked(PyObject *array);
int optimc_refuse_masked(PyObject *entry);

#endif
