/* settings.c - the values of hyperparameters and options: their sources and their current numbers.

   A value is a number, or it has a source that is asked at every step: a schedule, a callable or an item of a dict.
   A group that does not set a value uses the first group's.  Next: sources.c, which asks
   the sources; running.c, the products of values that vary. */
#define NO_IMPORT_ARRAY
#include "python/boundary.h"

#include <math.h>

/* Fetches the values of a step: asks their sources, then copies the first group's to the groups that inherit them. */
int optimc_ask_all(Optimizer *self)
{
    if (self->calls >= MOST_STEPS) {
        PyErr_Format(PyExc_OverflowError, "the optimizer has done %lld steps, the most that it counts",
            (long long)self->calls);
        return -1;
    }
    for (size_t group = 0; self->n_sources && group < self->n_groups; group++)
        for (int k = 0; k < self->n_values; k++) {
            double number;
            if (!self->settings[group][k].source)
                continue;
            if (optimc_ask(self, group, k, &number))
                return -1;
            self->groups[group].values[k] = number;
        }
    optimc_share_values(self);
    return 0;
}

void optimc_share_values(Optimizer *self)
{
    for (size_t group = 1; group < self->n_groups; group++)
        for (int k = 0; k < self->n_values; k++)
            if (!self->settings[group][k].own)
                self->groups[group].values[k] = self->groups[0].values[k];
}

int optimc_refuse_new(Optimizer *self)
{
    PyErr_Format(PyExc_RuntimeError, "%s: __init__ was not called, or failed", Py_TYPE(self)->tp_name);
    return -1;
}

/* Checks the group and index that a method was given: 0, or -1 with an IndexError. */
int optimc_find_value(Optimizer *self, Py_ssize_t group, Py_ssize_t k)
{
    if (!self->n_values)
        return optimc_refuse_new(self);
    if (k >= 0 && k < self->n_values && group >= 0 && (size_t)group < self->n_groups)
        return 0;
    PyErr_SetString(PyExc_IndexError, "no such value");
    return -1;
}

PyDoc_STRVAR(declare_doc, "_declare($self, name, low, high, open, optional, /)\n--\n\n"
"Adds the next value and its range.  `open` is as in check_number.");

static PyObject *optimizer_declare(Optimizer *self, PyObject *args)
{
    struct bound bound;
    if (!PyArg_ParseTuple(args, "Uddip", &bound.name, &bound.low, &bound.high, &bound.open,
            &bound.optional))
        return NULL;
    if (self->n_values == MAX_VALUES) {
        PyErr_SetString(PyExc_IndexError, "too many values");
        return NULL;
    }
    PyObject **name = &self->bounds[self->n_values].name;       /* it stays, as errors may need it at any time */
    if (*name && PyUnicode_Compare(*name, bound.name)) {
        PyErr_Format(PyExc_ValueError, "expected the value %U again, got %U", *name, bound.name);
        return NULL;
    }
    bound.name = *name ? *name : Py_NewRef(bound.name);
    self->groups[0].values[self->n_values] = Py_NAN;
    self->settings[0][self->n_values].own = 1;
    self->bounds[self->n_values++] = bound;
    Py_RETURN_NONE;
}

PyDoc_STRVAR(add_group_doc, "_add_group($self, /)\n--\n\n"
"Adds a group and returns its index.  It inherits the first group's values until its own are set.");

PyObject *optimc_add_group(Optimizer *self, PyObject *Py_UNUSED(ignored))
{
    const size_t n = self->n_groups + 1;
    struct group *groups = PyMem_Realloc(self->groups, n * sizeof *groups);
    if (groups)
        self->groups = groups;
    struct setting (*settings)[MAX_VALUES] = PyMem_Realloc(self->settings, n * sizeof *settings);
    if (settings)
        self->settings = settings;
    if (!groups || !settings)
        return PyErr_NoMemory();
    optimc_group_clear(&groups[n - 1]);
    memset(settings[n - 1], 0, sizeof *settings);
    self->n_groups = n;
    return PyLong_FromSize_t(n - 1);
}

/* Refused within a step: a step that is fetching its values holds pointers into the groups. */
static PyObject *optimizer_add_group(Optimizer *self, PyObject *args)
{
    if (optimc_lock(self))
        return NULL;
    PyObject *index = optimc_add_group(self, args);
    optimc_unlock(self);
    return index;
}

/* Gives a value another setting, whose references it takes over.  The end of the old source may run code of the
   caller's, which finds the new setting whole. */
