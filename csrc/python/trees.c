/* trees.c - nested dicts, lists and tuples of arrays, as flat lists of their leaves.

   A leaf is named by the keys and positions that lead to it, joined by "/".  Gradients and weights are walked side by
   side, so that each gradient meets its weight.  If a step leaves the weights out, the names tell which is which; the
   plan then keeps a tree of its weights of the same form, to walk beside the gradients of the next step.

   Other mappings and sequences are copied into a dict or a list first.  To ask an object for its kind may run code of
   the caller's, which may change the containers: the walk owns what it has in hand.  Next: match.c. */
#define NO_IMPORT_ARRAY
#include "python/boundary.h"

#include "python/trees.h"

/* One key or position of those that lead to an entry, the last first. */
struct way {
    const struct way *up;
    PyObject *key;                      /* or NULL: a position */
    Py_ssize_t i;
};

int optimc_offers_array(PyObject *object)
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

/* ------------------------------------------------------------------------- containers - */

/* 1 if an object is of an abstract type of collections.abc, else 0; -1 on an error. */
static int is_a(PyObject *object, const char *name)
{
    PyObject *module = PyImport_ImportModule("collections.abc");
    PyObject *type = module ? PyObject_GetAttrString(module, name) : NULL;
    const int found = type ? PyObject_IsInstance(object, type) : -1;
    Py_XDECREF(module);
    Py_XDECREF(type);
    return found;
}

PyObject *optimc_container(PyObject *object)
{
    if (optimc_is_plain(object))
        return Py_NewRef(object);
    if (object == Py_None || PyArray_Check(object) || PyUnicode_Check(object) || PyBytes_Check(object)
        || PyByteArray_Check(object) || optimc_offers_array(object))
        return NULL;
    const int is_mapping = is_a(object, "Mapping");
    if (is_mapping <= 0)
        return !is_mapping && is_a(object, "Sequence") > 0 ? PySequence_List(object) : NULL;
    PyObject *dict = PyDict_New();
    if (dict && PyDict_Update(dict, object))
        Py_CLEAR(dict);
    return dict;
}

/* 1 if all entries are arrays or None.  No code of the caller's runs. */
static int is_flat(PyObject *container)
{
    PyObject *entry;
    Py_ssize_t i = 0;
    if (PyDict_Check(container)) {
        while (PyDict_Next(container, &i, NULL, &entry))
            if (!PyArray_Check(entry) && entry != Py_None)
                return 0;
        return 1;
    }
    for (; i < PySequence_Fast_GET_SIZE(container); i++) {
        entry = PySequence_Fast_GET_ITEM(container, i);
        if (!PyArray_Check(entry) && entry != Py_None)
            return 0;
    }
    return 1;
}

int optimc_has_none(PyObject *container)
{
    PyObject *entry;
    Py_ssize_t i = 0;
    if (PyDict_Check(container)) {
        while (PyDict_Next(container, &i, NULL, &entry))
            if (entry == Py_None)
                return 1;
        return 0;
    }
    while (i < PySequence_Fast_GET_SIZE(container))
        if (PySequence_Fast_GET_ITEM(container, i++) == Py_None)
            return 1;
    return 0;
}

int optimc_is_nested(PyObject *container)
{
    if (is_flat(container))
        return 0;
    PyObject *entries = PyDict_Check(container) ? PyDict_Values(container) : PySequence_List(container);
    int nested = entries ? 0 : -1;
    for (Py_ssize_t i = 0; !nested && i < PyList_GET_SIZE(entries); i++) {
        PyObject *inner = optimc_container(PyList_GET_ITEM(entries, i));
        nested = inner ? 1 : PyErr_Occurred() ? -1 : 0;
        Py_XDECREF(inner);
    }
    Py_XDECREF(entries);
    return nested;
}

/* ------------------------------------------------------------------------------ names - */

