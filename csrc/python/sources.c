/* sources.c - numbers from the caller: their kinds and ranges, and the schedules, callables and dicts that give them.

   All of these may run code of the caller's, which may set any value of the optimizer.  Next: settings.c, which keeps
   the values. */
#define NO_IMPORT_ARRAY
#include "python/boundary.h"

#include <numpy/arrayscalars.h>

#include <math.h>

/* A real number: float, int or NumPy scalar, or a 0-d array if `array_too`; never a bool. */
int optimc_read_number(PyObject *object, int array_too, double *number)
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

int optimc_is_in_range(const struct bound *bound, double number)
{
    const int low = bound->open & LOW_OPEN ? number > bound->low : number >= bound->low;
    const int high = bound->open & HIGH_OPEN ? number < bound->high : number <= bound->high;
    return low && high && isfinite(number);
}

/* Checks a number against its bound; `origin` names the source in the error ("" or " from its schedule"). */
int optimc_check_bound(const struct bound *bound, double number, PyObject *object, const char *origin)
{
    if (optimc_is_in_range(bound, number))
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
"Returns the value as a float if it is a number in the range; raises an error with its name otherwise.\n"
"`open`: 1 excludes the low end of the range, 2 the high end, 3 both.");

static PyObject *core_check_number(PyObject *Py_UNUSED(module), PyObject *args)
{
    struct bound bound;
    PyObject *object;
    double number;
    if (!PyArg_ParseTuple(args, "UOddi", &bound.name, &object, &bound.low, &bound.high, &bound.open))
        return NULL;
    const int real = optimc_read_number(object, 0, &number);
    if (!real)
        PyErr_Format(PyExc_TypeError, "%U must be a number, got %s", bound.name,
            Py_TYPE(object)->tp_name);
    if (real <= 0 || optimc_check_bound(&bound, number, object, ""))
        return NULL;
    return PyFloat_FromDouble(number);
}

/* The number of entries of a list or tuple; -1 of any other object. */
static Py_ssize_t entries(PyObject *object)
{
    return PyList_Check(object) || PyTuple_Check(object) ? PySequence_Fast_GET_SIZE(object) : -1;
}

/* Reads a value from the item of a dict.  A number of another library is accepted if it converts to a float.  The
   setting must own its references, because keys and numbers may have code of their own. */
int optimc_read_item(Optimizer *self, const struct setting *setting, int k, double *number)
{
    PyObject *object = Py_XNewRef(PyDict_GetItemWithError(setting->source, setting->key));
    if (object && setting->items && entries(object) != setting->items) {
        PyErr_Format(PyExc_ValueError, "%U must be a tuple of %d numbers, got %R", self->bounds[k].name,
            setting->items, object);
        Py_DECREF(object);
        return -1;
    }
    if (object && setting->item >= 0)
        Py_SETREF(object, setting->item < entries(object)
            ? Py_NewRef(PySequence_Fast_GET_ITEM(object, setting->item)) : NULL);
    if (!object) {
        if (!PyErr_Occurred())
            PyErr_Format(PyExc_KeyError, "%U: no such item %R", self->bounds[k].name, setting->key);
        return -1;
    }
    if (object == Py_None && self->bounds[k].optional && !setting->zero_is_off) {
        *number = Py_NAN;
        Py_DECREF(object);
        return 0;
    }
    int got = optimc_read_number(object, 1, number);
    if (!got && !PyBool_Check(object) && !PyUnicode_Check(object)) {
        *number = PyFloat_AsDouble(object);
        got = *number == -1 && PyErr_Occurred() ? -1 : 1;
    }
    if (!got)
        PyErr_Format(PyExc_TypeError, "%U must be a number, got %s", self->bounds[k].name,
            Py_TYPE(object)->tp_name);
    const int failed = got <= 0 || optimc_check_bound(&self->bounds[k], *number, object, "");
    Py_DECREF(object);
    if (!failed && setting->zero_is_off && *number == 0)
        *number = Py_NAN;
    return failed ? -1 : 0;
}

/* Calls a schedule (with the step) or a callable. */
static int call_source(Optimizer *self, const struct setting *setting, int k, double *number)
{
    PyObject *step = setting->with_step ? PyLong_FromLongLong(self->calls) : NULL;
    PyObject *result = !setting->with_step ? PyObject_CallNoArgs(setting->source)
        : step ? PyObject_CallOneArg(setting->source, step) : NULL;
    Py_XDECREF(step);
    if (!result)
        return -1;
    int got = optimc_read_number(result, 1, number);
    if (!got)
        PyErr_Format(PyExc_TypeError, "%U: expected its schedule to return a number, got %s",
            self->bounds[k].name, Py_TYPE(result)->tp_name);
    if (got > 0)
        got = optimc_check_bound(&self->bounds[k], *number, result, " from its schedule") ? -1 : 1;
    Py_DECREF(result);
    return got > 0 ? 0 : -1;
}

/* Asks a schedule, a callable or a dict for a value.  The code that this runs may set the value anew, and may add a
   group, which moves all settings. */
int optimc_ask(Optimizer *self, size_t group, int k, double *number)
{
    struct setting setting = self->settings[group][k];
    Py_INCREF(setting.source);
    Py_XINCREF(setting.key);
    const int failed = setting.key ? optimc_read_item(self, &setting, k, number)
        : call_source(self, &setting, k, number);
    Py_DECREF(setting.source);
    Py_XDECREF(setting.key);
    return failed;
}

PyMethodDef optimc_sources_functions[] = {
    METHOD("check_number", core_check_number, METH_VARARGS, check_number_doc),
    {NULL, NULL, 0, NULL},
};
