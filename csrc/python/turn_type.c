/* turn_type.c - the type _core.Turn: a turn for Python code, and the step over tensors that needs no more of it.

       with turn:
           ...                  no other thread is here
       turn.apply()             the step that turn.step describes, in the turn too

   It is the turn of an optimizer that has no weights (turns.c), so threads get it in the order they came, and a child
   process takes over that of a thread it does not have.  Unlike a step, a thread may enter it again.  Both methods of
   `with` are C: no signal handler comes between taking the turn and the block that gives it back. */
#define NO_IMPORT_ARRAY
#include "python/boundary.h"

typedef struct {
    PyObject_HEAD
    Optimizer *optimizer;               /* whose turn it is */
    Py_ssize_t depth;                   /* how many times the owner has entered */
    PyObject *step;                     /* (optimizer, tensors, exchange, others, changed), or None */
} Turn;

static PyObject *turn_new(PyTypeObject *type, PyObject *Py_UNUSED(args), PyObject *Py_UNUSED(kwargs))
{
    const struct state *state = PyType_GetModuleState(type);
    PyObject *optimizer = state ? PyObject_CallNoArgs((PyObject *)state->type) : NULL;
    Turn *self = optimizer ? (Turn *)type->tp_alloc(type, 0) : NULL;
    if (!self) {
        Py_XDECREF(optimizer);
        return NULL;
    }
    self->optimizer = (Optimizer *)optimizer;
    self->step = Py_NewRef(Py_None);
    return (PyObject *)self;
}

static int turn_traverse(Turn *self, visitproc visit, void *arg)
{
    Py_VISIT(Py_TYPE(self));
    Py_VISIT(self->optimizer);
    Py_VISIT(self->step);
    return 0;
}

static int turn_clear(Turn *self)
{
    Py_XSETREF(self->step, Py_NewRef(Py_None));
    return 0;
}

static void turn_dealloc(Turn *self)
{
    PyTypeObject *type = Py_TYPE(self);
    PyObject_GC_UnTrack(self);
    Py_XDECREF(self->step);
    Py_XDECREF(self->optimizer);
    type->tp_free(self);
    Py_DECREF(type);
}

static int enter(Turn *self)
{
    if (self->optimizer->owner == optimc_this_thread()) {
        self->depth++;
        return 0;
    }
    if (optimc_take_turn(self->optimizer))
        return -1;
    self->depth = 1;
    return 0;
}

static void leave(Turn *self)
{
    if (!--self->depth)
        optimc_unlock(self->optimizer);
}

static PyObject *turn_enter(Turn *self, PyObject *Py_UNUSED(ignored))
{
    if (enter(self))
        return NULL;
    Py_RETURN_NONE;
}

static PyObject *turn_exit(Turn *self, PyObject *const *Py_UNUSED(args), Py_ssize_t Py_UNUSED(n))
{
    if (self->optimizer->owner != optimc_this_thread()) {
        PyErr_SetString(PyExc_RuntimeError, "the turn is not this thread's");
        return NULL;
    }
    leave(self);
    Py_RETURN_FALSE;
}

PyDoc_STRVAR(apply_doc, "apply($self, /)\n--\n\n"
"The step over tensors that `step` describes when the turn comes.  Returns True if it has run, or if no tensor has\n"
"a gradient.  Returns False, having changed nothing, if `step` is None or not as planned, if one of the others has\n"
"a gradient, or after a RuntimeError, TypeError or ValueError: a longer way may say more.");

/* 1 if one of these tensors has a gradient, else 0; -1 with an error. */
static int has_gradient(PyObject *tensors)
{
    for (Py_ssize_t i = 0; i < PyTuple_GET_SIZE(tensors); i++) {
        PyObject *grad = PyObject_GetAttrString(PyTuple_GET_ITEM(tensors, i), "grad");
        Py_XDECREF(grad);                       /* only its identity counts */
        if (grad != Py_None)
            return grad ? 1 : -1;
    }
    return 0;
}