static PyObject *name_of(const struct way *at)
{
    PyObject *name = at->key ? Py_NewRef(at->key) : PyUnicode_FromFormat("%zd", at->i);
    while (name && (at = at->up))
        Py_SETREF(name, at->key ? PyUnicode_FromFormat("%U/%U", at->key, name)
            : PyUnicode_FromFormat("%zd/%U", at->i, name));
    return name;
}

/* "grads['layers/0/kernel']", or only "grads". */
static PyObject *label_of(const char *argument, const struct way *at)
{
    if (!at)
        return PyUnicode_FromString(argument);
    if (!at->up && !at->key)
        return PyUnicode_FromFormat("%s[%zd]", argument, at->i);
    PyObject *name = name_of(at), *label = name ? PyUnicode_FromFormat("%s[%R]", argument, name) : NULL;
    Py_XDECREF(name);
    return label;
}

/* The error for an entry of gradients that does not fit its weights; %U and %U are their labels, %S is `given`. */
static int refuse_form(PyObject *type, const char *format, const struct way *at, PyObject *given)
{
    PyObject *grads = label_of("grads", at), *weights = label_of("weights", at);
    if (grads && weights)
        PyErr_Format(type, format, grads, weights, given);
    Py_XDECREF(grads);
    Py_XDECREF(weights);
    return -1;
}

static int refuse_kind(const char *expected, const struct way *at, PyObject *grad)
{
    PyObject *kind = PyType_GetName(Py_TYPE(grad));
    if (kind)
        refuse_form(PyExc_TypeError, expected, at, kind);
    Py_XDECREF(kind);
    return -1;
}

static int refuse_missing(const char *who, const char *whose, const struct way *at)
{
    optimc_refuse(PyExc_ValueError,
        !strcmp(who, "grads") ? "grads has no entry for %U" : "weights has no entry for %U",
        label_of(whose, at), NULL, NULL);
    return -1;
}

/* ------------------------------------------------------------------------------ walks - */

static int walk(struct leaves *to, PyObject *grad, PyObject *weight, const struct way *at);

static int add_leaf(struct leaves *to, PyObject *grad, PyObject *weight, const struct way *at)
{
    if (to->grads && optimc_is_plain(grad))
        return refuse_kind("%U: expected an array, like %U, got %S", at, grad);
    if ((to->grads && PyList_Append(to->grads, grad)) || PyList_Append(to->weights, weight))
        return -1;
    PyObject *name = to->names ? name_of(at) : NULL;
    const int failed = to->names && (!name || PyList_Append(to->names, name));
    Py_XDECREF(name);
    return failed ? -1 : 0;
}

/* The entries of a dict.  `grads`: a dict, or NULL for none. */
static int walk_dict(struct leaves *to, PyObject *grads, PyObject *weights, const struct way *up)
{
    const Py_ssize_t n = PyDict_GET_SIZE(weights);
    struct way at = {.up = up};
    Py_ssize_t position = 0;
    PyObject *weight, *grad;
    int failed = 0;
    for (Py_ssize_t i = 0; !failed && i < n; i++) {
        if (!PyDict_Next(weights, &position, &at.key, &weight)) {
            PyErr_SetString(PyExc_RuntimeError, "weights changed size while it was read");
            return -1;
        }
        Py_INCREF(at.key);
        Py_INCREF(weight);
        grad = Py_XNewRef(grads && PyUnicode_Check(at.key) ? PyDict_GetItemWithError(grads, at.key) : Py_None);
        if (!PyUnicode_Check(at.key))
            failed = optimc_refuse_kind("%U: keys must be str, got %S", label_of("weights", up), at.key);
        else if (!grad)
            failed = PyErr_Occurred() ? -1 : refuse_missing("grads", "weights", &at);
        else
            failed = walk(to, grad, weight, &at);
        Py_XDECREF(grad);
        Py_DECREF(weight);
        Py_DECREF(at.key);
    }
    position = 0;
    while (!failed && grads && PyDict_GET_SIZE(grads) > n && PyDict_Next(grads, &position, &at.key, &grad)) {
        Py_INCREF(at.key);
        const int known = PyDict_Contains(weights, at.key);
        if (!known && !PyUnicode_Check(at.key))
            optimc_refuse_kind("%U: keys must be str, got %S", label_of("grads", up), at.key);
        else if (!known)
            refuse_missing("weights", "grads", &at);
        failed = known <= 0;
        Py_DECREF(at.key);
    }
    return failed ? -1 : 0;
}

