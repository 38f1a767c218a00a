/* running.c - numbers that run along with the updates beside the slots, for each group: the products of values that
   vary, and the scalars that a rule keeps. */
#define NO_IMPORT_ARRAY
#include "python/boundary.h"

#include <math.h>
#include <string.h>

/* Gives every value that varies its product over the updates. */
void optimc_settle_groups(Optimizer *self)
{
    for (size_t group = 0; group < self->n_groups; group++) {
        struct group *g = &self->groups[group];
        for (int k = OPTIONS; k < self->n_values; k++) {
            const int own = self->settings[group][k].own, power = k - OPTIONS;
            if (!own)
                g->products[power] = self->groups[0].products[power];
            else if (!isnan(g->products[power]))
                g->products[power] *= g->values[k];
        }
    }
}

PyDoc_STRVAR(get_running_doc, "_get_running($self, /)\n--\n\n"
"What runs along with the updates beside the slots: per group a tuple of floats.");

static PyObject *get_running_now(Optimizer *self, PyObject *Py_UNUSED(ignored))
{
    PyObject *all = PyTuple_New((Py_ssize_t)self->n_groups);
    for (size_t i = 0; all && i < self->n_groups; i++) {
        const struct group *group = &self->groups[i];
        PyObject *one = PyTuple_New(MAX_HYPERS + MAX_SCALARS);
        for (int k = 0; one && k < MAX_HYPERS + MAX_SCALARS; k++) {
            PyObject *number = PyFloat_FromDouble(
                k < MAX_HYPERS ? group->products[k] : group->before[k - MAX_HYPERS]);
            if (number)
                PyTuple_SET_ITEM(one, k, number);
            else
                Py_CLEAR(one);
        }
        if (one)
            PyTuple_SET_ITEM(all, (Py_ssize_t)i, one);
        else
            Py_CLEAR(all);
    }
    return all;
}

BETWEEN_STEPS(get_running)

PyDoc_STRVAR(set_running_doc, "_set_running($self, running, /)\n--\n\nSets what `_get_running` gave.");

PyObject *optimc_set_running(Optimizer *self, PyObject *running)
{
    double numbers[MAX_HYPERS + MAX_SCALARS];
    if (!PyTuple_Check(running) || (size_t)PyTuple_GET_SIZE(running) != self->n_groups) {
        PyErr_SetString(PyExc_ValueError, "running: expected a tuple with an entry per group");
        return NULL;
    }
    for (int commit = 0; commit < 2; commit++) {
        for (size_t i = 0; i < self->n_groups; i++) {
            PyObject *one = PyTuple_GET_ITEM(running, (Py_ssize_t)i);
            if (!PyTuple_Check(one) || PyTuple_GET_SIZE(one) != MAX_HYPERS + MAX_SCALARS) {
                PyErr_Format(PyExc_ValueError, "running[%zd]: expected %d numbers", (Py_ssize_t)i,
                    MAX_HYPERS + MAX_SCALARS);
                return NULL;
            }
            for (int k = 0; k < MAX_HYPERS + MAX_SCALARS; k++) {
                numbers[k] = PyFloat_AsDouble(PyTuple_GET_ITEM(one, k));
                if (numbers[k] == -1 && PyErr_Occurred())
                    return NULL;
            }
            if (commit) {
                memcpy(self->groups[i].products, numbers, MAX_HYPERS * sizeof *numbers);
                memcpy(self->groups[i].before, numbers + MAX_HYPERS, MAX_SCALARS * sizeof *numbers);
            }
        }
    }
    Py_RETURN_NONE;
}

static PyObject *optimizer_set_running(Optimizer *self, PyObject *running)
{
    return optimc_between_steps(self, running, optimc_set_running);
}

PyMethodDef optimc_running_methods[] = {
    METHOD("_get_running", optimizer_get_running, METH_NOARGS, get_running_doc),
    METHOD("_set_running", optimizer_set_running, METH_O, set_running_doc),
    {NULL, NULL, 0, NULL},
};
