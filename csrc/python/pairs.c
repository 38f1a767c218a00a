/* pairs.c - gradients and weights side by side: two lists or tuples, or two dicts with the same keys.

   It looks only at the containers, one pair at a time.  It keeps each pair alive until the next one is read, because
   the caller's code may run in between and change the containers. */
#define NO_IMPORT_ARRAY
#include "python/boundary.h"
#include "python/trees.h"
#include "python/views.h"

void optimc_close_pairs(struct pairs *pairs)
{
    Py_CLEAR(pairs->key);
    Py_CLEAR(pairs->grad);
    Py_CLEAR(pairs->weight);
}

int optimc_refuse_container(const char *argument, PyObject *object)
{
    const char *kind = Py_TYPE(object)->tp_name;
    if (PyObject_TypeCheck(object, &PyZip_Type))
        PyErr_Format(PyExc_TypeError, "%s must be a list, tuple or dict of arrays, got a zip: pass pairs to "
            "apply_gradients(zip(grads, weights))", argument);
    else if (PyIter_Check(object))
        PyErr_Format(PyExc_TypeError, "%s must be a list, tuple or dict of arrays, got %s, which can be read only "
            "once: pass list(...)", argument, kind);
    else if (PyArray_Check(object))
        PyErr_Format(PyExc_TypeError, "%s must be a list, tuple or dict of arrays, got one array (%s): pass [array]",
            argument, kind);
    else
        PyErr_Format(PyExc_TypeError, "%s must be a list, tuple or dict of arrays, got %s", argument, kind);
    return -1;
}

int optimc_open_pairs(const Plan *plan, PyObject *grads, PyObject *weights, struct pairs *pairs)
{
    *pairs = (struct pairs){.grads = grads, .weights = weights};
    PyObject *both[] = {grads, weights};
    const char *const names[] = {"grads", "weights"};
    for (int k = grads == weights; k < 2; k++) {
        if (k && plan && weights == Py_None)
            continue;
        if (!optimc_is_plain(both[k]))
            return optimc_refuse_container(names[k], both[k]);
    }
    if (weights == Py_None) {
        pairs->weights = plan->weights;
        pairs->keys = plan->names;
        if (PyDict_Check(grads) && !plan->names) {
            PyErr_SetString(PyExc_TypeError,
                "grads is a dict, but the optimizer was built from a list of weights without names");
            return -1;
        }
    } else if (PyDict_Check(grads) != PyDict_Check(weights)) {
        PyErr_Format(PyExc_TypeError, "grads and weights must both be lists or both dicts, got %s and %s",
            Py_TYPE(grads)->tp_name, Py_TYPE(weights)->tp_name);
        return -1;
    }
    const Py_ssize_t n_grads = PyObject_Size(grads);
    pairs->n = n_grads < 0 ? -1 : PyObject_Size(pairs->weights);
    if (pairs->n < 0)
        return -1;
    if (n_grads != pairs->n) {
        PyErr_Format(PyExc_ValueError,
            "grads and weights must have one entry each per weight, got %zd and %zd", n_grads, pairs->n);
        return -1;
    }
    if (!pairs->n) {
        PyErr_SetString(PyExc_ValueError, "weights is empty: expected at least one weight");
        return -1;
    }
    return 0;
}

PyObject *optimc_pair_label(const struct pairs *pairs, const char *argument)
{
    if (pairs->plan) {
        Py_ssize_t i = PyTuple_GET_SIZE(pairs->plan->weights);
        while (i-- > 0 && PyTuple_GET_ITEM(pairs->plan->weights, i) != pairs->weight)
            ;
        return optimc_label(argument, pairs->plan->names, i);
    }
    if (pairs->tree) {
        PyObject *names = optimc_leaf_names(pairs->tree);
        PyObject *label = names ? optimc_label(argument, names, pairs->i - 1) : NULL;
        Py_XDECREF(names);
        return label;
    }
    if (pairs->key)
        return PyUnicode_FromFormat("%s[%R]", argument, pairs->key);
    return PyUnicode_FromFormat("%s[%zd]", argument, pairs->i - 1);
}

/* A new reference, or NULL past the end. */
static PyObject *item(PyObject *list, Py_ssize_t i)
{
    return i < PySequence_Fast_GET_SIZE(list) ? Py_NewRef(PySequence_Fast_GET_ITEM(list, i)) : NULL;
}

static int refuse_shrunk(const char *name)
{
    PyErr_Format(PyExc_RuntimeError, "%s changed size while it was read", name);
    return -1;
}

/* Makes the next pair the current one: 1, 0 at the end, -1 on an error.  The only code of the caller that it runs is
   __hash__ and __eq__ of keys that are not plain str. */
