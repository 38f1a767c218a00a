/* xla.c - lets a compiled XLA program call Python with the memory of its buffers.

   The function of callee.c gets the call's only attribute, a number, and memory of the arguments and of the results.
   If it raises, the exception becomes the error of the call.  The structures of XLA's interface are in xla.h. */
#define NO_IMPORT_ARRAY
#include "python/callee.h"
#include "python/xla.h"

#include <stdlib.h>

static Py_ssize_t item_size(int type)
{
    static const signed char sizes[] = {
        [XLA_PRED] = 1, [XLA_S8] = 1, [XLA_S16] = 2, [XLA_S32] = 4, [XLA_S64] = 8,
        [XLA_U8] = 1, [XLA_U16] = 2, [XLA_U32] = 4, [XLA_U64] = 8,
        [XLA_F16] = 2, [XLA_BF16] = 2, [XLA_F32] = 4, [XLA_F64] = 8, [XLA_C64] = 8, [XLA_C128] = 16,
    };
    return type > 0 && (size_t)type < sizeof sizes ? sizes[type] : 0;
}

/* Writes the memory of the buffers to `memory`: 0, or -1 with a message. */
static int find_memory(const struct xla_buffers *given, struct memory_of *memory, char *message, size_t room)
{
    for (int64_t i = 0; i < given->n; i++) {
        const struct xla_buffer *buffer = given->buffers[i];
        Py_ssize_t size = item_size(buffer->type);
        if (!size) {
            PyOS_snprintf(message, room, "XLA passes a buffer of a type unknown here, %d", buffer->type);
            return -1;
        }
        for (int64_t k = 0; k < buffer->ndim; k++)
            size *= (Py_ssize_t)buffer->shape[k];
        memory[i] = (struct memory_of){buffer->data, (size_t)size};
    }
    return 0;
}

/* The call: 0, or -1 with a message. */
static int call(const struct xla_frame *frame, char *message, size_t room)
{
    const struct xla_attributes *attributes = &frame->attributes;
    const size_t n = (size_t)frame->arguments.n, n_results = (size_t)frame->results.n;
    if (attributes->n != 1 || attributes->types[0] != XLA_SCALAR || attributes->values[0]->type != XLA_S64) {
        PyOS_snprintf(message, room, "expected one attribute, a 64-bit integer");
        return -1;
    }
    struct memory_of *memory = malloc((n + n_results + 1) * sizeof *memory);
    if (!memory) {
        PyOS_snprintf(message, room, "no memory");
        return -1;
    }
    const int failed = find_memory(&frame->arguments, memory, message, room)
        || find_memory(&frame->results, memory + n, message, room)
        || optimc_call_python(*(const int64_t *)attributes->values[0]->value, memory, n, memory + n, n_results,
            message, room);
    free(memory);
    return failed ? -1 : 0;
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
    char message[1024];
    if (!call(frame, message, sizeof message))
        return NULL;
    struct xla_error_args args = {sizeof args, NULL, message, XLA_INTERNAL};
    return frame->api->make_error(&args);
}

PyDoc_STRVAR(xla_target_doc, "_xla_target($module, function, /)\n--\n\n"
"Returns a capsule for jax.ffi.register_ffi_target.  XLA then calls function(number, arguments, results), where\n"
"arguments and results are memoryviews of the bytes of its buffers; those of the results are writable.  There is\n"
"one function per process: the last one given.");

static PyObject *core_xla_target(PyObject *Py_UNUSED(module), PyObject *function)
{
    if (optimc_set_callee(function))
        return NULL;
    union { void *(*function)(struct xla_frame *); void *pointer; } entry = {handle};
    return PyCapsule_New(entry.pointer, XLA_CAPSULE, NULL);
}

PyMethodDef optimc_xla_functions[] = {
    METHOD("_xla_target", core_xla_target, METH_O, xla_target_doc),
    {NULL, NULL, 0, NULL},
};
