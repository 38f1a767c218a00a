/* running.c - numbers that run along with the updates beside the slots: for each group the products of values that
   vary and the scalars that a rule keeps, for each weight its count and scalars, if weights count their own updates.

   Python reads and writes those of groups by name, {"products": {hyperparameter: number}, "scalars": {name: number}},
   so that no file depends on how they lie in memory.  A value that does not vary has no product. */
#define NO_IMPORT_ARRAY
#include "python/boundary.h"

#include <math.h>
#include <string.h>

/* Counts an update in the products.  A group that shares a value of the first group shares its product. */
void optimc_settle_groups(Optimizer *self)
{
    for (size_t group = 0; group < self->n_groups; group++) {
        struct group *g = &self->groups[group];
        for (int k = OPTIONS; k < self->n_values; k++) {
            if (self->settings[group][k].own)
                optimc_group_multiply(g, k - OPTIONS);
            else
                g->products[k - OPTIONS] = self->groups[0].products[k - OPTIONS];
        }
    }
}

PyDoc_STRVAR(name_scalars_doc, "_name_scalars($self, names, /)\n--\n\n"
"Tells what the rule's scalars are called: a tuple of str, in the order of its row.");

static PyObject *optimizer_name_scalars(Optimizer *self, PyObject *names)
{
    int fit = PyTuple_Check(names) && PyTuple_GET_SIZE(names) <= MAX_SCALARS;
    for (Py_ssize_t k = 0; fit && k < PyTuple_GET_SIZE(names); k++)
        fit = PyUnicode_Check(PyTuple_GET_ITEM(names, k));
    if (!fit) {
        PyErr_Format(PyExc_TypeError, "names: expected a tuple of at most %d names", MAX_SCALARS);
        return NULL;
    }
    Py_XSETREF(self->scalars, Py_NewRef(names));
    Py_RETURN_NONE;
}

static Py_ssize_t count(PyObject *names)
{
    return names ? PyTuple_GET_SIZE(names) : 0;
}

static int set_number(PyObject *dict, PyObject *name, double value)
{
    PyObject *number = PyFloat_FromDouble(value);
    const int failed = !number || PyDict_SetItem(dict, name, number);
    Py_XDECREF(number);
    return failed;
}

/* The running values of one group, by name.  `names`: the rule's scalars, or NULL. */
static PyObject *running_of(const Optimizer *self, const struct group *group, PyObject *names)
{
    PyObject *products = PyDict_New(), *scalars = PyDict_New();
    int failed = !products || !scalars;
    for (int k = OPTIONS; !failed && k < self->n_values; k++)
        if (!isnan(group->products[k - OPTIONS]))
            failed = set_number(products, self->bounds[k].name, group->products[k - OPTIONS]);
    for (Py_ssize_t k = 0; !failed && k < count(names); k++)
        failed = set_number(scalars, PyTuple_GET_ITEM(names, k), group->before[k]);
    PyObject *one = failed ? NULL : Py_BuildValue("{sOsO}", "products", products, "scalars", scalars);
    Py_XDECREF(products);
    Py_XDECREF(scalars);
    return one;
}

PyDoc_STRVAR(get_running_doc, "_get_running($self, /)\n--\n\n"
"What runs along with the updates beside the slots: for each group the products of the hyperparameters that vary\n"
"and the scalars of the rule, by name.");

static PyObject *get_running_now(Optimizer *self, PyObject *Py_UNUSED(ignored))
{
    PyObject *all = PyTuple_New((Py_ssize_t)self->n_groups), *names = Py_XNewRef(self->scalars);
    for (size_t i = 0; all && i < self->n_groups; i++) {
        PyObject *one = running_of(self, &self->groups[i], names);
        if (one)
            PyTuple_SET_ITEM(all, (Py_ssize_t)i, one);
        else
            Py_CLEAR(all);
    }
    Py_XDECREF(names);
    return all;
}

/* The dict of numbers under a key of the entry of a group: a new reference, or NULL with an error. */
static PyObject *numbers_of(PyObject *one, const char *key, size_t group)
{
    PyObject *name, *numbers;
    for (Py_ssize_t i = 0; PyDict_Check(one) && PyDict_Next(one, &i, &name, &numbers);)
        if (PyUnicode_Check(name) && !PyUnicode_CompareWithASCIIString(name, key) && PyDict_Check(numbers))
            return Py_NewRef(numbers);
    PyErr_Format(PyExc_ValueError, "running[%zu]: expected a dict of %s by name", group, key);
    return NULL;
}

