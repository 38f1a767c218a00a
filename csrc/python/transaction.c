/* transaction.c - the type _core.Transaction: steps of several optimizers, or with Python code between the halves.

       with _core.Transaction() as steps:
           steps.check(optimizer, grads, weights)      everything that can be refused, and the optimizer's lock
           ...                                         Python code
           steps.commit()                              everything that writes

   The transaction owns the locks and all that was checked.  A commit is one call: it runs the steps, counts those to
   be skipped and makes the changes that it was told of, and no signal handler, fork or other Python code comes
   between.  Without a commit everything is given up, whatever ends the transaction: the end of the block, an
   exception, or the last reference to it.

   It does not look into gradients (apply.c).  Next: changes.c, what else a commit changes; shares.c, steps over parts
   of weights. */
#define NO_IMPORT_ARRAY
#include "python/boundary.h"

#include <stddef.h>
#include <string.h>
#include <structmember.h>

#include "plan/pool.h"
#include "python/transaction.h"

/* ----------------------------------------------------------------------------------- steps - */

int optimc_refuse_use(const Transaction *self)
{
    if (self->over)
        PyErr_Format(PyExc_RuntimeError, "the transaction is over: it was %s",
            self->committed ? "committed" : "given up");
    else if (self->busy)
        PyErr_SetString(PyExc_RuntimeError, self->busy == COMMITTING ? "the transaction is committing its steps"
            : "the transaction is checking a step");
    return self->over || self->busy ? -1 : 0;
}

/* An error if the lock of a step is another thread's: the turn of a thread that is gone is taken over (turns.c). */
static int refuse_lost(const struct checked *step)
{
    if (step->optimizer->owner == step->thread)
        return 0;
    PyErr_SetString(PyExc_RuntimeError, "the step was checked by a thread that is gone");
    return -1;
}

static Optimizer *as_optimizer(Transaction *self, PyObject *object)
{
    const struct state *state = PyType_GetModuleState(Py_TYPE(self));
    if (PyObject_TypeCheck(object, state->type))
        return (Optimizer *)object;
    PyErr_Format(PyExc_TypeError, "optimizer: expected an optimizer, got %s", Py_TYPE(object)->tp_name);
    return NULL;
}

struct checked *optimc_locked_step(Transaction *self, PyObject *optimizer)
{
    if (optimc_refuse_use(self))
        return NULL;
    for (size_t i = 0; i < self->n_steps; i++)
        if ((PyObject *)self->steps[i].optimizer == optimizer)
            return refuse_lost(&self->steps[i]) ? NULL : &self->steps[i];
    PyErr_SetString(PyExc_ValueError, "optimizer: it has no step in this transaction");
    return NULL;
}

struct checked *optimc_step_of(Transaction *self, PyObject *optimizer)
{
    struct checked *step = optimc_locked_step(self, optimizer);
    if (!step || step->progress != ENTERED)
        return step;
    PyErr_SetString(PyExc_ValueError, "optimizer: it has no step in this transaction");
    return NULL;
}

struct checked *optimc_add_step(Transaction *self, PyObject *object)
{
    Optimizer *optimizer = optimc_refuse_use(self) ? NULL : as_optimizer(self, object);
    if (!optimizer)
        return NULL;
    for (size_t i = 0; i < self->n_steps; i++)
        if (self->steps[i].optimizer == optimizer && optimizer->owner != optimc_this_thread()) {
            PyErr_SetString(PyExc_RuntimeError, "optimizer: it has a step in this transaction already");
            return NULL;                /* it would wait for itself */
        }
    struct checked *steps = PyMem_Realloc(self->steps, (self->n_steps + 1) * sizeof *steps);
    if (!steps) {
        PyErr_NoMemory();
        return NULL;
    }
    self->steps = steps;                /* once the lock is taken, nothing can fail */
    self->busy = CHECKING;
    const int failed = optimc_lock(optimizer);
    self->busy = 0;
    if (failed)
        return NULL;
    steps = &self->steps[self->n_steps++];
    *steps = (struct checked){.optimizer = optimizer, .thread = optimizer->owner};
    Py_INCREF(optimizer);
    return steps;
}

/* Ends a step that ran, or gives it up, and unlocks its optimizer.  A step that has begun has run, as far as it came:
   what it has written stays.  In a child process the optimizer may have been taken over by another thread. */