/* Steps within the turn.  Returns the tensors that were updated, None for another way, or NULL with an error. */
static PyObject *apply_now(PyObject *step)
{
    PyObject *stepped = NULL;
    const int late = step == Py_None ? 1 : has_gradient(PyTuple_GET_ITEM(step, 3));
    if (late)
        return late > 0 ? Py_NewRef(Py_None) : NULL;
    const int found = optimc_apply_tensors((Optimizer *)PyTuple_GET_ITEM(step, 0), PyTuple_GET_ITEM(step, 1),
        PyTuple_GET_ITEM(step, 2), NULL, &stepped);
    return found == NOT_AS_PLANNED ? Py_NewRef(Py_None) : found == NO_GRADIENTS ? PyTuple_New(0) : stepped;
}

static PyObject *turn_apply(Turn *self, PyObject *Py_UNUSED(ignored))
{
    PyObject *step = NULL, *stepped = NULL;
    if (!enter(self)) {
        step = Py_NewRef(self->step);
        stepped = apply_now(step);
        leave(self);
    }
    if (!stepped && (PyErr_ExceptionMatches(PyExc_RuntimeError) || PyErr_ExceptionMatches(PyExc_TypeError)
            || PyErr_ExceptionMatches(PyExc_ValueError))) {
        PyErr_Clear();
        stepped = Py_NewRef(Py_None);
    }
    const int ran = stepped && stepped != Py_None;
    PyObject *told = ran ? PyObject_CallOneArg(PyTuple_GET_ITEM(step, 4), stepped) : Py_XNewRef(stepped);
    Py_XDECREF(stepped);
    Py_XDECREF(step);
    if (!told)
        return NULL;
    Py_DECREF(told);
    return PyBool_FromLong(ran);
}

static PyObject *get_step(Turn *self, void *Py_UNUSED(closure))
{
    return Py_NewRef(self->step);
}

static int set_step(Turn *self, PyObject *value, void *Py_UNUSED(closure))
{
    const struct state *state = PyType_GetModuleState(Py_TYPE(self));
    if (!value || (value != Py_None && !(PyTuple_Check(value) && PyTuple_GET_SIZE(value) == 5
            && PyTuple_Check(PyTuple_GET_ITEM(value, 3))
            && PyObject_TypeCheck(PyTuple_GET_ITEM(value, 0), state->type)))) {
        PyErr_SetString(PyExc_TypeError, "step: expected None or (optimizer, tensors, exchange, others, changed)");
        return -1;
    }
    Py_XSETREF(self->step, Py_NewRef(value));
    return 0;
}

static PyMethodDef turn_methods[] = {
    METHOD("__enter__", turn_enter, METH_NOARGS, "__enter__($self, /)\n--\n\nTakes the turn, or waits for it."),
    METHOD("__exit__", turn_exit, METH_FASTCALL, "__exit__($self, /, *args)\n--\n\nGives it to the next thread."),
    METHOD("apply", turn_apply, METH_NOARGS, apply_doc),
    {NULL, NULL, 0, NULL},
};

static PyGetSetDef turn_getset[] = {
    {"step", (getter)get_step, (setter)set_step,
        "What `apply` steps: (optimizer, tensors, exchange, tensors that must have no gradient, a function that is\n"
        "called with the tensors that were updated) or None.", NULL},
    {NULL, NULL, NULL, NULL, NULL},
};

static PyType_Slot turn_slots[] = {
    {Py_tp_doc, "A turn of threads: one at a time, in the order they came.  Use it with `with`, also within itself."},
    {Py_tp_new, turn_new},
    {Py_tp_dealloc, turn_dealloc},
    {Py_tp_traverse, turn_traverse},
    {Py_tp_clear, turn_clear},
    {Py_tp_methods, turn_methods},
    {Py_tp_getset, turn_getset},
    {0, NULL},
};

static PyType_Spec turn_spec = {
    .name = "optimc._core.Turn",
    .basicsize = sizeof(Turn),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC,
    .slots = turn_slots,
};

PyTypeObject *optimc_turn_type(PyObject *module)
{
    return (PyTypeObject *)PyType_FromModuleAndSpec(module, &turn_spec, NULL);
}
