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
"Tells what a value of an optimizer that is locked here becomes with the commit: a number, or None if it may be.\n"
"The step itself still runs with the value as it is.");

static PyObject *transaction_set_value(Transaction *self, PyObject *args)
{
    PyObject *object, *value;
    Py_ssize_t group, k;
    double number;
    if (!PyArg_ParseTuple(args, "OnnO:set_value", &object, &group, &k, &value))
        return NULL;
    struct checked *step = optimc_locked_step(self, object);
    if (!step || optimc_find_value(step->optimizer, group, k))
        return NULL;
    Optimizer *optimizer = step->optimizer;
    self->busy = CHECKING;              /* a number may have code of its own */
    const int real = optimc_read_value(optimizer, (int)k, value, &number);
    self->busy = 0;
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

PyDoc_STRVAR(bind_doc, "bind($self, optimizer, plan, /)\n--\n\n"
"Tells which plan an optimizer that is locked here takes over with the commit.");

static PyObject *transaction_bind(Transaction *self, PyObject *args)
{
    PyObject *object, *plan;
    if (!PyArg_ParseTuple(args, "OO:bind", &object, &plan))
        return NULL;
    struct checked *step = optimc_locked_step(self, object);
    if (!step)
        return NULL;
    if (step->progress != ENTERED) {
        PyErr_SetString(PyExc_ValueError, "optimizer: it has a step in this transaction");
        return NULL;
    }
    for (size_t i = 0; i < self->n_changes; i++)
        if ((PyObject *)self->changes[i].plan == plan) {
            PyErr_SetString(PyExc_ValueError, "the plan is bound in this transaction already");
            return NULL;
        }
    struct change *change = optimc_check_bind(step->optimizer, plan) ? NULL : add_change(self);
    if (!change)
        return NULL;
    *change = (struct change){.optimizer = step->optimizer, .plan = (Plan *)Py_NewRef(plan)};
    Py_INCREF(step->optimizer);
    self->n_changes++;
    Py_RETURN_NONE;
}

PyDoc_STRVAR(store_doc, "store($self, mapping, key, value, new=False, /)\n--\n\n"
"Tells what an entry of a dict, which is there already unless it is new, becomes with the commit.");

static PyObject *transaction_store(Transaction *self, PyObject *args)
{
    PyObject *dict, *key, *value;
    int new = 0;
    if (!PyArg_ParseTuple(args, "O!UO|p:store", &PyDict_Type, &dict, &key, &value, &new) || optimc_refuse_use(self))
        return NULL;
    self->busy = CHECKING;              /* so may keys */
    const int there = PyDict_Contains(dict, key);
    self->busy = 0;
    if (there < 0 || (!there && !new)) {
        if (!there)
            PyErr_SetObject(PyExc_KeyError, key);
        return NULL;
    }
    struct change *change = add_change(self);
    if (!change)
        return NULL;
    *change = (struct change){.dict = Py_NewRef(dict), .key = Py_NewRef(key), .value = Py_NewRef(value), .new = new};
    self->n_changes++;
    Py_RETURN_NONE;
}

PyDoc_STRVAR(count_doc, "count($self, mapping, key, /)\n--\n\n"
"Tells that an entry of a dict, a count of steps, grows by one with the commit, up to MOST_STEPS.  Other threads\n"
"may count in it until then.");

static PyObject *transaction_count(Transaction *self, PyObject *args)
{
    PyObject *dict, *key;
    if (!PyArg_ParseTuple(args, "O!U:count", &PyDict_Type, &dict, &key) || optimc_refuse_use(self))
        return NULL;
    struct change *change = add_change(self);
    if (!change)
        return NULL;
    *change = (struct change){.dict = Py_NewRef(dict), .key = Py_NewRef(key), .counts = 1};
    self->n_changes++;
    Py_RETURN_NONE;
}

/* A count after one more step, or NULL with an error. */
static PyObject *next_count(PyObject *count)
{
    const long long number = PyLong_AsLongLong(count);
    if (number == -1 && PyErr_Occurred())
        return NULL;
    return PyLong_FromLongLong(number < MOST_STEPS ? number + 1 : MOST_STEPS);
}

/* Stores an entry and keeps what it replaces. */
static int store_entry(struct change *change)
{
    change->before[0] = Py_XNewRef(PyDict_GetItemWithError(change->dict, change->key));
    if (change->before[0] && change->counts && !(change->value = next_count(change->before[0])))
        return -1;
    if (change->before[0] || (change->new && !PyErr_Occurred()))
        return PyDict_SetItem(change->dict, change->key, change->value);
    if (!PyErr_Occurred())
        PyErr_SetObject(PyExc_KeyError, change->key);
    return -1;
}

int optimc_check_plans(const Transaction *self)
{
    for (size_t i = 0; i < self->n_changes; i++)
        if (self->changes[i].plan && optimc_check_bind(self->changes[i].optimizer, (PyObject *)self->changes[i].plan))
            return -1;
    return 0;
}

int optimc_store_entries(Transaction *self)
{
    size_t n = 0;                       /* entries before this change are stored */
    while (n < self->n_changes && (!self->changes[n].dict || !store_entry(&self->changes[n])))
        n++;
    if (n == self->n_changes)
        return 0;
    PyObject *type, *value, *traceback;
    PyErr_Fetch(&type, &value, &traceback);
    for (size_t i = n + 1; i-- > 0;) {
        struct change *change = &self->changes[i];
        if (i < n && change->dict && (change->before[0] ? PyDict_SetItem(change->dict, change->key, change->before[0])
                : PyDict_DelItem(change->dict, change->key)))
            PyErr_Clear();
        if (change->dict)
            Py_CLEAR(change->before[0]);
        if (change->counts)
            Py_CLEAR(change->value);
    }
    PyErr_Restore(type, value, traceback);
    return -1;
}

void optimc_set_values(Transaction *self)
{
    for (size_t i = 0; i < self->n_changes; i++) {
        struct change *change = &self->changes[i];
        Optimizer *optimizer = change->optimizer;
        if (!optimizer)
            continue;
        if (change->plan) {
            change->before[0] = Py_XNewRef((PyObject *)optimizer->plan);
            change->before[1] = Py_XNewRef(optimizer->state);
            optimc_hold(optimizer, change->plan, change->plan->state);
            continue;
        }
        struct setting *setting = &optimizer->settings[change->group][change->k];
        optimizer->n_sources -= setting->source != NULL;
        change->before[0] = setting->source;
        change->before[1] = setting->key;
        *setting = (struct setting){.own = 1};
        optimizer->groups[change->group].values[change->k] = change->number;
        if (optimizer->scaled && !change->group && change->k == LOSS_SCALE)
            optimizer->own_scale = change->number;
    }
}

PyMethodDef optimc_changes_methods[] = {
    METHOD("set_value", transaction_set_value, METH_VARARGS, set_value_doc),
    METHOD("bind", transaction_bind, METH_VARARGS, bind_doc),
    METHOD("store", transaction_store, METH_VARARGS, store_doc),
    METHOD("count", transaction_count, METH_VARARGS, count_doc),
    {NULL, NULL, 0, NULL},
};