static void end(const struct checked *step, int ran)
{
    Optimizer *optimizer = step->optimizer;
    if (optimizer->owner == step->thread) {
        if (step->progress == BEGUN && optimizer->plan) {       /* the garbage collector may have cleared it */
            optimc_plan_end(optimizer->plan->core);
            optimc_close_step(optimizer);
        }
        optimc_restore_scale(optimizer);
        optimc_end_step(optimizer, ran || step->progress == BEGUN);
        if (step->whole && step->whole->matching == MATCHED)
            optimc_end_match(step->whole);
        optimc_unlock(optimizer);
    }
    Py_XDECREF(step->whole);
    PyMem_Free(step->groups);
    Py_DECREF(optimizer);
}

void optimc_drop_step(Transaction *self)
{
    const struct checked step = self->steps[--self->n_steps];
    end(&step, 0);
}

PyObject *optimc_note_look(struct checked *step, int good, int finite)
{
    if (good < 0)
        return NULL;
    step->progress = good ? READY : finite ? REFUSED : SKIPPED;
    return PyBool_FromLong(good);
}

void optimc_restore_scale(Optimizer *self)
{
    if (self->scaled)
        self->groups[0].values[LOSS_SCALE] = self->own_scale;
    self->scaled = 0;
}

/* Gives the step a loss scale of its own: None for that of the optimizer. */
static int set_scale(struct checked *step, PyObject *scale)
{
    Optimizer *optimizer = step->optimizer;
    double number;
    if (scale == Py_None)
        return 0;
    const int real = optimc_read_value(optimizer, LOSS_SCALE, scale, &number);
    if (!real)
        PyErr_Format(PyExc_TypeError, "loss_scale must be a number, got %s", Py_TYPE(scale)->tp_name);
    if (real <= 0)
        return -1;
    if (optimizer->settings[0][LOSS_SCALE].source) {
        PyErr_SetString(PyExc_ValueError, "loss_scale: the optimizer has a schedule for it");
        return -1;
    }
    optimizer->own_scale = optimizer->groups[0].values[LOSS_SCALE];
    optimizer->scaled = 1;
    optimizer->groups[0].values[LOSS_SCALE] = number;
    return 0;
}

/* Adds the step of an optimizer, with a loss scale of its own unless None, and tells that its check begins. */
static struct checked *begin_check(Transaction *self, PyObject *object, PyObject *scale)
{
    struct checked *step = optimc_add_step(self, object);
    if (!step)
        return NULL;
    self->busy = CHECKING;
    if (!set_scale(step, scale))
        return step;
    optimc_drop_step(self);
    self->busy = 0;
    return NULL;
}

PyDoc_STRVAR(lock_doc, "lock($self, optimizer, /)\n--\n\n"
"Locks an optimizer that gets another plan or another value with the commit, and has no step.");

static PyObject *transaction_lock(Transaction *self, PyObject *optimizer)
{
    if (!optimc_add_step(self, optimizer))
        return NULL;
    Py_RETURN_NONE;
}

PyDoc_STRVAR(check_doc, "check($self, optimizer, grads, weights=None, finite=False, loss_scale=None)\n"
"--\n\n"
"Checks everything of a step and locks the optimizer.  True if the step will run; False if a gradient is not\n"
"finite and the step is to be skipped.  finite: the caller asks whether all are, whatever the optimizer's policy,\n"
"and the step does not count as skipped.  loss_scale: of this step alone, instead of the optimizer's.");

static PyObject *transaction_check(Transaction *self, PyObject *args, PyObject *kwargs)
{
    static char *names[] = {"optimizer", "grads", "weights", "finite", "loss_scale", NULL};
    PyObject *object, *grads, *weights = Py_None, *scale = Py_None;
    int finite = 0;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "OO|OpO:check", names, &object, &grads, &weights, &finite, &scale))
        return NULL;
    struct checked *step = begin_check(self, object, scale);
    if (!step)
        return NULL;
    const int policy = finite ? SKIP : step->optimizer->check_finite;
    const int good = optimc_check_step(step->optimizer, grads, weights, policy);
    if (good < 0)
        optimc_drop_step(self);
    self->busy = 0;
    return optimc_note_look(step, good, finite);
}

