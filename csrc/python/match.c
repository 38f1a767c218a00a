/* match.c - the gradients of a step: matched to the weights of a plan, read, and looked at.

   The gradients of the step in progress belong to the plan.  An optimizer matches them for its own plan (apply.c).  A
   plan that no optimizer holds does it by its own methods (plan_type.c).  Nothing here writes a weight.  Next:
   pairs.c, which walks through gradients and weights. */
#define NO_IMPORT_ARRAY
#include "python/boundary.h"

#include "plan/pool.h"
#include "python/rows_type.h"
#include "python/trees.h"
#include "python/views.h"

/* 1 if an object is, or lies where, a weight of the plan is, else 0. */
static int is_weight(const Plan *self, PyObject *object)
{
    struct view view;
    if (!object || !PyArray_Check(object))
        return 0;
    optimc_look((PyArrayObject *)object, &view);
    return optimc_view_size(&view) && optimc_plan_find(self->core, &view, 0) >= 0;
}

/* The weight of the plan that the current entry names, or that has its place if all weights are given; or NULL. */
static PyArrayObject *expected(const Plan *self, const struct pairs *pairs)
{
    const Py_ssize_t n = PyTuple_GET_SIZE(self->weights);
    if (!self->names || !pairs->key)
        return !self->names && pairs->n == n ? (PyArrayObject *)PyTuple_GET_ITEM(self->weights, pairs->i - 1) : NULL;
    const Py_ssize_t i = PySequence_Index(self->names, pairs->key);
    if (i < 0)
        PyErr_Clear();
    return i < 0 ? NULL : (PyArrayObject *)PyTuple_GET_ITEM(self->weights, i);
}

/* 1 if a weight of the plan has the shape of an array, else 0. */
static int has_shape(const Plan *self, PyArrayObject *array)
{
    Py_ssize_t i = PyTuple_GET_SIZE(self->weights);
    while (i-- > 0)
        if (PyArray_SAMESHAPE((PyArrayObject *)PyTuple_GET_ITEM(self->weights, i), array))
            return 1;
    return 0;
}

/* The error for an object in the place of a weight that is none of the plan's.  Returns -1. */
static int refuse_strange(Plan *self, const struct pairs *pairs, PyObject *object)
{
    struct view view;
    PyObject *entry = optimc_pair_label(pairs, "weights");
    if (is_weight(self, pairs->grad)) {
        PyObject *grads = entry ? optimc_pair_label(pairs, "grads") : NULL;
        optimc_refuse(PyExc_ValueError, "%U is no weight of this optimizer, but %S is one: are grads and weights "
            "swapped? Call apply(grads, weights)", entry, grads, NULL);
        Py_XDECREF(grads);
        return -1;
    }
    if (!entry || optimc_look_writable(object, Py_NewRef(entry), PART_WEIGHT, &view)) {
        Py_XDECREF(entry);
        return -1;
    }
    PyArrayObject *built = expected(self, pairs);
    if (built && !PyArray_SAMESHAPE(built, (PyArrayObject *)object))
        return optimc_refuse_shape("%U: expected shape %S, as built, got %S: make a new optimizer for other weights",
            entry, built, (PyArrayObject *)object);
    if (built && PyArray_TYPE(built) != PyArray_TYPE((PyArrayObject *)object))
        return optimc_refuse(PyExc_TypeError, "%U: expected dtype %S, as built, got %S: make a new optimizer for "
            "other weights", entry, (PyObject *)PyArray_DESCR(built),
            (PyObject *)PyArray_DESCR((PyArrayObject *)object));
    if (!built && !has_shape(self, (PyArrayObject *)object))
        return optimc_refuse_shape("%U: no weight of shape %S was built: call build(weights) with all of them to "
            "add it, or make a new optimizer", entry, (PyArrayObject *)object, NULL);
    return optimc_refuse(PyExc_ValueError, "%U is not in the memory this optimizer was built with: update "
        "weights in place (w -= d or w[...] = x, not w = w - d), or call build(weights) with all of them "
        "to move or add weights; slots are kept", entry, NULL, NULL);
}

