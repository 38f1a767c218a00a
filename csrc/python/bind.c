/* bind.c - an optimizer takes over a plan and a state that Python made, or gives up its plan.

   Which kernel, slots and group a weight has is Python's to decide (optimc/base/binding.py).  Plan and state change
   together, and nothing changes on an error. */
#define NO_IMPORT_ARRAY
#include "python/tensors.h"

void optimc_leave_step(Optimizer *self)
{
    if (!self->plan)
        return;
    self->plan->matching = BUSY;        /* the end of a tensor may run code of the caller's */
    if (self->tensors)
        optimc_release_tensors(self->tensors);
    optimc_end_match(self->plan);
}

int optimc_check_plan(Optimizer *self, PyObject *object)
{
    const struct state *module = optimc_state(self);
    if (!module)
        return -1;
    if (!Py_IS_TYPE(object, module->plan_type)) {
        PyErr_Format(PyExc_TypeError, "expected a plan, got %s", Py_TYPE(object)->tp_name);
        return -1;
    }
    const Plan *plan = (Plan *)object;
    const int accumulates = plan->accumulates || self->accumulate == 1;
    if (plan->sealed && (size_t)plan->n_groups <= self->n_groups && plan->n_values <= self->n_values && accumulates
        && (plan->owner ? plan->owner == self : plan->matching == IDLE))
        return 0;
    PyErr_SetString(PyExc_ValueError, !plan->sealed ? "the plan is not sealed"
        : plan->owner && plan->owner != self ? "the plan belongs to another optimizer"
        : !plan->owner && plan->matching != IDLE ? "the plan has gradients, which were matched without an optimizer"
        : !accumulates ? "the plan has no accumulators, in which the optimizer sums gradients"
        : "the plan has groups or values that the optimizer lacks");
    return -1;
}

void optimc_hold(Optimizer *self, Plan *plan, PyObject *state)
{
    Plan *old = self->plan;
    PyObject *old_state = self->state;
    struct tensors *tensors = self->tensors;
    if (old)
        old->owner = NULL;
    if (plan)
        plan->owner = self;
    self->plan = (Plan *)Py_XNewRef(plan);
    self->state = Py_XNewRef(state);
    self->tensors = NULL;
    self->moved = 0;
    Py_XDECREF(old);
    Py_XDECREF(old_state);
    optimc_free_tensors(tensors);
}

/* While the weights hold their averages, an optimizer may take over another state, but no other weights: 0 or -1. */
static int refuse_evaluating(const Optimizer *self, const Plan *plan)
{
    if (!self->shown)
        return 0;
    PyObject *weights = self->plan->weights;
    const Py_ssize_t n = PyTuple_GET_SIZE(weights);
    Py_ssize_t i = plan && PyTuple_GET_SIZE(plan->weights) == n ? 0 : n + 1;
    while (i < n && PyTuple_GET_ITEM(plan->weights, i) == PyTuple_GET_ITEM(weights, i))
        i++;
    if (i == n)
        return 0;
    PyErr_SetString(PyExc_RuntimeError, "within averaged() the weights hold their averages: build after it");
    return -1;
}

int optimc_check_bind(Optimizer *self, PyObject *plan)
{
    return optimc_check_plan(self, plan) || refuse_evaluating(self, (Plan *)plan) ? -1 : 0;
}

/* `_bind` and `_hold`: takes over a plan or a state, and sets counts with it.  Changes nothing on an error.  Code of
   the caller's runs first, as the counts are read; all checks of what it may have changed follow it. */
static PyObject *take_over(Optimizer *self, PyObject *args, int is_plan)
{
    PyObject *object, *counts = Py_None, *given;
    struct running *running = NULL;
    long long calls = 0, skipped = 0;
    if (!PyArg_ParseTuple(args, "O|O", &object, &counts))
        return NULL;
    if (counts != Py_None) {
        if (!PyTuple_Check(counts)) {
            PyErr_Format(PyExc_TypeError, "counts: expected a tuple, got %s", Py_TYPE(counts)->tp_name);
            return NULL;
        }
        if (!PyArg_ParseTuple(counts, "LLO", &calls, &skipped, &given)
            || !(running = optimc_read_running(self, given)))
            return NULL;
        if (calls < 0 || calls > MOST_STEPS || skipped < 0 || skipped > MOST_STEPS) {
            PyErr_Format(PyExc_ValueError, "counts: expected two in [0, %lld], got %lld and %lld",
                (long long)MOST_STEPS, calls, skipped);
            PyMem_Free(running);
            return NULL;
        }
    }
    if ((self->plan && self->plan->matching != IDLE && optimc_refuse_nested(self))
        || (is_plan ? optimc_check_bind(self, object) : refuse_evaluating(self, NULL))) {
        PyMem_Free(running);
        return NULL;
    }
    if (running) {
        optimc_set_running(self, running);
        PyMem_Free(running);
        self->calls = calls;
        self->skipped = skipped;
    }
    optimc_hold(self, is_plan ? (Plan *)object : NULL, is_plan ? ((Plan *)object)->state : object);
    Py_RETURN_NONE;
}

PyDoc_STRVAR(bind_doc, "_bind($self, plan, counts=None, /)\n--\n\n"
"Takes over a sealed plan with its state, and counts, (`_calls`, `_skipped`, `_get_running()`), in one.  Nothing\n"
"changes on an error.");

static PyObject *bind_now(Optimizer *self, PyObject *args)
{
    return take_over(self, args, 1);
}

BETWEEN_STEPS(bind)

PyDoc_STRVAR(hold_doc, "_hold($self, state, counts=None, /)\n--\n\n"
"Takes over a state, and counts as `_bind`, and drops the plan: the next step builds one.");

static PyObject *hold_now(Optimizer *self, PyObject *args)
{
    return take_over(self, args, 0);
}

BETWEEN_STEPS(hold)

PyDoc_STRVAR(waiting_doc, "_waiting($self, /)\n--\n\n"
"For each weight, the gradients that were accumulated since its last update: 0 none, 1 some, 2 rows of some.");

static PyObject *waiting_now(Optimizer *self, PyObject *Py_UNUSED(ignored))
{
    Plan *plan = (Plan *)Py_XNewRef(self->plan);    /* a new tuple may run the garbage collector */
    const size_t n = plan ? optimc_plan_weights(plan->core) : 0;
    PyObject *waiting = PyTuple_New((Py_ssize_t)n);
    for (size_t i = 0; waiting && i < n; i++)
        PyTuple_SET_ITEM(waiting, (Py_ssize_t)i, PyLong_FromLong(optimc_plan_waits(plan->core, i)));
    Py_XDECREF(plan);
    return waiting;
}

BETWEEN_STEPS(waiting)

PyMethodDef optimc_bind_methods[] = {
    METHOD("_bind", optimizer_bind, METH_VARARGS, bind_doc),
    METHOD("_hold", optimizer_hold, METH_VARARGS, hold_doc),
    METHOD("_waiting", optimizer_waiting, METH_NOARGS, waiting_doc),
    {NULL, NULL, 0, NULL},
};
