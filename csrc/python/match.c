/* match.c - the gradients of a step: matched to the weights of a plan, read, and looked at.

   The gradients of the step in progress belong to the plan.  An optimizer matches them for its own plan (apply.c).  A
   plan that no optimizer holds does it by its own methods (plan_type.c).  Nothing here writes a weight.  Next:
   pairs.c, which walks through gradients and weights. */
#define NO_IMPORT_ARRAY
#include "python/boundary.h"

#include "plan/pool.h"
#include "python/views.h"

/* 1 if a gradient that is no ndarray can be made one: it offers its memory as an array.  Numbers, strings and lists
   do not: 0.  -1 on an error. */
static int offers_array(PyObject *object)
{
    if (PyObject_CheckBuffer(object))
        return !PyBytes_Check(object) && !PyByteArray_Check(object);
    PyObject *method = PyType_Check(object) ? NULL : PyObject_GetAttrString(object, "__array__");
    Py_XDECREF(method);
    if (method || !PyErr_Occurred())
        return method != NULL;
    if (!PyErr_ExceptionMatches(PyExc_AttributeError))
        return -1;
    PyErr_Clear();
    return 0;
}

/* Gives the weight's index in the plan, or -1 with the reason it cannot be stepped. */
static Py_ssize_t find(Plan *self, const struct pairs *pairs, PyObject *object)
{
    struct view view;
    if (!PyArray_Check(object))
        return optimc_look_writable(object, optimc_pair_label(pairs, "weights"), &view);
    if (optimc_is_masked(object))
        return optimc_refuse_masked(optimc_pair_label(pairs, "weights"));
    PyArrayObject *array = (PyArrayObject *)object;
    optimc_look(array, &view);
    const Py_ssize_t i = optimc_plan_find(self->core, &view, (size_t)pairs->i - 1);
    if (i >= 0) {
        const enum fault fault = optimc_plan_same(self->core, (size_t)i, &view);
        if (fault)
            return optimc_refuse_weight(fault, optimc_pair_label(pairs, "weights"), array,
                (PyArrayObject *)PyTuple_GET_ITEM(self->weights, i));
        return i;
    }
    const enum fault fault = optimc_plan_check(&view);
    if (fault)
        return optimc_refuse_weight(fault, optimc_pair_label(pairs, "weights"), array, NULL);
    return optimc_refuse(PyExc_ValueError, "%U is not in the memory this optimizer was built with: update "
        "weights in place (w -= d or w[...] = x, not w = w - d), or call build(weights) with all of them "
        "to move or add weights; slots are kept", optimc_pair_label(pairs, "weights"), NULL, NULL);
}

/* Notes one gradient in the plan, or raises. */
static int take(Plan *self, const struct pairs *pairs, size_t index, PyObject *grad)
{
    struct view view;
    struct place overlap;
    if (grad != Py_None && optimc_is_masked(grad))
        return optimc_refuse_masked(optimc_pair_label(pairs, "grads"));
    if (grad != Py_None)
        optimc_look((PyArrayObject *)grad, &view);
    const enum fault fault = optimc_plan_take(self->core, index, grad == Py_None ? NULL : &view, &overlap);
    if (!fault) {
        if (grad != Py_None)
            self->gradients[self->n_gradients++] = Py_NewRef(grad);
        return 0;
    }
    PyArrayObject *array = (PyArrayObject *)grad;
    /* A key may have code of its own, which may change the gradient: the label comes first. */
    PyObject *entry = optimc_pair_label(pairs, fault == FAULT_REPEATED ? "weights" : "grads");
    if (fault == FAULT_REPEATED)
        return optimc_refuse(PyExc_ValueError, "%U: the same weight occurs twice", entry, NULL, NULL);
    if (fault == FAULT_TYPE)
        return optimc_refuse(PyExc_TypeError, "%U: expected a floating-point gradient, got %S", entry,
            (PyObject *)PyArray_DESCR(array), NULL);
    if (fault == FAULT_NO_MEMORY)
        return optimc_refuse(PyExc_ValueError, "%U: the array has no memory", entry, NULL, NULL);
    if (fault == FAULT_SHAPE)
        return optimc_refuse_shape("%U: expected shape %S, like its weight, got %S", entry,
            (PyArrayObject *)PyTuple_GET_ITEM(self->weights, (Py_ssize_t)index), array);
    PyObject *place = entry ? optimc_place_name(self->names, NULL, overlap) : NULL;
    optimc_refuse(PyExc_ValueError, "%U overlaps %S in memory", entry, place, NULL);
    Py_XDECREF(place);
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
        const int offered = PyArray_Check(grad) || grad == Py_None ? 0 : offers_array(grad);
        if (!offered)
            continue;
        PyObject *array = offered > 0 ? PyArray_FromAny(grad, NULL, 0, 0, 0, NULL) : NULL;
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
    PyObject *entries = PyList_New(0), *comma = PyUnicode_FromString(", "), *names = NULL;
    int more = entries && comma ? 1 : -1;
    while (more > 0 && (more = optimc_next_pair(&pairs)) > 0) {
        PyObject *entry = pairs.grad == Py_None ? optimc_pair_label(&pairs, "weights") : NULL;
        if (pairs.grad == Py_None && (!entry || PyList_Append(entries, entry)))
            more = -1;
        Py_XDECREF(entry);
    }
    if (!more)
        names = PyUnicode_Join(comma, entries);
    PyObject *text = names ? PyUnicode_FromFormat("Gradients do not exist for %U: these weights are left as they are",
        names) : NULL;
    const int result = text ? optimc_warn(text) : -1;
    optimc_close_pairs(&pairs);
    Py_XDECREF(entries);
    Py_XDECREF(comma);
    Py_XDECREF(names);
    Py_XDECREF(text);
    return result;
}

