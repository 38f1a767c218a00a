/* apply.c - one step: read the values, match gradients to weights, check everything, then run.

   Until it runs, nothing of the caller's has changed; from then on nothing can fail.  A step over several optimizers
   is in transaction.c, one over parts of weights in shares.c, one over tensors in tensors.c. */
#define NO_IMPORT_ARRAY
#include "python/boundary.h"

#include "plan/pool.h"
#include "python/views.h"

/* Steps longer than this give up the GIL.  Taking it back can cost another thread's time slice (5 ms),
   so it is not worth it for less. */
static const double GIL_WORTH = 50e3;   /* ns */

/* Whether a gradient that is no ndarray can be made one: it offers its memory as an array.  Numbers,
   strings and lists do not. */
static int offers_array(PyObject *object)
{
    return PyObject_CheckBuffer(object) ? !PyBytes_Check(object) && !PyByteArray_Check(object)
        : !PyType_Check(object) && PyObject_HasAttrString(object, "__array__");
}

/* Gives the weight's index in the plan, or -1 with the reason it cannot be stepped. */
static Py_ssize_t find(Optimizer *self, const struct pairs *pairs, PyObject *object)
{
    struct view view;
    if (!PyArray_Check(object))
        return optimc_look_writable(object, optimc_pair_label(pairs, "params"), &view);
    PyArrayObject *array = (PyArrayObject *)object;
    optimc_look(array, &view);
    const Py_ssize_t i = optimc_plan_find(self->plan->core, &view, (size_t)pairs->i - 1);
    if (i >= 0) {
        const enum fault fault = optimc_plan_same(self->plan->core, (size_t)i, &view);
        if (fault)
            return optimc_refuse_weight(fault, optimc_pair_label(pairs, "params"), array,
                (PyArrayObject *)PyTuple_GET_ITEM(self->plan->weights, i));
        return i;
    }
    const enum fault fault = optimc_plan_check(&view);
    if (fault)
        return optimc_refuse_weight(fault, optimc_pair_label(pairs, "params"), array, NULL);
    return optimc_refuse(PyExc_ValueError, "%U is not in the memory this optimizer was built with: update "
        "weights in place (w -= d or w[...] = x, not w = w - d), or call build(params) with all of them "
        "to move or add weights; slots are kept", optimc_pair_label(pairs, "params"), NULL, NULL);
}

/* Notes one gradient in the plan, or raises. */
static int take(Optimizer *self, const struct pairs *pairs, size_t index, PyObject *grad)
{
    struct view view;
    struct place overlap;
    if (grad != Py_None)
        optimc_look((PyArrayObject *)grad, &view);
    const enum fault fault = optimc_plan_take(self->plan->core, index, grad == Py_None ? NULL : &view, &overlap);
    if (!fault) {
        if (grad != Py_None)
            self->plan->gradients[self->plan->n_gradients++] = Py_NewRef(grad);
        return 0;
    }
    if (fault == FAULT_REPEATED)
        return optimc_refuse(PyExc_ValueError, "%U: the same weight comes twice", optimc_pair_label(pairs, "params"),
            NULL, NULL);
    PyArrayObject *array = (PyArrayObject *)grad;
    if (fault == FAULT_TYPE)
        return optimc_refuse(PyExc_TypeError, "%U: expected a gradient of floats, got %S",
            optimc_pair_label(pairs, "grads"), (PyObject *)PyArray_DESCR(array), NULL);
    PyObject *entry = optimc_pair_label(pairs, "grads"), *a, *b = NULL;
    if (fault == FAULT_OVERLAP) {
        a = optimc_place_name(self->plan->names, NULL, overlap);
        optimc_refuse(PyExc_ValueError, "%U overlaps %S in memory", entry, a, NULL);
    } else {
        a = optimc_shape_of((PyArrayObject *)PyTuple_GET_ITEM(self->plan->weights, (Py_ssize_t)index));
        b = optimc_shape_of(array);
        optimc_refuse(PyExc_ValueError, "%U: expected shape %S, like its weight, got %S", entry, a, b);
    }
    Py_XDECREF(a);
    Py_XDECREF(b);
    return -1;
}

