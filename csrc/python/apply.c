/* apply.c - one step: read the values, match gradients to weights, check everything, then run.

   Until it runs, nothing of the caller's has changed; from then on nothing can fail.  match.c matches and looks into
   gradients.  A step over several optimizers is in transaction.c, one over parts of weights in shares.c, one over
   tensors in tensors.c. */
#define NO_IMPORT_ARRAY
#include "python/tensors.h"

#include "plan/pool.h"

static PyObject *call_method(Optimizer *self, const char *name, PyObject *argument)
{
    PyObject *method = PyObject_GetAttrString((PyObject *)self, name);
    PyObject *result = method ? PyObject_CallOneArg(method, argument) : NULL;
    Py_XDECREF(method);
    return result;
}

/* Ends a step that ran, or gives it up: then the plan that it built goes, and the state is what it was.  An error
   that is set stays. */
void optimc_end_step(Optimizer *self, int ran)
{
    PyObject *type = NULL, *value, *traceback;
    if (!ran)
        PyErr_Fetch(&type, &value, &traceback);
    else if (self->tensors)
        optimc_write_numbers(self);
    optimc_leave_step(self);
    if (self->before && !ran)
        optimc_hold(self, NULL, self->before);
    Py_CLEAR(self->before);
    self->begun = 0;
    if (type)
        PyErr_Restore(type, value, traceback);
}

struct request optimc_request_now(const Optimizer *self)
{
    const int64_t before = self->calls / self->accumulate;
    return (struct request){
        .groups = self->groups, .t = before + 1, .update = (self->calls + 1) % self->accumulate == 0,
        .accumulate = self->accumulate,
        .overwrite = self->use_ema && self->overwrite && (before + 1) % self->overwrite == 0,
        .cautious = self->cautious, .coupled = self->coupled, .decay_as_factor = self->decay_as_factor,
        .maximize = self->maximize, .check = self->check_finite != PROPAGATE, .seed = self->seed,
    };
}

/* Sets the request of a matched step. */
void optimc_make_request(Optimizer *self, int finite)
{
    self->plan->request = optimc_request_now(self);
    self->plan->request.check = finite != PROPAGATE;
    self->plan->matching = MATCHED;
}

/* Looks at the gradients of a matched step.  As check_step; grads NULL: errors use the plan's names. */
int optimc_survey_step(Optimizer *self, PyObject *grads, PyObject *weights, int finite)
{
    optimc_make_request(self, finite);
    return optimc_survey(self->plan, grads, weights, finite);
}

/* Everything that can refuse a step without a look into its gradients, with the lock held: 0, or -1 with an
   error.  Nothing of the caller's has changed.  end_step must follow. */
int optimc_match_step(Optimizer *self, PyObject *grads, PyObject *weights, int quiet)
{
    if (self->evaluating) {
        PyErr_SetString(PyExc_RuntimeError, "within averaged() the weights hold their averages: step after it");
        return -1;
    }
    if (optimc_ask_all(self))
        return -1;
    if (!self->plan) {
        if (weights == Py_None && PyIter_Check(grads))
            return optimc_refuse_container("grads", grads);
        if (weights == Py_None) {
            PyErr_SetString(PyExc_ValueError,
                "the optimizer is not built: pass the weights too, apply(grads, weights), or call "
                "build(weights) first");
            return -1;
        }
        PyObject *before = Py_XNewRef(self->state), *made = call_method(self, "_build", weights);
        const int refused = !made || optimc_check_plan(self, made);
        if (!refused) {
            optimc_hold(self, (Plan *)made, ((Plan *)made)->state);
            Py_XSETREF(self->before, Py_XNewRef(before));
        }
        Py_XDECREF(before);
        Py_XDECREF(made);
        if (refused) {
            optimc_ask_swapped(grads, weights);
            return -1;
        }
    }
    return optimc_match(self->plan, grads, weights, quiet);
}

/* Everything that can refuse a step, with the lock held: 1 if it may run, 0 if it is to be skipped, -1
   with an error.  Nothing of the caller's has changed.  end_step must follow. */
int optimc_check_step(Optimizer *self, PyObject *grads, PyObject *weights, int finite)
{
    return optimc_match_step(self, grads, weights, 0) ? -1 : optimc_survey_step(self, grads, weights, finite);
}

/* The writing half cannot fail.  This counts the step ... */
void optimc_open_step(Optimizer *self)
{
    self->begun = 1;
    self->plan->matching = BUSY;
    optimc_count_step(self, &self->plan->request);
}

void optimc_count_step(Optimizer *self, const struct request *request)
{
    if (request->update)
        optimc_settle_groups(self);
    self->calls++;
    if (request->surveyed) {
        self->norm = request->norm;
        self->normed = 1;
    }
}

/* ... and this, after the plan has run, keeps the rule's scalars. */
void optimc_close_step(Optimizer *self)
{
    optimc_keep_step(self, &self->plan->request);
}

void optimc_keep_step(Optimizer *self, const struct request *request)
{
    for (size_t i = 0; request->update && i < self->n_groups; i++)
        optimc_group_keep(&self->groups[i]);
}