int optimc_next_pair(struct pairs *pairs)
{
    optimc_close_pairs(pairs);
    if (pairs->i == pairs->n)
        return 0;
    if (PyDict_Check(pairs->weights)) {
        if (!PyDict_Next(pairs->weights, &pairs->position, &pairs->key, &pairs->weight))
            return refuse_shrunk("weights");
        Py_INCREF(pairs->key);
        Py_INCREF(pairs->weight);
        if (!PyUnicode_Check(pairs->key)) {
            PyErr_Format(PyExc_TypeError, "weights: keys must be str, got %s",
                Py_TYPE(pairs->key)->tp_name);
            return -1;
        }
    } else {
        pairs->weight = item(pairs->weights, pairs->i);
        if (!pairs->weight)
            return refuse_shrunk("weights");
        if (pairs->keys)
            pairs->key = Py_NewRef(PyTuple_GET_ITEM(pairs->keys, pairs->i));
    }
    if (PyDict_Check(pairs->grads)) {
        pairs->grad = Py_XNewRef(PyDict_GetItemWithError(pairs->grads, pairs->key));
        if (!pairs->grad) {
            if (!PyErr_Occurred())
                PyErr_Format(PyExc_ValueError, "grads has no entry for weights[%R]", pairs->key);
            return -1;
        }
    } else {
        pairs->grad = item(pairs->grads, pairs->i);
        if (!pairs->grad)
            return refuse_shrunk("grads");
    }
    pairs->i++;
    return 1;
}

PyDoc_STRVAR(weights_of_doc, "weights_of($module, weights, /)\n--\n\n"
"Returns the names (a tuple of str, or None) and the arrays (a tuple) of a list, tuple or dict of weights, or of\n"
"nested ones.  Each array is checked: it must be possible to update it in place.");

/* The leaves of nested weights. */
static PyObject *weights_of_tree(PyObject *tree)
{
    struct leaves leaves;
    if (optimc_flatten(NULL, tree, 1, &leaves))
        return NULL;
    int failed = 0;
    for (Py_ssize_t i = 0; !failed && i < PyTuple_GET_SIZE(leaves.weights); i++) {
        struct view view;
        failed = optimc_look_writable(PyTuple_GET_ITEM(leaves.weights, i), optimc_label("weights", leaves.names, i),
            PART_WEIGHT, &view);
    }
    PyObject *result = failed ? NULL : PyTuple_Pack(2, leaves.names, leaves.weights);
    optimc_drop_leaves(&leaves);
    return result;
}

/* Those of a list, tuple or dict. */
static PyObject *weights_of(PyObject *given)
{
    struct pairs pairs;
    PyObject *result = NULL, *inner = NULL;
    if (optimc_open_pairs(NULL, given, given, &pairs))
        return NULL;
    PyObject *keys = PyTuple_New(pairs.n), *weights = PyTuple_New(pairs.n);
    int more = keys && weights ? 1 : -1;
    while (more > 0 && (more = optimc_next_pair(&pairs)) > 0) {
        struct view view;
        inner = PyArray_Check(pairs.weight) ? NULL : optimc_container(pairs.weight);
        if (inner || PyErr_Occurred())
            break;
        if (optimc_look_writable(pairs.weight, optimc_pair_label(&pairs, "weights"), PART_WEIGHT, &view))
            more = -1;
        PyTuple_SET_ITEM(weights, pairs.i - 1, Py_NewRef(pairs.weight));
        PyTuple_SET_ITEM(keys, pairs.i - 1, Py_NewRef(pairs.key ? pairs.key : Py_None));
    }
    if (inner)
        result = weights_of_tree(given);
    else if (!more)
        result = PyTuple_Pack(2, PyDict_Check(given) ? keys : Py_None, weights);
    optimc_close_pairs(&pairs);
    Py_XDECREF(inner);
    Py_XDECREF(keys);
    Py_XDECREF(weights);
    return result;
}

static PyObject *core_weights_of(PyObject *Py_UNUSED(module), PyObject *given)
{
    PyObject *plain = optimc_container(given);
    PyObject *result = plain || !PyErr_Occurred() ? weights_of(plain ? plain : given) : NULL;
    Py_XDECREF(plain);
    return result;
}

PyDoc_STRVAR(flattened_doc, "flattened($module, tree, /)\n--\n\n"
"Returns a dict, list or tuple without nested ones as it is, and another tree as a flat dict of its leaves by name.\n"
"Returns what is no tree as it is.");

static PyObject *core_flattened(PyObject *Py_UNUSED(module), PyObject *tree)
{
    struct leaves leaves;
    PyObject *plain = optimc_container(tree), *flat = NULL;
    const int nested = plain ? optimc_is_nested(plain) : PyErr_Occurred() ? -1 : 0;
    if (nested > 0 && !optimc_flatten(NULL, plain, 1, &leaves)) {
        flat = PyDict_New();
        for (Py_ssize_t i = 0; flat && i < PyTuple_GET_SIZE(leaves.names); i++)
            if (PyDict_SetItem(flat, PyTuple_GET_ITEM(leaves.names, i), PyTuple_GET_ITEM(leaves.weights, i)))
                Py_CLEAR(flat);
        optimc_drop_leaves(&leaves);
    } else if (!nested)
        flat = Py_NewRef(plain ? plain : tree);
    Py_XDECREF(plain);
    return flat;
}

PyMethodDef optimc_pairs_functions[] = {
    METHOD("flattened", core_flattened, METH_O, flattened_doc),
    METHOD("weights_of", core_weights_of, METH_O, weights_of_doc),
    {NULL, NULL, 0, NULL},
};