/* The pairs as owned tuples, gradients made arrays: for gradients of other libraries. */
static int convert_pairs(struct pairs *pairs, PyObject **owned)
{
    PyObject *grads = PyTuple_New(pairs->n), *weights = PyTuple_New(pairs->n);
    PyObject *keys = PyTuple_New(pairs->n);
    *owned = grads && weights && keys ? PyTuple_Pack(3, grads, weights, keys) : NULL;
    Py_XDECREF(grads);
    Py_XDECREF(weights);
    Py_XDECREF(keys);
    if (!*owned)
        return -1;
    int more;
    while ((more = optimc_next_pair(pairs)) > 0) {
        PyTuple_SET_ITEM(grads, pairs->i - 1, Py_NewRef(pairs->grad));
        PyTuple_SET_ITEM(weights, pairs->i - 1, Py_NewRef(pairs->weight));
        PyTuple_SET_ITEM(keys, pairs->i - 1, Py_NewRef(pairs->key ? pairs->key : Py_None));
    }
    if (more < 0)
        return -1;
    for (Py_ssize_t i = 0; i < pairs->n; i++) {     /* only now does code of others run */
        PyObject *grad = PyTuple_GET_ITEM(grads, i);
        if (PyArray_Check(grad) || grad == Py_None || !offers_array(grad))
            continue;
        PyObject *array = PyArray_FromAny(grad, NULL, 0, 0, 0, NULL);
        if (!array)
            return -1;
        PyTuple_SET_ITEM(grads, i, array);
        Py_DECREF(grad);
    }
    const int named = PyTuple_GET_ITEM(keys, 0) != Py_None;
    *pairs = (struct pairs){.grads = grads, .weights = weights, .keys = named ? keys : NULL,
        .n = pairs->n};
    return 0;
}

/* One UserWarning that names the weights without a gradient; -1 if warnings are errors. */
static int warn_missing(struct pairs pairs)
{
    PyObject *names = PyUnicode_FromString("");
    int more = 0;
    while (names && (more = optimc_next_pair(&pairs)) > 0) {
        if (pairs.grad != Py_None)
            continue;
        PyObject *entry = optimc_pair_label(&pairs, "params");
        PyObject *longer = entry ? PyUnicode_FromFormat(PyUnicode_GET_LENGTH(names) ? "%U, %U" : "%U%U",
            names, entry) : NULL;
        Py_XDECREF(entry);
        Py_SETREF(names, longer);
    }
    const int result = names && !more ? PyErr_WarnFormat(PyExc_UserWarning, 1,
        "Gradients do not exist for %U: these weights are left as they are", names) : -1;
    optimc_close_pairs(&pairs);
    Py_XDECREF(names);
    return result;
}

/* Matches and checks every pair; the plan is then ready to run.  Warns of missing gradients unless quiet. */
static int match(Optimizer *self, struct pairs *pairs, PyObject **owned, int quiet)
{
    int more, missing = 0;
    const struct pairs start = *pairs;
    optimc_plan_begin(self->plan->core);
    while ((more = optimc_next_pair(pairs)) > 0) {
        PyObject *grad = pairs->grad;
        if (!PyArray_Check(grad) && grad != Py_None) {
            if (*owned)
                return optimc_refuse_kind("%U: expected a NumPy array of floats, got %S",
                    optimc_pair_label(pairs, "grads"), grad);
            optimc_close_pairs(pairs);
            *pairs = start;
            optimc_drop_gradients(self->plan);
            return convert_pairs(pairs, owned) ? -1 : match(self, pairs, owned, quiet);
        }
        const Py_ssize_t index = find(self, pairs, pairs->weight);
        if (index < 0 || take(self, pairs, (size_t)index, grad))
            return -1;
        missing += grad == Py_None;
    }
    if (more < 0)
        return -1;
    if (!self->plan->n_gradients) {
        PyErr_SetString(PyExc_ValueError, "No gradients provided for any variable.");
        return -1;
    }
    return missing && !quiet ? warn_missing(start) : 0;
}

static PyObject *call_method(Optimizer *self, const char *name, PyObject *argument)
{
    PyObject *method = PyObject_GetAttrString((PyObject *)self, name);
    PyObject *result = method ? PyObject_CallOneArg(method, argument) : NULL;
    Py_XDECREF(method);
    return result;
}

/* Ends a step that ran, or gives it up: then the plan that it built goes, and the state is what it was. */
void optimc_end_step(Optimizer *self, int ran)
{
    optimc_leave_step(self);
    if (self->before && !ran) {
        PyObject *type, *value, *traceback;
        PyErr_Fetch(&type, &value, &traceback);
        optimc_hold(self, NULL, self->before);
        PyErr_Restore(type, value, traceback);
    }
    Py_CLEAR(self->before);
}

/* A step is worth giving up the GIL for if it takes long enough. */
int optimc_is_long(Optimizer *self)
{
    return optimc_plan_cost(self->plan->core) >= GIL_WORTH;
}

/* A fork() waits for what enters the pool.  It enters with the GIL, which a fork() takes too, so that no step
   begins while one waits; it leaves without the GIL, so that a fork() that has it need not wait for ever. */