/* The entries of a list or tuple; `grads` likewise. */
static int walk_list(struct leaves *to, PyObject *grads, PyObject *weights, const struct way *up)
{
    const Py_ssize_t n = PySequence_Fast_GET_SIZE(weights);
    if (grads && PySequence_Fast_GET_SIZE(grads) != n) {
        PyObject *sizes = PyUnicode_FromFormat("%zd and %zd", PySequence_Fast_GET_SIZE(grads), n);
        if (sizes)
            refuse_form(PyExc_ValueError, "%U and %U must have as many entries, got %U", up, sizes);
        Py_XDECREF(sizes);
        return -1;
    }
    struct way at = {.up = up};
    for (; at.i < n; at.i++) {
        if (at.i >= PySequence_Fast_GET_SIZE(weights) || (grads && at.i >= PySequence_Fast_GET_SIZE(grads))) {
            PyErr_SetString(PyExc_RuntimeError, "weights or grads changed size while they were read");
            return -1;
        }
        PyObject *weight = Py_NewRef(PySequence_Fast_GET_ITEM(weights, at.i));
        PyObject *grad = Py_NewRef(grads ? PySequence_Fast_GET_ITEM(grads, at.i) : Py_None);
        const int failed = walk(to, grad, weight, &at);
        Py_DECREF(weight);
        Py_DECREF(grad);
        if (failed)
            return -1;
    }
    return 0;
}

/* 1 if an entry is a list of numbers, which somebody took for an array, else 0. */
static int is_numbers(PyObject *entry)
{
    if (PyDict_Check(entry) || !PySequence_Fast_GET_SIZE(entry))
        return 0;
    PyObject *first = PySequence_Fast_GET_ITEM(entry, 0);
    return PyFloat_Check(first) || PyLong_Check(first) || PyArray_IsScalar(first, Generic);
}

/* Adds the leaves below an entry.  A None stands for as many as its weight has. */
static int walk(struct leaves *to, PyObject *grad, PyObject *weight, const struct way *at)
{
    if (PyArray_Check(weight))
        return add_leaf(to, grad, weight, at);
    PyObject *weights = optimc_container(weight), *grads = NULL;
    if (!weights)
        return PyErr_Occurred() ? -1 : add_leaf(to, grad, weight, at);
    int failed = Py_EnterRecursiveCall(" while nested weights were read");
    if (!failed) {
        const int is_dict = PyDict_Check(weights);
        if (at && is_numbers(weights))
            failed = optimc_refuse(PyExc_TypeError, "%U is a list of numbers: expected a NumPy array",
                label_of("weights", at), NULL, NULL);
        if (!failed && to->grads && grad != Py_None) {
            grads = optimc_container(grad);
            if (!grads || PyDict_Check(grads) != is_dict)
                failed = PyErr_Occurred() ? -1 : refuse_kind(is_dict ? "%U: expected a dict, like %U, got %S"
                    : "%U: expected a list or tuple, like %U, got %S", at, grad);
        }
        if (!failed)
            failed = is_dict ? walk_dict(to, grads, weights, at) : walk_list(to, grads, weights, at);
        Py_LeaveRecursiveCall();
    }
    Py_XDECREF(grads);
    Py_DECREF(weights);
    return failed;
}