PyDoc_STRVAR(check_tensors_doc, "check_tensors($self, optimizer, tensors, exchange, loss_scale=None)\n--\n\n"
"`check` for a step over tensors; see `_apply_tensors`, which says what is returned.  Only a step that will run, or\n"
"is to be skipped, belongs to the transaction.");

static PyObject *transaction_check_tensors(Transaction *self, PyObject *args, PyObject *kwargs)
{
    static char *names[] = {"optimizer", "tensors", "exchange", "loss_scale", NULL};
    PyObject *object, *tensors, *exchange, *scale = Py_None;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "OOO|O:check_tensors", names, &object, &tensors, &exchange,
            &scale))
        return NULL;
    struct checked *step = begin_check(self, object, scale);
    if (!step)
        return NULL;
    const int found = optimc_check_tensors(step->optimizer, tensors, exchange, NULL, 1);
    step->progress = found == CHECKED ? READY : SKIPPED;
    if (found != CHECKED && found != NOT_FINITE)
        optimc_drop_step(self);
    self->busy = 0;
    return found < 0 ? NULL : PyLong_FromLong(found == NOT_FINITE ? NO_GRADIENTS : found);
}

/* ---------------------------------------------------------------------------------- the end - */

/* Lets a step whose optimizer gets new values with the commit run with those it was checked with. */
static void pin_values(const struct checked *step)
{
    Optimizer *optimizer = step->optimizer;
    if (!step->groups)
        return;
    memcpy(step->groups, optimizer->groups, optimizer->n_groups * sizeof *step->groups);
    optimizer->plan->request.groups = step->groups;
}

/* Runs a step.  It needs no GIL. */
static void run(const struct checked *step)
{
    Optimizer *optimizer = step->optimizer;
    optimc_plan_run(optimizer->plan->core, &optimizer->plan->request);
    for (size_t i = 0; step->groups && i < optimizer->n_groups; i++) {
        memcpy(optimizer->groups[i].after, step->groups[i].after, sizeof step->groups[i].after);
        memcpy(optimizer->groups[i].powers, step->groups[i].powers, sizeof step->groups[i].powers);
    }
    optimizer->plan->request.groups = optimizer->groups;
    optimc_close_step(optimizer);
}

/* Ends all steps and releases their locks, the last one first; drops what the changes kept. */
static void end_all(Transaction *self, int ran)
{
    self->over = 1;
    while (self->n_steps) {
        const struct checked step = self->steps[--self->n_steps];
        end(&step, ran && step.progress == READY);
    }
    while (self->n_changes) {
        struct change change = self->changes[--self->n_changes];
        Py_XDECREF(change.optimizer);
        Py_XDECREF(change.plan);
        Py_XDECREF(change.dict);
        Py_XDECREF(change.key);
        Py_XDECREF(change.value);
        Py_XDECREF(change.before[0]);
        Py_XDECREF(change.before[1]);
    }
    PyMem_Free(self->steps);
    PyMem_Free(self->changes);
    self->steps = NULL;
    self->changes = NULL;
}

PyDoc_STRVAR(commit_doc, "commit($self, /)\n--\n\n"
"Runs the steps, counts those to be skipped, makes the changes and releases the locks.  No signal handler and no\n"
"fork() comes between.");

static PyObject *transaction_commit(Transaction *self, PyObject *Py_UNUSED(ignored))
{
    if (optimc_refuse_use(self))
        return NULL;
    for (size_t i = 0; i < self->n_steps; i++)
        if (refuse_lost(&self->steps[i]))
            return NULL;
    self->busy = COMMITTING;
    if (optimc_check_plans(self) || optimc_store_entries(self)) {
        self->busy = 0;
        return NULL;
    }
    int any_long = 0;
    for (size_t i = 0; i < self->n_steps; i++)
        any_long |= self->steps[i].progress == READY && optimc_is_long(self->steps[i].optimizer->plan);
    if (any_long)
        optimc_pool_enter();
    for (size_t i = 0; i < self->n_steps; i++) {
        const struct checked *step = &self->steps[i];
        optimc_count_skipped(step->optimizer, step->progress == SKIPPED);
        if (step->progress != READY)
            continue;
        optimc_open_step(step->optimizer);
        pin_values(step);
    }
    optimc_set_values(self);
    self->committed = 1;
    PyThreadState *thread = any_long ? PyEval_SaveThread() : NULL;
    for (size_t i = 0; i < self->n_steps; i++)
        if (self->steps[i].progress == READY)
            run(&self->steps[i]);
    if (any_long) {
        optimc_pool_leave();
        PyEval_RestoreThread(thread);
    }
    self->busy = 0;
    end_all(self, 1);
    Py_RETURN_NONE;
}