static ptrdiff_t survey(Optimizer *self)
{
    if (!optimc_is_long(self))
        return optimc_plan_survey(self->plan->core, &self->request);
    optimc_pool_enter();
    PyThreadState *thread = PyEval_SaveThread();
    const ptrdiff_t bad = optimc_plan_survey(self->plan->core, &self->request);
    optimc_pool_leave();
    PyEval_RestoreThread(thread);
    return bad;
}

/* What a matched step is to do. */
void optimc_make_request(Optimizer *self, int finite)
{
    const int64_t before = self->calls / self->accumulate;
    self->request = (struct request){
        .groups = self->groups, .t = before + 1, .update = (self->calls + 1) % self->accumulate == 0,
        .accumulate = self->accumulate,
        .overwrite = self->use_ema && self->overwrite && (before + 1) % self->overwrite == 0,
        .cautious = self->cautious, .coupled = self->coupled, .maximize = self->maximize,
        .check = finite != PROPAGATE,
    };
}

/* What the caller calls the gradient of a weight of the plan; grads NULL: the plan's own name. */
static PyObject *gradient_label(Optimizer *self, PyObject *grads, PyObject *weights, ptrdiff_t index)
{
    struct pairs pairs = {0};
    struct view view;
    PyObject *found = NULL;
    if (grads && weights != Py_None && !optimc_open_pairs(self, grads, weights, &pairs))
        while (!found && optimc_next_pair(&pairs) > 0)
            if (PyArray_Check(pairs.weight)) {
                optimc_look((PyArrayObject *)pairs.weight, &view);
                if (optimc_plan_find(self->plan->core, &view, (size_t)pairs.i - 1) == index)
                    found = optimc_pair_label(&pairs, "grads");
            }
    optimc_close_pairs(&pairs);
    if (found)
        return found;
    PyErr_Clear();                      /* they have changed since they were matched */
    return optimc_label("grads", self->plan->names, index);
}

/* What must be known of the gradients of a matched step.  As check_step; grads as in gradient_label. */
int optimc_survey_step(Optimizer *self, PyObject *grads, PyObject *weights, int finite)
{
    optimc_make_request(self, finite);
    const ptrdiff_t bad = survey(self);
    if (bad < 0)
        return 1;
    if (finite == SKIP)
        return 0;
    if (self->request.overflow == GLOBAL_NORM)
        return optimc_refuse_norm();
    return optimc_refuse(PyExc_FloatingPointError,
        self->request.overflow ? "the norm of %U is not finite" : "%U is not finite",
        gradient_label(self, grads, weights, bad), NULL, NULL);
}

/* Everything that can refuse a step without a look into its gradients, with the lock held: 0, or -1 with an
   error.  Nothing of the caller's has changed.  end_step must follow. */