static void drop_gradients(Plan *self)
{
    while (self->n_gradients)
        Py_DECREF(self->gradients[--self->n_gradients]);
}

/* Matches and checks every pair; the plan is then ready to run.  Warns of missing gradients unless quiet. */
static int match(Plan *self, struct pairs *pairs, PyObject **owned, int quiet)
{
    int more, missing = 0;
    const struct pairs start = *pairs;
    optimc_plan_begin(self->core);
    while ((more = optimc_next_pair(pairs)) > 0) {
        PyObject *grad = pairs->grad;
        if (!PyArray_Check(grad) && grad != Py_None) {
            if (*owned)
                return optimc_refuse_kind("%U: expected a NumPy array of floats, got %S",
                    optimc_pair_label(pairs, "grads"), grad);
            optimc_close_pairs(pairs);
            *pairs = start;
            drop_gradients(self);
            return convert_pairs(pairs, owned) ? -1 : match(self, pairs, owned, quiet);
        }
        const Py_ssize_t index = find(self, pairs, pairs->weight);
        if (index < 0 || take(self, pairs, (size_t)index, grad))
            return -1;
        missing += grad == Py_None;
    }
    if (more < 0)
        return -1;
    if (!self->n_gradients) {
        PyErr_SetString(PyExc_ValueError, "No gradients provided for any variable.");
        return -1;
    }
    return missing && !quiet ? warn_missing(start) : 0;
}

int optimc_match(Plan *self, PyObject *grads, PyObject *weights, int quiet)
{
    PyObject *owned = NULL;
    struct pairs pairs;
    self->matching = BUSY;
    const int failed = optimc_open_pairs(self, grads, weights, &pairs) || match(self, &pairs, &owned, quiet);
    optimc_close_pairs(&pairs);
    Py_XDECREF(owned);
    return failed ? -1 : 0;
}

void optimc_end_match(Plan *self)
{
    self->matching = BUSY;              /* the end of an array may run code of the caller's */
    drop_gradients(self);
    self->keeps_gil = 0;
    self->matching = IDLE;
}

/* A step is worth giving up the GIL for if it takes long enough. */
int optimc_is_long(const Plan *self)
{
    return !self->keeps_gil && optimc_plan_cost(self->core) >= GIL_WORTH;
}

/* A fork() waits for what enters the pool.  It enters with the GIL, which a fork() takes too, so that no step
   begins while one waits; it leaves without the GIL, so that a fork() that has it need not wait for ever. */
static ptrdiff_t survey(Plan *self)
{
    if (!optimc_is_long(self))
        return optimc_plan_survey(self->core, &self->request);
    self->matching = BUSY;
    optimc_pool_enter();
    PyThreadState *thread = PyEval_SaveThread();
    const ptrdiff_t bad = optimc_plan_survey(self->core, &self->request);
    optimc_pool_leave();
    PyEval_RestoreThread(thread);
    self->matching = MATCHED;
    return bad;
}

/* The label of the gradient of a weight, as the caller names it; grads NULL: as the plan does. */
static PyObject *gradient_label(Plan *self, PyObject *grads, PyObject *weights, ptrdiff_t index)
{
    struct pairs pairs = {0};
    struct view view;
    PyObject *found = NULL;
    if (grads && weights != Py_None && !optimc_open_pairs(self, grads, weights, &pairs))
        while (!found && optimc_next_pair(&pairs) > 0)
            if (PyArray_Check(pairs.weight)) {
                optimc_look((PyArrayObject *)pairs.weight, &view);
                if (optimc_plan_find(self->core, &view, (size_t)pairs.i - 1) == index)
                    found = optimc_pair_label(&pairs, "grads");
            }
    optimc_close_pairs(&pairs);
    if (found)
        return found;
    if (PyErr_Occurred() && !PyErr_ExceptionMatches(PyExc_Exception))
        return NULL;                    /* Ctrl-C, say */
    PyErr_Clear();                      /* they have changed since they were matched */
    return optimc_label("grads", self->names, index);
}

int optimc_survey(Plan *self, PyObject *grads, PyObject *weights, int finite)
{
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

PyObject *optimc_taken(Plan *self)
{
    const size_t n = optimc_plan_weights(self->core);
    PyObject *taken = PyTuple_New((Py_ssize_t)n);
    for (size_t i = 0; taken && i < n; i++)
        PyTuple_SET_ITEM(taken, (Py_ssize_t)i,
            PyBool_FromLong(optimc_plan_takes(self->core, &self->request, i)));
    return taken;
}
