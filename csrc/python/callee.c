/* callee.c - lets compiled programs of a framework call Python with the memory of their buffers.

   One Python function serves all programs: the last one that was set.  It gets a number, memoryviews of the arguments
   (to read) and memoryviews of the results (to write).  optimc.keras decides what they mean.  If the function raises,
   the text of the exception goes back to the program, which makes its own error of it.  xla.c calls. */
#define NO_IMPORT_ARRAY
#include "python/callee.h"

static PyObject *callee;                    /* one per process, like the frameworks' tables of targets */

/* A tuple of memoryviews, one of the bytes of each buffer. */
static PyObject *views(const struct memory_of *memory, size_t n, int flags)
{
    static char nothing;
    PyObject *all = PyTuple_New((Py_ssize_t)n);
    for (size_t i = 0; all && i < n; i++) {
        PyObject *view = PyMemoryView_FromMemory(memory[i].size ? memory[i].data : &nothing,
            (Py_ssize_t)memory[i].size, flags);
        if (view)
            PyTuple_SET_ITEM(all, (Py_ssize_t)i, view);
        else
            Py_CLEAR(all);
    }
    return all;
}

/* Writes the exception that is set as "type: text", and clears it. */
static void write_exception(char *message, size_t room)
{
    PyObject *type, *value, *trace;
    PyErr_Fetch(&type, &value, &trace);
    PyErr_NormalizeException(&type, &value, &trace);
    PyObject *text = PyUnicode_FromFormat("%s: %S", type ? ((PyTypeObject *)type)->tp_name : "error",
        value ? value : Py_None);
    const char *utf8 = text ? PyUnicode_AsUTF8(text) : NULL;
    PyOS_snprintf(message, room, "%s", utf8 ? utf8 : "no memory");
    Py_XDECREF(text);
    Py_XDECREF(type);
    Py_XDECREF(value);
    Py_XDECREF(trace);
    PyErr_Clear();
}

int optimc_call_python(int64_t number, const struct memory_of *given, size_t n_given, const struct memory_of *made,
    size_t n_made, char *message, size_t room)
{
    const PyGILState_STATE gil = PyGILState_Ensure();
    PyObject *arguments = views(given, n_given, PyBUF_READ), *function = Py_NewRef(callee);
    PyObject *results = arguments ? views(made, n_made, PyBUF_WRITE) : NULL;
    PyObject *done = results ? PyObject_CallFunction(function, "LOO", (long long)number, arguments, results) : NULL;
    if (!done)
        write_exception(message, room);
    Py_XDECREF(arguments);
    Py_XDECREF(results);
    Py_DECREF(function);
    const int failed = !done;
    Py_XDECREF(done);
    PyGILState_Release(gil);
    return failed ? -1 : 0;
}

int optimc_set_callee(PyObject *function)
{
    if (!PyCallable_Check(function)) {
        PyErr_Format(PyExc_TypeError, "function: expected a callable, got %s", Py_TYPE(function)->tp_name);
        return -1;
    }
    Py_XSETREF(callee, Py_NewRef(function));
    return 0;
}