int optimc_match_step(Optimizer *self, PyObject *grads, PyObject *weights, int quiet)
{
    PyObject *owned = NULL;
    struct pairs pairs;
    if (self->evaluating) {
        PyErr_SetString(PyExc_RuntimeError, "within averaged() the weights hold their averages: step after it");
        return -1;
    }
    if (optimc_ask_all(self))
        return -1;
    if (!self->plan) {
        if (weights == Py_None) {
            PyErr_SetString(PyExc_ValueError,
                "the optimizer is not built: pass the weights too, apply(grads, params), or call "
                "build(params) first");
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
        if (refused)
            return -1;
    }
    self->matching = 1;
    const int failed = optimc_open_pairs(self, grads, weights, &pairs) || match(self, &pairs, &owned, quiet);
    optimc_close_pairs(&pairs);
    Py_XDECREF(owned);
    return failed ? -1 : 0;
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
    if (self->request.update)
        optimc_settle_groups(self);
    self->calls++;
    if (self->request.surveyed) {
        self->norm = self->request.norm;
        self->normed = 1;
    }
}

/* ... and this, after the plan has run, keeps the rule's scalars. */
void optimc_close_step(Optimizer *self)
{
    if (self->request.update)
        for (size_t i = 0; i < self->n_groups; i++)
            optimc_group_keep(&self->groups[i]);
}

void optimc_run_step(Optimizer *self)
{
    const int without_gil = optimc_is_long(self);
    if (without_gil)
        optimc_pool_enter();
    optimc_open_step(self);
    PyThreadState *thread = without_gil ? PyEval_SaveThread() : NULL;
    optimc_plan_run(self->plan->core, &self->request);
    optimc_close_step(self);
    if (without_gil) {
        optimc_pool_leave();
        PyEval_RestoreThread(thread);
    }
}

PyDoc_STRVAR(pull_doc, "_pull($self, index, to, begin=-1, /)\n--\n\n"
"Of a step that was checked: writes the gradient of a weight, as its kernel will see it, into an array\n"
"like the weight; or, from element `begin` in the order of the weight's memory, into a vector.  False if the\n"
"weight has none in this step.");

static PyObject *optimizer_pull(Optimizer *self, PyObject *args)
{
    Py_ssize_t index, begin = -1;
    PyObject *to;
    struct view view;
    if (!PyArg_ParseTuple(args, "nO|n", &index, &to, &begin) || !optimc_is_weight(self, index)
        || optimc_look_writable(to, PyUnicode_FromString("to"), &view))
        return NULL;
    const size_t size = optimc_view_size(&view), start = begin < 0 ? 0 : (size_t)begin;
    const PyArrayObject *weight = (PyArrayObject *)PyTuple_GET_ITEM(self->plan->weights, index);
    if (begin < 0 ? optimc_plan_same(self->plan->core, (size_t)index, &view) != FINE
        : view.ndim != 1 || view.type != optimc_type_of((PyArrayObject *)weight)
            || start > optimc_plan_size(self->plan->core, (size_t)index)
            || size > optimc_plan_size(self->plan->core, (size_t)index) - start) {
        PyErr_SetString(PyExc_ValueError, "to: expected an array like the weight");
        return NULL;
    }
    if (!optimc_plan_takes(self->plan->core, &self->request, (size_t)index))
        Py_RETURN_FALSE;
    optimc_plan_gradient(self->plan->core, &self->request, (size_t)index, start, start + size, view.data);
    Py_RETURN_TRUE;
}

PyDoc_STRVAR(apply_doc, "apply($self, grads, trainable_variables=None)\n--\n\n"
"Updates the weights in place by one step.\n\n"
"Args:\n"
"    grads: list, tuple or dict of gradients, one per weight: arrays of float16, bfloat16, float32,\n"
"        float64 or long double with the weight's shape, any strides, or None for a weight that has\n"
"        none this time.  They are never changed.\n"
"    trainable_variables: the weights, a list, tuple or dict (with the same keys) of writable float32\n"
"        or float64 arrays, contiguous in C or Fortran order.  The first call builds the optimizer for\n"
"        them; later ones may name some of them, in any order, or leave them out to mean all.\n\n"
"Raises:\n"
"    TypeError, ValueError: one line that names the entry; nothing at all has changed.\n"
"    RuntimeError: a schedule tried to step its own optimizer.\n"
"    FloatingPointError: with check_finite=\"raise\", a gradient is not finite; nothing has changed.\n\n"
"Warns:\n"
"    UserWarning: some, but not all, gradients are None.\n\n"
"Example:\n"
"    >>> import numpy as np, optimc\n"
"    >>> w = np.ones(3, np.float32)\n"
"    >>> optimc.SGD(learning_rate=0.5).apply([np.ones(3, np.float32)], [w])\n"
"    >>> w\n"
"    array([0.5, 0.5, 0.5], dtype=float32)");

static PyObject *optimizer_apply(Optimizer *self, PyObject *const *args, Py_ssize_t n, PyObject *kwnames)
{
    static const char *const names[] = {"grads", "trainable_variables"};
    PyObject *given[2] = {NULL, Py_None};
    const Py_ssize_t n_keywords = kwnames ? PyTuple_GET_SIZE(kwnames) : 0;
    if (n > 2) {
        PyErr_Format(PyExc_TypeError, "apply() takes at most 2 arguments (%zd given)", n);
        return NULL;
    }
    for (Py_ssize_t i = 0; i < n; i++)
        given[i] = args[i];
    for (Py_ssize_t i = 0; i < n_keywords; i++) {
        PyObject *keyword = PyTuple_GET_ITEM(kwnames, i);
        int k = 0;
        while (k < 2 && PyUnicode_CompareWithASCIIString(keyword, names[k]))
            k++;
        if (k == 2 || k < n) {
            PyErr_Format(PyExc_TypeError, k == 2 ? "apply() got an unexpected keyword argument '%U'"
                : "apply() got multiple values for argument '%U'", keyword);
            return NULL;
        }
        given[k] = args[n + i];
    }
    if (!given[0]) {
        PyErr_SetString(PyExc_TypeError, "apply() missing required argument 'grads'");
        return NULL;
    }
    if (optimc_lock(self))
        return NULL;
    const int checked = optimc_check_step(self, given[0], given[1], self->check_finite);
    if (checked > 0)
        optimc_run_step(self);
    self->skipped += checked == 0;
    optimc_end_step(self, checked > 0);
    optimc_unlock(self);
    if (checked < 0)
        return NULL;
    Py_RETURN_NONE;
}

PyMethodDef optimc_apply_methods[] = {
    METHOD("apply", optimizer_apply, METH_FASTCALL | METH_KEYWORDS, apply_doc),
    METHOD("_pull", optimizer_pull, METH_VARARGS, pull_doc),
    {NULL, NULL, 0, NULL},
};
