/* module.c - the Python boundary: parse, check, call, translate errors.  The only file that includes
   Python and NumPy headers; it does no arithmetic.

   _core.Optimizer is the base of every optimizer class.  It owns what a step touches: the values of the
   hyperparameters and where they come from (numbers, schedules, callables), the step count, the plan and
   the arrays the plan points into.  Everything else - options, names, copies, files - is Python's, in
   optimc/optimizer.py.

   One step, `apply`, under the optimizer's lock: read the rates (calling schedules), match gradients to
   weights, check everything, then run.  Until run, nothing of the caller's has changed. */

#define PY_SSIZE_T_CLEAN
#define NPY_NO_DEPRECATED_API NPY_2_0_API_VERSION
#define NPY_TARGET_VERSION NPY_1_23_API_VERSION
#include <Python.h>
#include <structmember.h>
#include <numpy/arrayobject.h>
#include <numpy/arrayscalars.h>

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/isa.h"
#include "plan/plan.h"
#include "plan/pool.h"
#include "python/dlpack.h"
#include "python/xla_door.h"

_Static_assert(sizeof(npy_intp) == sizeof(ptrdiff_t), "shapes and strides are passed as they are");

/* Steps longer than this give up the GIL.  Taking it back can cost another thread's time slice (5 ms),
   so it is not worth it for less. */
static const double GIL_WORTH = 50e3;   /* ns */

struct state {
    const struct isa *isa;              /* chosen at import; tests change it between optimizers */
    PyTypeObject *type;                 /* Optimizer */
};

static struct PyModuleDef core_module;

static struct state *state_of(PyObject *module)
{
    return PyModule_GetState(module);
}

/* Where a value comes from: a number (source NULL), a schedule (called with the step), a callable, or an
   item of a dict (`key` not NULL), or number `item` of a tuple there; then 0 may mean that it is off.  A
   group's value that is not its own is the first group's. */
struct setting {
    PyObject *source, *key;
    int with_step, own, item, zero_is_off;
};

/* What a value may be.  The ends are allowed if closed. */
enum { LOW_OPEN = 1, HIGH_OPEN = 2 };
struct bound {
    PyObject *name;
    double low, high;
    int open, optional;
};

enum { PROPAGATE, RAISE, SKIP };        /* what is done about gradients that are not finite */

/* A thread that waits for its turn, on its own stack. */
struct waiter {
    uint64_t thread;
    PyThread_type_lock turn;            /* released when it is the owner */
    struct waiter *next;
};

typedef struct optimizer {
    PyObject_HEAD
    uint64_t owner;                     /* the thread whose step is in progress, 0 for none */
    struct waiter *waiters;             /* those that wait for its end, the longest first */
    uint64_t forks;                     /* when it was last stepped here: in a child it may have no owner */
    int matching;                       /* the plan is in use by the step in progress */
    struct plan *plan;                  /* NULL until built */
    PyObject *arrays;                   /* everything the plan points into */
    PyObject *weights;                  /* the bound weights, in order: a tuple */
    PyObject *names;                    /* their names, a tuple of str, or NULL */
    PyObject **gradients;               /* of the step in progress: strong references */
    size_t n_gradients;
    struct request request;             /* the step in progress */
    PyObject *undo;                     /* if it built the optimizer: what undoes that */
    int begun;                          /* some of it has been written: see _advance */
    struct optimizer *together;         /* what steps together with it, after it; see run_steps */
    int n_values;                       /* options and the rule's hyperparameters */
    struct bound bounds[MAX_VALUES];
    size_t n_groups;
    struct group *groups;               /* the first is of all weights that are in no other */
    struct setting (*settings)[MAX_VALUES];
    int n_sources;                      /* settings that must be asked at every update */
    int64_t calls;                      /* steps so far, those that only accumulated included */
    int64_t skipped;                    /* steps skipped because a gradient was not finite */
    int steps;                          /* gradients to an update, 1 without accumulation */
    int overwrite;                      /* updates between two at which averages become weights, or 0 */
    int use_ema;
    int cautious, coupled, maximize;    /* as in struct request */
    int check_finite;
    int evaluating;                     /* the weights hold something else for a while: no steps */
    PyObject *watched;                  /* of tensors: (dict, key, value) that must not change, or NULL; see is_same */
    PyObject *orders;                   /* of tensors: how to order the axes of each, None for as they are */
    PyObject *grad_name;                /* of tensors: "grad" */
    ptrdiff_t *room;                    /* of tensors: shapes and strides, in the order of memory */
    double norm;                        /* the last global norm computed ... */
    int normed;                         /* ... if one was */
} Optimizer;

/* --------------------------------------------------------------------------------------- views - */

static int type_of(PyArrayObject *array)
{
    const int num = PyArray_TYPE(array);
    if (num == NPY_FLOAT)
        return TYPE_F32;
    if (num == NPY_DOUBLE)
        return TYPE_F64;
    if (num == NPY_HALF)
        return TYPE_F16;
    if (num == NPY_LONGDOUBLE)
        return TYPE_LONG_DOUBLE;
    if (num >= NPY_USERDEF && PyArray_ITEMSIZE(array) == 2) {
        const char *name = PyArray_DESCR(array)->typeobj->tp_name, *dot = strrchr(name, '.');
        if (!strcmp(dot ? dot + 1 : name, "bfloat16"))
            return TYPE_BF16;
    }
    return TYPE_OTHER;
}

static inline void look(PyArrayObject *array, struct view *view)
{
    const int flags = PyArray_FLAGS(array);
    view->data = PyArray_BYTES(array);
    view->shape = PyArray_DIMS(array);
    view->strides = PyArray_STRIDES(array);
    view->itemsize = (size_t)PyArray_ITEMSIZE(array);
    view->ndim = PyArray_NDIM(array);
    view->type = type_of(array);
    view->swapped = !PyArray_ISNOTSWAPPED(array);
    view->c_order = (flags & NPY_ARRAY_C_CONTIGUOUS) != 0;
    view->f_order = (flags & NPY_ARRAY_F_CONTIGUOUS) != 0;
    view->aligned = (flags & NPY_ARRAY_ALIGNED) != 0;
    view->writeable = (flags & NPY_ARRAY_WRITEABLE) != 0;
}

/* -------------------------------------------------------------------------------------- errors - */

/* "params[1]" or "params['bias']"; `keys` may be NULL. */
static PyObject *label(const char *argument, PyObject *keys, Py_ssize_t i)
{
    if (keys && i < PyTuple_GET_SIZE(keys))
        return PyUnicode_FromFormat("%s[%R]", argument, PyTuple_GET_ITEM(keys, i));
    return PyUnicode_FromFormat("%s[%zd]", argument, i);
}

static PyObject *shape_of(PyArrayObject *array)
{
    return PyObject_GetAttrString((PyObject *)array, "shape");
}

/* Raises `type` with a message of the label of an entry (%U; released here) and two more objects (%S);
   an error on the way to them stays. */
static int refuse(PyObject *type, const char *format, PyObject *entry, PyObject *a, PyObject *b)
{
    if (!PyErr_Occurred())
        PyErr_Format(type, format, entry, a, b);
    Py_XDECREF(entry);
    return -1;
}

/* The TypeError for an entry of another kind; %S is the name of its type. */
static int refuse_kind(const char *format, PyObject *entry, PyObject *object)
{
    PyObject *name = PyType_GetName(Py_TYPE(object));
    refuse(PyExc_TypeError, format, entry, name, NULL);
    Py_XDECREF(name);
    return -1;
}

/* The error for an array that cannot be a weight (or a slot); `like` is what it should resemble. */
static int refuse_weight(enum fault fault, PyObject *entry, PyArrayObject *array, PyArrayObject *like)
{
    PyObject *dtype = (PyObject *)PyArray_DESCR(array);
    switch (fault) {
    case FAULT_TYPE:
        if (like)
            return refuse(PyExc_TypeError, "%U: expected dtype %S, as built, got %S", entry,
                (PyObject *)PyArray_DESCR(like), dtype);
        if (!PyArray_ISNOTSWAPPED(array))
            return refuse(PyExc_TypeError,
                "%U: expected float32 or float64 in native byte order, got %S", entry, dtype, NULL);
        return refuse(PyExc_TypeError, "%U: expected a float32 or float64 array, got %S", entry,
            dtype, NULL);
    case FAULT_READ_ONLY:
        return refuse(PyExc_ValueError, "%U: output array is read-only", entry, NULL, NULL);
    case FAULT_ALIGNMENT:
        return refuse(PyExc_ValueError, "%U: array is not aligned for %S", entry, dtype, NULL);
    case FAULT_SHAPE: {
        PyObject *got = shape_of(array), *expected = like ? shape_of(like) : NULL;
        refuse(PyExc_ValueError, "%U: expected shape %S, as built, got %S", entry, expected, got);
        Py_XDECREF(got);
        Py_XDECREF(expected);
        return -1;
    }
    case FAULT_STRIDES: {
        PyObject *got = PyObject_GetAttrString((PyObject *)array, "strides");
        refuse(PyExc_ValueError, like
            ? "%U: expected the memory order it was built with, got strides %S"
            : "%U: expected an array contiguous in C or Fortran order, got strides %S", entry, got,
            NULL);
        Py_XDECREF(got);
        return -1;
    }
    default:
        Py_XDECREF(entry);
        PyErr_NoMemory();
        return -1;
    }
}

/* "params[0]", "slot 'm' of params[0]": what a place in the plan is called. */
static PyObject *place_name(PyObject *names, PyObject *slot_names, struct place place)
{
    PyObject *weight = label("params", names, (Py_ssize_t)place.weight);
    if (!weight || place.part == PART_WEIGHT)
        return weight;
    PyObject *name = NULL;
    if (place.part == PART_AVERAGE || place.part == PART_ACCUMULATOR)
        name = PyUnicode_FromFormat(place.part == PART_AVERAGE ? "the average of %U"
            : "the gradient accumulator of %U", weight);
    else if (slot_names && place.part < PyTuple_GET_SIZE(slot_names))
        name = PyUnicode_FromFormat("slot %R of %U", PyTuple_GET_ITEM(slot_names, place.part), weight);
    else
        name = PyUnicode_FromFormat("a slot of %U", weight);
    Py_DECREF(weight);
    return name;
}

/* ---------------------------------------------------------------------------------------- lock - */

static void drop_gradients(Optimizer *self)
{
    while (self->n_gradients)
        Py_DECREF(self->gradients[--self->n_gradients]);
    self->matching = 0;
}

/* Thread states have numbers of their own, which no later thread gets again, not even in a child process. */
static uint64_t this_thread(void)
{
    return PyThreadState_GetID(PyThreadState_Get());
}

static int is_alive(uint64_t thread)
{
    PyThreadState *state = PyInterpreterState_ThreadHead(PyInterpreterState_Get());
    while (state && PyThreadState_GetID(state) != thread)
        state = PyThreadState_Next(state);
    return state != NULL;
}

/* The first time in a child process: nobody waits, and an owner may have stayed in the parent.  Its step was whole
   or had written nothing (optimc_pool_enter); what it left is dropped. */
static void take_over(Optimizer *self)
{
    self->forks = optimc_pool_forks();
    self->waiters = NULL;
    if (self->owner && !is_alive(self->owner)) {
        self->owner = 0;
        drop_gradients(self);
        Py_CLEAR(self->undo);
    }
}

static int refuse_nested(Optimizer *self)
{
    PyErr_Format(PyExc_RuntimeError, "%s: a step was asked for while one is in progress in this thread "
        "(a schedule or callback may not step or rebuild its own optimizer)", Py_TYPE(self)->tp_name);
    return -1;
}

/* Waits without the GIL until it is this thread's turn. */
static int await_turn(Optimizer *self, uint64_t me)
{
    struct waiter mine = {me, PyThread_allocate_lock(), NULL}, **last = &self->waiters;
    if (!mine.turn) {
        PyErr_NoMemory();
        return -1;
    }
    PyThread_acquire_lock(mine.turn, NOWAIT_LOCK);
    while (*last)
        last = &(*last)->next;
    *last = &mine;
    Py_BEGIN_ALLOW_THREADS
    PyThread_acquire_lock(mine.turn, WAIT_LOCK);
    Py_END_ALLOW_THREADS
    PyThread_free_lock(mine.turn);
    return 0;
}

/* One step at a time.  The GIL guards who owns it, so that this costs nothing while one thread steps.  A step asked
   for from inside a step (by a schedule, say) is an error; one from another thread waits for its turn, in order: a
   thread that steps again and again would otherwise be first each time. */
static int lock(Optimizer *self)
{
    const uint64_t me = this_thread();
    if (self->owner == me)
        return refuse_nested(self);
    if (self->forks != optimc_pool_forks())
        take_over(self);
    if (self->owner)
        return await_turn(self, me);
    self->owner = me;
    return 0;
}