/* 1 if a dict has a number of that name, which is given, and counted in `found`; else 0.  -1 with an error. */
static int find_number(PyObject *numbers, PyObject *name, double *number, Py_ssize_t *found)
{
    PyObject *object = PyDict_GetItemWithError(numbers, name);
    if (!object)
        return PyErr_Occurred() ? -1 : 0;
    if (!PyFloat_Check(object)) {
        PyErr_Format(PyExc_TypeError, "running: %U must be a float, got %s", name, Py_TYPE(object)->tp_name);
        return -1;
    }
    *number = PyFloat_AS_DOUBLE(object);
    ++*found;
    return 1;
}

/* Reads the two dicts of a group. */
static int read_numbers(const Optimizer *self, PyObject *products, PyObject *scalars, PyObject *names,
    struct running *running)
{
    Py_ssize_t found = 0, found_scalars = 0;
    for (int k = 0; k < MAX_HYPERS; k++)
        running->products[k] = Py_NAN;
    for (int k = OPTIONS; k < self->n_values; k++)
        if (find_number(products, self->bounds[k].name, &running->products[k - OPTIONS], &found) < 0)
            return -1;
    for (Py_ssize_t k = 0; k < count(names); k++)
        if (find_number(scalars, PyTuple_GET_ITEM(names, k), &running->scalars[k], &found_scalars) < 0)
            return -1;
    return found == PyDict_GET_SIZE(products) && found_scalars == PyDict_GET_SIZE(scalars)
        && found_scalars == count(names);
}

/* Reads the entry of a group. */
static int read_group(const Optimizer *self, PyObject *one, size_t group, PyObject *names, struct running *running)
{
    PyObject *products = numbers_of(one, "products", group);
    PyObject *scalars = products ? numbers_of(one, "scalars", group) : NULL;
    const int fits = scalars ? read_numbers(self, products, scalars, names, running) : -1;
    if (!fits)
        PyErr_Format(PyExc_ValueError, "running[%zu]: expected products of the rule's hyperparameters and its "
            "scalars, got %.200R", group, one);
    Py_XDECREF(products);
    Py_XDECREF(scalars);
    return fits > 0 ? 0 : -1;
}

struct running *optimc_read_running(Optimizer *self, PyObject *given)
{
    if (!PyTuple_Check(given) || (size_t)PyTuple_GET_SIZE(given) != self->n_groups) {
        PyErr_SetString(PyExc_ValueError, "running: expected a tuple with an entry per group");
        return NULL;
    }
    const size_t n = self->n_groups;
    struct running *running = PyMem_Calloc(n, sizeof *running);
    if (!running) {
        PyErr_NoMemory();
        return NULL;
    }
    PyObject *names = Py_XNewRef(self->scalars);        /* keys may have code of their own */
    int failed = 0;
    for (size_t i = 0; !failed && i < n; i++)
        failed = read_group(self, PyTuple_GET_ITEM(given, (Py_ssize_t)i), i, names, &running[i]);
    Py_XDECREF(names);
    if (!failed)
        return running;
    PyMem_Free(running);
    return NULL;
}

void optimc_set_running(Optimizer *self, const struct running *running)
{
    for (size_t i = 0; i < self->n_groups; i++) {
        memcpy(self->groups[i].products, running[i].products, sizeof running->products);
        memcpy(self->groups[i].before, running[i].scalars, sizeof running->scalars);
    }
}

PyDoc_STRVAR(set_running_doc, "_set_running($self, running, /)\n--\n\n"
"Sets what `_get_running` gave.  Nothing changes on an error.");

static PyObject *set_running_now(Optimizer *self, PyObject *given)
{
    struct running *running = optimc_read_running(self, given);
    if (!running)
        return NULL;
    optimc_set_running(self, running);
    PyMem_Free(running);
    Py_RETURN_NONE;
}

BETWEEN_STEPS(set_running)

PyDoc_STRVAR(check_running_doc, "_check_running($self, running, /)\n--\n\n"
"Raises what `_set_running` would raise, and changes nothing.");

static PyObject *check_running_now(Optimizer *self, PyObject *given)
{
    struct running *running = optimc_read_running(self, given);
    if (!running)
        return NULL;
    PyMem_Free(running);
    Py_RETURN_NONE;
}

BETWEEN_STEPS(check_running)

BETWEEN_STEPS(get_running)

/* --------------------------------------------------------------------------- counts of weights - */

