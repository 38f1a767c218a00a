/* plan_type.c - the type _core.Plan: weights, what belongs to each, and the plan that steps them.

   Python makes a plan (optimc/base/binding.py): it adds one weight at a time, then seals the plan.  The weights of a
   sealed plan never change.  It keeps the arrays alive that the plan in C points into, and a `state` of Python's that
   it never looks into.  One optimizer at a time holds it: see bind.c.

   A plan that no optimizer holds can match gradients and read them, for weights that are stepped elsewhere
   (optimc/mpi/).  It has no lock: see to it that one thread at a time uses it.  Next: plan_add.c, which
   adds a weight, and match.c. */
#define NO_IMPORT_ARRAY
#include "python/boundary.h"

#include <math.h>

#include "plan/pool.h"
#include "python/rows_type.h"
#include "python/views.h"

PyDoc_STRVAR(plan_doc, "Plan(n, state=None)\n--\n\n"
"Weights and what belongs to them, to be stepped: `add` each of the `n` weights, then `seal` the plan.\n"
"`state` is kept with it.");

static PyObject *plan_new(PyTypeObject *type, PyObject *args, PyObject *kwargs)
{
    static char *names[] = {"n", "state", NULL};
    Py_ssize_t n;
    PyObject *state = Py_None;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "n|O", names, &n, &state))
        return NULL;
    if (n < 0) {
        PyErr_Format(PyExc_ValueError, "n: expected a number of weights, got %zd", n);
        return NULL;
    }
    Plan *self = (Plan *)type->tp_alloc(type, 0);
    if (!self)
        return NULL;
    self->state = Py_NewRef(state);
    self->core = optimc_plan_new((size_t)n, (struct memory){PyMem_RawCalloc, PyMem_RawFree});
    self->gradients = PyMem_Calloc((size_t)n + 1, sizeof *self->gradients);
    self->places = PyMem_Calloc((size_t)n + 1, sizeof *self->places);
    self->weights = PyList_New(0);
    self->names = PyList_New(0);
    self->parts = PyList_New(0);
    self->n = n;
    if (self->core && self->gradients && self->places && self->weights && self->names && self->parts)
        return (PyObject *)self;
    Py_DECREF(self);
    return PyErr_Occurred() ? NULL : PyErr_NoMemory();
}

static int plan_traverse(Plan *self, visitproc visit, void *arg)
{
    Py_VISIT(Py_TYPE(self));
    Py_VISIT(self->weights);
    Py_VISIT(self->names);
    Py_VISIT(self->parts);
    Py_VISIT(self->state);
    Py_VISIT(self->tree);
    return 0;
}

static int plan_clear(Plan *self)
{
    Py_CLEAR(self->state);                  /* the only part that could lead back here */
    return 0;
}

static void plan_dealloc(Plan *self)
{
    PyTypeObject *type = Py_TYPE(self);
    PyObject_GC_UnTrack(self);
    if (self->gradients)
        optimc_end_match(self);
    PyMem_Free(self->gradients);
    PyMem_Free(self->places);
    PyMem_Free(self->group);
    optimc_plan_free(self->core);
    Py_CLEAR(self->weights);
    Py_CLEAR(self->names);
    Py_CLEAR(self->parts);
    Py_CLEAR(self->tree);
    Py_CLEAR(self->state);
    type->tp_free(self);
    Py_DECREF(type);
}

static PyObject *slot_names_of(const Plan *self, size_t weight)
{
    return PyTuple_GET_ITEM(PyList_GET_ITEM(self->parts, (Py_ssize_t)weight), 0);
}

/* Makes a tuple of a list in its place. */
static int freeze(PyObject **list)
{
    PyObject *tuple = PyList_AsTuple(*list);
    if (!tuple)
        return -1;
    Py_SETREF(*list, tuple);
    return 0;
}

PyDoc_STRVAR(seal_doc, "seal($self, /)\n--\n\n"
"Ends the making: checks that nothing overlaps, and cuts the work into pieces.");

static PyObject *plan_seal(Plan *self, PyObject *Py_UNUSED(ignored))
{
    if (self->sealed || PyList_GET_SIZE(self->parts) != self->n) {
        PyErr_SetString(PyExc_RuntimeError, self->sealed ? "the plan is sealed" : "the plan lacks weights");
        return NULL;
    }
    const struct state *module = PyType_GetModuleState(Py_TYPE(self));
    self->n = -1;                           /* whatever comes, this is the only try */
    if (freeze(&self->weights) || freeze(&self->names))
        return NULL;
    if (!PyTuple_GET_SIZE(self->names))
        Py_CLEAR(self->names);
    struct place overlap[2];
    const enum fault fault = optimc_plan_seal(self->core, module->isa, overlap);
    if (fault == FAULT_OVERLAP) {
        PyObject *a = optimc_place_name(self->names, slot_names_of(self, overlap[0].weight), overlap[0]);
        PyObject *b = a ? optimc_place_name(self->names, slot_names_of(self, overlap[1].weight), overlap[1]) : NULL;
        if (a && b)
            PyErr_Format(PyExc_ValueError, "%U and %U overlap in memory", a, b);
        Py_XDECREF(a);
        Py_XDECREF(b);
        return NULL;
    }
    if (fault)
        return PyErr_NoMemory();
    self->sealed = 1;
    Py_RETURN_NONE;
}

