/* optimizer.c - the type _core.Optimizer: its members, its life, and the methods of the files beside it. */
#define NO_IMPORT_ARRAY
#include "python/tensors.h"

#include <structmember.h>

#include "plan/pool.h"

PyDoc_STRVAR(locked_doc, "_locked($self, function, /, *args, **kwargs)\n--\n\n"
"Waits for a step in progress and returns what the function gives, while no other can start.  The lock is\n"
"taken and released here, in C: a signal handler that raises cannot come before a `try` and leave it taken.");

/* Calls args[0] with the arguments that follow it. */
static PyObject *call(PyObject *const *args, Py_ssize_t n, PyObject *names)
{
    return PyObject_Vectorcall(args[0], args + 1, (size_t)n - 1, names);
}

static PyObject *optimizer_locked(Optimizer *self, PyObject *const *args, Py_ssize_t n, PyObject *names)
{
    if (!n) {
        PyErr_SetString(PyExc_TypeError, "_locked() takes a function, got nothing");
        return NULL;
    }
    if (optimc_lock(self))
        return NULL;
    PyObject *result = call(args, n, names);
    optimc_unlock(self);
    return result;
}

PyDoc_STRVAR(in_turn_doc, "_in_turn($self, function, /, *args, **kwargs)\n--\n\n"
"As `_locked`, but a step of this thread's may be in progress.  It is being checked then.");

static PyObject *optimizer_in_turn(Optimizer *self, PyObject *const *args, Py_ssize_t n, PyObject *names)
{
    return n && self->owner == optimc_this_thread() ? call(args, n, names) : optimizer_locked(self, args, n, names);
}

PyDoc_STRVAR(alone_doc, "_alone($self, function, /, *args, **kwargs)\n--\n\n"
"As `_locked`, but the function may step the optimizer and call all that locks it: several calls become one turn.");

static PyObject *optimizer_alone(Optimizer *self, PyObject *const *args, Py_ssize_t n, PyObject *names)
{
    if (!n || (self->alone && self->owner == optimc_this_thread()))
        return n ? call(args, n, names) : optimizer_locked(self, args, n, names);
    if (optimc_lock(self))
        return NULL;
    self->alone = 1;
    PyObject *result = call(args, n, names);
    self->alone = 0;
    optimc_unlock(self);
    return result;
}

static PyObject *iterations_now(Optimizer *self, PyObject *Py_UNUSED(ignored))
{
    return PyLong_FromLongLong(self->calls / self->accumulate);
}

static PyObject *get_iterations(Optimizer *self, void *Py_UNUSED(closure))
{
    return optimc_beside_steps(self, NULL, iterations_now);
}

static int set_iterations(Optimizer *self, PyObject *value, void *Py_UNUSED(closure))
{
    if (!value || PyBool_Check(value) || !PyIndex_Check(value)) {
        PyErr_Format(PyExc_TypeError, "iterations must be an int, got %s",
            value ? Py_TYPE(value)->tp_name : "nothing");
        return -1;
    }
    PyObject *whole = PyNumber_Index(value);
    if (!whole)
        return -1;
    int overflow;
    const long long count = PyLong_AsLongLongAndOverflow(whole, &overflow);
    Py_DECREF(whole);
    const int mine = self->owner == optimc_this_thread();
    if (!mine && optimc_lock(self))
        return -1;
    const long long most = MOST_STEPS / self->accumulate;
    const int fits = !overflow && count >= 0 && count <= most;
    if (fits)
        self->calls = count * self->accumulate;
    if (!mine)
        optimc_unlock(self);
    if (!fits)
        PyErr_Format(PyExc_ValueError, "iterations must be in [0, %lld], got %S", most, value);
    return fits ? 0 : -1;
}

static PyObject *get_declared(Optimizer *self, void *Py_UNUSED(closure))
{
    return PyBool_FromLong(self->n_values);
}

static PyObject *get_accumulate(Optimizer *self, void *Py_UNUSED(closure))
{
    return PyLong_FromLong(self->accumulate);
}

static int set_accumulate(Optimizer *self, PyObject *value, void *Py_UNUSED(closure))
{
    const long number = value ? PyLong_AsLong(value) : 0;
    if (number == -1 && PyErr_Occurred())
        return -1;
    const int fits = number >= 1 && number <= INT_MAX;
    if (fits && (number == 1 || !self->plan || self->plan->accumulates)) {
        self->accumulate = (int)number;
        return 0;
    }
    PyErr_SetString(PyExc_ValueError, fits ? "the plan has no accumulators"
        : "expected a number of gradients per update, >= 1");
    return -1;
}

static PyObject *get_built(Optimizer *self, void *Py_UNUSED(closure))
{
    return PyBool_FromLong(self->plan != NULL);
}

static PyObject *get_weights(Optimizer *self, void *Py_UNUSED(closure))
{
    return Py_NewRef(self->plan ? self->plan->weights : Py_None);
}

