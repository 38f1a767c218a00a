/* look.c - the first half of a step over tensors: where weights, slots and gradients lie, and who keeps them there.

   A step first collects tensors, which may run code of others: a property `grad`, a key that is compared.  Then it
   looks at all of them in one go, in which no other code runs: first at weights and slots, which are moved in the
   plan together, then at gradients.  Where other code had to run after all, it looks again from the beginning.

   A sparse gradient has no memory to look at.  Rows that Python makes of it (tensors.c) take its place.

   Another thread may give a tensor other memory while a step runs without the GIL.  Such a step holds the storages of
   all that it touches, from before it looks until it ends.  Next: match.c, the survey of the gradients. */
#define NO_IMPORT_ARRAY
#include "python/tensors.h"

#include "python/rows_type.h"
#include "python/views.h"

/* A step gives up the GIL if it takes longer than this times what holding costs, in nanoseconds a tensor. */
static const double HOLD_WORTH = 10 * 100;

/* Looking gives up when memory moves this often meanwhile. */
enum { TRIES = 8 };

/* A step being matched. */
struct look {
    Optimizer *self;
    struct tensors *tensors;
    const struct tensor_exchange *table;
    PyObject *list, *grads;             /* lists of the weights and of their gradients, or NULL for their own */
    int ask_places, ask_grads;          /* whether methods of tensors are still to be asked */
    int moved;                          /* a weight or a part lies elsewhere than at the last step */
    int again;                          /* foreign code has run: look again */
    ptrdiff_t *room;                    /* for the shape and strides of one of them */
};

static PyObject *call(PyObject *object, PyObject *method)
{
    return PyObject_VectorcallMethod(method, &object, 1 | PY_VECTORCALL_ARGUMENTS_OFFSET, NULL);
}

/* Asks a method for a truth value: 0, 1 or -1. */
static int ask(PyObject *object, PyObject *method)
{
    PyObject *answer = call(object, method);
    const int truth = answer ? PyObject_IsTrue(answer) : -1;
    Py_XDECREF(answer);
    return truth;
}

static PyObject *weight_at(const struct look *look, size_t i)
{
    return PyList_GET_ITEM(look->list, (Py_ssize_t)i);
}

/* 1 if the lists are still as long as they were, which foreign code may have changed; or 0 with an error. */
static int is_whole(const struct look *look)
{
    const Py_ssize_t n = (Py_ssize_t)look->tensors->n;
    if (PyList_GET_SIZE(look->list) == n && (!look->grads || PyList_GET_SIZE(look->grads) == n))
        return 1;
    PyErr_SetString(PyExc_RuntimeError, "tensors: the list has changed its length during the step");
    return 0;
}

static int ndim_of(const struct look *look, size_t i)
{
    return PyArray_NDIM((PyArrayObject *)PyTuple_GET_ITEM(look->self->plan->weights, (Py_ssize_t)i));
}

static PyObject *order_of(const struct look *look, size_t i)
{
    return PyTuple_GET_ITEM(look->tensors->orders, (Py_ssize_t)i);
}

/* ------------------------------------------------------------------------ collecting - */

/* Makes Rows of gradient k, if it is sparse: 0, or -1 with an error, which may be one that is set. */
static int make_rows(struct look *look, size_t k)
{
    look->again = 1;
    return optimc_make_rows(look->self, look->list, k);
}

/* Collects gradients and parts.  NO_GRADIENTS, NOT_AS_PLANNED, CHECKED or -1. */
static int collect(struct look *look)
{
    struct tensors *tensors = look->tensors;
    Plan *plan = look->self->plan;
    const int may_rest = optimc_plan_progress(plan->core, 0) != NULL;
    for (size_t i = 0; i < tensors->n; i++) {
        if (!is_whole(look))
            return -1;
        PyObject *grad;
        if (look->grads)
            grad = Py_NewRef(PyList_GET_ITEM(look->grads, (Py_ssize_t)i));
        else {
            PyObject *tensor = Py_NewRef(weight_at(look, i));
            grad = PyObject_GetAttr(tensor, tensors->names[GRAD]);
            Py_DECREF(tensor);
        }
        if (!grad)
            return -1;
        tensors->rests[i] = grad == Py_None;
        if (grad == Py_None)
            Py_DECREF(grad);
        else {
            plan->places[plan->n_gradients] = i;
            plan->gradients[plan->n_gradients++] = grad;
        }
    }
    if (plan->n_gradients < tensors->n && (!may_rest || !plan->n_gradients))
        return plan->n_gradients ? NOT_AS_PLANNED : NO_GRADIENTS;
    for (size_t k = 0; k < plan->n_gradients; k++)
        if (tensors->by_rows[plan->places[k]] && make_rows(look, k))
            return -1;
    for (size_t k = 0; k < tensors->n_parts; k++) {
        PyObject *item = PyDict_GetItemWithError(tensors->parts[k].dict, tensors->parts[k].key);
        if (!item)
            return PyErr_Occurred() ? -1 : NOT_AS_PLANNED;
        tensors->items[k] = Py_NewRef(item);
    }
    return CHECKED;
}

