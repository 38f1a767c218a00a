/* tensors.c - steps over tensors of another library, through its DLPack exchange table.

   No array is made from a tensor; its address is read again at every step.  A plan made for tensors may depend on
   entries of dicts, which it watches.  If one of them has changed, the step does nothing and Python makes a new
   plan.  Next: look.c, the look at the tensors. */
#define NO_IMPORT_ARRAY
#include "python/tensors.h"

#include "python/rows_type.h"

static const struct tensor_exchange *exchange_of(PyObject *capsule)
{
    const struct tensor_exchange *table = PyCapsule_GetPointer(capsule, TENSOR_CAPSULE);
    while (table && table->version.major != TENSOR_MAJOR)
        table = table->older;
    if (table && table->look)
        return table;
    if (!PyErr_Occurred())
        PyErr_SetString(PyExc_ValueError, "the exchange table has no version 1 that describes tensors");
    return NULL;
}

void optimc_free_tensors(struct tensors *tensors)
{
    if (!tensors)
        return;
    if (tensors->items && tensors->storages)
        optimc_release_tensors(tensors);
    Py_XDECREF(tensors->orders);
    Py_XDECREF(tensors->watched);
    Py_XDECREF(tensors->given);
    Py_XDECREF(tensors->types);
    Py_XDECREF(tensors->rows);
    Py_XDECREF(tensors->kept);
    PyMem_Free(tensors->numbers);
    PyMem_Free(tensors->by_rows);
    PyMem_Free(tensors->rests);
    for (int k = 0; k < TENSOR_NAMES; k++)
        Py_XDECREF(tensors->names[k]);
    PyMem_Free(tensors->parts);
    PyMem_Free(tensors->items);
    PyMem_Free(tensors->storages);
    PyMem_Free(tensors->reaches);
    PyMem_Free(tensors);
}

/* The array that a plan has bound as a part of a weight, borrowed, or NULL with an error. */
static PyArrayObject *bound_part(const Plan *plan, Py_ssize_t weight, int part)
{
    PyObject *array = NULL;
    if (weight >= 0 && weight < PyTuple_GET_SIZE(plan->weights)) {
        PyObject *kept = PyList_GET_ITEM(plan->parts, weight), *slots = PyTuple_GET_ITEM(kept, 1);
        array = part == PART_AVERAGE ? PyTuple_GET_ITEM(kept, 2)
            : part == PART_ACCUMULATOR ? PyTuple_GET_ITEM(kept, 3)
            : part == PART_MASTER ? PyTuple_GET_ITEM(kept, 4)
            : part >= 0 && part < PyTuple_GET_SIZE(slots) ? PyTuple_GET_ITEM(slots, part) : NULL;
    }
    if (array && PyArray_Check(array))
        return (PyArrayObject *)array;
    PyErr_Format(PyExc_ValueError, "parts: weight %zd has no part %d", weight, part);
    return NULL;
}

/* Reads the parts that are given. */
static int read_parts(const Plan *plan, struct tensors *tensors)
{
    for (size_t k = 0; k < tensors->n_parts; k++) {
        struct tensor_part *part = &tensors->parts[k];
        Py_ssize_t weight;
        if (!PyArg_ParseTuple(PyTuple_GET_ITEM(tensors->given, (Py_ssize_t)k), "niO!U", &weight, &part->place.part,
                &PyDict_Type, &part->dict, &part->key))
            return -1;
        const PyArrayObject *array = bound_part(plan, weight, part->place.part);
        if (!array)
            return -1;
        part->place.weight = (size_t)weight;
        part->ndim = PyArray_NDIM(array);
    }
    return 0;
}