/* ------------------------------------------------------------------ steps - */

/* Notes who uses a plan that no optimizer holds.  In a child process that lacks the thread, its use is over. */
static void note_user(Plan *self)
{
    self->user = optimc_this_thread();
    self->forks = optimc_pool_forks();
}

/* Refuses a method that may not be called now: 0, or -1 with an error.  alone: no optimizer may hold the plan.
   matched: gradients must have been matched. */
static int refuse_call(Plan *self, int alone, int matched)
{
    if (self->matching == BUSY && !self->owner && self->forks != optimc_pool_forks()
        && !optimc_is_alive(self->user))
        optimc_end_match(self);
    const char *reason = !self->sealed ? "the plan is not sealed"
        : alone && self->owner ? "the plan belongs to an optimizer"
        : self->matching == BUSY ? "the plan is in use"
        : matched && self->matching == IDLE ? "the plan has no gradients" : NULL;
    if (reason)
        PyErr_SetString(PyExc_RuntimeError, reason);
    return reason ? -1 : 0;
}

/* Makes the values of steps without an optimizer: every option is off. */
static int make_group(Plan *self)
{
    if (self->n_groups > 1) {
        PyErr_SetString(PyExc_ValueError, "the plan has groups, whose values are an optimizer's");
        return -1;
    }
    if (self->group)
        return 0;
    self->group = PyMem_Calloc(1, sizeof *self->group);
    if (!self->group) {
        PyErr_NoMemory();
        return -1;
    }
    optimc_group_clear(self->group);
    for (int k = 0; k < MAX_VALUES; k++)
        self->group->values[k] = NAN;
    return 0;
}

PyDoc_STRVAR(match_doc, "match($self, grads, weights=None, quiet=False, /)\n--\n\n"
"Matches gradients to the weights of a plan that no optimizer holds, and checks all but their values.  Gives for\n"
"each weight whether it has one.  The plan keeps them until `end`.  quiet: do not warn of missing gradients.");

static PyObject *plan_match(Plan *self, PyObject *args)
{
    PyObject *grads, *weights = Py_None;
    int quiet = 0;
    if (!PyArg_ParseTuple(args, "O|Op:match", &grads, &weights, &quiet) || refuse_call(self, 1, 0)
        || make_group(self))
        return NULL;
    note_user(self);
    optimc_end_match(self);
    if (optimc_match(self, grads, weights, quiet)) {
        optimc_end_match(self);
        return NULL;
    }
    self->request = (struct request){.groups = self->group, .t = 1, .update = 1, .accumulate = 1, .check = 1};
    self->matching = MATCHED;
    return optimc_taken(self);
}

PyDoc_STRVAR(rows_doc, "rows($self, /)\n--\n\n"
"The gradients that were matched: for each weight its `Rows`, or None if it has an array or none.");

static PyObject *plan_rows(Plan *self, PyObject *Py_UNUSED(ignored))
{
    const Py_ssize_t n = (Py_ssize_t)optimc_plan_weights(self->core);
    PyObject *rows = refuse_call(self, 1, 1) ? NULL : PyTuple_New(n);
    for (Py_ssize_t i = 0; rows && i < n; i++)
        PyTuple_SET_ITEM(rows, i, Py_NewRef(Py_None));
    for (size_t k = 0; rows && k < self->n_gradients; k++)
        if (optimc_is_rows(self, self->gradients[k])) {
            PyTuple_SET_ITEM(rows, (Py_ssize_t)self->places[k], Py_NewRef(self->gradients[k]));
            Py_DECREF(Py_None);
        }
    return rows;
}

PyDoc_STRVAR(survey_doc, "survey($self, /)\n--\n\n"
"Looks at the gradients that were matched.\n\n"
"Raises:\n"
"    FloatingPointError: one is not finite; the first of them is named.");

static PyObject *plan_survey(Plan *self, PyObject *Py_UNUSED(ignored))
{
    if (refuse_call(self, 1, 1))
        return NULL;
    note_user(self);
    if (optimc_survey(self, NULL, NULL, RAISE) < 0)
        return NULL;
    Py_RETURN_NONE;
}

PyDoc_STRVAR(pull_doc, "pull($self, index, to, begin=-1, /)\n--\n\n"
"Of the step in progress: writes the gradient of a weight, as its kernel will see it, into an array like the\n"
"weight, float32 for a weight of 16 bits; or, from element `begin` in the order of the weight's memory, into a\n"
"vector.  False if the weight has none in this step.");

