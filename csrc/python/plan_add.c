/* plan_add.c - the method _core.Plan.add: a weight, and what belongs to it, enters a plan.

   Python has chosen what belongs to it (optimc/base/binding.py).  The plan in C checks that it fits. */
#define NO_IMPORT_ARRAY
#include "python/boundary.h"

#include "python/views.h"

/* The parts of a weight, as `add` is given them. */
struct given {
    PyObject *weight, *name, *slot_names, *slots, *average, *accumulator, *master;
    Py_ssize_t index;
};

/* The name that errors give a part of the weight. */
static PyObject *label_of(const struct given *given, int part)
{
    PyObject *weight = given->name == Py_None ? PyUnicode_FromFormat("weights[%zd]", given->index)
        : PyUnicode_FromFormat("weights[%R]", given->name);
    return optimc_part_name(weight, given->slot_names, part);
}

/* Raises the error of a part that is no array which can be written to. */
static int refuse_part(const struct given *given, PyObject *array, int part)
{
    struct view view;
    if (!optimc_look_writable(array, label_of(given, part), part, &view))
        PyErr_SetString(PyExc_RuntimeError, "an array was changed by the code of its name");
    return -1;
}

/* Looks at a part; `kept` becomes NULL for None.  A name may have code of its own, which may reshape arrays that were
   looked at already, so only an error makes a label. */
static int look_at(const struct given *given, PyObject *array, int part, struct view *view, const struct view **kept)
{
    *kept = array == Py_None ? NULL : view;
    if (array == Py_None)
        return 0;
    if (PyArray_Check(array)) {
        optimc_look((PyArrayObject *)array, view);
        if (!optimc_plan_check(view, part))
            return 0;
    }
    return refuse_part(given, array, part);
}

/* Adds the weight to the plan in C, or raises. */
static int add_to_core(Plan *self, const struct given *given, struct binding *binding)
{
    struct view view, slots[MAX_SLOTS] = {{0}}, average, accumulator, master;
    const struct view *used;
    const int n_slots = (int)PyTuple_GET_SIZE(given->slots);
    if (given->weight == Py_None)
        return refuse_part(given, given->weight, PART_WEIGHT);
    if (look_at(given, given->weight, PART_WEIGHT, &view, &used))
        return -1;
    for (int k = 0; k < n_slots; k++)
        if (look_at(given, PyTuple_GET_ITEM(given->slots, k), k, &slots[k], &used))
            return -1;
    if (look_at(given, given->average, PART_AVERAGE, &average, &binding->average)
        || look_at(given, given->accumulator, PART_ACCUMULATOR, &accumulator, &binding->accumulator)
        || look_at(given, given->master, PART_MASTER, &master, &binding->master))
        return -1;
    if (view.type == TYPE_F16 && !binding->master && !binding->to_nearest && self->state != Py_None)
        return optimc_refuse_kind("%U: expected an array, got %S", label_of(given, PART_MASTER), Py_None);
    binding->slots = slots;
    int where;
    const enum fault fault = optimc_plan_add(self->core, &view, binding, &where);
    if (!fault)
        return 0;
    PyObject *wrong = where == PART_AVERAGE ? given->average : where == PART_ACCUMULATOR ? given->accumulator
        : where == PART_MASTER ? given->master : where < 0 ? given->weight
        : where < n_slots ? PyTuple_GET_ITEM(given->slots, where) : Py_None;
    if (wrong == Py_None)
        return optimc_refuse_kind("%U: expected an array, got %S", label_of(given, where), wrong);
    return optimc_refuse_weight(fault, label_of(given, where), (PyArrayObject *)wrong,
        (PyArrayObject *)given->weight);
}