/* Makes what steps over tensors need, or NULL with an error. */
static struct tensors *make_tensors(const Plan *plan, PyObject *orders, PyObject *watched, PyObject *parts,
    PyObject *types, PyObject *rows, PyObject *numbers)
{
    static const char *const names[TENSOR_NAMES] = {
        [GRAD] = "grad", [STORAGE] = "untyped_storage", [ADDRESS] = "data_ptr", [BYTES] = "nbytes",
        [IS_NEGATIVE] = "is_neg", [RESOLVE_NEGATIVE] = "resolve_neg", [IS_INFERENCE] = "is_inference",
    };
    struct tensors *tensors = PyMem_Calloc(1, sizeof *tensors);
    int failed = !tensors;
    if (!failed) {
        tensors->n = (size_t)PyTuple_GET_SIZE(orders);
        tensors->n_parts = parts ? (size_t)PyTuple_GET_SIZE(parts) : 0;
        const size_t all = 2 * tensors->n + tensors->n_parts;
        tensors->orders = Py_NewRef(orders);
        tensors->watched = Py_NewRef(watched);
        tensors->given = Py_XNewRef(parts);
        tensors->types = types ? Py_NewRef(types) : PyTuple_New(0);
        tensors->rows = Py_NewRef(rows);
        tensors->kept = Py_XNewRef(numbers);
        tensors->by_rows = PyMem_Calloc(tensors->n + 1, sizeof *tensors->by_rows);
        tensors->rests = PyMem_Calloc(tensors->n + 1, sizeof *tensors->rests);
        tensors->parts = PyMem_Calloc(tensors->n_parts + 1, sizeof *tensors->parts);
        tensors->items = PyMem_Calloc(tensors->n_parts + 1, sizeof *tensors->items);
        tensors->storages = PyMem_Calloc(all, sizeof *tensors->storages);
        tensors->reaches = PyMem_Calloc(all, sizeof *tensors->reaches);
        failed = !tensors->types || !tensors->by_rows || !tensors->rests || !tensors->parts || !tensors->items
            || !tensors->storages || !tensors->reaches;
        for (int k = 0; k < TENSOR_NAMES && !failed; k++)
            failed = !(tensors->names[k] = PyUnicode_InternFromString(names[k]));
    }
    if (failed && !PyErr_Occurred())
        PyErr_NoMemory();
    if (!failed && !read_parts(plan, tensors) && (!numbers || !optimc_read_numbers(plan, numbers, tensors)))
        return tensors;
    optimc_free_tensors(tensors);
    return NULL;
}

/* 1 if an order names every axis once, else 0. */
static int is_order(PyObject *order, int ndim)
{
    uint64_t missing = ndim ? ~(uint64_t)0 >> (64 - ndim) : 0;
    if (!PyTuple_Check(order) || PyTuple_GET_SIZE(order) != ndim)
        return 0;
    for (int k = 0; k < ndim; k++) {
        PyObject *entry = PyTuple_GET_ITEM(order, k);
        int overflow;
        const long axis = PyLong_CheckExact(entry) ? PyLong_AsLongAndOverflow(entry, &overflow) : -1;
        missing &= axis >= 0 && axis < ndim ? ~((uint64_t)1 << axis) : ~(uint64_t)0;
    }
    return !missing;
}

/* Refuses orders and watched items that a step could not read: 0, or -1 with an error. */
static int check_orders(const Plan *plan, PyObject *orders)
{
    for (Py_ssize_t i = 0; i < PyTuple_GET_SIZE(orders); i++) {
        PyObject *order = PyTuple_GET_ITEM(orders, i);
        const int ndim = PyArray_NDIM((PyArrayObject *)PyTuple_GET_ITEM(plan->weights, i));
        if (order != Py_None && !is_order(order, ndim)) {
            PyErr_Format(PyExc_ValueError, "orders[%zd]: expected None or a tuple of all %d axes", i, ndim);
            return -1;
        }
    }
    return 0;
}