static void put(Optimizer *self, Py_ssize_t group, Py_ssize_t k, struct setting wanted)
{
    struct setting *setting = &self->settings[group][k];
    const struct setting before = *setting;
    self->n_sources += (wanted.source != NULL) - (before.source != NULL);
    *setting = wanted;
    Py_XDECREF(before.source);
    Py_XDECREF(before.key);
}

PyDoc_STRVAR(forget_doc, "_forget($self, /)\n--\n\n"
"Drops all values, groups and state: the optimizer is as before `__init__`.");

static PyObject *forget_now(Optimizer *self, PyObject *Py_UNUSED(ignored))
{
    if (self->plan && self->plan->matching != IDLE && optimc_refuse_nested(self))
        return NULL;
    optimc_hold(self, NULL, Py_None);
    while (self->n_values) {                /* the end of a source may run code, which finds what is left whole */
        const int k = --self->n_values;
        for (size_t group = 0; group < self->n_groups; group++)
            put(self, (Py_ssize_t)group, k, (struct setting){0});
    }
    self->n_groups = 1;
    optimc_group_clear(&self->groups[0]);
    self->calls = self->skipped = 0;
    Py_RETURN_NONE;
}

static PyObject *optimizer_forget(Optimizer *self, PyObject *args)
{
    if (!self->n_values)                    /* there is nothing, not even a turn to wait for */
        Py_RETURN_NONE;
    return optimc_between_steps(self, args, forget_now);
}

int optimc_read_value(Optimizer *self, int k, PyObject *object, double *number)
{
    const struct bound *bound = &self->bounds[k];
    *number = Py_NAN;
    if (object == Py_None && bound->optional)
        return 1;
    const int real = optimc_read_number(object, 0, number);
    return real > 0 && optimc_check_bound(bound, *number, object, "") ? -1 : real;
}

/* Reads a number that a value may be set to: 1; 0 if the object is a source of numbers; -1 with an error. */
static int read_number_or_source(Optimizer *self, int k, PyObject *object, double *number)
{
    const struct bound *bound = &self->bounds[k];
    const int real = optimc_read_value(self, k, object, number);
    if (real || (PyCallable_Check(object) && !PyType_Check(object)))
        return real;
    const char *none = bound->optional ? " or None" : "";
    if (PyType_Check(object))
        PyErr_Format(PyExc_TypeError, "%U must be a number, a schedule or a callable%s, got the class %s itself",
            bound->name, none, ((PyTypeObject *)object)->tp_name);
    else
        PyErr_Format(PyExc_TypeError, "%U must be a number, a schedule or a callable%s, got %s", bound->name, none,
            Py_TYPE(object)->tp_name);
    return -1;
}

PyDoc_STRVAR(read_value_doc, "_read_value($self, index, value, /)\n--\n\n"
"Returns what `_get_value` would return if the value were set to this, or raises what `_set_value` would.");

static PyObject *optimizer_read_value(Optimizer *self, PyObject *args)
{
    PyObject *object;
    Py_ssize_t k;
    double number;
    if (!PyArg_ParseTuple(args, "nO", &k, &object) || optimc_find_value(self, 0, k))
        return NULL;
    const int real = read_number_or_source(self, (int)k, object, &number);
    if (real < 0)
        return NULL;
    return real && !isnan(number) ? PyFloat_FromDouble(number) : Py_NewRef(object);
}

PyDoc_STRVAR(set_value_doc, "_set_value($self, group, index, value, with_step, /)\n--\n\n"
"Sets a value to a number, to None if it is optional, or to a callable.  `with_step` tells whether the\n"
"callable is called with the step or without arguments.");

static PyObject *set_value_now(Optimizer *self, PyObject *args)
{
    PyObject *object;
    Py_ssize_t group, k;
    int with_step;
    if (!PyArg_ParseTuple(args, "nnOp", &group, &k, &object, &with_step))
        return NULL;
    if (optimc_find_value(self, group, k))
        return NULL;
    double number;
    const int real = read_number_or_source(self, (int)k, object, &number);
    if (real < 0 || optimc_find_value(self, group, k))
        return NULL;
    PyObject *source = real ? NULL : Py_NewRef(object);
    struct group *g = &self->groups[group];
    if (source && k >= OPTIONS)
        optimc_group_vary(g, (int)k - OPTIONS, self->calls / self->accumulate);
    /* A step in progress has asked already, maybe: it goes on with the number that it has. */
    g->values[k] = real ? number : self->groups[self->settings[group][k].own ? group : 0].values[k];
    put(self, group, k, (struct setting){.source = source, .with_step = with_step, .own = 1});
    Py_RETURN_NONE;
}

