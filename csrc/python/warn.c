/* warn.c - warnings, which point at the line of the program that called optimc, not at a line within optimc. */
#define NO_IMPORT_ARRAY
#include "python/boundary.h"

/* 1 if a frame runs code of optimc, else 0; -1 with an error. */
static int is_own(PyFrameObject *frame)
{
    PyObject *globals = PyFrame_GetGlobals(frame);
    PyObject *name = globals ? PyDict_GetItemString(globals, "__name__") : NULL;
    const char *text = name && PyUnicode_Check(name) ? PyUnicode_AsUTF8(name) : "";
    const int own = text ? !strncmp(text, "optimc.", 7) || !strcmp(text, "optimc") : -1;
    Py_XDECREF(globals);
    return own;
}

/* The level of the innermost frame that is not optimc's, as warnings count them; 0 with an error. */
static Py_ssize_t level(void)
{
    Py_ssize_t level = 1;
    PyFrameObject *frame = PyThreadState_GetFrame(PyThreadState_Get());
    int own;
    while (frame && (own = is_own(frame)) != 0) {
        PyFrameObject *back = own > 0 ? PyFrame_GetBack(frame) : NULL;
        level = own > 0 ? level + 1 : 0;
        Py_SETREF(frame, back);
    }
    Py_XDECREF(frame);
    return level;
}

int optimc_warn(PyObject *text)
{
    const char *message = PyUnicode_AsUTF8(text);
    const Py_ssize_t at = message ? level() : 0;
    return at ? PyErr_WarnEx(PyExc_UserWarning, message, at) : -1;
}

PyDoc_STRVAR(warn_doc, "warn($module, text, /)\n--\n\n"
"Warns, a UserWarning, with the line of the innermost caller that is not code of optimc.");

static PyObject *core_warn(PyObject *Py_UNUSED(module), PyObject *text)
{
    if (!PyUnicode_Check(text)) {
        PyErr_Format(PyExc_TypeError, "text: expected a str, got %s", Py_TYPE(text)->tp_name);
        return NULL;
    }
    if (optimc_warn(text))
        return NULL;
    Py_RETURN_NONE;
}

PyMethodDef optimc_warn_functions[] = {
    METHOD("warn", core_warn, METH_O, warn_doc),
    {NULL, NULL, 0, NULL},
};