static int check_watched(PyObject *watched)
{
    for (Py_ssize_t i = 0; i < PyTuple_GET_SIZE(watched); i++) {
        PyObject *entry = PyTuple_GET_ITEM(watched, i);
        if (PyTuple_Check(entry) && PyTuple_GET_SIZE(entry) == 3
            && (PyDict_Check(PyTuple_GET_ITEM(entry, 0)) || PyWeakref_CheckRef(PyTuple_GET_ITEM(entry, 0))))
            continue;
        PyErr_Format(PyExc_ValueError, "watched[%zd]: expected (dict, key, value)", i);
        return -1;
    }
    return 0;
}

PyDoc_STRVAR(prepare_tensors_doc, "_prepare_tensors($self, orders, watched, parts=(), types=(), rows=None,\n"
"    numbers=(), /)\n--\n\n"
"Prepares steps over tensors; call it after `_bind`.  `orders` has for each weight None, or a tuple of its axes in\n"
"the order of memory.  `watched` is a tuple of (dict, key, value) that the plan depends on.  The item of the dict\n"
"must stay an equal number, a list of the same objects as a tuple, or else the same object; where it lacks, None\n"
"counts.  A weak reference in place of a dict means the attributes of its object; one in place of an object is to\n"
"refer to it.  `parts` is a tuple of (weight, part, dict, key): where a program may put another tensor for a slot\n"
"(its number in the rule), an average, an accumulator or a master (PART_*), or move it; parts that no program can\n"
"reach need not be there.  `types` is a tuple of types of tensors whose methods run no Python code.  `rows` is a\n"
"function of (gradient, tensor, i) that gives the Rows that a sparse gradient of weight i stands for, or None.\n"
"`numbers` is a tuple of (weight, which, dict, key, tensor): where its owner keeps the count of a weight (0) or a\n"
"scalar (from 1 on), as float64, or a count as float32.  A step is as planned if they are as the last one left\n"
"them, and writes its own there.");

static PyObject *prepare_tensors_now(Optimizer *self, PyObject *args)
{
    PyObject *orders, *watched, *parts = NULL, *types = NULL, *rows = Py_None, *numbers = NULL;
    if (!PyArg_ParseTuple(args, "O!O!|O!O!OO!", &PyTuple_Type, &orders, &PyTuple_Type, &watched, &PyTuple_Type,
            &parts, &PyTuple_Type, &types, &rows, &PyTuple_Type, &numbers)
        || (self->plan && self->plan->matching != IDLE && optimc_refuse_nested(self)))
        return NULL;
    const size_t n = self->plan ? optimc_plan_weights(self->plan->core) : 0;
    if (!n || (size_t)PyTuple_GET_SIZE(orders) != n) {
        PyErr_SetString(PyExc_ValueError, "orders: expected an entry per weight");
        return NULL;
    }
    if (check_orders(self->plan, orders) || check_watched(watched))
        return NULL;
    Plan *plan = (Plan *)Py_NewRef((PyObject *)self->plan);         /* a number of a part may run code */
    struct tensors *tensors = make_tensors(plan, orders, watched, parts, types, rows, numbers),
        *old = self->tensors;
    const int kept = tensors && self->plan == plan && plan->matching == IDLE;
    Py_DECREF(plan);
    if (!kept) {
        optimc_free_tensors(tensors);
        if (!PyErr_Occurred())
            optimc_refuse_nested(self);
        return NULL;
    }
    self->tensors = tensors;
    optimc_free_tensors(old);
    Py_RETURN_NONE;
}

BETWEEN_STEPS(prepare_tensors)

/* The object of a weak reference, None if it is gone: a new reference, or NULL with an error. */
static PyObject *referred(PyObject *reference)
{
#if PY_VERSION_HEX >= 0x030d0000
    PyObject *object;
    const int found = PyWeakref_GetRef(reference, &object);
    return found ? object : Py_NewRef(Py_None);
#else
    return Py_NewRef(PyWeakref_GET_OBJECT(reference));
#endif
}

/* 1 if a watched item is unchanged, else 0; -1 on an error.  Only numbers are compared by value, all else by
   identity. */
