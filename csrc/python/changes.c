/* changes.c - what a commit changes beside the steps: values of optimizers, and entries of dicts.

   A transaction is told of them before, as data: checked then, with all the memory that the commit will need, so that
   a commit cannot fail and calls no code of the caller's. */
#define NO_IMPORT_ARRAY
#include "python/boundary.h"
#include "python/transaction.h"

/* Room for one more change, or NULL. */
static struct change *add_change(Transaction *self)
{
    struct change *changes = PyMem_Realloc(self->changes, (self->n_changes + 1) * sizeof *changes);
    if (!changes) {
        PyErr_NoMemory();
        return NULL;
    }
    self->changes = changes;
    return &changes[self->n_changes];
}

PyDoc_STRVAR(set_value_doc, "set_value($self, optimizer, group, index, value, /)\n--\n\n"
"Tells what a value of an optimizer with a step here becomes with the commit: a number, or None if it may be.\n"
"The step itself still runs with the value as it is.");

static PyObject *transaction_set_value(Transaction *self, PyObject *args)
{
    PyObject *object, *value;
    Py_ssize_t group, k;
    double number;
    if (!PyArg_ParseTuple(args, "OnnO:set_value", &object, &group, &k, &value))
        return NULL;
    struct checked *step = optimc_step_of(self, object);
    if (!step || optimc_find_value(step->optimizer, group, k))
        return NULL;
    Optimizer *optimizer = step->optimizer;
    const int real = optimc_read_value(optimizer, (int)k, value, &number);
    if (!real)
        PyErr_Format(PyExc_TypeError, "%U must be a number, got %s", optimizer->bounds[k].name,
            Py_TYPE(value)->tp_name);
    if (real <= 0)
        return NULL;
    if (!step->groups && !(step->groups = PyMem_Calloc(optimizer->n_groups, sizeof *step->groups)))
        return PyErr_NoMemory();
    struct change *change = add_change(self);
    if (!change)
        return NULL;
    *change = (struct change){.optimizer = optimizer, .group = group, .k = k, .number = number};
    Py_INCREF(optimizer);
    self->n_changes++;
    Py_RETURN_NONE;
}

PyDoc_STRVAR(store_doc, "store($self, mapping, key, value, /)\n--\n\n"
"Tells what an entry of a dict, which is there already, becomes with the commit.");

static PyObject *transaction_store(Transaction *self, PyObject *args)
{
    PyObject *dict, *key, *value;
    if (!PyArg_ParseTuple(args, "O!UO:store", &PyDict_Type, &dict, &key, &value) || optimc_refuse_use(self))
        return NULL;
    if (!PyDict_GetItemWithError(dict, key)) {
        if (!PyErr_Occurred())
            PyErr_SetObject(PyExc_KeyError, key);
        return NULL;
    }
    struct change *change = add_change(self);
    if (!change)
        return NULL;
    *change = (struct change){.dict = Py_NewRef(dict), .key = Py_NewRef(key), .value = Py_NewRef(value)};
    self->n_changes++;
    Py_RETURN_NONE;
}

int optimc_store_entries(Transaction *self)
{
    for (size_t i = 0; i < self->n_changes; i++) {
        struct change *change = &self->changes[i];
        if (!change->dict)
            continue;
        change->before[0] = Py_XNewRef(PyDict_GetItemWithError(change->dict, change->key));
        if (!PyErr_Occurred() && !PyDict_SetItem(change->dict, change->key, change->value))
            continue;
        PyObject *type, *value, *traceback;
        PyErr_Fetch(&type, &value, &traceback);
        while (i-- > 0) {
            const struct change *done = &self->changes[i];
            if (done->dict && done->before[0] && PyDict_SetItem(done->dict, done->key, done->before[0]))
                PyErr_Clear();
        }
        PyErr_Restore(type, value, traceback);
        return -1;
    }
    return 0;
}

void optimc_set_values(Transaction *self)
{
    for (size_t i = 0; i < self->n_changes; i++) {
        struct change *change = &self->changes[i];
        Optimizer *optimizer = change->optimizer;
        if (!optimizer)
            continue;
        struct setting *setting = &optimizer->settings[change->group][change->k];
        optimizer->n_sources -= setting->source != NULL;
        change->before[0] = setting->source;
        change->before[1] = setting->key;
        *setting = (struct setting){.own = 1};
        optimizer->groups[change->group].values[change->k] = change->number;
    }
}

PyMethodDef optimc_changes_methods[] = {
    METHOD("set_value", transaction_set_value, METH_VARARGS, set_value_doc),
    METHOD("store", transaction_store, METH_VARARGS, store_doc),
    {NULL, NULL, 0, NULL},
};