/* --------------------------------------------------------------------------- holding - */

/* 1 if calling a method of a tensor may run Python code, else 0. */
static int is_foreign(const struct tensors *tensors, PyObject *tensor)
{
    for (Py_ssize_t i = 0; i < PyTuple_GET_SIZE(tensors->types); i++)
        if (PyTuple_GET_ITEM(tensors->types, i) == (PyObject *)Py_TYPE(tensor))
            return 0;
    return 1;
}

/* The number that a method gives. */
static int measure(PyObject *storage, PyObject *method, size_t *number)
{
    PyObject *object = call(storage, method);
    *number = object ? PyLong_AsSize_t(object) : 0;
    Py_XDECREF(object);
    return PyErr_Occurred() ? -1 : 0;
}

/* Holds the storage of a tensor; k is its number among all. */
static int hold(struct tensors *tensors, PyObject *tensor, size_t k)
{
    PyObject *storage = call(tensor, tensors->names[STORAGE]);
    if (!storage)
        return -1;
    Py_XSETREF(tensors->storages[k], storage);
    if (!tensors->measured)
        return 0;
    size_t low, bytes;
    if (measure(storage, tensors->names[ADDRESS], &low) || measure(storage, tensors->names[BYTES], &bytes))
        return -1;
    tensors->reaches[k] = (struct reach){(const char *)low, (const char *)low + bytes};
    return 0;
}

/* Says more plainly why a tensor cannot be held, if a look at it tells.  Returns -1. */
static int refuse_hold(const struct look *look, PyObject *tensor, const char *argument, size_t i)
{
    PyObject *type, *value, *trace;
    struct view view;
    PyErr_Fetch(&type, &value, &trace);
    if (!PyErr_GivenExceptionMatches(type, PyExc_MemoryError)
        && (optimc_look_tensor(look->table, tensor, order_of(look, i), argument, (Py_ssize_t)i, look->room,
                ndim_of(look, i), &view) || (!view.data && optimc_view_size(&view)
                && optimc_refuse_tensor(FAULT_NO_MEMORY, argument, i)))) {
        Py_XDECREF(type);
        Py_XDECREF(value);
        Py_XDECREF(trace);
    } else
        PyErr_Restore(type, value, trace);
    return -1;
}

/* 1 if a method of any of the tensors may run Python code, else 0. */
static int is_any_foreign(const struct look *look)
{
    const struct tensors *tensors = look->tensors;
    const Plan *plan = look->self->plan;
    for (size_t k = 0; k < plan->n_gradients; k++)
        if (is_foreign(tensors, weight_at(look, plan->places[k]))
            || (!tensors->by_rows[plan->places[k]] && is_foreign(tensors, plan->gradients[k])))
            return 1;
    for (size_t k = 0; k < tensors->n_parts; k++)
        if (is_foreign(tensors, tensors->items[k]))
            return 1;
    return 0;
}

/* Holds all that the step touches.  CHECKED, NOT_AS_PLANNED or -1. */
static int hold_each(struct look *look)
{
    struct tensors *tensors = look->tensors;
    const Plan *plan = look->self->plan;
    const size_t n = tensors->n;
    for (size_t k = 0; k < plan->n_gradients; k++) {
        const size_t i = plan->places[k];
        PyObject *grad = plan->gradients[k];
        PyObject *tensor = is_whole(look) ? Py_NewRef(weight_at(look, i)) : NULL;
        const int failed = !tensor ? -1 : hold(tensors, tensor, i) ? refuse_hold(look, tensor, "weights", i)
            : !tensors->by_rows[i] && hold(tensors, grad, n + i)
            ? refuse_hold(look, grad, "grads", i) && make_rows(look, k) : 0;
        Py_XDECREF(tensor);
        if (failed)
            return -1;
    }
    for (size_t k = 0; k < tensors->n_parts; k++) {
        if (tensors->rests[tensors->parts[k].place.weight] || !hold(tensors, tensors->items[k], 2 * n + k))
            continue;
        if (PyErr_ExceptionMatches(PyExc_MemoryError))
            return -1;
        PyErr_Clear();                          /* it is no tensor, say: a plan made anew says so */
        return NOT_AS_PLANNED;
    }
    return CHECKED;
}

/* The same while no garbage is collected, whose end could run code. */
static int hold_all(struct look *look)
{
    look->tensors->measured = is_any_foreign(look);
    const int collects = PyGC_Disable(), found = hold_each(look);
    if (collects)
        PyGC_Enable();
    return found;
}