enum { NO_ARRAY = -2 };

/* Gives the weight's index in the plan; NO_ARRAY; or -1 with the reason it cannot be stepped. */
static Py_ssize_t find(Plan *self, const struct pairs *pairs, PyObject *object)
{
    struct view view;
    if (!PyArray_Check(object))
        return NO_ARRAY;
    if (optimc_is_masked(object))
        return optimc_refuse_masked(optimc_pair_label(pairs, "weights"));
    PyArrayObject *array = (PyArrayObject *)object;
    optimc_look(array, &view);
    const Py_ssize_t i = optimc_plan_find(self->core, &view, (size_t)pairs->i - 1);
    if (i < 0)
        return refuse_strange(self, pairs, object);
    const enum fault fault = optimc_plan_same(self->core, (size_t)i, &view);
    if (fault)
        return optimc_refuse_weight(fault, optimc_pair_label(pairs, "weights"), array,
            (PyArrayObject *)PyTuple_GET_ITEM(self->weights, i));
    return i;
}

static void keep(Plan *self, PyObject *grad, size_t index)
{
    self->places[self->n_gradients] = index;
    self->gradients[self->n_gradients++] = Py_NewRef(grad);
}

/* Notes one gradient in the plan, or raises. */
static int take(Plan *self, const struct pairs *pairs, size_t index, PyObject *grad, int is_rows)
{
    struct view view;
    struct place overlap;
    if (is_rows) {
        if (optimc_take_rows(self, pairs, index, (Rows *)grad))
            return -1;
        keep(self, grad, index);
        return 0;
    }
    if (grad != Py_None && optimc_is_masked(grad))
        return optimc_refuse_masked(optimc_pair_label(pairs, "grads"));
    if (grad != Py_None)
        optimc_look((PyArrayObject *)grad, &view);
    const enum fault fault = optimc_plan_take(self->core, index, grad == Py_None ? NULL : &view, &overlap);
    if (!fault) {
        if (grad != Py_None)
            keep(self, grad, index);
        return 0;
    }
    PyArrayObject *array = (PyArrayObject *)grad;
    /* A key may have code of its own, which may change the gradient: the label comes first. */
    PyObject *entry = optimc_pair_label(pairs, fault == FAULT_REPEATED ? "weights" : "grads");
    if (fault == FAULT_TYPE)
        return optimc_refuse(PyExc_TypeError, PyArray_ISINTEGER(array) || PyArray_ISBOOL(array)
            ? "%U: expected a floating-point gradient, got %S: convert it with .astype(numpy.float32)"
            : "%U: expected a floating-point gradient, got %S", entry, (PyObject *)PyArray_DESCR(array), NULL);
    if (fault == FAULT_SHAPE)
        return optimc_refuse_shape("%U: expected shape %S, like its weight, got %S", entry,
            (PyArrayObject *)PyTuple_GET_ITEM(self->weights, (Py_ssize_t)index), array);
    return optimc_refuse_taken(fault, entry, self->names, overlap);
}

/* The pairs as tuples; those of trees, their leaves.  0 or -1. */
static int gather(struct pairs *pairs, struct leaves *leaves)
{
    *leaves = (struct leaves){PyTuple_New(pairs->n), PyTuple_New(pairs->n), PyTuple_New(pairs->n)};
    if (!leaves->grads || !leaves->weights || !leaves->names)
        return -1;
    int more;
    while ((more = optimc_next_pair(pairs)) > 0) {
        PyTuple_SET_ITEM(leaves->grads, pairs->i - 1, Py_NewRef(pairs->grad));
        PyTuple_SET_ITEM(leaves->weights, pairs->i - 1, Py_NewRef(pairs->weight));
        PyTuple_SET_ITEM(leaves->names, pairs->i - 1, Py_NewRef(pairs->key ? pairs->key : Py_None));
    }
    int nested = more;
    for (Py_ssize_t i = 0; !nested && i < pairs->n; i++) {      /* only now does code of others run */
        PyObject *weight = PyTuple_GET_ITEM(leaves->weights, i);
        PyObject *inner = PyArray_Check(weight) ? NULL : optimc_container(weight);
        nested = inner ? 1 : PyErr_Occurred() ? -1 : 0;
        Py_XDECREF(inner);
    }
    if (nested > 0) {
        optimc_drop_leaves(leaves);
        pairs->tree = pairs->weights;
        return optimc_flatten(pairs->grads, pairs->weights, 0, leaves);
    }
    if (!nested && PyTuple_GET_ITEM(leaves->names, 0) == Py_None)
        Py_CLEAR(leaves->names);
    return nested;
}