/* Reads the entry of a weight, (count, scalar, ...): 0, or -1 with an error. */
static int read_progress(PyObject *entry, Py_ssize_t n_scalars, struct weight_progress *progress)
{
    if (!PyTuple_Check(entry) || PyTuple_GET_SIZE(entry) != 1 + n_scalars) {
        PyErr_SetString(PyExc_TypeError, "progress: expected a tuple of a count and the rule's scalars");
        return -1;
    }
    progress->t = PyLong_AsLongLong(PyTuple_GET_ITEM(entry, 0));
    for (Py_ssize_t k = 0; k < n_scalars && !PyErr_Occurred(); k++)
        progress->scalars[k] = PyFloat_AsDouble(PyTuple_GET_ITEM(entry, 1 + k));
    if (PyErr_Occurred())
        return -1;
    if (progress->t >= 0 && progress->t <= MOST_STEPS)
        return 0;
    PyErr_Format(PyExc_ValueError, "iterations must be in [0, %lld], got %lld", (long long)MOST_STEPS,
        (long long)progress->t);
    return -1;
}

PyDoc_STRVAR(set_progress_doc, "_set_progress($self, progress, /)\n--\n\n"
"Lets each weight of the plan count its own updates, from a tuple of tuples (count, scalar, ...), one per weight.\n"
"A weight without a gradient rests.  Hyperparameters that vary are as if all weights had taken part in all updates.");

static PyObject *set_progress_now(Optimizer *self, PyObject *given)
{
    const size_t n = self->plan ? optimc_plan_weights(self->plan->core) : 0;
    if (!PyTuple_Check(given) || !n || (size_t)PyTuple_GET_SIZE(given) != n) {
        PyErr_SetString(PyExc_ValueError, "progress: expected a tuple with an entry per weight");
        return NULL;
    }
    Plan *plan = (Plan *)Py_NewRef((PyObject *)self->plan);     /* a number may have code of its own */
    const Py_ssize_t n_scalars = count(self->scalars);
    struct weight_progress *progress = PyMem_Calloc(n, sizeof *progress);
    int failed = !progress;
    for (size_t i = 0; !failed && i < n; i++)
        failed = read_progress(PyTuple_GET_ITEM(given, (Py_ssize_t)i), n_scalars, &progress[i]);
    if (!progress)
        PyErr_NoMemory();
    else if (!failed && (self->plan != plan || plan->matching != IDLE))
        failed = optimc_refuse_nested(self);
    else if (!failed && optimc_plan_count(plan->core, progress)) {
        PyErr_NoMemory();
        failed = 1;
    }
    PyMem_Free(progress);
    Py_DECREF(plan);
    if (failed)
        return NULL;
    Py_RETURN_NONE;
}

BETWEEN_STEPS(set_progress)

static PyObject *progress_of(const struct weight_progress *progress, Py_ssize_t n_scalars)
{
    PyObject *entry = PyTuple_New(1 + n_scalars);
    for (Py_ssize_t k = 0; entry && k <= n_scalars; k++) {
        PyObject *number = k ? PyFloat_FromDouble(progress->scalars[k - 1]) : PyLong_FromLongLong(progress->t);
        if (number)
            PyTuple_SET_ITEM(entry, k, number);
        else
            Py_CLEAR(entry);
    }
    return entry;
}

PyDoc_STRVAR(get_progress_doc, "_get_progress($self, /)\n--\n\n"
"What `_set_progress` takes, as it is now; None if the weights do not count.");

static PyObject *get_progress_now(Optimizer *self, PyObject *Py_UNUSED(ignored))
{
    Plan *plan = (Plan *)Py_XNewRef(self->plan);                /* a new tuple may run the garbage collector */
    const size_t n = plan ? optimc_plan_weights(plan->core) : 0;
    const Py_ssize_t n_scalars = count(self->scalars);
    PyObject *all = n && optimc_plan_progress(plan->core, 0) ? PyTuple_New((Py_ssize_t)n) : Py_NewRef(Py_None);
    for (size_t i = 0; all && all != Py_None && i < n; i++) {
        PyObject *entry = progress_of(optimc_plan_progress(plan->core, i), n_scalars);
        if (entry)
            PyTuple_SET_ITEM(all, (Py_ssize_t)i, entry);
        else
            Py_CLEAR(all);
    }
    Py_XDECREF(plan);
    return all;
}

BETWEEN_STEPS(get_progress)

PyMethodDef optimc_running_methods[] = {
    METHOD("_set_progress", optimizer_set_progress, METH_O, set_progress_doc),
    METHOD("_get_progress", optimizer_get_progress, METH_NOARGS, get_progress_doc),
    METHOD("_name_scalars", optimizer_name_scalars, METH_O, name_scalars_doc),
    METHOD("_get_running", optimizer_get_running, METH_NOARGS, get_running_doc),
    METHOD("_check_running", optimizer_check_running, METH_O, check_running_doc),
    METHOD("_set_running", optimizer_set_running, METH_O, set_running_doc),
    {NULL, NULL, 0, NULL},
};