/* Notes that what was looked at is not what is held, if so.  Nothing is held of a weight that rests. */
static void check_reach(struct look *look, size_t weight, size_t k, const struct view *view)
{
    const struct reach *reach = &look->tensors->reaches[k];
    if (look->tensors->measured && !look->tensors->rests[weight] && optimc_view_size(view)
        && (view->data < reach->low || view->data >= reach->high))
        look->again = 1;
}

void optimc_release_tensors(struct tensors *tensors)
{
    for (size_t k = 0; k < tensors->n_parts; k++)
        Py_CLEAR(tensors->items[k]);
    for (size_t k = 0; k < 2 * tensors->n + tensors->n_parts && tensors->held; k++)
        Py_CLEAR(tensors->storages[k]);
    tensors->measured = tensors->held = 0;
    tensors->table = NULL;
}

/* --------------------------------------------------------------------------- looking - */

/* 1 if the values of a tensor are those in its memory, and may be written; 0, or -1 with an error.  It runs foreign
   code. */
static int is_plain(struct look *look, PyObject *tensor)
{
    look->again = 1;
    tensor = Py_NewRef(tensor);
    int odd = ask(tensor, look->tensors->names[IS_NEGATIVE]);
    odd = odd ? odd : ask(tensor, look->tensors->names[IS_INFERENCE]);
    Py_DECREF(tensor);
    return odd < 0 ? -1 : !odd;
}

/* Notes whether a tensor has moved, which then must be plain.  CHECKED, NOT_AS_PLANNED or -1. */
static int note_move(struct look *look, PyObject *tensor, int moved)
{
    look->moved |= moved;
    const int plain = moved && look->ask_places ? is_plain(look, tensor) : 1;
    return plain < 0 ? -1 : plain ? CHECKED : NOT_AS_PLANNED;
}

/* Tells the plan where a weight lies.  CHECKED or -1. */
static int place_weight(struct look *look, size_t i, int *moved)
{
    struct view view;
    if (optimc_look_tensor(look->table, weight_at(look, i), order_of(look, i), "weights", (Py_ssize_t)i, look->room,
            ndim_of(look, i), &view))
        return -1;
    const enum fault fault = optimc_plan_place(look->self->plan->core, (struct place){i, PART_WEIGHT}, &view, moved);
    if (fault)
        return optimc_refuse_tensor(fault, "weights", i);
    check_reach(look, i, i, &view);
    return CHECKED;
}

/* Tells the plan where weights and parts lie.  CHECKED, NOT_AS_PLANNED or -1.  A weight that rests is refused by
   nobody: a plan made anew is without it. */
static int place_all(struct look *look)
{
    const struct tensors *tensors = look->tensors;
    struct view view;
    int moved;
    for (size_t i = 0; i < tensors->n; i++) {
        if (look->again && !is_whole(look))
            return -1;
        if (place_weight(look, i, &moved) < 0) {
            if (!tensors->rests[i])
                return -1;
            PyErr_Clear();
            return NOT_AS_PLANNED;
        }
        const int found = note_move(look, weight_at(look, i), moved);
        if (found != CHECKED)
            return found;
    }
    for (size_t k = 0; k < tensors->n_parts; k++) {
        const struct tensor_part *part = &tensors->parts[k];
        PyObject *order = order_of(look, part->place.weight);
        if (order != Py_None && PyTuple_GET_SIZE(order) != part->ndim)
            order = Py_None;
        if (optimc_look_tensor(look->table, tensors->items[k], order, "state", (Py_ssize_t)part->place.weight,
                look->room, part->ndim, &view)) {
            PyErr_Clear();                      /* a plan made anew says what is wrong with it */
            return NOT_AS_PLANNED;
        }
        if (optimc_plan_place(look->self->plan->core, part->place, &view, &moved))
            return NOT_AS_PLANNED;
        check_reach(look, part->place.weight, 2 * tensors->n + k, &view);
        const int found = note_move(look, tensors->items[k], moved);
        if (found != CHECKED)
            return found;
    }
    look->ask_places = 0;
    return CHECKED;
}

/* 1 if a gradient may have torch's negative bit, else 0.  Its values are then those in memory, negated.  Imaginary
   parts of conjugates have it.  They lie between the real parts, so that they are contiguous only if they are one
   number, which does not begin a piece of torch's memory.  To ask the tensor would give up the GIL. */
static int may_be_negative(const struct view *view)
{
    return !view->c_order || (optimc_view_size(view) == 1 && (uintptr_t)view->data % 64);
}