/* Turns the pairs into tuples, which `leaves` owns, with gradients of other libraries made arrays.  0 or -1. */
static int convert_pairs(Plan *self, struct pairs *pairs, struct leaves *leaves)
{
    if (gather(pairs, leaves))
        return -1;
    const Py_ssize_t n = PyTuple_GET_SIZE(leaves->weights);
    for (Py_ssize_t i = 0; i < n; i++) {
        PyObject *grad = PyTuple_GET_ITEM(leaves->grads, i);
        if (PyArray_Check(grad) || grad == Py_None || optimc_is_rows(self, grad))
            continue;
        PyObject *known = optimc_rows_of(grad, PyTuple_GET_ITEM(leaves->weights, i),
            optimc_label("grads", leaves->names, i));
        if (known == Py_None) {
            Py_DECREF(known);
            const int offered = optimc_offers_array(grad);
            if (!offered)
                continue;
            known = offered > 0 ? PyArray_FromAny(grad, NULL, 0, 0, 0, NULL) : NULL;
        }
        if (!known)
            return -1;
        PyTuple_SET_ITEM(leaves->grads, i, known);
        Py_DECREF(grad);
    }
    *pairs = (struct pairs){.grads = leaves->grads, .weights = leaves->weights, .keys = leaves->names,
        .tree = pairs->tree, .plan = pairs->plan, .n = n};
    return 0;
}