const char optimc_plan_add_doc[] = PyDoc_STR("add($self, weight, *, kernel, slot_names, slots, name=None,\n"
"    average=None, accumulator=None, master=None, decay=-1, factor=1.0, group=0, waiting=0, number=-1,\n"
"    begin=0, to_nearest=False)\n--\n\n"
"Adds the next weight.\n\n"
"Args:\n"
"    kernel: its number.\n"
"    slot_names, slots: tuples in the order of the rule; None for a slot that the kernel does not keep.\n"
"    name: a str, for all weights or for none.\n"
"    average, accumulator: arrays, or None.\n"
"    master: of a bfloat16 or float16 weight, an array of int16 or float32.  Without one, bfloat16 is rounded at\n"
"        random.  float16 needs one, unless the plan has no state and only reads gradients.\n"
"    decay: the number of the value that is its weight decay; -1: none is.\n"
"    factor: what coefficients depend on beside the values.\n"
"    group: the number of its group.\n"
"    waiting: what its accumulator holds: 0 nothing, 1 gradients, 2 rows of some.\n"
"    number, begin: the weight that it is, or a part of, and its first element there; they choose random numbers.\n"
"        -1: its position in the plan.\n"
"    to_nearest: round 16 bits to nearest, of slots too.  The weight has no master.\n\n"
"After an error the plan cannot be sealed.");

PyObject *optimc_plan_add_weight(Plan *self, PyObject *args, PyObject *kwargs)
{
    static char *names[] = {"weight", "kernel", "slot_names", "slots", "name", "average", "accumulator", "master",
        "decay", "factor", "group", "waiting", "number", "begin", "to_nearest", NULL};
    struct given given = {.name = Py_None, .average = Py_None, .accumulator = Py_None, .master = Py_None};
    int kernel = -1, decay = -1, waiting = WAITS_FOR_NONE, to_nearest = 0;
    Py_ssize_t group = 0, number = -1, begin = 0;
    double factor = 1;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "O|$iO!O!OOOOidninnp", names, &given.weight, &kernel,
            &PyTuple_Type, &given.slot_names, &PyTuple_Type, &given.slots, &given.name, &given.average,
            &given.accumulator, &given.master, &decay, &factor, &group, &waiting, &number, &begin, &to_nearest))
        return NULL;
    given.index = PyList_GET_SIZE(self->parts);         /* only now: a factor may have code of its own */
    const Py_ssize_t n = self->n;
    if (self->sealed || given.index >= n) {
        PyErr_SetString(PyExc_RuntimeError, self->sealed || n >= 0 ? "the plan has all its weights"
            : "the plan takes no weight while one is added, nor after an error");
        return NULL;
    }
    if (!given.slot_names || !given.slots) {
        PyErr_SetString(PyExc_TypeError, "slot_names and slots are required");
        return NULL;
    }
    const Py_ssize_t n_slots = PyTuple_GET_SIZE(given.slots);
    if (kernel < 0 || kernel >= KERNELS || waiting < WAITS_FOR_NONE || waiting > WAITS_BY_ROWS
        || group < 0 || decay < -1 || n_slots > MAX_SLOTS
        || begin < 0 || begin % CODE_BLOCK || n_slots != PyTuple_GET_SIZE(given.slot_names)) {
        PyErr_Format(PyExc_IndexError, "bad kernel, group, decay, slots or begin of weight %zd", given.index);
        return NULL;
    }
    if (given.index && (given.name == Py_None) != !PyList_GET_SIZE(self->names)) {
        PyErr_SetString(PyExc_TypeError, "name: expected one for all weights or for none");
        return NULL;
    }
    PyObject *kept = PyTuple_Pack(5, given.slot_names, given.slots, given.average, given.accumulator, given.master);
    struct binding binding = {.kernel = (enum kernel)kernel, .group = (size_t)group, .decay = decay, .factor = factor,
        .waiting = (enum waiting)waiting, .number = (uint64_t)(number < 0 ? given.index : number),
        .begin = (uint64_t)begin, .to_nearest = to_nearest};
    self->n = -1;                           /* no room, also for code that a name runs, until all of it is added */
    const int failed = !kept || add_to_core(self, &given, &binding)
        || (given.name != Py_None && PyList_Append(self->names, given.name))
        || PyList_Append(self->weights, given.weight) || PyList_Append(self->parts, kept);
    Py_XDECREF(kept);
    if (failed)
        return NULL;
    self->n = n;
    self->accumulates = given.accumulator != Py_None && (self->accumulates || !given.index);
    self->n_groups = group >= self->n_groups ? group + 1 : self->n_groups;
    self->n_values = decay >= self->n_values ? decay + 1 : self->n_values;
    Py_RETURN_NONE;
}