static PyObject *get_names(Optimizer *self, void *Py_UNUSED(closure))
{
    return Py_NewRef(self->plan && self->plan->names ? self->plan->names : Py_None);
}

static PyObject *get_plan(Optimizer *self, void *Py_UNUSED(closure))
{
    return Py_NewRef(self->plan ? (PyObject *)self->plan : Py_None);
}

static PyObject *get_state(Optimizer *self, void *Py_UNUSED(closure))
{
    return Py_NewRef(self->state ? self->state : Py_None);
}

static PyObject *norm_now(Optimizer *self, PyObject *Py_UNUSED(ignored))
{
    if (!self->normed)
        Py_RETURN_NONE;
    return PyFloat_FromDouble(self->norm);
}

static PyObject *get_norm(Optimizer *self, void *Py_UNUSED(closure))
{
    return optimc_beside_steps(self, NULL, norm_now);
}

static PyObject *skipped_now(Optimizer *self, PyObject *Py_UNUSED(ignored))
{
    return PyLong_FromLongLong(self->skipped);
}

static PyObject *get_skipped(Optimizer *self, void *Py_UNUSED(closure))
{
    return optimc_beside_steps(self, NULL, skipped_now);
}

static int optimizer_traverse(Optimizer *self, visitproc visit, void *arg)
{
    Py_VISIT(Py_TYPE(self));
    Py_VISIT(self->plan);
    Py_VISIT(self->state);
    Py_VISIT(self->before);
    Py_VISIT(self->shown);
    Py_VISIT(self->kept);
    for (size_t i = 0; i < self->n_groups; i++)
        for (int k = 0; k < self->n_values; k++)
            Py_VISIT(self->settings[i][k].source);
    if (self->tensors) {
        Py_VISIT(self->tensors->watched);
        Py_VISIT(self->tensors->given);
        Py_VISIT(self->tensors->kept);
    }
    return 0;
}

static int optimizer_clear(Optimizer *self)
{
    if (self->foreign)
        optimc_close_foreign(self);
    if (self->evaluating)
        optimc_put_back(self);
    optimc_hold(self, NULL, NULL);
    for (size_t i = 0; i < self->n_groups; i++)
        for (int k = 0; k < self->n_values; k++) {
            Py_CLEAR(self->settings[i][k].source);
            Py_CLEAR(self->settings[i][k].key);
        }
    Py_CLEAR(self->before);
    return 0;
}

static void optimizer_dealloc(Optimizer *self)
{
    PyTypeObject *type = Py_TYPE(self);
    PyObject_GC_UnTrack(self);
    optimizer_clear(self);
    for (int k = 0; k < MAX_VALUES; k++)
        Py_CLEAR(self->bounds[k].name);
    Py_CLEAR(self->scalars);
    PyMem_Free(self->groups);
    PyMem_Free(self->settings);
    type->tp_free(self);
    Py_DECREF(type);
}

static PyObject *optimizer_new(PyTypeObject *type, PyObject *Py_UNUSED(args), PyObject *Py_UNUSED(kwargs))
{
    Optimizer *self = (Optimizer *)type->tp_alloc(type, 0);
    if (!self)
        return NULL;
    self->accumulate = 1;
    self->state = Py_NewRef(Py_None);
    PyObject *first = optimc_add_group(self, NULL);
    Py_XDECREF(first);
    if (!first) {
        Py_DECREF(self);
        return PyErr_NoMemory();
    }
    self->forks = optimc_pool_forks();
    return (PyObject *)self;
}

static int optimizer_init(PyObject *Py_UNUSED(self), PyObject *Py_UNUSED(args), PyObject *Py_UNUSED(kwargs))
{
    return 0;
}

/* Sets an attribute.  A name that the class does not declare as data is checked by Python (optimc/base/names.py),
   which refuses misspellings; private names and declared values cost nothing more. */
static int optimizer_setattr(PyObject *self, PyObject *name, PyObject *value)
{
    if (value && PyUnicode_Check(name) && PyUnicode_GET_LENGTH(name) && PyUnicode_READ_CHAR(name, 0) != '_') {
        PyObject *declared = _PyType_Lookup(Py_TYPE(self), name);
        if (!declared || !Py_TYPE(declared)->tp_descr_set) {
            PyObject *checked = PyObject_CallMethod(self, "_check_attribute", "O", name);
            if (!checked)
                return -1;
            Py_DECREF(checked);
        }
    }
    return PyObject_GenericSetAttr(self, name, value);
}

static PyMethodDef own_methods[] = {
    METHOD("_locked", optimizer_locked, METH_FASTCALL | METH_KEYWORDS, locked_doc),
    METHOD("_alone", optimizer_alone, METH_FASTCALL | METH_KEYWORDS, alone_doc),
    METHOD("_in_turn", optimizer_in_turn, METH_FASTCALL | METH_KEYWORDS, in_turn_doc),
    {NULL, NULL, 0, NULL},
};