BETWEEN_STEPS(set_value)

PyDoc_STRVAR(set_option_doc, "_set_option($self, name, value, core, number, index, /)\n--\n\n"
"Sets an argument that is no value, in one: the entry `name` of the object's dict; the member `core` (None: there\n"
"is none) to a number; and the value of this index (-1: there is none) to that number too.");

static PyObject *set_option_now(Optimizer *self, PyObject *args)
{
    PyObject *name, *value, *core, *number;
    Py_ssize_t k;
    double real = 0;
    if (!PyArg_ParseTuple(args, "UOOOn", &name, &value, &core, &number, &k)
        || (k >= 0 && (optimc_find_value(self, 0, k) || optimc_read_value(self, (int)k, number, &real) < 0)))
        return NULL;
    PyObject *before = core == Py_None ? Py_NewRef(Py_None) : PyObject_GetAttr((PyObject *)self, core);
    PyObject *dict = before ? PyObject_GenericGetDict((PyObject *)self, NULL) : NULL;
    int failed = !dict || (core != Py_None && PyObject_SetAttr((PyObject *)self, core, number));
    if (!failed && PyDict_SetItem(dict, name, value)) {
        PyObject *type, *error, *traceback;
        PyErr_Fetch(&type, &error, &traceback);
        if (core != Py_None && PyObject_SetAttr((PyObject *)self, core, before))
            PyErr_Clear();
        PyErr_Restore(type, error, traceback);
        failed = 1;
    }
    Py_XDECREF(before);
    Py_XDECREF(dict);
    if (failed)
        return NULL;
    if (k >= 0) {
        self->groups[0].values[k] = real;
        put(self, 0, k, (struct setting){.own = 1});
    }
    Py_RETURN_NONE;
}

BETWEEN_STEPS(set_option)

PyDoc_STRVAR(set_item_doc, "_set_item($self, group, index, mapping, key, item, zero_is_off, items=0, /)\n--\n\n"
"Reads a value at every step from mapping[key], or from mapping[key][item], of a list or tuple, if item >= 0.\n"
"It has `items` entries, if that is not 0.");

static PyObject *set_item_now(Optimizer *self, PyObject *args)
{
    PyObject *mapping, *key;
    Py_ssize_t group, k;
    int item, zero_is_off, items = 0;
    if (!PyArg_ParseTuple(args, "nnO!Uip|i", &group, &k, &PyDict_Type, &mapping, &key, &item, &zero_is_off, &items)
        || optimc_find_value(self, group, k))
        return NULL;
    const struct setting wanted = {mapping, key, 0, 1, item, zero_is_off, items};
    double number;
    if (optimc_read_item(self, &wanted, (int)k, &number) || optimc_find_value(self, group, k))
        return NULL;
    Py_INCREF(mapping);
    Py_INCREF(key);
    self->groups[group].values[k] = number;
    put(self, group, k, wanted);
    Py_RETURN_NONE;
}

BETWEEN_STEPS(set_item)

/* The value as it was set, for this group or for the first one if the group inherits it. */
static PyObject *value_of(Optimizer *self, Py_ssize_t group, Py_ssize_t k)
{
    if (!self->settings[group][k].own)
        group = 0;
    const struct setting *setting = &self->settings[group][k];
    const double number = self->groups[group].values[k];
    if (setting->source)
        return Py_NewRef(setting->source);
    if (self->bounds[k].optional && isnan(number))
        Py_RETURN_NONE;
    return PyFloat_FromDouble(number);
}

PyDoc_STRVAR(get_value_doc, "_get_value($self, group, index, /)\n--\n\n"
"Returns the number, the schedule or callable that gives it, or None.");

static PyObject *get_value_now(Optimizer *self, PyObject *args)
{
    Py_ssize_t group, k;
    if (!PyArg_ParseTuple(args, "nn", &group, &k) || optimc_find_value(self, group, k))
        return NULL;
    return value_of(self, group, k);
}

static PyObject *optimizer_get_value(Optimizer *self, PyObject *args)
{
    return self->n_values ? optimc_beside_steps(self, args, get_value_now) : get_value_now(self, args);
}

PyDoc_STRVAR(ask_value_doc, "_ask_value($self, group, index, /)\n--\n\n"
"Returns the number that a value has for the next step, or None.");