/* Puts a gradient without the negative bit in the place of one that has it.  It runs foreign code. */
static int resolve(struct look *look, PyObject **gradient)
{
    look->again = 1;
    const int negative = ask(*gradient, look->tensors->names[IS_NEGATIVE]);
    if (negative <= 0)
        return negative;
    PyObject *resolved = call(*gradient, look->tensors->names[RESOLVE_NEGATIVE]);
    if (!resolved)
        return -1;
    Py_SETREF(*gradient, resolved);
    return 0;
}

/* Takes the gradients.  CHECKED, NOT_AS_PLANNED or -1. */
static int take_all(struct look *look)
{
    struct tensors *tensors = look->tensors;
    Plan *plan = look->self->plan;
    for (size_t k = 0; k < plan->n_gradients; k++) {
        const size_t i = plan->places[k];
        struct view view;
        struct place overlap;
        if (tensors->by_rows[i]) {
            const struct pairs entry = {.i = (Py_ssize_t)i + 1};
            if (!look->again && optimc_take_rows(plan, &entry, i, (Rows *)plan->gradients[k]))
                return -1;
            continue;
        }
        if (optimc_look_tensor(look->table, plan->gradients[k], order_of(look, i), "grads", (Py_ssize_t)i, look->room,
                ndim_of(look, i), &view)) {
            if (make_rows(look, k))
                return -1;
            continue;
        }
        check_reach(look, i, tensors->n + i, &view);
        if (look->ask_grads && may_be_negative(&view) && resolve(look, &plan->gradients[k]))
            return -1;
        if (look->again)
            continue;
        const enum fault fault = optimc_plan_take(plan->core, i, &view, &overlap);
        if (fault)
            return fault == FAULT_OVERLAP && tensors->rests[overlap.weight] ? NOT_AS_PLANNED
                : optimc_refuse_tensor(fault, "grads", i);
    }
    look->ask_grads = 0;
    return CHECKED;
}

/* 1 if a step is to give up the GIL, because it takes much longer than holding what it touches; else 0. */
static int is_worth_holding(const struct tensors *tensors, const Plan *plan)
{
    const double cost = optimc_plan_whole_cost(plan->core);
    return cost >= GIL_WORTH && cost >= HOLD_WORTH * (double)(2 * tensors->n + tensors->n_parts);
}

static int look_at_all(struct look *look, int held)
{
    Plan *plan = look->self->plan;
    for (int tries = 0; tries < TRIES; tries++) {
        struct place overlap[2];
        look->again = look->moved = 0;
        if (!is_whole(look))
            return -1;
        int found = held ? hold_all(look) : CHECKED;
        optimc_plan_begin(plan->core);
        if (found == CHECKED)
            found = place_all(look);
        if (found != CHECKED)
            return found;
        if (look->again)
            continue;
        if (optimc_plan_move(plan->core, overlap))
            return look->tensors->rests[overlap[0].weight] || look->tensors->rests[overlap[1].weight] ? NOT_AS_PLANNED
                : optimc_refuse_tensor(FAULT_OVERLAP, "weights", overlap[1].weight);
        look->self->moved |= look->moved;
        found = take_all(look);
        if (found != CHECKED || !look->again)
            return found;
    }
    PyErr_SetString(PyExc_RuntimeError, "tensors: their memory moves while the step looks at them");
    return -1;
}

int optimc_match_tensors(Optimizer *self, PyObject *list, const struct tensor_exchange *table, PyObject *grads,
    int held)
{
    struct tensors *tensors = self->tensors;
    if (!self->plan || !tensors || !PyList_Check(list) || (size_t)PyList_GET_SIZE(list) != tensors->n) {
        PyErr_SetString(PyExc_ValueError, "tensors: expected a list of the weights the plan was made for");
        return -1;
    }
    if (grads && (!PyList_Check(grads) || PyList_GET_SIZE(grads) != PyList_GET_SIZE(list))) {
        PyErr_SetString(PyExc_ValueError, "grads: expected a list with an entry per tensor");
        return -1;
    }
    self->plan->matching = BUSY;                /* from here on nobody replaces the plan or `tensors` */
    const int same = optimc_is_as_watched(self);
    if (same <= 0)
        return same < 0 ? -1 : NOT_AS_PLANNED;
    if (optimc_ask_all(self))
        return -1;
    ptrdiff_t room[2 * NPY_MAXDIMS];
    struct look look = {.self = self, .tensors = tensors, .table = table, .list = list, .grads = grads,
        .ask_places = 1, .ask_grads = 1, .room = room};
    const int found = collect(&look);
    if (found != CHECKED)
        return found;
    if (!optimc_numbers_are_left(self, table))
        return NOT_AS_PLANNED;
    tensors->table = table;
    tensors->held = held || is_worth_holding(tensors, self->plan);
    self->plan->keeps_gil = !tensors->held;
    return look_at_all(&look, tensors->held);
}