static PyGetSetDef optimizer_getset[] = {
    {"iterations", (getter)get_iterations, (setter)set_iterations,
        "Number of updates so far.  Set it to resume a run.", NULL},
    {"skipped_steps", (getter)get_skipped, NULL, "Number of steps skipped because a gradient was not finite.",
        NULL},
    {"last_global_norm", (getter)get_norm, NULL,
        "Norm of all gradients together in the last step that computed it, or None.", NULL},
    {"built", (getter)get_built, NULL, "True if the optimizer is bound to weights.", NULL},
    {"_declared", (getter)get_declared, NULL, "Whether it has values: __init__ makes them.", NULL},
    {"_steps", (getter)get_accumulate, (setter)set_accumulate, "Gradients per update, >= 1.", NULL},
    {"_plan", (getter)get_plan, NULL, "The plan, or None.", NULL},
    {"_state", (getter)get_state, NULL, "What is kept for the weights, which Python made.", NULL},
    {"_weights", (getter)get_weights, NULL, "The bound weights: a tuple, or None.", NULL},
    {"_names", (getter)get_names, NULL, "Their names: a tuple, or None.", NULL},
    {NULL, NULL, NULL, NULL, NULL},
};

static PyMemberDef optimizer_members[] = {
    {"_calls", T_LONGLONG, offsetof(Optimizer, calls), 0, "Steps, those that only accumulated included."},
    {"_skipped", T_LONGLONG, offsetof(Optimizer, skipped), 0, "skipped_steps, to be set."},
    {"_overwrite", T_INT, offsetof(Optimizer, overwrite), 0, "Updates from overwrite to overwrite, or 0."},
    {"_use_ema", T_INT, offsetof(Optimizer, use_ema), 0, "Whether averages are kept."},
    {"_cautious", T_INT, offsetof(Optimizer, cautious), 0, "Whether steps are cautious."},
    {"_seed", T_ULONGLONG, offsetof(Optimizer, seed), 0, "Of random rounding."},
    {"_coupled", T_INT, offsetof(Optimizer, coupled), 0, "Whether decay is added to the gradient."},
    {"_decay_as_factor", T_INT, offsetof(Optimizer, decay_as_factor), 0, "Whether decay is one product."},
    {"_maximize", T_INT, offsetof(Optimizer, maximize), 0, "Whether gradients are negated."},
    {"_check_finite", T_INT, offsetof(Optimizer, check_finite), 0, "0 propagate, 1 raise, 2 skip."},
    {"_moved", T_INT, offsetof(Optimizer, moved), READONLY,
        "Whether tensors have moved since `_bind`: steps write where they lie now, and not into the bound arrays."},
    {"_evaluating", T_INT, offsetof(Optimizer, evaluating), READONLY, "How many times `averaged` has been entered."},
    {NULL, 0, 0, 0, NULL},
};

static PyType_Slot optimizer_slots[] = {
    {Py_tp_doc, "The base of every optimizer: values, step count, plan.  See optimc.optimizer."},
    {Py_tp_new, optimizer_new},
    {Py_tp_init, optimizer_init},
    {Py_tp_setattro, optimizer_setattr},
    {Py_tp_dealloc, optimizer_dealloc},
    {Py_tp_traverse, optimizer_traverse},
    {Py_tp_clear, optimizer_clear},
    {Py_tp_methods, own_methods},
    {Py_tp_getset, optimizer_getset},
    {Py_tp_members, optimizer_members},
    {0, NULL},
};

static PyType_Spec optimizer_spec = {
    .name = "optimc._core.Optimizer",
    .basicsize = sizeof(Optimizer),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_BASETYPE | Py_TPFLAGS_HAVE_GC,
    .slots = optimizer_slots,
};

static PyMethodDef *const methods[] = {
    optimc_apply_methods, optimc_settings_methods, optimc_running_methods, optimc_bind_methods,
    optimc_tensors_methods, optimc_foreign_methods,
};

int optimc_add_methods(PyTypeObject *type, PyMethodDef *table)
{
    int failed = 0;
    for (; !failed && table->ml_name; table++) {
        PyObject *method = PyDescr_NewMethod(type, table);
        failed = !method || PyObject_SetAttrString((PyObject *)type, table->ml_name, method);
        Py_XDECREF(method);
    }
    return failed ? -1 : 0;
}

PyTypeObject *optimc_optimizer_type(PyObject *module)
{
    PyTypeObject *type = (PyTypeObject *)PyType_FromModuleAndSpec(module, &optimizer_spec, NULL);
    for (size_t i = 0; type && i < sizeof methods / sizeof *methods; i++)
        if (optimc_add_methods(type, methods[i]))
            Py_CLEAR(type);
    return type;
}
