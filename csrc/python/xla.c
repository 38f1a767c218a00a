/* xla.c - lets a compiled XLA program call Python with the memory of its buffers.

   One Python function serves all programs.  It gets the call's only attribute (a number), memoryviews of the
   arguments (to read) and memoryviews of the results (to write).  optimc.keras decides what they mean.  If the
   function raises, the exception becomes the error of the call.  The structures of XLA's interface are in xla.h. */
#define NO_IMPORT_ARRAY
#include "python/boundary.h"
#include "python/xla.h"

static PyObject *callee;                    /* one per process, like XLA's table of targets */

static Py_ssize_t item_size(int type)
{
    static const signed char sizes[] = {
        [XLA_PRED] = 1, [XLA_S8] = 1, [XLA_S16] = 2, [XLA_S32] = 4, [XLA_S64] = 8,
        [XLA_U8] = 1, [XLA_U16] = 2, [XLA_U32] = 4, [XLA_U64] = 8,
        [XLA_F16] = 2, [XLA_BF16] = 2, [XLA_F32] = 4, [XLA_F64] = 8, [XLA_C64] = 8, [XLA_C128] = 16,
    };
    return type > 0 && (size_t)type < sizeof sizes ? sizes[type] : 0;
}

/* A tuple of memoryviews, one of the bytes of each buffer. */
static PyObject *views(const struct xla_buffers *given, int flags)
{
    static char nothing;
    PyObject *all = PyTuple_New((Py_ssize_t)given->n);
    for (int64_t i = 0; all && i < given->n; i++) {
        const struct xla_buffer *buffer = given->buffers[i];
        Py_ssize_t size = item_size(buffer->type);
        if (!size) {
            PyErr_Format(PyExc_TypeError, "XLA passes a buffer of a type unknown here, %d", buffer->type);
            Py_CLEAR(all);
            break;
        }
        for (int64_t k = 0; k < buffer->ndim; k++)
            size *= (Py_ssize_t)buffer->shape[k];
        PyObject *view = PyMemoryView_FromMemory(size ? buffer->data : &nothing, size, flags);
        if (view)
            PyTuple_SET_ITEM(all, (Py_ssize_t)i, view);
        else
            Py_CLEAR(all);
    }
    return all;
}

static void *refuse_call(const struct xla_api *api)
{
    PyObject *type, *value, *trace;
    PyErr_Fetch(&type, &value, &trace);
    PyErr_NormalizeException(&type, &value, &trace);
    PyObject *text = PyUnicode_FromFormat("%s: %S", type ? ((PyTypeObject *)type)->tp_name : "error",
        value ? value : Py_None);
    const char *message = text ? PyUnicode_AsUTF8(text) : NULL;
    struct xla_error_args args = {sizeof args, NULL, message ? message : "no memory", XLA_INTERNAL};
    void *error = api->make_error(&args);
    Py_XDECREF(text);
    Py_XDECREF(type);
    Py_XDECREF(value);
    Py_XDECREF(trace);
    PyErr_Clear();
    return error;
}

/* The function that XLA calls.  Returns NULL, or an error made by XLA's table. */
static void *handle(struct xla_frame *frame)
{
    for (struct xla_extension *e = frame->extensions; e; e = e->next) {
        if (e->type == XLA_EXTENSION_METADATA) {
            struct xla_metadata_extension *asked = (struct xla_metadata_extension *)(void *)e;
            asked->metadata->version.major = XLA_MAJOR;
            asked->metadata->version.minor = frame->api->version.minor;
            asked->metadata->traits = 0;
            return NULL;
        }
    }
    if (frame->stage != XLA_EXECUTE)
        return NULL;
    const PyGILState_STATE gil = PyGILState_Ensure();
    PyObject *arguments = NULL, *results = NULL, *done = NULL, *function = Py_NewRef(callee);
    const struct xla_attributes *attributes = &frame->attributes;
    if (attributes->n != 1 || attributes->types[0] != XLA_SCALAR || attributes->values[0]->type != XLA_S64)
        PyErr_SetString(PyExc_TypeError, "expected one attribute, a 64-bit integer");
    else if ((arguments = views(&frame->arguments, PyBUF_READ))
             && (results = views(&frame->results, PyBUF_WRITE)))
        done = PyObject_CallFunction(function, "LOO", (long long)*(const int64_t *)attributes->values[0]->value,
            arguments, results);
    void *error = done ? NULL : refuse_call(frame->api);
    Py_XDECREF(arguments);
    Py_XDECREF(results);
    Py_XDECREF(done);
    Py_DECREF(function);
    PyGILState_Release(gil);
    return error;
}

PyDoc_STRVAR(xla_target_doc, "_xla_target($module, function, /)\n--\n\n"
"Returns a capsule for jax.ffi.register_ffi_target.  XLA then calls function(number, arguments, results), where\n"
"arguments and results are memoryviews of the bytes of its buffers; those of the results are writable.  There is\n"
"one function per process: the last one given.");

static PyObject *core_xla_target(PyObject *Py_UNUSED(module), PyObject *function)
{
    if (!PyCallable_Check(function)) {
        PyErr_Format(PyExc_TypeError, "function: expected a callable, got %s", Py_TYPE(function)->tp_name);
        return NULL;
    }
    Py_XSETREF(callee, Py_NewRef(function));
    union { void *(*function)(struct xla_frame *); void *pointer; } entry = {handle};
    return PyCapsule_New(entry.pointer, XLA_CAPSULE, NULL);
}

PyMethodDef optimc_xla_functions[] = {
    METHOD("_xla_target", core_xla_target, METH_O, xla_target_doc),
    {NULL, NULL, 0, NULL},
};