/* One UserWarning that names the weights without a gradient; -1 if warnings are errors. */
static int warn_missing(struct pairs pairs)
{
    PyObject *entries = PyList_New(0), *comma = PyUnicode_FromString(", "), *names = NULL;
    PyObject *keys = pairs.tree ? optimc_leaf_names(pairs.tree) : NULL;
    int more = entries && comma && (keys || !pairs.tree) ? 1 : -1;
    if (keys && PyTuple_GET_SIZE(keys) == pairs.n)      /* code of the caller's may have changed the tree meanwhile */
        pairs.keys = keys;
    pairs.tree = NULL;
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
    Py_XDECREF(keys);
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

static int match(Plan *self, struct pairs *pairs, struct leaves *owned, int quiet);

/* Goes on where a gradient or a weight is no array: begins anew with what it can be made of, or refuses it. */
static int match_converted(Plan *self, struct pairs start, struct pairs *pairs, struct leaves *owned, int quiet)
{
    if (!owned->weights) {
        optimc_close_pairs(pairs);
        *pairs = start;
        drop_gradients(self);
        return convert_pairs(self, pairs, owned) ? -1 : match(self, pairs, owned, quiet);
    }
    if (PyArray_Check(pairs->grad) || pairs->grad == Py_None || optimc_is_rows(self, pairs->grad))
        return refuse_strange(self, pairs, pairs->weight);
    return optimc_refuse_kind("%U: expected a NumPy array of floats, got %S", optimc_pair_label(pairs, "grads"),
        pairs->grad);
}

/* Matches and checks every pair; the plan is then ready to run.  Warns of missing gradients unless quiet. */
static int match(Plan *self, struct pairs *pairs, struct leaves *owned, int quiet)
{
    int more, missing = 0;
    const struct pairs start = *pairs;
    optimc_plan_begin(self->core);
    while ((more = optimc_next_pair(pairs)) > 0) {
        PyObject *grad = pairs->grad;
        const int is_rows = optimc_is_rows(self, grad);
        const Py_ssize_t index = PyArray_Check(grad) || grad == Py_None || is_rows ? find(self, pairs, pairs->weight)
            : NO_ARRAY;
        if (index < 0)
            return index == NO_ARRAY ? match_converted(self, start, pairs, owned, quiet) : -1;
        if (take(self, pairs, (size_t)index, grad, is_rows))
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

/* Matches gradients whose weights are left out, and whose form is a tree. */
static int match_tree(Plan *self, PyObject *grads, int quiet)
{
    struct leaves leaves, owned = {NULL, NULL, NULL};
    if (optimc_flatten_like_plan(self, grads, &leaves))
        return -1;
    struct pairs pairs = {.grads = leaves.grads, .weights = leaves.weights, .plan = self,
        .n = PyTuple_GET_SIZE(leaves.weights)};
    const int failed = match(self, &pairs, &owned, quiet);
    optimc_close_pairs(&pairs);
    optimc_drop_leaves(&owned);
    optimc_drop_leaves(&leaves);
    return failed;
}

/* 1 if gradients may be a tree whose weights are left out, else 0: they are nested, or a None may stand for a branch.
   The error that is raised stays; Ctrl-C replaces it. */
static int is_tree(const Plan *self, PyObject *grads, PyObject *weights)
{
    PyObject *type, *value, *traceback;
    if (weights != Py_None || !self->names || !optimc_is_plain(grads) || !PyErr_ExceptionMatches(PyExc_Exception))
        return 0;
    PyErr_Fetch(&type, &value, &traceback);
    const int nested = optimc_is_nested(grads);
    if (nested < 0 && !PyErr_ExceptionMatches(PyExc_Exception)) {
        Py_XDECREF(type);
        Py_XDECREF(value);
        Py_XDECREF(traceback);
        return 0;
    }
    PyErr_Restore(type, value, traceback);
    return nested > 0 || ((PyDict_Check(grads) || PySequence_Fast_GET_SIZE(grads) != PyTuple_GET_SIZE(self->weights))
        && optimc_has_none(grads));
}

/* Matches dicts, lists and tuples. */
static int match_plain(Plan *self, PyObject *grads, PyObject *weights, int quiet)
{
    struct leaves owned = {NULL, NULL, NULL};
    struct pairs pairs;
    const int failed = optimc_open_pairs(self, grads, weights, &pairs) || match(self, &pairs, &owned, quiet);
    optimc_close_pairs(&pairs);
    if (owned.weights)
        optimc_drop_leaves(&owned);
    return failed;
}

/* Matches other containers, and gradients of the form of a tree whose weights are left out.  If there are none, the
   error that is raised stays. */
static int match_unusual(Plan *self, PyObject *grads, PyObject *weights, int quiet)
{
    if (!optimc_is_plain(grads) || (weights != Py_None && !optimc_is_plain(weights))) {
        PyObject *type, *value, *traceback;
        PyErr_Fetch(&type, &value, &traceback);
        PyObject *plain = optimc_container(grads), *other = plain ? optimc_container(weights) : NULL;
        const int known = plain && (other || (weights == Py_None && !PyErr_Occurred()));
        const int failed = known ? optimc_match(self, plain, other ? other : weights, quiet) : -1;
        if (known || PyErr_Occurred()) {
            Py_XDECREF(type);
            Py_XDECREF(value);
            Py_XDECREF(traceback);
        } else
            PyErr_Restore(type, value, traceback);
        Py_XDECREF(plain);
        Py_XDECREF(other);
        return failed;
    }
    if (!is_tree(self, grads, weights))
        return -1;
    PyErr_Clear();
    drop_gradients(self);
    return match_tree(self, grads, quiet);
}

int optimc_match(Plan *self, PyObject *grads, PyObject *weights, int quiet)
{
    self->matching = BUSY;
    if (self->tree && weights == Py_None && optimc_is_plain(grads)) {
        const int nested = optimc_is_nested(grads);
        if (nested)
            return nested < 0 ? -1 : match_tree(self, grads, quiet);
    }
    return match_plain(self, grads, weights, quiet) ? match_unusual(self, grads, weights, quiet) : 0;
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