/* An error if two leaves have one name: 0 or -1. */
static int check_distinct(PyObject *names)
{
    PyObject *seen = PySet_New(NULL);
    int failed = !seen;
    for (Py_ssize_t i = 0; !failed && i < PyList_GET_SIZE(names); i++) {
        PyObject *name = PyList_GET_ITEM(names, i);
        const int known = PySet_Contains(seen, name);
        if (known > 0)
            PyErr_Format(PyExc_ValueError, "weights: two entries have the name %R", name);
        failed = known || PySet_Add(seen, name);
    }
    Py_XDECREF(seen);
    return failed ? -1 : 0;
}

int optimc_flatten(PyObject *grads, PyObject *weights, int named, struct leaves *leaves)
{
    struct leaves found = {.grads = grads ? PyList_New(0) : NULL, .weights = PyList_New(0),
        .names = named ? PyList_New(0) : NULL};
    *leaves = (struct leaves){NULL, NULL, NULL};
    int failed = (grads && !found.grads) || !found.weights || (named && !found.names)
        || walk(&found, grads ? grads : Py_None, weights, NULL) || (named && check_distinct(found.names));
    if (!failed && !PyList_GET_SIZE(found.weights)) {
        PyErr_SetString(PyExc_ValueError, "weights is empty: expected at least one weight");
        failed = 1;
    }
    if (!failed && ((grads && !(leaves->grads = PyList_AsTuple(found.grads)))
            || !(leaves->weights = PyList_AsTuple(found.weights))
            || (named && !(leaves->names = PyList_AsTuple(found.names))))) {
        optimc_drop_leaves(leaves);
        failed = 1;
    }
    optimc_drop_leaves(&found);
    return failed ? -1 : 0;
}

void optimc_drop_leaves(struct leaves *leaves)
{
    Py_CLEAR(leaves->grads);
    Py_CLEAR(leaves->weights);
    Py_CLEAR(leaves->names);
}

PyObject *optimc_leaf_names(PyObject *tree)
{
    struct leaves leaves;
    if (optimc_flatten(NULL, tree, 1, &leaves))
        return NULL;
    PyObject *names = Py_NewRef(leaves.names);
    optimc_drop_leaves(&leaves);
    return names;
}

/* ------------------------------------------------------- gradients without their weights - */

/* The weights below a name, in a dict by their full names, so that no gradients of another form fit it by chance; a
   None among the gradients stands for them.  They leave `rest`. */
static PyObject *take_below(PyObject *rest, PyObject *name)
{
    PyObject *below = PyDict_New(), *prefix = PyUnicode_FromFormat("%U/", name), *keys = PyDict_Keys(rest);
    int failed = !below || !prefix || !keys;
    for (Py_ssize_t i = 0; !failed && i < PyList_GET_SIZE(keys); i++) {
        PyObject *key = PyList_GET_ITEM(keys, i);
        const Py_ssize_t is_below = PyUnicode_Tailmatch(key, prefix, 0, PY_SSIZE_T_MAX, -1);
        PyObject *weight = is_below > 0 ? PyDict_GetItemWithError(rest, key) : NULL;
        failed = is_below < 0 || (weight && (PyDict_SetItem(below, key, weight) || PyDict_DelItem(rest, key)))
            || PyErr_Occurred();
    }
    if (failed)
        Py_CLEAR(below);
    Py_XDECREF(prefix);
    Py_XDECREF(keys);
    return below;
}

/* The weight of a gradient, or the weights below a None, by name.  They leave `rest`, a dict of weights by name. */
static PyObject *take_named(PyObject *rest, PyObject *grad, const struct way *at)
{
    PyObject *name = name_of(at), *weight = name ? Py_XNewRef(PyDict_GetItemWithError(rest, name)) : NULL;
    if (weight && PyDict_DelItem(rest, name))
        Py_CLEAR(weight);
    if (!weight && name && grad == Py_None && !PyErr_Occurred()) {
        weight = take_below(rest, name);
        if (weight && !PyDict_GET_SIZE(weight))
            Py_CLEAR(weight);
    }
    if (!weight && !PyErr_Occurred())
        refuse_missing("weights", "grads", at);
    Py_XDECREF(name);
    return weight;
}

