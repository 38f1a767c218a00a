/* trees.h - nested containers of arrays, which trees.c flattens. */
#ifndef OPTIMC_TREES_H
#define OPTIMC_TREES_H

#include "python/boundary.h"

/* Leaves side by side, in the order of the weights: tuples, owned; NULL for what was not asked for. */
struct leaves {
    PyObject *grads, *weights, *names;
};

static inline int optimc_is_plain(PyObject *object)
{
    return PyList_Check(object) || PyTuple_Check(object) || PyDict_Check(object);
}

/* 1 if an object that is no ndarray offers its memory as an array.  Numbers, strings and lists do not: 0.  -1 on an
   error. */
int optimc_offers_array(PyObject *object);

/* A list, tuple or dict itself, or a copy of another sequence or mapping.  NULL without an error: it is none. */
PyObject *optimc_container(PyObject *object);

int optimc_is_nested(PyObject *container);          /* whether an entry is a container: 1 or 0; -1 on an error */

int optimc_has_none(PyObject *container);           /* whether an entry is None: 1 or 0 */

/* Flattens weights, and gradients of the same form unless NULL.  0 or -1; optimc_drop_leaves follows after 0. */
int optimc_flatten(PyObject *grads, PyObject *weights, int named, struct leaves *leaves);

/* The same for gradients of all weights of a plan with names. */
int optimc_flatten_like_plan(Plan *plan, PyObject *grads, struct leaves *leaves);
void optimc_drop_leaves(struct leaves *leaves);
PyObject *optimc_leaf_names(PyObject *tree);        /* a tuple, or NULL with an error */

#endif