static int is_same(PyObject *now, PyObject *then)
{
    if (now == then)
        return 1;
    if (PyWeakref_CheckRef(then)) {
        PyObject *object = referred(then);
        Py_XDECREF(object);
        return !object ? -1 : object == now;
    }
    if (PyTuple_Check(then)) {
        if (!PyList_Check(now) || PyList_GET_SIZE(now) != PyTuple_GET_SIZE(then))
            return 0;
        for (Py_ssize_t i = 0; i < PyTuple_GET_SIZE(then); i++)
            if (PyList_GET_ITEM(now, i) != PyTuple_GET_ITEM(then, i))
                return 0;
        return 1;
    }
    return PyNumber_Check(then) ? PyObject_RichCompareBool(now, then, Py_EQ) : 0;
}

/* The dict of a watched item: a new reference, or NULL, with an error unless its object is gone. */
static PyObject *dict_of(PyObject *owner)
{
    if (PyDict_Check(owner))
        return Py_NewRef(owner);
    PyObject *object = referred(owner);
    PyObject *dict = object && object != Py_None ? PyObject_GenericGetDict(object, NULL) : NULL;
    Py_XDECREF(object);
    return dict;
}

/* Returns the object that is watched there now: a new reference, None where it lacks, or NULL with an error. */
static PyObject *now_at(PyObject *owner, PyObject *key)
{
    PyObject *dict = dict_of(owner), *now = dict ? PyDict_GetItemWithError(dict, key) : NULL;
    now = now || PyErr_Occurred() ? Py_XNewRef(now) : Py_NewRef(Py_None);
    Py_XDECREF(dict);
    return now;
}

/* 1 if all watched items are unchanged, else 0; -1 on an error.  __eq__ of a number or a key may replace the item and
   what is watched. */
int optimc_is_as_watched(const Optimizer *self)
{
    PyObject *watched = self->tensors ? Py_NewRef(self->tensors->watched) : NULL;
    int same = 1;
    for (Py_ssize_t i = 0; watched && same > 0 && i < PyTuple_GET_SIZE(watched); i++) {
        PyObject *entry = PyTuple_GET_ITEM(watched, i);
        PyObject *now = now_at(PyTuple_GET_ITEM(entry, 0), PyTuple_GET_ITEM(entry, 1));
        same = now ? is_same(now, PyTuple_GET_ITEM(entry, 2)) : -1;
        Py_XDECREF(now);
    }
    Py_XDECREF(watched);
    return same;
}

PyDoc_STRVAR(is_as_watched_doc, "_is_as_watched($self, /)\n--\n\n"
"True if all items that `_prepare_tensors` was told to watch are unchanged.");

static PyObject *optimizer_is_as_watched(Optimizer *self, PyObject *Py_UNUSED(ignored))
{
    const int same = optimc_is_as_watched(self);
    return same < 0 ? NULL : PyBool_FromLong(same);
}

/* The Rows that gradient k stands for, None if it is not sparse, or NULL with an error. */
static PyObject *rows_of(const Optimizer *self, PyObject *list, size_t k)
{
    const Py_ssize_t i = (Py_ssize_t)self->plan->places[k];
    PyObject *tensor = self->tensors->rows == Py_None ? Py_None : PyList_GetItem(list, i);
    if (!tensor || tensor == Py_None)
        return Py_XNewRef(tensor);
    Py_INCREF(tensor);
    PyObject *rows = PyObject_CallFunction(self->tensors->rows, "OOn", self->plan->gradients[k], tensor, i);
    Py_DECREF(tensor);
    if (!rows || rows == Py_None || optimc_is_rows(self->plan, rows))
        return rows;
    PyErr_Format(PyExc_TypeError, "rows: expected Rows or None, got %s", Py_TYPE(rows)->tp_name);
    Py_DECREF(rows);
    return NULL;
}