static PyObject *optimizer_ask_value(Optimizer *self, PyObject *args)
{
    Py_ssize_t group, k;
    double number;
    if (!PyArg_ParseTuple(args, "nn", &group, &k) || optimc_find_value(self, group, k))
        return NULL;
    if (!self->settings[group][k].own)
        group = 0;
    if (!self->settings[group][k].source)
        return value_of(self, group, k);
    return optimc_ask(self, (size_t)group, (int)k, &number) ? NULL : PyFloat_FromDouble(number);
}

PyDoc_STRVAR(is_own_doc, "_is_own($self, group, index, /)\n--\n\n"
"True if a value was set for this group, False if it is inherited from the first group.");

static PyObject *optimizer_is_own(Optimizer *self, PyObject *args)
{
    Py_ssize_t group, k;
    if (!PyArg_ParseTuple(args, "nn", &group, &k) || optimc_find_value(self, group, k))
        return NULL;
    return PyBool_FromLong(self->settings[group][k].own);
}

PyDoc_STRVAR(owners_doc, "_owners($self, index, /)\n--\n\n"
"Returns the groups for which a value was set; the first group is always among them.");

static PyObject *optimizer_owners(Optimizer *self, PyObject *args)
{
    Py_ssize_t k;
    if (!PyArg_ParseTuple(args, "n", &k) || optimc_find_value(self, 0, k))
        return NULL;
    PyObject *owners = PyList_New(0);
    for (size_t group = 0; owners && group < self->n_groups; group++) {
        PyObject *number = self->settings[group][k].own ? PyLong_FromSize_t(group) : NULL;
        if (number ? PyList_Append(owners, number) : self->settings[group][k].own)
            Py_CLEAR(owners);
        Py_XDECREF(number);
    }
    return owners;
}

PyDoc_STRVAR(current_doc, "_current($self, group, index, /)\n--\n\n"
"Returns the number that a value has in the step in progress.");

static PyObject *optimizer_current(Optimizer *self, PyObject *args)
{
    Py_ssize_t group, k;
    if (!PyArg_ParseTuple(args, "nn", &group, &k) || optimc_find_value(self, group, k))
        return NULL;
    return PyFloat_FromDouble(self->groups[self->settings[group][k].own ? group : 0].values[k]);
}

/* 1 if the plan has a weight of this index, else 0 with an IndexError. */
int optimc_is_weight(Optimizer *self, Py_ssize_t index)
{
    if (self->plan && index >= 0 && (size_t)index < optimc_plan_weights(self->plan->core))
        return 1;
    PyErr_SetString(PyExc_IndexError, "no such weight");
    return 0;
}

PyDoc_STRVAR(value_of_doc, "_value_of($self, weight, index, /)\n--\n\n"
"Returns the value of this index that the step in progress uses for a weight.");

static PyObject *optimizer_value_of(Optimizer *self, PyObject *args)
{
    Py_ssize_t weight, k;
    if (!PyArg_ParseTuple(args, "nn", &weight, &k) || !optimc_is_weight(self, weight)
        || optimc_find_value(self, 0, k))
        return NULL;
    return PyFloat_FromDouble(self->groups[optimc_plan_group(self->plan->core, (size_t)weight)].values[k]);
}

PyMethodDef optimc_settings_methods[] = {
    METHOD("_declare", optimizer_declare, METH_VARARGS, declare_doc),
    METHOD("_forget", optimizer_forget, METH_NOARGS, forget_doc),
    METHOD("_add_group", optimizer_add_group, METH_NOARGS, add_group_doc),
    METHOD("_read_value", optimizer_read_value, METH_VARARGS, read_value_doc),
    METHOD("_set_value", optimizer_set_value, METH_VARARGS, set_value_doc),
    METHOD("_set_option", optimizer_set_option, METH_VARARGS, set_option_doc),
    METHOD("_get_value", optimizer_get_value, METH_VARARGS, get_value_doc),
    METHOD("_ask_value", optimizer_ask_value, METH_VARARGS, ask_value_doc),
    METHOD("_owners", optimizer_owners, METH_VARARGS, owners_doc),
    METHOD("_is_own", optimizer_is_own, METH_VARARGS, is_own_doc),
    METHOD("_current", optimizer_current, METH_VARARGS, current_doc),
    METHOD("_value_of", optimizer_value_of, METH_VARARGS, value_of_doc),
    METHOD("_set_item", optimizer_set_item, METH_VARARGS, set_item_doc),
    {NULL, NULL, 0, NULL},
};