/* Gives up what was not committed.  An error that is set stays. */
static void give_up(Transaction *self)
{
    PyObject *type, *value, *traceback;
    PyErr_Fetch(&type, &value, &traceback);
    end_all(self, 0);
    PyErr_Restore(type, value, traceback);
}

static PyObject *transaction_enter(Transaction *self, PyObject *Py_UNUSED(ignored))
{
    return optimc_refuse_use(self) ? NULL : Py_NewRef((PyObject *)self);
}

static PyObject *transaction_exit(Transaction *self, PyObject *const *Py_UNUSED(args), Py_ssize_t Py_UNUSED(n))
{
    if (self->over)                     /* or ending: what a step drops may have code of its own */
        Py_RETURN_FALSE;
    if (optimc_refuse_use(self))
        return NULL;
    give_up(self);
    Py_RETURN_FALSE;
}

/* --------------------------------------------------------------------------------- the type - */

static int transaction_traverse(Transaction *self, visitproc visit, void *arg)
{
    Py_VISIT(Py_TYPE(self));
    for (size_t i = 0; i < self->n_steps; i++)
        Py_VISIT(self->steps[i].optimizer);
    for (size_t i = 0; i < self->n_steps; i++)
        Py_VISIT(self->steps[i].whole);
    for (size_t i = 0; i < self->n_changes; i++) {
        Py_VISIT(self->changes[i].optimizer);
        Py_VISIT(self->changes[i].dict);
        Py_VISIT(self->changes[i].key);
        Py_VISIT(self->changes[i].value);
        Py_VISIT(self->changes[i].before[0]);
        Py_VISIT(self->changes[i].before[1]);
    }
    return 0;
}

static int transaction_clear(Transaction *self)
{
    give_up(self);
    return 0;
}

static void transaction_dealloc(Transaction *self)
{
    PyTypeObject *type = Py_TYPE(self);
    PyObject_GC_UnTrack(self);
    give_up(self);
    type->tp_free(self);
    Py_DECREF(type);
}

static PyMethodDef own_methods[] = {
    METHOD("lock", transaction_lock, METH_O, lock_doc),
    METHOD("check", transaction_check, METH_VARARGS | METH_KEYWORDS, check_doc),
    METHOD("check_tensors", transaction_check_tensors, METH_VARARGS | METH_KEYWORDS, check_tensors_doc),
    METHOD("commit", transaction_commit, METH_NOARGS, commit_doc),
    METHOD("__enter__", transaction_enter, METH_NOARGS, "__enter__($self, /)\n--\n\nThe transaction itself."),
    METHOD("__exit__", transaction_exit, METH_FASTCALL,
        "__exit__($self, /, *args)\n--\n\nGives up what was not committed."),
    {NULL, NULL, 0, NULL},
};

static PyMemberDef transaction_members[] = {
    {"committed", T_BOOL, offsetof(Transaction, committed), READONLY, "Whether it was committed."},
    {NULL, 0, 0, 0, NULL},
};

static PyType_Slot transaction_slots[] = {
    {Py_tp_doc, "Steps that are checked one after the other, then run together or not at all.  Use it with `with`."},
    {Py_tp_new, PyType_GenericNew},
    {Py_tp_dealloc, transaction_dealloc},
    {Py_tp_traverse, transaction_traverse},
    {Py_tp_clear, transaction_clear},
    {Py_tp_methods, own_methods},
    {Py_tp_members, transaction_members},
    {0, NULL},
};

static PyType_Spec transaction_spec = {
    .name = "optimc._core.Transaction",
    .basicsize = sizeof(Transaction),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC,
    .slots = transaction_slots,
};

PyTypeObject *optimc_transaction_type(PyObject *module)
{
    PyTypeObject *type = (PyTypeObject *)PyType_FromModuleAndSpec(module, &transaction_spec, NULL);
    if (type && (optimc_add_methods(type, optimc_changes_methods) || optimc_add_methods(type, optimc_shares_methods)))
        Py_CLEAR(type);
    return type;
}