/* A tree of weights like one of gradients, or NULL with an error. */
static PyObject *tree_like(PyObject *rest, PyObject *grad, const struct way *up)
{
    PyObject *inner = PyArray_Check(grad) ? NULL : optimc_container(grad);
    if (!inner)
        return PyErr_Occurred() ? NULL : take_named(rest, grad, up);
    const int is_dict = PyDict_Check(inner);
    PyObject *keys = is_dict ? PyDict_Keys(inner) : PySequence_List(inner), *tree = NULL;
    const Py_ssize_t n = keys ? PyList_GET_SIZE(keys) : 0;
    int failed = !keys || Py_EnterRecursiveCall(" while nested gradients were read");
    if (!failed) {
        tree = is_dict ? PyDict_New() : PyTuple_New(n);
        for (Py_ssize_t i = 0; tree && !failed && i < n; i++) {
            PyObject *key = PyList_GET_ITEM(keys, i);
            struct way at = {.up = up, .key = is_dict ? key : NULL, .i = i};
            PyObject *entry = NULL, *made = NULL;
            if (is_dict && !PyUnicode_Check(key))
                optimc_refuse_kind("%U: keys must be str, got %S", label_of("grads", up), key);
            else if (!(entry = Py_XNewRef(is_dict ? PyDict_GetItemWithError(inner, key) : key)) && !PyErr_Occurred())
                PyErr_SetString(PyExc_RuntimeError, "grads changed size while it was read");
            else if (entry)
                made = tree_like(rest, entry, &at);
            failed = !made || (is_dict && PyDict_SetItem(tree, key, made));
            if (made && !is_dict)
                PyTuple_SET_ITEM(tree, i, Py_NewRef(made));
            Py_XDECREF(made);
            Py_XDECREF(entry);
        }
        Py_LeaveRecursiveCall();
    }
    if (failed)
        Py_CLEAR(tree);
    Py_XDECREF(keys);
    Py_DECREF(inner);
    return tree;
}

/* A tree of all weights of a plan, like one of gradients. */
static PyObject *tree_of(const Plan *plan, PyObject *grads)
{
    PyObject *rest = PyDict_New(), *tree = NULL, *name, *weight;
    int failed = !rest;
    for (Py_ssize_t i = 0; !failed && i < PyTuple_GET_SIZE(plan->weights); i++)
        failed = PyDict_SetItem(rest, PyTuple_GET_ITEM(plan->names, i), PyTuple_GET_ITEM(plan->weights, i));
    if (!failed)
        tree = tree_like(rest, grads, NULL);
    Py_ssize_t position = 0;
    if (tree && PyDict_Next(rest, &position, &name, &weight)) {
        PyErr_Format(PyExc_ValueError, "grads has no entry for weights[%R]", name);
        Py_CLEAR(tree);
    }
    Py_XDECREF(rest);
    return tree;
}

int optimc_flatten_like_plan(Plan *plan, PyObject *grads, struct leaves *leaves)
{
    if (plan->tree) {
        if (!optimc_flatten(grads, plan->tree, 0, leaves))
            return 0;
        if (!PyErr_ExceptionMatches(PyExc_TypeError) && !PyErr_ExceptionMatches(PyExc_ValueError))
            return -1;                  /* Ctrl-C, or an error of the caller's code */
        PyErr_Clear();                  /* they have another form than before */
        Py_CLEAR(plan->tree);
    }
    Py_XSETREF(plan->tree, tree_of(plan, grads));
    return plan->tree ? optimc_flatten(grads, plan->tree, 0, leaves) : -1;
}