int optimc_make_rows(Optimizer *self, PyObject *list, size_t k)
{
    PyObject *type, *value, *trace;
    PyErr_Fetch(&type, &value, &trace);
    PyObject *rows = rows_of(self, list, k);
    self->tensors->by_rows[self->plan->places[k]] = rows && rows != Py_None;
    if (rows == Py_None) {
        Py_DECREF(rows);
        PyErr_Restore(type, value, trace);
        return type ? -1 : 0;
    }
    if (rows)
        Py_SETREF(self->plan->gradients[k], rows);
    Py_XDECREF(type);
    Py_XDECREF(value);
    Py_XDECREF(trace);
    return rows ? 0 : -1;
}

int optimc_check_tensors(Optimizer *self, PyObject *tensors, PyObject *exchange, PyObject *grads,
    int held)
{
    const struct tensor_exchange *table = exchange_of(exchange);
    const int found = table ? optimc_match_tensors(self, tensors, table, grads, held) : -1;
    if (found != CHECKED)
        return found;
    const int good = optimc_survey_step(self, NULL, NULL, self->check_finite);
    return good < 0 ? -1 : good ? CHECKED : NOT_FINITE;
}

/* The tensors that a matched step updates: the list itself, or a new one without those that rest.  NULL with an
   error.  No garbage is collected meanwhile, whose end could move what was looked at. */
static PyObject *stepped_tensors(const Optimizer *self, PyObject *list)
{
    if (self->plan->n_gradients == self->tensors->n)
        return Py_NewRef(list);
    const int collects = PyGC_Disable();
    PyObject *stepped = PyList_New(0);
    for (size_t k = 0; stepped && k < self->plan->n_gradients; k++) {
        PyObject *tensor = PyList_GetItem(list, (Py_ssize_t)self->plan->places[k]);
        if (!tensor || PyList_Append(stepped, tensor))
            Py_CLEAR(stepped);
    }
    if (collects)
        PyGC_Enable();
    return stepped;
}

int optimc_apply_tensors(Optimizer *self, PyObject *tensors, PyObject *exchange, PyObject *grads, PyObject **stepped)
{
    if (optimc_lock(self))
        return -1;
    int found = optimc_check_tensors(self, tensors, exchange, grads, 0);
    if (found == CHECKED && stepped && !(*stepped = stepped_tensors(self, tensors)))
        found = -1;
    if (found == CHECKED)
        optimc_run_step(self);
    optimc_count_skipped(self, found == NOT_FINITE);
    optimc_end_step(self, found == CHECKED);
    optimc_unlock(self);
    return found == NOT_FINITE ? NO_GRADIENTS : found;
}

PyDoc_STRVAR(apply_tensors_doc, "_apply_tensors($self, tensors, exchange, grads=None, /)\n--\n\n"
"Steps over tensors.  Returns CHECKED if the step has run.  Returns NO_GRADIENTS if no tensor has a gradient, or if\n"
"a gradient is not finite and the step was skipped.  Returns NOT_AS_PLANNED, having changed nothing, if a watched\n"
"item has changed, or if only some tensors have a gradient and weights do not count their updates.  `grads`, a list\n"
"of tensors of the same library, replaces the tensors' own gradients.");

static PyObject *optimizer_apply_tensors(Optimizer *self, PyObject *const *args, Py_ssize_t n)
{
    if (n != 2 && n != 3) {
        PyErr_SetString(PyExc_TypeError, "_apply_tensors() takes 2 or 3 arguments");
        return NULL;
    }
    const int found = optimc_apply_tensors(self, args[0], args[1], n == 3 && args[2] != Py_None ? args[2] : NULL,
        NULL);
    return found < 0 ? NULL : PyLong_FromLong(found);
}

PyMethodDef optimc_tensors_methods[] = {
    METHOD("_prepare_tensors", optimizer_prepare_tensors, METH_VARARGS, prepare_tensors_doc),
    METHOD("_is_as_watched", optimizer_is_as_watched, METH_NOARGS, is_as_watched_doc),
    METHOD("_apply_tensors", optimizer_apply_tensors, METH_FASTCALL, apply_tensors_doc),
    {NULL, NULL, 0, NULL},
};