static PyObject *plan_pull(Plan *self, PyObject *args)
{
    Py_ssize_t index, begin = -1;
    PyObject *to;
    struct view view;
    if (!PyArg_ParseTuple(args, "nO|n:pull", &index, &to, &begin) || refuse_call(self, 0, 1))
        return NULL;
    if (index < 0 || (size_t)index >= optimc_plan_weights(self->core)) {
        PyErr_Format(PyExc_IndexError, "no weight %zd", index);
        return NULL;
    }
    if (optimc_look_writable(to, PyUnicode_FromString("to"), PART_WEIGHT, &view))
        return NULL;
    const size_t size = optimc_view_size(&view), start = begin < 0 ? 0 : (size_t)begin;
    const size_t full = optimc_plan_size(self->core, (size_t)index);
    if (!optimc_plan_holds_gradient(self->core, (size_t)index, &view, begin >= 0) || start > full
        || size > full - start) {
        PyErr_SetString(PyExc_ValueError, "to: expected an array like the weight, of its real type");
        return NULL;
    }
    if (!optimc_plan_takes(self->core, &self->request, (size_t)index))
        Py_RETURN_FALSE;
    optimc_plan_gradient(self->core, &self->request, (size_t)index, start, start + size, view.data);
    Py_RETURN_TRUE;
}

PyDoc_STRVAR(takes_rows_doc, "takes_rows($self, index, /)\n--\n\n"
"True if the gradient of a weight can be rows.");

static PyObject *plan_takes_rows(Plan *self, PyObject *number)
{
    const Py_ssize_t index = PyNumber_AsSsize_t(number, PyExc_IndexError);
    if (index == -1 && PyErr_Occurred())
        return NULL;
    if (index >= 0 && (size_t)index < optimc_plan_weights(self->core))
        return PyBool_FromLong(optimc_plan_takes_rows(self->core, (size_t)index));
    PyErr_Format(PyExc_IndexError, "no weight %zd", index);
    return NULL;
}

PyDoc_STRVAR(end_doc, "end($self, /)\n--\n\n"
"Drops the gradients that were matched.");

static PyObject *plan_end(Plan *self, PyObject *Py_UNUSED(ignored))
{
    if (refuse_call(self, 1, 0))
        return NULL;
    optimc_end_match(self);
    Py_RETURN_NONE;
}

static PyObject *get_sealed(Plan *self, PyObject *object)
{
    if (self->sealed)
        return Py_NewRef(object ? object : Py_None);
    PyErr_SetString(PyExc_AttributeError, "the plan is not sealed");
    return NULL;
}

static PyObject *get_weights(Plan *self, void *Py_UNUSED(closure))
{
    return get_sealed(self, self->weights);
}

static PyObject *get_names(Plan *self, void *Py_UNUSED(closure))
{
    return get_sealed(self, self->names);
}

static PyObject *get_state(Plan *self, void *Py_UNUSED(closure))
{
    return Py_NewRef(self->state ? self->state : Py_None);
}

static PyMethodDef plan_methods[] = {
    METHOD("add", optimc_plan_add_weight, METH_VARARGS | METH_KEYWORDS, optimc_plan_add_doc),
    METHOD("seal", plan_seal, METH_NOARGS, seal_doc),
    METHOD("match", plan_match, METH_VARARGS, match_doc),
    METHOD("rows", plan_rows, METH_NOARGS, rows_doc),
    METHOD("survey", plan_survey, METH_NOARGS, survey_doc),
    METHOD("pull", plan_pull, METH_VARARGS, pull_doc),
    METHOD("takes_rows", plan_takes_rows, METH_O, takes_rows_doc),
    METHOD("end", plan_end, METH_NOARGS, end_doc),
    {NULL, NULL, 0, NULL},
};

static PyGetSetDef plan_getset[] = {
    {"weights", (getter)get_weights, NULL, "The weights, in order: a tuple.", NULL},
    {"names", (getter)get_names, NULL, "Their names: a tuple, or None.", NULL},
    {"state", (getter)get_state, NULL, "What was given to be kept with the plan.", NULL},
    {NULL, NULL, NULL, NULL, NULL},
};

static PyType_Slot plan_slots[] = {
    {Py_tp_doc, (void *)plan_doc},
    {Py_tp_new, plan_new},
    {Py_tp_dealloc, plan_dealloc},
    {Py_tp_traverse, plan_traverse},
    {Py_tp_clear, plan_clear},
    {Py_tp_methods, plan_methods},
    {Py_tp_getset, plan_getset},
    {0, NULL},
};

static PyType_Spec plan_spec = {
    .name = "optimc._core.Plan",
    .basicsize = sizeof(Plan),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_IMMUTABLETYPE,
    .slots = plan_slots,
};

PyTypeObject *optimc_plan_type(PyObject *module)
{
    return (PyTypeObject *)PyType_FromModuleAndSpec(module, &plan_spec, NULL);
}
