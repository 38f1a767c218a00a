/* rows_type.h - gradients that are rows of their weight, as Python has them. */
#ifndef OPTIMC_ROWS_TYPE_H
#define OPTIMC_ROWS_TYPE_H

#include "python/boundary.h"

/* _core.Rows: values[k] belongs to row indices[k].  Its arrays are checked again in each step, because their owner
   may change dtypes and shapes. */
typedef struct {
    PyObject_HEAD
    PyArrayObject *indices, *values;
} Rows;

/* The type, or NULL. */
PyTypeObject *optimc_rows_type(PyObject *module);

/* 1 if an object is a Rows, else 0. */
int optimc_is_rows(const Plan *plan, PyObject *object);

/* The Rows that another library's object stands for, for a weight: a new reference; None if it stands for none; NULL
   with an error, which begins with `label`, released here. */
PyObject *optimc_rows_of(PyObject *gradient, PyObject *weight, PyObject *label);

/* Notes rows as the gradient of a weight of the plan: FINE, or -1 with an error; `pairs` names the entry. */
int optimc_take_rows(Plan *plan, const struct pairs *pairs, size_t index, Rows *rows);

#endif