static void unlock(Optimizer *self)
{
    if (self->forks != optimc_pool_forks())
        take_over(self);
    struct waiter *next = self->waiters;
    self->owner = next ? next->thread : 0;
    if (next) {
        self->waiters = next->next;
        PyThread_release_lock(next->turn);
    }
}

/* Calls a method that changes what a step reads, while no step of another thread is in progress.  In this
   thread one may be: it is being checked then, and not yet running. */
static PyObject *between_steps(Optimizer *self, PyObject *args,
    PyObject *(*method)(Optimizer *, PyObject *))
{
    const int mine = self->owner == this_thread();
    if (!mine && lock(self))
        return NULL;
    PyObject *result = method(self, args);
    if (!mine)
        unlock(self);
    return result;
}

/* The method optimizer_name: name_now, between steps. */
#define BETWEEN_STEPS(name) \
    static PyObject *optimizer_##name(Optimizer *self, PyObject *args) \
    { \
        return between_steps(self, args, name##_now); \
    }

/* --------------------------------------------------------------------------------------- values - */

/* A real number: float, int or NumPy scalar, or a 0-d array if `array_too`; never a bool. */
static int read_number(PyObject *object, int array_too, double *number)
{
    int real = PyFloat_Check(object) || PyArray_IsScalar(object, Floating)
        || PyArray_IsScalar(object, Integer) || (PyLong_Check(object) && !PyBool_Check(object));
    if (array_too && PyArray_Check(object) && PyArray_NDIM((PyArrayObject *)object) == 0)
        real = PyArray_ISFLOAT((PyArrayObject *)object) || PyArray_ISINTEGER((PyArrayObject *)object);
    if (!real)
        return 0;
    *number = PyFloat_AsDouble(object);
    if (*number == -1 && PyErr_Occurred()) {
        if (!PyErr_ExceptionMatches(PyExc_OverflowError))
            return -1;
        PyErr_Clear();                      /* an int beyond any float: the range check refuses it */
        *number = Py_HUGE_VAL;
    }
    return 1;
}

/* Checks a number against its bound; `origin` says where it came from ("" or " from its schedule"). */
static int check_bound(const struct bound *bound, double number, PyObject *object, const char *origin)
{
    const int low = bound->open & LOW_OPEN ? number > bound->low : number >= bound->low;
    const int high = bound->open & HIGH_OPEN ? number < bound->high : number <= bound->high;
    if (low && high && isfinite(number))
        return 0;
    char range[64] = "finite";
    if (isfinite(bound->high))
        PyOS_snprintf(range, sizeof range, "in %c%g, %g%c", bound->open & LOW_OPEN ? '(' : '[',
            bound->low, bound->high, bound->open & HIGH_OPEN ? ')' : ']');
    else if (isfinite(bound->low))
        PyOS_snprintf(range, sizeof range, "finite and %s %g", bound->open & LOW_OPEN ? ">" : ">=",
            bound->low);
    PyErr_Format(PyExc_ValueError, "%U must be %s, got %S%s", bound->name, range, object, origin);
    return -1;
}

PyDoc_STRVAR(check_number_doc, "check_number($module, name, value, low, high, open, /)\n--\n\n"
"The value as a float, if it is a number in the range; an error that names it otherwise.  `open`: 1, the\n"
"low end is not allowed; 2, the high end is not; 3, neither.");

static PyObject *core_check_number(PyObject *Py_UNUSED(module), PyObject *args)
{
    struct bound bound;
    PyObject *object;
    double number;
    if (!PyArg_ParseTuple(args, "UOddi", &bound.name, &object, &bound.low, &bound.high, &bound.open))
        return NULL;
    const int real = read_number(object, 0, &number);
    if (!real)
        PyErr_Format(PyExc_TypeError, "%U must be a number, got %s", bound.name,
            Py_TYPE(object)->tp_name);
    if (real <= 0 || check_bound(&bound, number, object, ""))
        return NULL;
    return PyFloat_FromDouble(number);
}

/* Reads a value from the item of a dict; a number of another library counts if it can be a float. */
static int read_item(Optimizer *self, const struct setting *setting, int k, double *number)
{
    PyObject *object = PyDict_GetItemWithError(setting->source, setting->key);
    if (object && setting->item >= 0)
        object = PyTuple_Check(object) && setting->item < PyTuple_GET_SIZE(object)
            ? PyTuple_GET_ITEM(object, setting->item) : NULL;
    if (!object) {
        if (!PyErr_Occurred())
            PyErr_Format(PyExc_KeyError, "%U: no such item %R", self->bounds[k].name, setting->key);
        return -1;
    }
    int got = read_number(object, 1, number);
    if (!got && !PyBool_Check(object) && !PyUnicode_Check(object)) {
        *number = PyFloat_AsDouble(object);
        got = *number == -1 && PyErr_Occurred() ? -1 : 1;
    }
    if (!got)
        PyErr_Format(PyExc_TypeError, "%U must be a number, got %s", self->bounds[k].name,
            Py_TYPE(object)->tp_name);
    if (got <= 0 || check_bound(&self->bounds[k], *number, object, ""))
        return -1;
    if (setting->zero_is_off && *number == 0)
        *number = Py_NAN;
    return 0;
}

/* Asks a schedule (with the step), a callable or a dict for a value. */
static int ask(Optimizer *self, size_t group, int k, double *number)
{
    const struct setting *setting = &self->settings[group][k];
    if (setting->key)
        return read_item(self, setting, k, number);
    PyObject *step = NULL, *result, *source = Py_NewRef(setting->source);
    if (setting->with_step) {
        step = PyLong_FromLongLong(self->calls);
        result = step ? PyObject_CallOneArg(source, step) : NULL;
    } else {
        result = PyObject_CallNoArgs(source);
    }
    Py_DECREF(source);
    Py_XDECREF(step);
    if (!result)
        return -1;
    int got = read_number(result, 1, number);
    if (!got)
        PyErr_Format(PyExc_TypeError, "%U: expected its schedule to return a number, got %s",
            self->bounds[k].name, Py_TYPE(result)->tp_name);
    if (got > 0)
        got = check_bound(&self->bounds[k], *number, result, " from its schedule") ? -1 : 1;
    Py_DECREF(result);
    return got > 0 ? 0 : -1;
}

/* The values of a step: asks where they have sources, and gives the groups those they share. */
static int ask_all(Optimizer *self)
{
    for (size_t group = 0; self->n_sources && group < self->n_groups; group++)
        for (int k = 0; k < self->n_values; k++)
            if (self->settings[group][k].source && ask(self, group, k, &self->groups[group].values[k]))
                return -1;
    for (size_t group = 1; group < self->n_groups; group++)
        for (int k = 0; k < self->n_values; k++)
            if (!self->settings[group][k].own)
                self->groups[group].values[k] = self->groups[0].values[k];
    return 0;
}

/* Gives every value that varies its product over the updates. */
static void settle_groups(Optimizer *self)
{
    for (size_t group = 0; group < self->n_groups; group++) {
        struct group *g = &self->groups[group];
        for (int k = OPTIONS; k < self->n_values; k++) {
            const int own = self->settings[group][k].own, power = k - OPTIONS;
            if (!own)
                g->products[power] = self->groups[0].products[power];
            else if (!isnan(g->products[power]))
                g->products[power] *= g->values[k];
        }
    }
}

/* The group and index that a method was given. */
static int find_value(Optimizer *self, Py_ssize_t group, Py_ssize_t k)
{
    if (k >= 0 && k < self->n_values && group >= 0 && (size_t)group < self->n_groups)
        return 0;
    PyErr_SetString(PyExc_IndexError, "no such value");
    return -1;
}

PyDoc_STRVAR(declare_doc, "_declare($self, name, low, high, open, optional, /)\n--\n\n"
"Adds the next value and its range; `open` as in check_number.");

static PyObject *optimizer_declare(Optimizer *self, PyObject *args)
{
    struct bound bound;
    if (!PyArg_ParseTuple(args, "Uddip", &bound.name, &bound.low, &bound.high, &bound.open,
            &bound.optional))
        return NULL;
    if (self->n_values == MAX_VALUES) {
        PyErr_SetString(PyExc_IndexError, "too many values");
        return NULL;
    }
    Py_INCREF(bound.name);
    self->groups[0].values[self->n_values] = Py_NAN;
    self->settings[0][self->n_values].own = 1;
    self->bounds[self->n_values++] = bound;
    Py_RETURN_NONE;
}

PyDoc_STRVAR(add_group_doc, "_add_group($self, /)\n--\n\n"
"Adds a group, whose values are the first one's until set; returns its index.");

static PyObject *add_group_now(Optimizer *self, PyObject *Py_UNUSED(ignored))
{
    const size_t n = self->n_groups + 1;
    struct group *groups = PyMem_Realloc(self->groups, n * sizeof *groups);
    if (groups)
        self->groups = groups;
    struct setting (*settings)[MAX_VALUES] = PyMem_Realloc(self->settings, n * sizeof *settings);
    if (settings)
        self->settings = settings;
    if (!groups || !settings)
        return PyErr_NoMemory();
    memset(&groups[n - 1], 0, sizeof *groups);
    memset(settings[n - 1], 0, sizeof *settings);
    for (int k = 0; k < MAX_HYPERS; k++)
        groups[n - 1].products[k] = Py_NAN;
    self->n_groups = n;
    return PyLong_FromSize_t(n - 1);
}

/* Not within a step: one that asks for its values holds pointers into the groups. */
static PyObject *optimizer_add_group(Optimizer *self, PyObject *args)
{
    if (lock(self))
        return NULL;
    PyObject *index = add_group_now(self, args);
    unlock(self);
    return index;
}

PyDoc_STRVAR(set_value_doc, "_set_value($self, group, index, value, with_step, /)\n--\n\n"
"Sets a value to a number, None if it is optional, or a callable, called with the step or without.");

static PyObject *set_value_now(Optimizer *self, PyObject *args)
{
    PyObject *object;
    Py_ssize_t group, k;
    int with_step;
    if (!PyArg_ParseTuple(args, "nnOp", &group, &k, &object, &with_step))
        return NULL;
    if (find_value(self, group, k))
        return NULL;
    const struct bound *bound = &self->bounds[k];
    double number = Py_NAN;
    PyObject *source = NULL;
    if (object != Py_None || !bound->optional) {
        const int real = read_number(object, 0, &number);
        if (real < 0 || (real && check_bound(bound, number, object, "")))
            return NULL;
        if (!real && !PyCallable_Check(object)) {
            PyErr_Format(PyExc_TypeError, "%U must be a number, a schedule or a callable%s, got %s",
                bound->name, bound->optional ? " or None" : "", Py_TYPE(object)->tp_name);
            return NULL;
        }
        if (!real)
            source = Py_NewRef(object);
    }
    struct setting *setting = &self->settings[group][k];
    struct group *g = &self->groups[group];
    if (source && k >= OPTIONS && isnan(g->products[k - OPTIONS])) {
        /* from now on it varies: its product goes on from the power it was */
        const struct step step = {.t = self->calls / self->steps, .powers = g->powers,
            .products = g->products};
        g->products[k - OPTIONS] = step.t ? optimc_power(&step, k - OPTIONS, g->values[k]) : 1;
    }
    self->n_sources += (source != NULL) - (setting->source != NULL);
    g->values[k] = number;
    setting->with_step = with_step;
    setting->own = 1;
    Py_XSETREF(setting->source, source);
    Py_CLEAR(setting->key);
    Py_RETURN_NONE;
}

BETWEEN_STEPS(set_value)

PyDoc_STRVAR(set_item_doc, "_set_item($self, group, index, mapping, key, item, zero_is_off, /)\n--\n\n"
"Lets a value be read from mapping[key], or mapping[key][item] for an item >= 0, at every step.");

static PyObject *set_item_now(Optimizer *self, PyObject *args)
{
    PyObject *mapping, *key;
    Py_ssize_t group, k;
    int item, zero_is_off;
    if (!PyArg_ParseTuple(args, "nnO!Uip", &group, &k, &PyDict_Type, &mapping, &key, &item, &zero_is_off)
        || find_value(self, group, k))
        return NULL;
    struct setting *setting = &self->settings[group][k], wanted = {mapping, key, 0, 1, item, zero_is_off};
    double number;
    if (read_item(self, &wanted, (int)k, &number))
        return NULL;
    self->n_sources += setting->source == NULL;
    Py_XDECREF(setting->source);
    Py_XDECREF(setting->key);
    Py_INCREF(mapping);
    Py_INCREF(key);
    *setting = wanted;
    self->groups[group].values[k] = number;
    Py_RETURN_NONE;
}

BETWEEN_STEPS(set_item)

/* The value as it was set; `group` may inherit it. */
static PyObject *value_of(Optimizer *self, Py_ssize_t group, Py_ssize_t k)
{
    if (!self->settings[group][k].own)
        group = 0;
    const struct setting *setting = &self->settings[group][k];
    const double number = self->groups[group].values[k];
    if (setting->source)
        return Py_NewRef(setting->source);
    if (self->bounds[k].optional && isnan(number))
        Py_RETURN_NONE;
    return PyFloat_FromDouble(number);
}

PyDoc_STRVAR(get_value_doc, "_get_value($self, group, index, /)\n--\n\n"
"The number, the schedule or callable that gives it, or None.");

static PyObject *optimizer_get_value(Optimizer *self, PyObject *args)
{
    Py_ssize_t group, k;
    if (!PyArg_ParseTuple(args, "nn", &group, &k) || find_value(self, group, k))
        return NULL;
    return value_of(self, group, k);
}

PyDoc_STRVAR(ask_value_doc, "_ask_value($self, group, index, /)\n--\n\n"
"The number a value has for the next step, or None.");

static PyObject *optimizer_ask_value(Optimizer *self, PyObject *args)
{
    Py_ssize_t group, k;
    double number;
    if (!PyArg_ParseTuple(args, "nn", &group, &k) || find_value(self, group, k))
        return NULL;
    if (!self->settings[group][k].own)
        group = 0;
    if (!self->settings[group][k].source)
        return value_of(self, group, k);
    return ask(self, (size_t)group, (int)k, &number) ? NULL : PyFloat_FromDouble(number);
}

PyDoc_STRVAR(is_own_doc, "_is_own($self, group, index, /)\n--\n\n"
"Whether a value of a group was set for it, not inherited from the first group.");

static PyObject *optimizer_is_own(Optimizer *self, PyObject *args)
{
    Py_ssize_t group, k;
    if (!PyArg_ParseTuple(args, "nn", &group, &k) || find_value(self, group, k))
        return NULL;
    return PyBool_FromLong(self->settings[group][k].own);
}

PyDoc_STRVAR(inherit_doc, "_inherit($self, group, index, /)\n--\n\n"
"Lets a group have the first group's value again.");

static PyObject *inherit_now(Optimizer *self, PyObject *args)
{
    Py_ssize_t group, k;
    if (!PyArg_ParseTuple(args, "nn", &group, &k) || find_value(self, group, k))
        return NULL;
    struct setting *setting = &self->settings[group][k];
    self->n_sources -= setting->source != NULL;
    setting->own = group == 0;
    Py_CLEAR(setting->source);
    Py_CLEAR(setting->key);
    Py_RETURN_NONE;
}

BETWEEN_STEPS(inherit)

PyDoc_STRVAR(current_doc, "_current($self, group, index, /)\n--\n\n"
"The number a value has in the step in progress.");

static PyObject *optimizer_current(Optimizer *self, PyObject *args)
{
    Py_ssize_t group, k;
    if (!PyArg_ParseTuple(args, "nn", &group, &k) || find_value(self, group, k))
        return NULL;
    return PyFloat_FromDouble(self->groups[self->settings[group][k].own ? group : 0].values[k]);
}

/* Whether there is such a weight; else an IndexError. */
static int is_weight(Optimizer *self, Py_ssize_t index)
{
    if (self->plan && index >= 0 && (size_t)index < optimc_plan_weights(self->plan))
        return 1;
    PyErr_SetString(PyExc_IndexError, "no such weight");
    return 0;
}

PyDoc_STRVAR(value_of_doc, "_value_of($self, weight, index, /)\n--\n\n"
"The value of that index for a weight, as the step in progress has it.");

static PyObject *optimizer_value_of(Optimizer *self, PyObject *args)
{
    Py_ssize_t weight, k;
    if (!PyArg_ParseTuple(args, "nn", &weight, &k) || !is_weight(self, weight) || find_value(self, 0, k))
        return NULL;
    return PyFloat_FromDouble(self->groups[optimc_plan_group(self->plan, (size_t)weight)].values[k]);
}

PyDoc_STRVAR(get_running_doc, "_get_running($self, /)\n--\n\n"
"What runs along with the updates beside the slots: per group a tuple of floats.");

static PyObject *get_running_now(Optimizer *self, PyObject *Py_UNUSED(ignored))
{
    PyObject *all = PyTuple_New((Py_ssize_t)self->n_groups);
    for (size_t i = 0; all && i < self->n_groups; i++) {
        const struct group *group = &self->groups[i];
        PyObject *one = PyTuple_New(MAX_HYPERS + MAX_SCALARS);
        for (int k = 0; one && k < MAX_HYPERS + MAX_SCALARS; k++) {
            PyObject *number = PyFloat_FromDouble(
                k < MAX_HYPERS ? group->products[k] : group->before[k - MAX_HYPERS]);
            if (number)
                PyTuple_SET_ITEM(one, k, number);
            else
                Py_CLEAR(one);
        }
        if (one)
            PyTuple_SET_ITEM(all, (Py_ssize_t)i, one);
        else
            Py_CLEAR(all);
    }
    return all;
}

BETWEEN_STEPS(get_running)

PyDoc_STRVAR(set_running_doc, "_set_running($self, running, /)\n--\n\nSets what `_get_running` gave.");

static PyObject *set_running_now(Optimizer *self, PyObject *running)
{
    double numbers[MAX_HYPERS + MAX_SCALARS];
    if (!PyTuple_Check(running) || (size_t)PyTuple_GET_SIZE(running) != self->n_groups) {
        PyErr_SetString(PyExc_ValueError, "running: expected a tuple with an entry per group");
        return NULL;
    }
    for (int commit = 0; commit < 2; commit++) {
        for (size_t i = 0; i < self->n_groups; i++) {
            PyObject *one = PyTuple_GET_ITEM(running, (Py_ssize_t)i);
            if (!PyTuple_Check(one) || PyTuple_GET_SIZE(one) != MAX_HYPERS + MAX_SCALARS) {
                PyErr_Format(PyExc_ValueError, "running[%zd]: expected %d numbers", (Py_ssize_t)i,
                    MAX_HYPERS + MAX_SCALARS);
                return NULL;
            }
            for (int k = 0; k < MAX_HYPERS + MAX_SCALARS; k++) {
                numbers[k] = PyFloat_AsDouble(PyTuple_GET_ITEM(one, k));
                if (numbers[k] == -1 && PyErr_Occurred())
                    return NULL;
            }
            if (commit) {
                memcpy(self->groups[i].products, numbers, MAX_HYPERS * sizeof *numbers);
                memcpy(self->groups[i].before, numbers + MAX_HYPERS, MAX_SCALARS * sizeof *numbers);
            }
        }
    }
    Py_RETURN_NONE;
}

BETWEEN_STEPS(set_running)

/* --------------------------------------------------------------------------------------- pairs - */

/* Gradients and weights side by side: two lists or tuples, or two dicts with the same keys. */
struct pairs {
    PyObject *grads, *weights;          /* both list or tuple, or both dict, or weights a tuple */
    PyObject *keys;                     /* a tuple of names for tuples that have them, or NULL */
    Py_ssize_t i, n, position;
    PyObject *key, *grad, *weight;      /* the current pair, owned: __eq__ and __repr__ of keys may drop it */
};

static void close_pairs(struct pairs *pairs)
{
    Py_CLEAR(pairs->key);
    Py_CLEAR(pairs->grad);
    Py_CLEAR(pairs->weight);
}

static int is_list(PyObject *object)
{
    return PyList_Check(object) || PyTuple_Check(object);
}

static int open_pairs(Optimizer *self, PyObject *grads, PyObject *weights, struct pairs *pairs)
{
    *pairs = (struct pairs){.grads = grads, .weights = weights};
    PyObject *both[] = {grads, weights};
    const char *const names[] = {"grads", "params"};
    for (int k = grads == weights; k < 2; k++) {
        if (k && weights == Py_None)
            continue;
        if (!is_list(both[k]) && !PyDict_Check(both[k])) {
            PyErr_Format(PyExc_TypeError, "%s must be a list, tuple or dict of arrays, got %s",
                names[k], Py_TYPE(both[k])->tp_name);
            return -1;
        }
    }
    if (weights == Py_None) {
        pairs->weights = self->weights;
        pairs->keys = self->names;
        if (PyDict_Check(grads) && !self->names) {
            PyErr_SetString(PyExc_TypeError,
                "grads is a dict, but the optimizer was built from a list of weights without names");
            return -1;
        }
    } else if (PyDict_Check(grads) != PyDict_Check(weights)) {
        PyErr_Format(PyExc_TypeError, "grads and params must both be lists or both dicts, got %s and %s",
            Py_TYPE(grads)->tp_name, Py_TYPE(weights)->tp_name);
        return -1;
    }
    const Py_ssize_t n_grads = PyObject_Size(grads);
    pairs->n = PyObject_Size(pairs->weights);
    if (n_grads < 0 || pairs->n < 0)
        return -1;
    if (n_grads != pairs->n) {
        PyErr_Format(PyExc_ValueError,
            "grads and params must have one entry each per weight, got %zd and %zd", n_grads, pairs->n);
        return -1;
    }
    if (!pairs->n) {
        PyErr_SetString(PyExc_ValueError, "params is empty: expected at least one weight");
        return -1;
    }
    return 0;
}

static PyObject *pair_label(const struct pairs *pairs, const char *argument)
{
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

/* Makes the next pair the current one: 1, 0 at the end, -1 on an error.  Of the caller's code it runs only
   __hash__ and __eq__ of keys that are not plain str. */
static int next_pair(struct pairs *pairs)
{
    close_pairs(pairs);
    if (pairs->i == pairs->n)
        return 0;
    if (PyDict_Check(pairs->weights)) {
        if (!PyDict_Next(pairs->weights, &pairs->position, &pairs->key, &pairs->weight))
            return refuse_shrunk("params");
        Py_INCREF(pairs->key);
        Py_INCREF(pairs->weight);
        if (!PyUnicode_Check(pairs->key)) {
            PyErr_Format(PyExc_TypeError, "params: keys must be str, got %s",
                Py_TYPE(pairs->key)->tp_name);
            return -1;
        }
    } else {
        pairs->weight = item(pairs->weights, pairs->i);
        if (!pairs->weight)
            return refuse_shrunk("params");
        if (pairs->keys)
            pairs->key = Py_NewRef(PyTuple_GET_ITEM(pairs->keys, pairs->i));
    }
    if (PyDict_Check(pairs->grads)) {
        pairs->grad = Py_XNewRef(PyDict_GetItemWithError(pairs->grads, pairs->key));
        if (!pairs->grad) {
            if (!PyErr_Occurred())
                PyErr_Format(PyExc_ValueError, "grads has no entry for params[%R]", pairs->key);
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

/* -------------------------------------------------------------------------------------- binding - */

static void unbind(Optimizer *self)
{
    optimc_plan_free(self->plan);
    self->plan = NULL;
    PyMem_Free(self->gradients);
    self->gradients = NULL;
    PyMem_Free(self->room);
    self->room = NULL;
    Py_CLEAR(self->orders);
    Py_CLEAR(self->grad_name);
    Py_CLEAR(self->arrays);
    Py_CLEAR(self->weights);
    Py_CLEAR(self->names);
}

/* A tuple argument of length n. */
static int is_tuple(PyObject *object, Py_ssize_t n, const char *name)
{
    if (PyTuple_Check(object) && PyTuple_GET_SIZE(object) == n)
        return 1;
    PyErr_Format(PyExc_TypeError, "_bind: %s must be a tuple of length %zd", name, n);
    return 0;
}

/* Looks at an array that a step will write to. */
static int look_writable(PyObject *object, PyObject *entry, struct view *view)
{
    if (!entry)
        return -1;
    if (!PyArray_Check(object)) {
        if (PyList_Check(object) || PyTuple_Check(object) || PyDict_Check(object))
            return refuse_kind("%U is a %S: flatten nested weights into one list or dict of arrays",
                entry, object);
        return refuse_kind("%U: expected a NumPy array of float32 or float64, got %S", entry, object);
    }
    look((PyArrayObject *)object, view);
    const enum fault fault = optimc_plan_check(view);
    if (fault)
        return refuse_weight(fault, entry, (PyArrayObject *)object, NULL);
    Py_DECREF(entry);
    return 0;
}

PyDoc_STRVAR(weights_of_doc, "weights_of($module, params, /)\n--\n\n"
"The names (a tuple of str, or None) and the arrays (a tuple) of a list, tuple or dict of weights, each\n"
"checked to be one that can be updated in place.");

static PyObject *core_weights_of(PyObject *Py_UNUSED(module), PyObject *params)
{
    struct pairs pairs;
    PyObject *result = NULL;
    if (open_pairs(NULL, params, params, &pairs))
        return NULL;
    PyObject *keys = PyTuple_New(pairs.n), *weights = PyTuple_New(pairs.n);
    int more = keys && weights ? 1 : -1;
    while (more > 0 && (more = next_pair(&pairs)) > 0) {
        struct view view;
        if (look_writable(pairs.weight, pair_label(&pairs, "params"), &view))
            more = -1;
        PyTuple_SET_ITEM(weights, pairs.i - 1, Py_NewRef(pairs.weight));
        PyTuple_SET_ITEM(keys, pairs.i - 1, Py_NewRef(pairs.key ? pairs.key : Py_None));
    }
    if (!more)
        result = PyTuple_Pack(2, PyDict_Check(params) ? keys : Py_None, weights);
    close_pairs(&pairs);
    Py_XDECREF(keys);
    Py_XDECREF(weights);
    return result;
}

PyDoc_STRVAR(address_doc, "address($module, array, /)\n--\n\n"
"Where the memory of an array begins.");

static PyObject *core_address(PyObject *Py_UNUSED(module), PyObject *array)
{
    if (!PyArray_Check(array)) {
        PyErr_Format(PyExc_TypeError, "array: expected a NumPy array, got %s", Py_TYPE(array)->tp_name);
        return NULL;
    }
    return PyLong_FromVoidPtr(PyArray_DATA((PyArrayObject *)array));
}

PyDoc_STRVAR(xla_target_doc, "_xla_target($module, function, /)\n--\n\n"
"A capsule for jax.ffi.register_ffi_target.  XLA then calls function(number, arguments, results) with the\n"
"memory of its buffers: memoryviews of bytes, the results' writable.  Process-wide.");

static PyObject *core_xla_target(PyObject *Py_UNUSED(module), PyObject *function)
{
    return optimc_xla_target(function);
}

PyDoc_STRVAR(bind_doc, "_bind($self, weights, names, kernels, slot_names, slots, averages, accumulators, "
"decays, factors, groups, waiting, held, counts=None, /)\n--\n\n"
"Makes the plan.  Tuples with an entry per weight: `weights`, arrays; `names`, str, or None for all;\n"
"`kernels`, indices; `slot_names` and `slots`, tuples in the order of the rule, None for a slot the kernel\n"
"does not keep; `averages` and `accumulators`, arrays, or None for all; `decays`, the index of the value\n"
"that is its weight decay, or -1; `factors`, what coefficients depend on beside the values; `groups`,\n"
"indices; `waiting`, as `_waiting` gives it.  Then `_take(held, counts)`.  Nothing changes on an error, and no\n"
"signal handler comes between.");

PyDoc_STRVAR(take_doc, "_take($self, held, counts=None, /)\n--\n\n"
"Sets attributes that are there already, from a dict, and counts, (`_calls`, `_skipped`, `_get_running()`), all in\n"
"one: nothing here takes memory, and no signal handler comes between.");

static PyObject *take_now(Optimizer *self, PyObject *args)
{
    PyObject *held, *counts = Py_None, *running = NULL, *key, *value;
    long long calls, skipped;
    if (!PyArg_ParseTuple(args, "O!|O", &PyDict_Type, &held, &counts)
        || (counts != Py_None && !PyArg_ParseTuple(counts, "LLO", &calls, &skipped, &running)))
        return NULL;
    PyObject *attributes = PyObject_GenericGetDict((PyObject *)self, NULL);
    int failed = !attributes;
    for (Py_ssize_t i = 0; !failed && PyDict_Next(held, &i, &key, &value);)
        failed = PyDict_SetItem(attributes, key, value);
    Py_XDECREF(attributes);
    if (failed)
        return NULL;
    if (running) {
        PyObject *set = set_running_now(self, running);
        if (!set)
            return NULL;
        Py_DECREF(set);
        self->calls = calls;
        self->skipped = skipped;
    }
    Py_RETURN_NONE;
}

BETWEEN_STEPS(take)

/* Looks at array i of a tuple that may be None; gives NULL for None. */
static int look_at_part(PyObject *arrays, Py_ssize_t i, PyObject *keys, int part,
    struct view *view, const struct view **kept)
{
    *kept = NULL;
    if (arrays == Py_None)
        return 0;
    *kept = view;
    return look_writable(PyTuple_GET_ITEM(arrays, i),
        place_name(keys, NULL, (struct place){(size_t)i, part}), view);
}

static PyObject *bind_now(Optimizer *self, PyObject *args)
{
    PyObject *weights, *names, *slot_names, *slots, *averages, *accumulators, *decays, *groups;
    PyObject *kernels, *factors, *waiting, *held, *counts = Py_None;
    if ((self->matching && refuse_nested(self))
        || !PyArg_ParseTuple(args, "O!OO!O!O!OOO!O!O!O!O!|O", &PyTuple_Type, &weights, &names,
            &PyTuple_Type, &kernels, &PyTuple_Type, &slot_names, &PyTuple_Type, &slots, &averages,
            &accumulators, &PyTuple_Type, &decays, &PyTuple_Type, &factors, &PyTuple_Type, &groups,
            &PyTuple_Type, &waiting, &PyDict_Type, &held, &counts))
        return NULL;
    const Py_ssize_t n = PyTuple_GET_SIZE(weights);
    if ((names != Py_None && !is_tuple(names, n, "names")) || !is_tuple(slots, n, "slots")
        || (averages != Py_None && !is_tuple(averages, n, "averages"))
        || (accumulators != Py_None && !is_tuple(accumulators, n, "accumulators"))
        || !is_tuple(kernels, n, "kernels") || !is_tuple(slot_names, n, "slot_names")
        || !is_tuple(decays, n, "decays") || !is_tuple(factors, n, "factors")
        || !is_tuple(groups, n, "groups") || !is_tuple(waiting, n, "waiting"))
        return NULL;
    PyObject *keys = names == Py_None ? NULL : names;
    struct plan *plan = optimc_plan_new((size_t)n, (struct memory){PyMem_RawCalloc, PyMem_RawFree});
    PyObject **gradients = PyMem_Calloc((size_t)n + 1, sizeof *gradients);
    PyObject *arrays = PyTuple_Pack(4, weights, slots, averages, accumulators);
    PyObject *taken = PyTuple_Pack(2, held, counts), *done;
    if (!plan || !gradients || !arrays || !taken) {
        PyErr_NoMemory();
        goto fail;
    }
    for (Py_ssize_t i = 0; i < n; i++) {
        PyObject *array = PyTuple_GET_ITEM(weights, i), *own = PyTuple_GET_ITEM(slots, i);
        struct view view, slot_views[MAX_SLOTS] = {{0}}, average, accumulator;
        const size_t group = PyLong_AsSize_t(PyTuple_GET_ITEM(groups, i));
        const long kernel = PyLong_AsLong(PyTuple_GET_ITEM(kernels, i));
        const long decay = PyLong_AsLong(PyTuple_GET_ITEM(decays, i));
        const double factor = PyFloat_AsDouble(PyTuple_GET_ITEM(factors, i));
        PyObject *own_names = PyTuple_GET_ITEM(slot_names, i);
        if (group >= self->n_groups || kernel < 0 || kernel >= KERNELS || decay < -1
            || decay >= self->n_values || PyErr_Occurred() || !PyTuple_Check(own_names)) {
            if (!PyErr_Occurred())
                PyErr_Format(PyExc_IndexError, "_bind: bad group, kernel, decay or names of weight %zd", i);
            goto fail;
        }
        if (look_writable(array, label("params", keys, i), &view))
            goto fail;
        if (!is_tuple(own, PyTuple_GET_SIZE(own_names), "slots[i]"))
            goto fail;
        for (int k = 0; k < PyTuple_GET_SIZE(own) && k < MAX_SLOTS; k++) {
            PyObject *slot = PyTuple_GET_ITEM(own, k);
            if (slot != Py_None && look_writable(slot, place_name(keys, own_names,
                    (struct place){(size_t)i, k}), &slot_views[k]))
                goto fail;
        }
        struct parts parts = {.kernel = (enum kernel)kernel, .group = group, .slots = slot_views,
            .decay = (int)decay, .factor = factor,
            .waiting = PyTuple_GET_ITEM(waiting, i) == Py_True};
        if (look_at_part(averages, i, keys, PART_AVERAGE, &average, &parts.average)
            || look_at_part(accumulators, i, keys, PART_ACCUMULATOR, &accumulator,
                &parts.accumulator))
            goto fail;
        int where;
        const enum fault fault = optimc_plan_add(plan, &view, &parts, &where);
        if (fault) {
            PyObject *wrong = where == PART_AVERAGE ? PyTuple_GET_ITEM(averages, i)
                : where == PART_ACCUMULATOR ? PyTuple_GET_ITEM(accumulators, i)
                : where >= 0 ? PyTuple_GET_ITEM(own, where) : array;
            PyObject *entry = place_name(keys, own_names, (struct place){(size_t)i, where});
            if (wrong == Py_None)
                refuse_kind("%U: expected an array, got %S", entry, wrong);
            else
                refuse_weight(fault, entry, (PyArrayObject *)wrong, (PyArrayObject *)array);
            goto fail;
        }
    }
    PyObject *module = PyType_GetModuleByDef(Py_TYPE(self), &core_module);
    if (!module)
        goto fail;
    struct place overlap[2];
    const enum fault fault = optimc_plan_seal(plan, state_of(module)->isa, overlap);
    if (fault == FAULT_OVERLAP) {
        PyObject *a = place_name(keys, PyTuple_GET_ITEM(slot_names, overlap[0].weight), overlap[0]);
        PyObject *b = place_name(keys, PyTuple_GET_ITEM(slot_names, overlap[1].weight), overlap[1]);
        if (a && b)
            PyErr_Format(PyExc_ValueError, "%U and %U overlap in memory", a, b);
        Py_XDECREF(a);
        Py_XDECREF(b);
        goto fail;
    }
    if (fault) {
        PyErr_NoMemory();
        goto fail;
    }
    done = take_now(self, taken);
    if (!done)
        goto fail;
    Py_DECREF(done);
    Py_DECREF(taken);
    unbind(self);
    self->plan = plan;
    self->gradients = gradients;
    self->arrays = arrays;
    self->weights = Py_NewRef(weights);
    self->names = Py_XNewRef(keys);
    Py_RETURN_NONE;

fail:
    optimc_plan_free(plan);
    PyMem_Free(gradients);
    Py_XDECREF(arrays);
    Py_XDECREF(taken);
    return NULL;
}

BETWEEN_STEPS(bind)

PyDoc_STRVAR(waiting_doc, "_waiting($self, /)\n--\n\n"
"For each weight, whether gradients were accumulated since its last update.");

static PyObject *waiting_now(Optimizer *self, PyObject *Py_UNUSED(ignored))
{
    const size_t n = self->plan ? optimc_plan_weights(self->plan) : 0;
    PyObject *waiting = PyTuple_New((Py_ssize_t)n);
    for (size_t i = 0; waiting && i < n; i++)
        PyTuple_SET_ITEM(waiting, (Py_ssize_t)i, PyBool_FromLong(optimc_plan_waits(self->plan, i)));
    return waiting;
}

BETWEEN_STEPS(waiting)

PyDoc_STRVAR(unbind_doc, "_unbind($self)\n--\n\nForgets the plan; the optimizer is as before it was built.");

static PyObject *unbind_now(Optimizer *self, PyObject *Py_UNUSED(ignored))
{
    if (self->matching && refuse_nested(self))
        return NULL;
    unbind(self);
    Py_RETURN_NONE;
}

BETWEEN_STEPS(unbind)

/* --------------------------------------------------------------------------- a step: the checks - */

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
        return look_writable(object, pair_label(pairs, "params"), &view);
    PyArrayObject *array = (PyArrayObject *)object;
    look(array, &view);
    const Py_ssize_t i = optimc_plan_find(self->plan, &view, (size_t)pairs->i - 1);
    if (i >= 0) {
        const enum fault fault = optimc_plan_same(self->plan, (size_t)i, &view);
        if (fault)
            return refuse_weight(fault, pair_label(pairs, "params"), array,
                (PyArrayObject *)PyTuple_GET_ITEM(self->weights, i));
        return i;
    }
    const enum fault fault = optimc_plan_check(&view);
    if (fault)
        return refuse_weight(fault, pair_label(pairs, "params"), array, NULL);
    return refuse(PyExc_ValueError, "%U is not in the memory this optimizer was built with: update "
        "weights in place (w -= d or w[...] = x, not w = w - d), or call build(params) with all of them "
        "to move or add weights; slots are kept", pair_label(pairs, "params"), NULL, NULL);
}

/* Notes one gradient in the plan, or raises. */
static int take(Optimizer *self, const struct pairs *pairs, size_t index, PyObject *grad)
{
    struct view view;
    struct place overlap;
    if (grad != Py_None)
        look((PyArrayObject *)grad, &view);
    const enum fault fault = optimc_plan_take(self->plan, index, grad == Py_None ? NULL : &view, &overlap);
    if (!fault) {
        if (grad != Py_None)
            self->gradients[self->n_gradients++] = Py_NewRef(grad);
        return 0;
    }
    if (fault == FAULT_REPEATED)
        return refuse(PyExc_ValueError, "%U: the same weight comes twice", pair_label(pairs, "params"),
            NULL, NULL);
    PyArrayObject *array = (PyArrayObject *)grad;
    if (fault == FAULT_TYPE)
        return refuse(PyExc_TypeError, "%U: expected a gradient of floats, got %S",
            pair_label(pairs, "grads"), (PyObject *)PyArray_DESCR(array), NULL);
    PyObject *entry = pair_label(pairs, "grads"), *a, *b = NULL;
    if (fault == FAULT_OVERLAP) {
        a = place_name(self->names, NULL, overlap);
        refuse(PyExc_ValueError, "%U overlaps %S in memory", entry, a, NULL);
    } else {
        a = shape_of((PyArrayObject *)PyTuple_GET_ITEM(self->weights, (Py_ssize_t)index));
        b = shape_of(array);
        refuse(PyExc_ValueError, "%U: expected shape %S, like its weight, got %S", entry, a, b);
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
    while ((more = next_pair(pairs)) > 0) {
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
    while (names && (more = next_pair(&pairs)) > 0) {
        if (pairs.grad != Py_None)
            continue;
        PyObject *entry = pair_label(&pairs, "params");
        PyObject *longer = entry ? PyUnicode_FromFormat(PyUnicode_GET_LENGTH(names) ? "%U, %U" : "%U%U",
            names, entry) : NULL;
        Py_XDECREF(entry);
        Py_SETREF(names, longer);
    }
    const int result = names && !more ? PyErr_WarnFormat(PyExc_UserWarning, 1,
        "Gradients do not exist for %U: these weights are left as they are", names) : -1;
    close_pairs(&pairs);
    Py_XDECREF(names);
    return result;
}

/* Matches and checks every pair; the plan is then ready to run.  Warns of missing gradients unless quiet. */
static int match(Optimizer *self, struct pairs *pairs, PyObject **owned, int quiet)
{
    int more, missing = 0;
    const struct pairs start = *pairs;
    optimc_plan_begin(self->plan);
    while ((more = next_pair(pairs)) > 0) {
        PyObject *grad = pairs->grad;
        if (!PyArray_Check(grad) && grad != Py_None) {
            if (*owned)
                return refuse_kind("%U: expected a NumPy array of floats, got %S",
                    pair_label(pairs, "grads"), grad);
            close_pairs(pairs);
            *pairs = start;
            drop_gradients(self);
            self->matching = 1;
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

static PyObject *call_method(Optimizer *self, const char *name, PyObject *argument)
{
    PyObject *method = PyObject_GetAttrString((PyObject *)self, name);
    PyObject *result = method ? PyObject_CallOneArg(method, argument) : NULL;
    Py_XDECREF(method);
    return result;
}

/* Ends a step that ran, or gives it up: then what it built is undone. */
static void end_step(Optimizer *self, int ran)
{
    drop_gradients(self);
    if (self->undo && !ran) {
        PyObject *type, *value, *traceback;
        PyErr_Fetch(&type, &value, &traceback);
        unbind(self);
        PyObject *done = call_method(self, "_undo_build", self->undo);
        if (!done)
            PyErr_WriteUnraisable((PyObject *)self);
        Py_XDECREF(done);
        PyErr_Restore(type, value, traceback);
    }
    Py_CLEAR(self->undo);
}

/* A step is worth giving up the GIL for if it takes long enough. */
static int is_long(Optimizer *self)
{
    return optimc_plan_cost(self->plan) >= GIL_WORTH;
}

/* A fork() waits for what enters the pool.  It enters with the GIL, which a fork() takes too, so that no step
   begins while one waits; it leaves without the GIL, so that a fork() that has it need not wait for ever. */
static ptrdiff_t survey(Optimizer *self)
{
    if (!is_long(self))
        return optimc_plan_survey(self->plan, &self->request);
    optimc_pool_enter();
    PyThreadState *thread = PyEval_SaveThread();
    const ptrdiff_t bad = optimc_plan_survey(self->plan, &self->request);
    optimc_pool_leave();
    PyEval_RestoreThread(thread);
    return bad;
}

/* What a matched step is to do. */
static void make_request(Optimizer *self, int finite)
{
    const int64_t before = self->calls / self->steps;
    self->request = (struct request){
        .groups = self->groups, .t = before + 1, .update = (self->calls + 1) % self->steps == 0,
        .steps = self->steps,
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
    if (grads && weights != Py_None && !open_pairs(self, grads, weights, &pairs))
        while (!found && next_pair(&pairs) > 0)
            if (PyArray_Check(pairs.weight)) {
                look((PyArrayObject *)pairs.weight, &view);
                if (optimc_plan_find(self->plan, &view, (size_t)pairs.i - 1) == index)
                    found = pair_label(&pairs, "grads");
            }
    close_pairs(&pairs);
    if (found)
        return found;
    PyErr_Clear();                      /* they have changed since they were matched */
    return label("grads", self->names, index);
}

static int refuse_norm(void)
{
    PyErr_SetString(PyExc_FloatingPointError, "the norm of all gradients is not finite");
    return -1;
}

/* What must be known of the gradients of a matched step.  As check_step; grads as in gradient_label. */
static int survey_step(Optimizer *self, PyObject *grads, PyObject *weights, int finite)
{
    make_request(self, finite);
    const ptrdiff_t bad = survey(self);
    if (bad < 0)
        return 1;
    if (finite == SKIP)
        return 0;
    if (self->request.overflow == GLOBAL_NORM)
        return refuse_norm();
    return refuse(PyExc_FloatingPointError,
        self->request.overflow ? "the norm of %U is not finite" : "%U is not finite",
        gradient_label(self, grads, weights, bad), NULL, NULL);
}

/* Everything that can refuse a step without a look into its gradients, with the lock held: 0, or -1 with an
   error.  Nothing of the caller's has changed.  end_step must follow. */
static int match_step(Optimizer *self, PyObject *grads, PyObject *weights, int quiet)
{
    PyObject *owned = NULL;
    struct pairs pairs;
    self->begun = 0;
    if (self->evaluating) {
        PyErr_SetString(PyExc_RuntimeError, "within averaged() the weights hold their averages: step after it");
        return -1;
    }
    if (ask_all(self))
        return -1;
    if (!self->plan) {
        if (weights == Py_None) {
            PyErr_SetString(PyExc_ValueError,
                "the optimizer is not built: pass the weights too, apply(grads, params), or call "
                "build(params) first");
            return -1;
        }
        self->undo = call_method(self, "_build", weights);
        if (!self->undo)
            return -1;
    }
    self->matching = 1;
    const int failed = open_pairs(self, grads, weights, &pairs) || match(self, &pairs, &owned, quiet);
    close_pairs(&pairs);
    Py_XDECREF(owned);
    return failed ? -1 : 0;
}

/* Everything that can refuse a step, with the lock held: 1 if it may run, 0 if it is to be skipped, -1
   with an error.  Nothing of the caller's has changed.  end_step must follow. */
static int check_step(Optimizer *self, PyObject *grads, PyObject *weights, int finite)
{
    return match_step(self, grads, weights, 0) ? -1 : survey_step(self, grads, weights, finite);
}

/* The writing half.  Cannot fail.  What is counted first and what is kept last: */
static void open_step(Optimizer *self)
{
    if (self->request.update)
        settle_groups(self);
    self->calls++;
    if (self->request.surveyed) {
        self->norm = self->request.norm;
        self->normed = 1;
    }
}

static void close_step(Optimizer *self)
{
    if (self->request.update)
        for (size_t i = 0; i < self->n_groups; i++)
            memcpy(self->groups[i].before, self->groups[i].after, sizeof self->groups[i].before);
}

/* The writing half of the steps of an optimizer and those `together` with it.  Cannot fail.  A fork() comes before
   all of it or after. */
static void run_steps(Optimizer *first)
{
    int any_long = 0;
    for (Optimizer *self = first; self; self = self->together)
        any_long |= is_long(self);
    if (any_long)
        optimc_pool_enter();
    for (Optimizer *self = first; self; self = self->together)
        open_step(self);
    PyThreadState *thread = any_long ? PyEval_SaveThread() : NULL;
    for (Optimizer *self = first; self; self = self->together) {
        optimc_plan_run(self->plan, &self->request);
        close_step(self);
    }
    if (any_long) {
        optimc_pool_leave();
        PyEval_RestoreThread(thread);
    }
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
    if (lock(self))
        return NULL;
    const int checked = check_step(self, given[0], given[1], self->check_finite);
    if (checked > 0)
        run_steps(self);
    self->skipped += checked == 0;
    end_step(self, checked > 0);
    unlock(self);
    if (checked < 0)
        return NULL;
    Py_RETURN_NONE;
}

/* ------------------------------------------------------------------------------------- tensors - */

/* Steps over tensors of another library, by its DLPack exchange table: no array is made of them, and where
   they lie is read afresh at every step. */

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

PyDoc_STRVAR(prepare_tensors_doc, "_prepare_tensors($self, orders, watched, /)\n--\n\n"
"After `_bind`, for steps over tensors: `orders`, for each weight None, or a tuple of its axes in the order of\n"
"memory; `watched`, a tuple of (dict, key, value) that the plan rests on: equal numbers, a list of the very things in\n"
"a tuple, or else the very thing.");

static PyObject *optimizer_prepare_tensors(Optimizer *self, PyObject *args)
{
    PyObject *orders, *watched;
    const size_t n = self->plan ? optimc_plan_weights(self->plan) : 0;
    if (!PyArg_ParseTuple(args, "O!O!", &PyTuple_Type, &orders, &PyTuple_Type, &watched))
        return NULL;
    if (!n || (size_t)PyTuple_GET_SIZE(orders) != n) {
        PyErr_SetString(PyExc_ValueError, "orders: expected an entry per weight");
        return NULL;
    }
    size_t axes = 0;
    for (size_t i = 0; i < n; i++)
        axes += (size_t)PyArray_NDIM((PyArrayObject *)PyTuple_GET_ITEM(self->weights, (Py_ssize_t)i));
    if (!self->grad_name && !(self->grad_name = PyUnicode_InternFromString("grad")))
        return NULL;
    ptrdiff_t *room = PyMem_Calloc(4 * axes + 1, sizeof *room);
    if (!room)
        return PyErr_NoMemory();
    PyMem_Free(self->room);
    self->room = room;
    Py_XSETREF(self->orders, Py_NewRef(orders));
    Py_XSETREF(self->watched, Py_NewRef(watched));
    Py_RETURN_NONE;
}

/* Fills a view of a tensor whose axes are put in `order`; shape and strides go into `room`. */
static int look_tensor(const struct tensor_exchange *table, PyObject *object, PyObject *order,
    const char *argument, Py_ssize_t i, ptrdiff_t *room, int ndim, struct view *view)
{
    struct tensor tensor;
    if (table->look(object, &tensor)) {
        if (!PyErr_Occurred())
            PyErr_Format(PyExc_TypeError, "%s[%zd]: not a dense tensor", argument, i);
        return -1;
    }
    if (tensor.device.kind != TENSOR_ON_CPU) {
        PyErr_Format(PyExc_TypeError, "%s[%zd]: expected a tensor on the CPU", argument, i);
        return -1;
    }
    if (tensor.ndim != ndim) {
        PyErr_Format(PyExc_ValueError, "%s[%zd]: expected %d axes, as built, got %d", argument, i, ndim,
            (int)tensor.ndim);
        return -1;
    }
    const int bits = tensor.type.bits, code = tensor.type.code;
    view->type = tensor.type.lanes != 1 ? TYPE_OTHER
        : code == TENSOR_BFLOAT && bits == 16 ? TYPE_BF16
        : code != TENSOR_FLOAT ? TYPE_OTHER
        : bits == 32 ? TYPE_F32 : bits == 64 ? TYPE_F64 : bits == 16 ? TYPE_F16 : TYPE_OTHER;
    view->itemsize = (size_t)bits / 8;
    view->data = (char *)tensor.data + tensor.byte_offset;
    view->ndim = ndim;
    view->shape = room;
    view->strides = room + ndim;
    ptrdiff_t dense = 1;
    int c_order = 1;
    for (int k = ndim; k-- > 0;) {
        const long axis = order == Py_None ? k : PyLong_AsLong(PyTuple_GET_ITEM(order, k));
        const ptrdiff_t length = (ptrdiff_t)tensor.shape[axis];
        const ptrdiff_t stride = tensor.strides ? (ptrdiff_t)tensor.strides[axis] : dense;
        c_order &= length == 1 || stride == dense;
        room[k] = length;
        room[ndim + k] = stride * (ptrdiff_t)view->itemsize;
        dense *= length;
    }
    view->swapped = 0;
    view->c_order = c_order || !dense;
    view->f_order = view->c_order && ndim < 2;
    view->aligned = !((uintptr_t)view->data % (view->itemsize ? view->itemsize : 1));
    view->writeable = 1;
    return 0;
}

/* For steps in two halves: notes (self, ready) in the caller's list, if there is one, before a signal handler can
   run, so that whoever has the list can finish.  On an error the step is given up. */
static int note_started(Optimizer *self, PyObject *started, int ready)
{
    PyObject *entry = started ? Py_BuildValue("(OO)", self, ready ? Py_True : Py_False) : NULL;
    const int failed = started && (!entry || PyList_Append(started, entry));
    Py_XDECREF(entry);
    if (failed) {
        end_step(self, 0);
        unlock(self);
    }
    return failed ? -1 : 0;
}

/* Whether what is watched is as it was; things other than numbers are not asked whether they are equal. */
static int is_same(PyObject *now, PyObject *then)
{
    if (now == then)
        return 1;
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

/* Whether all that is watched is as it was, or -1. */
static int is_as_watched(const Optimizer *self)
{
    for (Py_ssize_t i = 0; self->watched && i < PyTuple_GET_SIZE(self->watched); i++) {
        PyObject *entry = PyTuple_GET_ITEM(self->watched, i);
        PyObject *now = PyDict_GetItemWithError(PyTuple_GET_ITEM(entry, 0), PyTuple_GET_ITEM(entry, 1));
        const int same = now ? is_same(now, PyTuple_GET_ITEM(entry, 2)) : 0;
        if (same < 0 || PyErr_Occurred())
            return -1;
        if (!same)
            return 0;
    }
    return 1;
}

PyDoc_STRVAR(is_as_watched_doc, "_is_as_watched($self, /)\n--\n\n"
"Whether all that `_prepare_tensors` was told to watch is as it was.");

static PyObject *optimizer_is_as_watched(Optimizer *self, PyObject *Py_UNUSED(ignored))
{
    const int same = is_as_watched(self);
    return same < 0 ? NULL : PyBool_FromLong(same);
}

enum { NO_GRADIENTS, CHECKED, NOT_AS_PLANNED };

/* The first half of a step over tensors, with the lock held: CHECKED; NO_GRADIENTS, if none has one; or
   NOT_AS_PLANNED, if only some have, or what was watched has changed: then nothing has happened.  `grads` is a
   list, or NULL: then they are the tensors' own. */
static int check_tensors(Optimizer *self, PyObject *tensors, const struct tensor_exchange *table,
    PyObject *grads)
{
    if (!self->plan || !self->orders || !PyList_Check(tensors)
        || (size_t)PyList_GET_SIZE(tensors) != optimc_plan_weights(self->plan)) {
        PyErr_SetString(PyExc_ValueError, "tensors: expected a list of the weights the plan was made for");
        return -1;
    }
    if (grads && (!PyList_Check(grads) || PyList_GET_SIZE(grads) != PyList_GET_SIZE(tensors))) {
        PyErr_SetString(PyExc_ValueError, "grads: expected a list with an entry per tensor");
        return -1;
    }
    const int same = is_as_watched(self);
    if (same <= 0)
        return same < 0 ? -1 : NOT_AS_PLANNED;
    if (ask_all(self))
        return -1;
    optimc_plan_begin(self->plan);
    self->matching = 1;
    ptrdiff_t *room = self->room;
    Py_ssize_t missing = 0;
    const Py_ssize_t n = PyList_GET_SIZE(tensors);
    for (Py_ssize_t i = 0; i < n; i++) {
        PyObject *tensor = PyList_GET_ITEM(tensors, i), *order = PyTuple_GET_ITEM(self->orders, i);
        PyArrayObject *bound = (PyArrayObject *)PyTuple_GET_ITEM(self->weights, i);
        const int ndim = PyArray_NDIM(bound);
        struct view view;
        if (look_tensor(table, tensor, order, "params", i, room, ndim, &view))
            return -1;
        room += 2 * ndim;
        enum fault fault = optimc_plan_same(self->plan, (size_t)i, &view);
        if (!fault)
            fault = optimc_plan_move(self->plan, (size_t)i, view.data);
        if (fault) {
            PyErr_Format(fault == FAULT_TYPE ? PyExc_TypeError : PyExc_ValueError, "params[%zd]: %s", i,
                fault == FAULT_TYPE ? "expected the dtype it was built with"
                : fault == FAULT_SHAPE ? "expected the shape it was built with"
                : fault == FAULT_OVERLAP ? "overlaps another parameter or its state in memory"
                : "expected the memory layout it was built with");
            return -1;
        }
        PyObject *grad = grads ? Py_NewRef(PyList_GET_ITEM(grads, i)) : PyObject_GetAttr(tensor, self->grad_name);
        if (!grad)
            return -1;
        if (grad == Py_None) {
            Py_DECREF(grad);
            missing++;
            continue;
        }
        self->gradients[self->n_gradients++] = grad;
        if (look_tensor(table, grad, order, "grads", i, room, ndim, &view))
            return -1;
        room += 2 * ndim;
        struct place overlap;
        fault = optimc_plan_take(self->plan, (size_t)i, &view, &overlap);
        if (fault) {
            PyErr_Format(fault == FAULT_TYPE ? PyExc_TypeError : PyExc_ValueError, "grads[%zd]: %s", i,
                fault == FAULT_TYPE ? "expected a gradient of floats"
                : fault == FAULT_SHAPE ? "expected the shape of its parameter"
                : "overlaps a parameter or its state in memory");
            return -1;
        }
    }
    if (missing == n)
        return NO_GRADIENTS;
    if (missing)
        return NOT_AS_PLANNED;
    return CHECKED;
}

/* check_tensors and what check_step does after the matching; the lock is held only after CHECKED. */
static int start_tensors(Optimizer *self, PyObject *tensors, PyObject *capsule, PyObject *grads)
{
    const struct tensor_exchange *table = exchange_of(capsule);
    if (!table || lock(self))
        return -1;
    int checked = check_tensors(self, tensors, table, grads);
    if (checked == CHECKED) {
        const int ready = survey_step(self, NULL, NULL, self->check_finite);
        self->skipped += ready == 0;
        checked = ready < 0 ? -1 : ready ? CHECKED : NO_GRADIENTS;
    }
    if (checked != CHECKED) {
        end_step(self, 0);
        unlock(self);
    }
    return checked;
}

PyDoc_STRVAR(check_tensors_doc, "_check_tensors($self, tensors, exchange, started, /)\n--\n\n"
"The first half of a step over tensors: 1, and `finish` must follow, see `_check`; 0 if none has a gradient; 2\n"
"if only some have one, or something that was watched has changed.");

static PyObject *optimizer_check_tensors(Optimizer *self, PyObject *const *args, Py_ssize_t n)
{
    if (n != 3 || !PyList_Check(args[2])) {
        PyErr_SetString(PyExc_TypeError, "_check_tensors() takes 3 arguments, the last a list");
        return NULL;
    }
    const int checked = start_tensors(self, args[0], args[1], NULL);
    if (checked < 0 || (checked == CHECKED && note_started(self, args[2], 1)))
        return NULL;
    return PyLong_FromLong(checked);
}

PyDoc_STRVAR(apply_tensors_doc, "_apply_tensors($self, tensors, exchange, grads=None, /)\n--\n\n"
"A whole step over tensors, if `_check_tensors` says 1.  Returns what that says.  `grads`, a list of tensors of\n"
"the same library, are used instead of the tensors' own.");

static PyObject *optimizer_apply_tensors(Optimizer *self, PyObject *const *args, Py_ssize_t n)
{
    if (n != 2 && n != 3) {
        PyErr_SetString(PyExc_TypeError, "_apply_tensors() takes 2 or 3 arguments");
        return NULL;
    }
    const int checked = start_tensors(self, args[0], args[1], n == 3 && args[2] != Py_None ? args[2] : NULL);
    if (checked == CHECKED) {
        run_steps(self);
        end_step(self, 1);
        unlock(self);
    }
    return checked < 0 ? NULL : PyLong_FromLong(checked);
}

/* For wrappers, which check the steps of several optimizers before they run any. */

PyDoc_STRVAR(check_doc, "_check($self, grads, trainable_variables, finite, started=None, /)\n--\n\n"
"The first half of a step: takes the lock and checks everything.  True if it may run; False, with\n"
"`finite`, if a gradient is not finite.  Not after an error, `_finish` must follow; or, if this has appended\n"
"(self, what it returns) to the list `started`, `finish`, even if a signal handler raised in between.");

static PyObject *optimizer_check(Optimizer *self, PyObject *args)
{
    PyObject *grads, *weights, *started = NULL;
    int finite;
    if (!PyArg_ParseTuple(args, "OOp|O!", &grads, &weights, &finite, &PyList_Type, &started) || lock(self))
        return NULL;
    const int checked = check_step(self, grads, weights, finite ? SKIP : self->check_finite);
    if (checked >= 0)
        return note_started(self, started, checked) ? NULL : PyBool_FromLong(checked);
    end_step(self, 0);
    unlock(self);
    return NULL;
}

PyDoc_STRVAR(pull_doc, "_pull($self, index, to, begin=-1, /)\n--\n\n"
"Between `_check` and `_finish`: writes the gradient of a weight, as its kernel will see it, into an array\n"
"like the weight; or, from element `begin` in the order of the weight's memory, into a vector.  False if the\n"
"weight has none in this step.");

static PyObject *optimizer_pull(Optimizer *self, PyObject *args)
{
    Py_ssize_t index, begin = -1;
    PyObject *to;
    struct view view;
    if (!PyArg_ParseTuple(args, "nO|n", &index, &to, &begin) || !is_weight(self, index)
        || look_writable(to, PyUnicode_FromString("to"), &view))
        return NULL;
    const size_t size = optimc_view_size(&view), start = begin < 0 ? 0 : (size_t)begin;
    const PyArrayObject *weight = (PyArrayObject *)PyTuple_GET_ITEM(self->weights, index);
    if (begin < 0 ? optimc_plan_same(self->plan, (size_t)index, &view) != FINE
        : view.ndim != 1 || view.type != type_of((PyArrayObject *)weight)
            || start > optimc_plan_size(self->plan, (size_t)index)
            || size > optimc_plan_size(self->plan, (size_t)index) - start) {
        PyErr_SetString(PyExc_ValueError, "to: expected an array like the weight");
        return NULL;
    }
    if (!optimc_plan_takes(self->plan, &self->request, (size_t)index))
        Py_RETURN_FALSE;
    optimc_plan_pull(self->plan, &self->request, (size_t)index, start, start + size, view.data);
    Py_RETURN_TRUE;
}

PyDoc_STRVAR(finish_doc, "_finish($self, run, /)\n--\n\n"
"The second half of a step that was checked: runs it, or gives it up, and releases the lock.  What\n"
"`_advance` has begun is not run again.");

static PyObject *optimizer_finish(Optimizer *self, PyObject *argument)
{
    const int run = PyObject_IsTrue(argument);
    if (self->begun) {
        optimc_plan_end(self->plan);
        close_step(self);
    } else if (run > 0) {
        run_steps(self);
    }
    end_step(self, run > 0 || self->begun);
    self->begun = 0;
    unlock(self);
    if (run < 0)
        return NULL;
    Py_RETURN_NONE;
}

PyDoc_STRVAR(finish_all_doc, "finish($module, started, run, then=(), /)\n--\n\n"
"The second half of several steps, as `_check` noted them: runs those that are ready and counts the others as\n"
"skipped, or gives all up; makes the calls `then`, pairs of a function in C and a tuple of its arguments; releases\n"
"the locks.  No signal handler comes between.");

static PyObject *core_finish(PyObject *module, PyObject *args)
{
    PyObject *started, *then = NULL;
    int run, failed = 0;
    if (!PyArg_ParseTuple(args, "O!p|O!", &PyList_Type, &started, &run, &PyTuple_Type, &then))
        return NULL;
    PyTypeObject *type = state_of(module)->type;
    const Py_ssize_t n = PyList_GET_SIZE(started);
    for (Py_ssize_t i = 0; i < n; i++) {
        PyObject *entry = PyList_GET_ITEM(started, i);
        if (!PyTuple_Check(entry) || PyTuple_GET_SIZE(entry) != 2
                || !PyObject_TypeCheck(PyTuple_GET_ITEM(entry, 0), type))
            return PyErr_Format(PyExc_TypeError, "started: expected what _check notes");
    }
    for (Py_ssize_t i = 0; then && i < PyTuple_GET_SIZE(then); i++) {
        PyObject *call = PyTuple_GET_ITEM(then, i);
        if (!PyTuple_Check(call) || PyTuple_GET_SIZE(call) != 2 || !PyTuple_Check(PyTuple_GET_ITEM(call, 1)))
            return PyErr_Format(PyExc_TypeError, "then: expected pairs of a function and a tuple");
    }
    Optimizer *ready = NULL;
    for (Py_ssize_t i = n; run && i-- > 0;) {
        Optimizer *self = (Optimizer *)PyTuple_GET_ITEM(PyList_GET_ITEM(started, i), 0);
        if (PyTuple_GET_ITEM(PyList_GET_ITEM(started, i), 1) == Py_True) {
            self->together = ready;
            ready = self;
        } else {
            self->skipped++;
        }
    }
    if (ready)
        run_steps(ready);
    for (Py_ssize_t i = 0; then && !failed && i < PyTuple_GET_SIZE(then); i++) {
        PyObject *call = PyTuple_GET_ITEM(then, i);
        PyObject *result = PyObject_CallObject(PyTuple_GET_ITEM(call, 0), PyTuple_GET_ITEM(call, 1));
        failed = !result;
        Py_XDECREF(result);
    }
    for (Py_ssize_t i = n; i-- > 0;) {
        PyObject *entry = PyList_GET_ITEM(started, i);
        Optimizer *self = (Optimizer *)PyTuple_GET_ITEM(entry, 0);
        self->together = NULL;
        end_step(self, run && PyTuple_GET_ITEM(entry, 1) == Py_True);
        unlock(self);
    }
    if (failed || PyList_SetSlice(started, 0, n, NULL))
        return NULL;
    Py_RETURN_NONE;
}

/* For steps over parts of weights whose other parts are elsewhere (optimc/mpi.py): the first half without
   a look into the gradients, then the look, then the second half in parts. */

PyDoc_STRVAR(match_doc, "_match_step($self, grads, trainable_variables, quiet, /)\n--\n\n"
"`_check` without a look into the gradients, whose values need not be there yet.  Gives for each weight\n"
"whether it takes part.  quiet: do not warn of missing gradients.  `_finish` must follow; not after an error.");

static PyObject *optimizer_match(Optimizer *self, PyObject *args)
{
    PyObject *grads, *weights, *taken = NULL;
    int quiet;
    if (!PyArg_ParseTuple(args, "OOp", &grads, &weights, &quiet) || lock(self))
        return NULL;
    if (!match_step(self, grads, weights, quiet)) {
        make_request(self, PROPAGATE);
        const size_t n = optimc_plan_weights(self->plan);
        taken = PyTuple_New((Py_ssize_t)n);
        for (size_t i = 0; taken && i < n; i++)
            PyTuple_SET_ITEM(taken, (Py_ssize_t)i,
                PyBool_FromLong(optimc_plan_takes(self->plan, &self->request, i)));
    }
    if (!taken) {
        end_step(self, 0);
        unlock(self);
    }
    return taken;
}

PyDoc_STRVAR(survey_doc, "_survey($self, finite, /)\n--\n\n"
"After `_match_step`, the rest of `_check`, which says what it gives; an error does not end the step.");

static PyObject *optimizer_survey(Optimizer *self, PyObject *argument)
{
    const int finite = PyObject_IsTrue(argument);
    const int checked = finite < 0 ? -1 : survey_step(self, NULL, NULL, finite ? SKIP : self->check_finite);
    return checked < 0 ? NULL : PyBool_FromLong(checked);
}

PyDoc_STRVAR(sums_doc, "_sums($self, /)\n--\n\n"
"The sums of squares that `_survey` made, one per SUM_BLOCK elements of each weight: bytes of doubles.");

static PyObject *optimizer_sums(Optimizer *self, PyObject *Py_UNUSED(ignored))
{
    size_t n = 0;
    const double *sums = self->plan ? optimc_plan_sums(self->plan, &n) : NULL;
    return PyBytes_FromStringAndSize((const char *)sums, (Py_ssize_t)(n * sizeof *sums));
}

PyDoc_STRVAR(refold_doc, "_refold($self, finite, sums, counts, /)\n--\n\n"
"Takes these sums of squares (contiguous doubles) instead of those `_survey` made: counts[i] (contiguous\n"
"64-bit integers) of them for weight i.  `finite` and what is returned: as `_survey`.");

static PyObject *optimizer_refold(Optimizer *self, PyObject *args)
{
    int finite;
    Py_buffer sums, counts;
    if (!PyArg_ParseTuple(args, "py*y*", &finite, &sums, &counts))
        return NULL;
    const size_t n = self->plan ? optimc_plan_weights(self->plan) : 0;
    int64_t needed = 0;
    int fits = (size_t)counts.len == n * sizeof needed;
    for (size_t i = 0; fits && i < n; i++) {
        needed += ((const int64_t *)counts.buf)[i];
        fits = ((const int64_t *)counts.buf)[i] >= 0 && needed <= sums.len / (Py_ssize_t)sizeof(double);
    }
    if (fits && n)
        optimc_plan_refold(self->plan, &self->request, sums.buf, counts.buf);
    else
        PyErr_SetString(PyExc_ValueError, "counts: expected one per weight, and together as many as there are sums");
    PyBuffer_Release(&sums);
    PyBuffer_Release(&counts);
    if (!fits || !n)
        return NULL;
    const int good = !self->request.overflow;
    if (!good && !finite && self->check_finite != SKIP && refuse_norm())
        return NULL;
    return PyBool_FromLong(good);
}

PyDoc_STRVAR(advance_doc, "_advance($self, double, begin, end, /)\n--\n\n"
"After `_survey`: steps elements begin .. end - 1 of all weights of one type (float64 if `double`), counted\n"
"in their order.  Every element must be stepped once before `_finish`.");

static PyObject *optimizer_advance(Optimizer *self, PyObject *args)
{
    int is_double;
    Py_ssize_t begin, end;
    if (!PyArg_ParseTuple(args, "pnn", &is_double, &begin, &end))
        return NULL;
    Py_ssize_t size = 0;
    const int lane = is_double ? TYPE_F64 : TYPE_F32;
    for (size_t i = 0; self->plan && i < optimc_plan_weights(self->plan); i++)
        if (type_of((PyArrayObject *)PyTuple_GET_ITEM(self->weights, (Py_ssize_t)i)) == lane)
            size += (Py_ssize_t)optimc_plan_size(self->plan, i);
    if (!self->plan || begin < 0 || begin > end || end > size) {
        PyErr_Format(PyExc_IndexError, "expected elements from 0 to %zd, got %zd to %zd", size, begin, end);
        return NULL;
    }
    const int begun = self->begun;
    self->begun = 1;
    optimc_pool_enter();                            /* with the GIL: a fork comes before all of it or after */
    if (!begun)
        open_step(self);
    Py_BEGIN_ALLOW_THREADS
    if (!begun)
        optimc_plan_start(self->plan, &self->request);
    optimc_plan_part(self->plan, lane, (size_t)begin, (size_t)end);
    optimc_pool_leave();
    Py_END_ALLOW_THREADS
    Py_RETURN_NONE;
}

/* ------------------------------------------------------------------------------------- the type - */

PyDoc_STRVAR(locked_doc, "_locked($self, function, /, *args, **kwargs)\n--\n\n"
"Waits for a step in progress and returns what the function gives, while no other can start.  The lock is\n"
"taken and released here, in C: a signal handler that raises cannot come before a `try` and leave it taken.");

static PyObject *optimizer_locked(Optimizer *self, PyObject *const *args, Py_ssize_t n, PyObject *names)
{
    if (!n) {
        PyErr_SetString(PyExc_TypeError, "_locked() takes a function, got nothing");
        return NULL;
    }
    if (lock(self))
        return NULL;
    PyObject *result = PyObject_Vectorcall(args[0], args + 1, (size_t)n - 1, names);
    unlock(self);
    return result;
}

static PyObject *get_iterations(Optimizer *self, void *Py_UNUSED(closure))
{
    return PyLong_FromLongLong(self->calls / self->steps);
}

static int set_iterations(Optimizer *self, PyObject *value, void *Py_UNUSED(closure))
{
    if (!value || PyBool_Check(value) || !PyIndex_Check(value)) {
        PyErr_Format(PyExc_TypeError, "iterations must be an int, got %s",
            value ? Py_TYPE(value)->tp_name : "nothing");
        return -1;
    }
    PyObject *whole = PyNumber_Index(value);
    const long long count = whole ? PyLong_AsLongLong(whole) : -1;
    Py_XDECREF(whole);
    if (PyErr_Occurred() && !PyErr_ExceptionMatches(PyExc_OverflowError))
        return -1;
    const long long most = (INT64_MAX - 1) / self->steps - 1;
    if (PyErr_Occurred() || count < 0 || count > most) {
        PyErr_Format(PyExc_ValueError, "iterations must be in [0, %lld], got %S", most, value);
        return -1;
    }
    const int mine = self->owner == this_thread();
    if (!mine && lock(self))
        return -1;
    self->calls = count * self->steps;
    if (!mine)
        unlock(self);
    return 0;
}

static PyObject *get_built(Optimizer *self, void *Py_UNUSED(closure))
{
    return PyBool_FromLong(self->plan != NULL);
}

static PyObject *get_weights(Optimizer *self, void *Py_UNUSED(closure))
{
    return Py_NewRef(self->weights ? self->weights : Py_None);
}

static PyObject *get_names(Optimizer *self, void *Py_UNUSED(closure))
{
    return Py_NewRef(self->names ? self->names : Py_None);
}

static PyObject *get_norm(Optimizer *self, void *Py_UNUSED(closure))
{
    if (!self->normed)
        Py_RETURN_NONE;
    return PyFloat_FromDouble(self->norm);
}

static int optimizer_traverse(Optimizer *self, visitproc visit, void *arg)
{
    Py_VISIT(Py_TYPE(self));
    Py_VISIT(self->arrays);
    Py_VISIT(self->weights);
    Py_VISIT(self->names);
    Py_VISIT(self->undo);
    for (size_t i = 0; i < self->n_groups; i++)
        for (int k = 0; k < self->n_values; k++)
            Py_VISIT(self->settings[i][k].source);
    Py_VISIT(self->watched);
    return 0;
}

static int optimizer_clear(Optimizer *self)
{
    unbind(self);
    for (size_t i = 0; i < self->n_groups; i++)
        for (int k = 0; k < self->n_values; k++) {
            Py_CLEAR(self->settings[i][k].source);
            Py_CLEAR(self->settings[i][k].key);
        }
    Py_CLEAR(self->undo);
    Py_CLEAR(self->watched);
    return 0;
}

static void optimizer_dealloc(Optimizer *self)
{
    PyTypeObject *type = Py_TYPE(self);
    PyObject_GC_UnTrack(self);
    optimizer_clear(self);
    for (int k = 0; k < self->n_values; k++)
        Py_CLEAR(self->bounds[k].name);
    PyMem_Free(self->groups);
    PyMem_Free(self->settings);
    type->tp_free(self);
    Py_DECREF(type);
}

static PyObject *optimizer_new(PyTypeObject *type, PyObject *Py_UNUSED(args), PyObject *Py_UNUSED(kwargs))
{
    Optimizer *self = (Optimizer *)type->tp_alloc(type, 0);
    if (!self)
        return NULL;
    self->steps = 1;
    PyObject *first = add_group_now(self, NULL);
    Py_XDECREF(first);
    if (!first) {
        Py_DECREF(self);
        return PyErr_NoMemory();
    }
    self->forks = optimc_pool_forks();
    return (PyObject *)self;
}

static int optimizer_init(PyObject *Py_UNUSED(self), PyObject *Py_UNUSED(args), PyObject *Py_UNUSED(kwargs))
{
    return 0;
}

#define METHOD(name, function, flags, doc) {name, (PyCFunction)(void (*)(void))function, flags, doc}
static PyMethodDef optimizer_methods[] = {
    METHOD("apply", optimizer_apply, METH_FASTCALL | METH_KEYWORDS, apply_doc),
    METHOD("_declare", optimizer_declare, METH_VARARGS, declare_doc),
    METHOD("_add_group", optimizer_add_group, METH_NOARGS, add_group_doc),
    METHOD("_set_value", optimizer_set_value, METH_VARARGS, set_value_doc),
    METHOD("_get_value", optimizer_get_value, METH_VARARGS, get_value_doc),
    METHOD("_ask_value", optimizer_ask_value, METH_VARARGS, ask_value_doc),
    METHOD("_is_own", optimizer_is_own, METH_VARARGS, is_own_doc),
    METHOD("_inherit", optimizer_inherit, METH_VARARGS, inherit_doc),
    METHOD("_current", optimizer_current, METH_VARARGS, current_doc),
    METHOD("_value_of", optimizer_value_of, METH_VARARGS, value_of_doc),
    METHOD("_get_running", optimizer_get_running, METH_NOARGS, get_running_doc),
    METHOD("_set_running", optimizer_set_running, METH_O, set_running_doc),
    METHOD("_set_item", optimizer_set_item, METH_VARARGS, set_item_doc),
    METHOD("_prepare_tensors", optimizer_prepare_tensors, METH_VARARGS, prepare_tensors_doc),
    METHOD("_is_as_watched", optimizer_is_as_watched, METH_NOARGS, is_as_watched_doc),
    METHOD("_check_tensors", optimizer_check_tensors, METH_FASTCALL, check_tensors_doc),
    METHOD("_apply_tensors", optimizer_apply_tensors, METH_FASTCALL, apply_tensors_doc),
    METHOD("_check", optimizer_check, METH_VARARGS, check_doc),
    METHOD("_pull", optimizer_pull, METH_VARARGS, pull_doc),
    METHOD("_match_step", optimizer_match, METH_VARARGS, match_doc),
    METHOD("_survey", optimizer_survey, METH_O, survey_doc),
    METHOD("_sums", optimizer_sums, METH_NOARGS, sums_doc),
    METHOD("_refold", optimizer_refold, METH_VARARGS, refold_doc),
    METHOD("_advance", optimizer_advance, METH_VARARGS, advance_doc),
    METHOD("_finish", optimizer_finish, METH_O, finish_doc),
    METHOD("_bind", optimizer_bind, METH_VARARGS, bind_doc),
    METHOD("_take", optimizer_take, METH_VARARGS, take_doc),
    METHOD("_waiting", optimizer_waiting, METH_NOARGS, waiting_doc),
    METHOD("_unbind", optimizer_unbind, METH_NOARGS, unbind_doc),
    METHOD("_locked", optimizer_locked, METH_FASTCALL | METH_KEYWORDS, locked_doc),
    {NULL, NULL, 0, NULL},
};

static PyGetSetDef optimizer_getset[] = {
    {"iterations", (getter)get_iterations, (setter)set_iterations,
        "Updates done so far; 64 bits.  Settable, for resuming.", NULL},
    {"last_global_norm", (getter)get_norm, NULL,
        "The norm of all gradients together in the last step that needed it, or None.", NULL},
    {"built", (getter)get_built, NULL, "Whether the optimizer is bound to weights.", NULL},
    {"_weights", (getter)get_weights, NULL, "The bound weights: a tuple, or None.", NULL},
    {"_names", (getter)get_names, NULL, "Their names: a tuple, or None.", NULL},
    {NULL, NULL, NULL, NULL, NULL},
};

static PyMemberDef optimizer_members[] = {
    {"skipped_steps", T_LONGLONG, offsetof(Optimizer, skipped), READONLY,
        "Steps skipped so far because a gradient was not finite."},
    {"_calls", T_LONGLONG, offsetof(Optimizer, calls), 0, "Steps, those that only accumulated included."},
    {"_skipped", T_LONGLONG, offsetof(Optimizer, skipped), 0, "skipped_steps, to be set."},
    {"_steps", T_INT, offsetof(Optimizer, steps), 0, "Gradients to an update, >= 1."},
    {"_overwrite", T_INT, offsetof(Optimizer, overwrite), 0, "Updates from overwrite to overwrite, or 0."},
    {"_use_ema", T_INT, offsetof(Optimizer, use_ema), 0, "Whether averages are kept."},
    {"_cautious", T_INT, offsetof(Optimizer, cautious), 0, "Whether steps are cautious."},
    {"_coupled", T_INT, offsetof(Optimizer, coupled), 0, "Whether decay is added to the gradient."},
    {"_maximize", T_INT, offsetof(Optimizer, maximize), 0, "Whether gradients are negated."},
    {"_check_finite", T_INT, offsetof(Optimizer, check_finite), 0, "0 propagate, 1 raise, 2 skip."},
    {"_evaluating", T_INT, offsetof(Optimizer, evaluating), 0, "How many times `averaged` has been entered."},
    {NULL, 0, 0, 0, NULL},
};

static PyType_Slot optimizer_slots[] = {
    {Py_tp_doc, "The base of every optimizer: values, step count, plan.  See optimc.optimizer."},
    {Py_tp_new, optimizer_new},
    {Py_tp_init, optimizer_init},
    {Py_tp_dealloc, optimizer_dealloc},
    {Py_tp_traverse, optimizer_traverse},
    {Py_tp_clear, optimizer_clear},
    {Py_tp_methods, optimizer_methods},
    {Py_tp_getset, optimizer_getset},
    {Py_tp_members, optimizer_members},
    {0, NULL},
};

static PyType_Spec optimizer_spec = {
    .name = "optimc._core.Optimizer",
    .basicsize = sizeof(Optimizer),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_BASETYPE | Py_TPFLAGS_HAVE_GC,
    .slots = optimizer_slots,
};

/* ----------------------------------------------------------------------------------- the module - */

PyDoc_STRVAR(set_num_threads_doc, "set_num_threads($module, threads, /)\n--\n\n"
"Sets how many threads a large step may use, the calling one included.  Results do not depend on it.\n"
"A number beyond the processors this process may use is cut to that, with a UserWarning.");

static int set_threads(long threads, const char *what)
{
    if (threads < 1 || threads > MAX_THREADS) {
        PyErr_Format(PyExc_ValueError, "%s must be between 1 and %d, got %ld", what, MAX_THREADS, threads);
        return -1;
    }
    const int most = optimc_pool_processors();
    if (threads > most && PyErr_WarnFormat(PyExc_UserWarning, 1,
            "%s: using %d threads, not %ld: this process may use %d processors", what, most, threads, most))
        return -1;
    optimc_pool_set_threads(threads < most ? (int)threads : most);
    return 0;
}

static PyObject *core_set_num_threads(PyObject *Py_UNUSED(module), PyObject *argument)
{
    if (PyBool_Check(argument) || !PyIndex_Check(argument)) {
        PyErr_Format(PyExc_TypeError, "threads must be an int, got %s", Py_TYPE(argument)->tp_name);
        return NULL;
    }
    int overflow;
    const long threads = PyLong_AsLongAndOverflow(argument, &overflow);
    if (threads == -1 && PyErr_Occurred())
        return NULL;
    if (set_threads(overflow ? -1 : threads, "threads"))
        return NULL;
    Py_RETURN_NONE;
}

static PyObject *core_get_num_threads(PyObject *Py_UNUSED(module), PyObject *Py_UNUSED(ignored))
{
    return PyLong_FromLong(optimc_pool_threads());
}

static PyObject *core_force_threads(PyObject *Py_UNUSED(module), PyObject *argument)
{
    const long threads = PyLong_AsLong(argument);
    if (threads < 0 || threads > MAX_THREADS)
        return PyErr_Occurred() ? NULL : PyErr_Format(PyExc_ValueError, "bad number of threads");
    optimc_pool_set_eager(threads > 0);
    optimc_pool_set_threads(threads ? (int)threads : optimc_pool_processors());
    Py_RETURN_NONE;
}

/* The ISAs as a tuple of names. */
static PyObject *isa_names(void)
{
    const struct isa *found[MAX_ISAS];
    const size_t n = optimc_isas(found);
    PyObject *names = PyTuple_New((Py_ssize_t)n);
    for (size_t i = 0; names && i < n; i++) {
        PyObject *name = PyUnicode_FromString(found[i]->name);
        if (!name)
            Py_CLEAR(names);
        else
            PyTuple_SET_ITEM(names, (Py_ssize_t)i, name);
    }
    return names;
}

static PyObject *core_use_isa(PyObject *module, PyObject *argument)
{
    const char *name = PyUnicode_AsUTF8(argument);
    const struct isa *isa = name ? optimc_isa_choose(name) : NULL;
    if (!isa)
        return PyErr_Occurred() ? NULL : PyErr_Format(PyExc_ValueError, "no ISA %R here", argument);
    state_of(module)->isa = isa;
    Py_RETURN_NONE;
}

#ifdef OPTIMC_PLANT
#include "python/plant.inc"
#endif

static PyMethodDef core_methods[] = {
#ifdef OPTIMC_PLANT
    METHOD("_plant", core_plant, METH_VARARGS, plant_doc),
#endif
    METHOD("set_num_threads", core_set_num_threads, METH_O, set_num_threads_doc),
    METHOD("check_number", core_check_number, METH_VARARGS, check_number_doc),
    METHOD("finish", core_finish, METH_VARARGS, finish_all_doc),
    METHOD("weights_of", core_weights_of, METH_O, weights_of_doc),
    METHOD("address", core_address, METH_O, address_doc),
    METHOD("_xla_target", core_xla_target, METH_O, xla_target_doc),
    METHOD("get_num_threads", core_get_num_threads, METH_NOARGS,
        "get_num_threads($module)\n--\n\nHow many threads a large step may use."),
    METHOD("_force_threads", core_force_threads, METH_O,
        "_force_threads($module, threads, /)\n--\n\nFor tests: every step of several chunks uses that many threads, "
        "however small it is; 0 ends it."),
    METHOD("_use_isa", core_use_isa, METH_O,
        "_use_isa($module, name, /)\n--\n\nFor tests: optimizers built from now on use this ISA."),
    {NULL, NULL, 0, NULL},
};

#define LIST(...) #__VA_ARGS__
#define NAMES(list) LIST list

/* optimizers.def as Python sees it: {rule: (slots, hyperparameters, coefficients, scalars)} and
   {kernel: (index, rule, mask of slots)}, the lists as written there, "a, b, c". */
static int add_registry(PyObject *module)
{
    PyObject *rules = PyDict_New(), *kernels = PyDict_New(), *row = NULL;
    int failed = !rules || !kernels;
#define RULE_ROW(rule, slots, hypers, coefs, scalars) \
    row = failed ? NULL : Py_BuildValue("(ssss)", NAMES(slots), NAMES(hypers), NAMES(coefs), \
        NAMES(scalars)); \
    failed |= !row || PyDict_SetItemString(rules, #rule, row); \
    Py_CLEAR(row);
#define KERNEL_ROW(kernel, rule, variant, used) \
    row = failed ? NULL : Py_BuildValue("(isi)", KERNEL_##kernel, #rule, used); \
    failed |= !row || PyDict_SetItemString(kernels, #kernel, row); \
    Py_CLEAR(row);
#include "optimizers.def"
    failed |= failed || PyModule_AddObjectRef(module, "rules", rules);
    failed |= failed || PyModule_AddObjectRef(module, "kernels", kernels);
    Py_XDECREF(rules);
    Py_XDECREF(kernels);
    return failed ? -1 : 0;
}

/* OPTIMC_ISA and OPTIMC_NUM_THREADS: one clear error each. */
static int read_environment(struct state *state)
{
    const char *name = getenv("OPTIMC_ISA"), *threads = getenv("OPTIMC_NUM_THREADS");
    state->isa = optimc_isa_choose(name && *name ? name : NULL);
    if (!state->isa) {
        PyObject *names = isa_names();
        if (names)
            PyErr_Format(PyExc_ImportError, "OPTIMC_ISA=%s: no such ISA here, there are %S", name, names);
        Py_XDECREF(names);
        return -1;
    }
    if (threads && *threads) {
        char *end;
        const long n = strtol(threads, &end, 10);
        if (*end || n < 1 || n > MAX_THREADS) {
            PyErr_Format(PyExc_ImportError, "OPTIMC_NUM_THREADS=%s: expected a number from 1 to %d",
                threads, MAX_THREADS);
            return -1;
        }
        return set_threads(n, "OPTIMC_NUM_THREADS");
    }
    return 0;
}

static int core_exec(PyObject *module)
{
    if (PyArray_ImportNumPyAPI() < 0 || read_environment(state_of(module)))
        return -1;
    if (optimc_pool_setup()) {
        PyErr_NoMemory();
        return -1;
    }
    PyObject *type = PyType_FromModuleAndSpec(module, &optimizer_spec, NULL);
    if (!type || PyModule_AddType(module, (PyTypeObject *)type) || add_registry(module)) {
        Py_XDECREF(type);
        return -1;
    }
    state_of(module)->type = (PyTypeObject *)type;
    PyObject *isas = isa_names();
    const int failed = !isas || PyModule_AddObjectRef(module, "isas", isas)
        || PyModule_AddIntMacro(module, MAX_SLOTS) || PyModule_AddIntMacro(module, MAX_HYPERS)
        || PyModule_AddIntMacro(module, SUM_BLOCK)
        || PyModule_AddStringConstant(module, "isa", state_of(module)->isa->name)
        || PyModule_AddStringConstant(module, "compiler", optimc_compiler());
    Py_XDECREF(isas);
    return failed ? -1 : 0;
}

static PyModuleDef_Slot core_slots[] = {
    {Py_mod_exec, core_exec},
#ifdef Py_mod_multiple_interpreters
    {Py_mod_multiple_interpreters, Py_MOD_MULTIPLE_INTERPRETERS_NOT_SUPPORTED},
#endif
#ifdef Py_mod_gil
    /* The lists and dicts of a call are read through borrowed references, and values without the optimizer's
       lock: that rests on the GIL, so a free-threaded interpreter is to turn it on.  Large steps give it up. */
    {Py_mod_gil, Py_MOD_GIL_USED},
#endif
    {0, NULL},
};

static int core_traverse(PyObject *module, visitproc visit, void *arg)
{
    Py_VISIT(state_of(module)->type);
    return 0;
}

static int core_clear(PyObject *module)
{
    Py_CLEAR(state_of(module)->type);
    return 0;
}

static struct PyModuleDef core_module = {
    PyModuleDef_HEAD_INIT,
    .m_name = "optimc._core",
    .m_doc = "The C side of optimc: see optimc.",
    .m_size = sizeof(struct state),
    .m_methods = core_methods,
    .m_slots = core_slots,
    .m_traverse = core_traverse,
    .m_clear = core_clear,
};

PyMODINIT_FUNC PyInit__core(void)
{
    return PyModuleDef_Init(&core_module);
}