void optimc_run_step(Optimizer *self)
{
    const int without_gil = optimc_is_long(self->plan);
    if (without_gil)
        optimc_pool_enter();
    optimc_open_step(self);
    PyThreadState *thread = without_gil ? PyEval_SaveThread() : NULL;
    optimc_plan_run(self->plan->core, &self->plan->request);
    optimc_close_step(self);
    if (without_gil) {
        optimc_pool_leave();
        PyEval_RestoreThread(thread);
    }
}

PyDoc_STRVAR(apply_doc, "apply($self, grads, weights=None)\n--\n\n"
"Updates the weights in place by one step.\n\n"
"Args:\n"
"    grads: list, tuple or dict of gradients, one per weight: arrays of float16, bfloat16, float32,\n"
"        float64 or long double with the weight's shape and any strides, Rows of some rows of a weight,\n"
"        or None for a weight without a gradient.  They are never changed.  They may be nested like the\n"
"        weights; a None may stand for all gradients of a branch.\n"
"    weights: list, tuple or dict (with the same keys) of writable arrays of float32, float64, bfloat16\n"
"        (of ml_dtypes) or float16, contiguous in C or Fortran order, or nested ones.  The first call\n"
"        builds the optimizer for them.\n"
"        Later calls may name some of them, in any order, or leave them out to mean all.\n\n"
"The weights of nested dicts, lists and tuples have names, such as \"layers/0/kernel\".  To flatten them takes\n"
"about 40 ns a weight at each step.  Other mappings and sequences (collections.abc) are taken, too, and copied\n"
"into dicts and lists at each step.\n\n"
"Raises:\n"
"    TypeError, ValueError: an argument is wrong; the message names the entry.\n"
"    RuntimeError: a schedule tries to step its own optimizer.\n"
"    FloatingPointError: with check_finite=\"raise\", a gradient is not finite.\n"
"    If a call raises, nothing has changed.\n\n"
"Warns:\n"
"    UserWarning: some, but not all, gradients are None.\n\n"
"Example:\n"
"    >>> import numpy as np, optimc\n"
"    >>> w = np.ones(3, np.float32)\n"
"    >>> optimc.SGD(learning_rate=0.5).apply([np.ones(3, np.float32)], [w])\n"
"    >>> w\n"
"    array([0.5, 0.5, 0.5], dtype=float32)");

const char *const optimc_spellings[SPELLINGS] = {"weights", "params", "trainable_variables", "variables", "var_list"};

static int is_weights(PyObject *keyword)
{
    int k = 0;
    while (k < SPELLINGS && PyUnicode_CompareWithASCIIString(keyword, optimc_spellings[k]))
        k++;
    return k < SPELLINGS;
}

/* Reads the arguments of `apply` into given[0] and given[1]: 0, or -1 with an error. */
static int read_arguments(PyObject *const *args, Py_ssize_t n, PyObject *kwnames, PyObject **given)
{
    const Py_ssize_t n_keywords = kwnames ? PyTuple_GET_SIZE(kwnames) : 0;
    if (n > 2) {
        PyErr_Format(PyExc_TypeError, "apply() takes at most 2 arguments (%zd given)", n);
        return -1;
    }
    for (Py_ssize_t i = 0; i < n; i++)
        given[i] = args[i];
    for (Py_ssize_t i = 0; i < n_keywords; i++) {
        PyObject *keyword = PyTuple_GET_ITEM(kwnames, i);
        const int k = is_weights(keyword);
        if (!k && PyUnicode_CompareWithASCIIString(keyword, "grads")) {
            PyErr_Format(PyExc_TypeError, "apply() got an unexpected keyword argument '%U'", keyword);
            return -1;
        }
        if (given[k]) {
            PyErr_Format(PyExc_TypeError, "apply() got multiple values for argument '%s'", k ? "weights" : "grads");
            return -1;
        }
        given[k] = args[n + i];
    }
    if (given[0])
        return 0;
    PyErr_SetString(PyExc_TypeError, "apply() missing required argument 'grads'");
    return -1;
}

static PyObject *optimizer_apply(Optimizer *self, PyObject *const *args, Py_ssize_t n, PyObject *kwnames)
{
    PyObject *given[2] = {NULL, NULL};
    if (read_arguments(args, n, kwnames, given))
        return NULL;
    if (!given[1])
        given[1] = Py_None;
    if (optimc_lock(self))
        return NULL;
    const int checked = optimc_check_step(self, given[0], given[1], self->check_finite);
    if (checked > 0)
        optimc_run_step(self);
    optimc_count_skipped(self, checked == 0);
    optimc_end_step(self, checked > 0);
    optimc_unlock(self);
    if (checked < 0)
        return NULL;
    Py_RETURN_NONE;
}

PyMethodDef optimc_apply_methods[] = {
    METHOD("apply", optimizer_apply, METH_FASTCALL | METH_KEYWORDS, apply_doc),
    {NULL, NULL, 0, NULL},
};
