/* xla.c - lets a compiled XLA program step an optimizer over the memory of its buffers, or call Python with it.

   There are two targets.  One calls Python: the function of callee.c gets the call's attribute `number`, and memory
   of the arguments and of the results.  If it raises, the exception becomes the error of the call.

   The other steps the optimizer of the attribute `foreign` (foreign.h), without Python and the GIL.  Its arguments
   are the count, the scalars, the weights and their state, then the learning rate, if it is one, and the gradients;
   its results, in the memory of the first of these, the count, the scalars, the weights and their state.  What needs
   Python it hands on to the first target.

   The structures of XLA's interface are in xla.h. */
#define NO_IMPORT_ARRAY
#include "python/callee.h"
#include "python/foreign.h"
#include "python/xla.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static Py_ssize_t item_size(int type)
{
    static const signed char sizes[] = {
        [XLA_PRED] = 1, [XLA_S8] = 1, [XLA_S16] = 2, [XLA_S32] = 4, [XLA_S64] = 8,
        [XLA_U8] = 1, [XLA_U16] = 2, [XLA_U32] = 4, [XLA_U64] = 8,
        [XLA_F16] = 2, [XLA_BF16] = 2, [XLA_F32] = 4, [XLA_F64] = 8, [XLA_C64] = 8, [XLA_C128] = 16,
    };
    return type > 0 && (size_t)type < sizeof sizes ? sizes[type] : 0;
}

static size_t elements(const struct xla_buffer *buffer)
{
    size_t n = 1;
    for (int64_t k = 0; k < buffer->ndim; k++)
        n *= (size_t)buffer->shape[k];
    return n;
}

static size_t bytes_of(const struct xla_buffer *buffer)
{
    return elements(buffer) * (size_t)item_size(buffer->type);
}

/* Writes the memory of the buffers to `memory`: 0, or -1 with a message. */
static int find_memory(const struct xla_buffers *given, struct memory_of *memory, char *message, size_t room)
{
    for (int64_t i = 0; i < given->n; i++) {
        const struct xla_buffer *buffer = given->buffers[i];
        if (!item_size(buffer->type)) {
            PyOS_snprintf(message, room, "XLA passes a buffer of a type unknown here, %d", buffer->type);
            return -1;
        }
        memory[i] = (struct memory_of){buffer->data, bytes_of(buffer)};
    }
    return 0;
}

static void *make_error(const struct xla_api *api, const char *message)
{
    struct xla_error_args args = {sizeof args, NULL, message, XLA_INTERNAL};
    return api->make_error(&args);
}

/* The integer that is the attribute of this name, or NULL. */
static const int64_t *attribute(const struct xla_attributes *attributes, const char *name)
{
    for (int64_t i = 0; i < attributes->n; i++)
        if (attributes->names[i]->length == strlen(name)
            && !memcmp(attributes->names[i]->text, name, attributes->names[i]->length)
            && attributes->types[i] == XLA_SCALAR && attributes->values[i]->type == XLA_S64)
            return attributes->values[i]->value;
    return NULL;
}

/* 1 if XLA asks for anything but a step, which this answers. */
static int is_question(struct xla_frame *frame)
{
    for (struct xla_extension *e = frame->extensions; e; e = e->next) {
        if (e->type == XLA_EXTENSION_METADATA) {
            struct xla_metadata_extension *asked = (struct xla_metadata_extension *)(void *)e;
            asked->metadata->version.major = XLA_MAJOR;
            asked->metadata->version.minor = frame->api->version.minor;
            asked->metadata->traits = 0;
            return 1;
        }
    }
    return frame->stage != XLA_EXECUTE;
}

/* Calls Python: 0, or -1 with a message. */
static int call(const struct xla_frame *frame, char *message, size_t room)
{
    const size_t n = (size_t)frame->arguments.n, n_results = (size_t)frame->results.n;
    const int64_t *number = attribute(&frame->attributes, "number");
    if (!number) {
        PyOS_snprintf(message, room, "expected an attribute `number`, a 64-bit integer");
        return -1;
    }
    struct memory_of *memory = malloc((n + n_results + 1) * sizeof *memory);
    if (!memory) {
        PyOS_snprintf(message, room, "no memory");
        return -1;
    }
    const int failed = find_memory(&frame->arguments, memory, message, room)
        || find_memory(&frame->results, memory + n, message, room)
        || optimc_call_python(*number, memory, n, memory + n, n_results, message, room);
    free(memory);
    return failed ? -1 : 0;
}

/* The target that calls Python.  Returns NULL, or an error made by XLA's table. */
static void *call_python(struct xla_frame *frame)
{
    char message[1024];
    return is_question(frame) || !call(frame, message, sizeof message) ? NULL : make_error(frame->api, message);
}

/* ------------------------------------------------------------------------ the step without Python - */

/* The step of a call, and the memory that it needs. */
struct stepping {
    struct foreign_step step;
    double rate;
    void *room;                             /* for these: */
    struct view *views;
    struct foreign_gradient *gradients;
    char **places;
    ptrdiff_t *axes;
};

static enum type type_of(const struct xla_buffer *buffer)
{
    return buffer->type == XLA_F32 ? TYPE_F32 : buffer->type == XLA_F64 ? TYPE_F64
        : buffer->type == XLA_F16 ? TYPE_F16 : buffer->type == XLA_BF16 ? TYPE_BF16 : TYPE_OTHER;
}

/* The number that a float16 is. */
static double half(uint16_t bits)
{
    const int exponent = bits >> 10 & 31, fraction = bits & 1023;
    const double number = exponent == 31 ? fraction ? Py_NAN : Py_HUGE_VAL
        : exponent ? ldexp(1024 + fraction, exponent - 25) : ldexp(fraction, -24);
    return bits >> 15 ? -number : number;
}

static double brain_half(uint16_t bits)
{
    const uint32_t whole = (uint32_t)bits << 16;
    float number;
    memcpy(&number, &whole, sizeof number);
    return number;
}

/* Reads a floating-point number: 1, or 0 if the buffer is another. */
static int read_real(const struct xla_buffer *buffer, double *number)
{
    const void *data = buffer->data;
    if (elements(buffer) != 1 || type_of(buffer) == TYPE_OTHER)
        return 0;
    *number = buffer->type == XLA_F32 ? *(const float *)data : buffer->type == XLA_F64 ? *(const double *)data
        : buffer->type == XLA_F16 ? half(*(const uint16_t *)data) : brain_half(*(const uint16_t *)data);
    return 1;
}

static void write_real(const struct xla_buffer *buffer, double number)
{
    if (buffer->type == XLA_F32)
        *(float *)buffer->data = (float)number;
    else
        *(double *)buffer->data = number;
}

static int read_count(const struct xla_buffer *buffer, int64_t *count)
{
    if (elements(buffer) != 1 || (buffer->type != XLA_S32 && buffer->type != XLA_S64))
        return 0;
    *count = buffer->type == XLA_S32 ? *(const int32_t *)buffer->data : *(const int64_t *)buffer->data;
    return buffer->type == XLA_S64 || *count < INT32_MAX;
}

static void write_count(const struct xla_buffer *buffer, int64_t count)
{
    if (buffer->type == XLA_S32)
        *(int32_t *)buffer->data = (int32_t)count;
    else
        *(int64_t *)buffer->data = count;
}

/* A view of a buffer, in C order as all of XLA's here; its shape and strides go into `room`. */
static struct view view_of(const struct xla_buffer *buffer, ptrdiff_t *room)
{
    for (int k = 0; k < (int)buffer->ndim; k++)
        room[k] = (ptrdiff_t)buffer->shape[k];
    return optimc_view_in_order(buffer->data, (int)type_of(buffer), (size_t)item_size(buffer->type),
        (int)buffer->ndim, room);
}

/* Takes memory for the parts of a step: 1, or 0 without memory. */
static int lay_out(const struct xla_buffers *arguments, struct foreign_size size, struct stepping *call)
{
    size_t n_axes = 0;
    for (size_t i = 0; i < size.gradients; i++)
        n_axes += 2 * (size_t)arguments->buffers[(size_t)arguments->n - 1 - i]->ndim;
    const size_t views_end = size.gradients * sizeof *call->views;
    const size_t gradients_end = views_end + size.gradients * sizeof *call->gradients;
    const size_t scalars_end = gradients_end + size.scalars * sizeof *call->step.scalars;
    const size_t places_end = scalars_end + size.places * sizeof *call->places;
    char *room = call->room = malloc(places_end + n_axes * sizeof *call->axes + 1);
    if (!room)
        return 0;
    call->views = (struct view *)(void *)room;
    call->step.gradients = call->gradients = (struct foreign_gradient *)(void *)(room + views_end);
    call->step.scalars = (double *)(void *)(room + gradients_end);
    call->step.places = call->places = (char **)(void *)(room + scalars_end);
    call->axes = (ptrdiff_t *)(void *)(room + places_end);
    return 1;
}

/* Reads the arguments of a call: NULL, or what is wrong with them. */
static const char *read_call(const struct foreign *foreign, const struct xla_frame *frame, struct stepping *call)
{
    const struct foreign_size size = optimc_foreign_size(foreign);
    const size_t changed = 1 + size.scalars + size.places, given = (size_t)frame->arguments.n;
    const size_t rated = given - changed - size.gradients;
    struct xla_buffer *const *from = frame->arguments.buffers;
    struct foreign_step *step = &call->step;
    *call = (struct stepping){.step = {.n_scalars = size.scalars, .n_places = size.places,
        .n_gradients = size.gradients, .rate = rated ? &call->rate : NULL}};
    if ((size_t)frame->results.n != changed || given < changed + size.gradients || rated > 1)
        return "TypeError: the compiled step is of another optimizer: it has other arrays";
    for (size_t i = 0; i < changed; i++) {          /* results that do not lie over their arguments begin as these */
        const struct xla_buffer *result = frame->results.buffers[i];
        if (bytes_of(result) != bytes_of(from[i]))
            return "TypeError: the compiled step is of another optimizer: a result has another size";
        if (result->data != from[i]->data && bytes_of(result))
            memcpy(result->data, from[i]->data, bytes_of(result));
    }
    if (!lay_out(&frame->arguments, size, call))
        return "MemoryError";
    if (!read_count(*from++, &step->calls))
        return "TypeError: expected a count of int32 or int64 that has room for one more step";
    for (size_t i = 0; i < size.scalars; i++)
        if (bytes_of(*from) < sizeof(float) || !read_real(*from++, &step->scalars[i]))
            return "TypeError: expected scalars of float32 or float64";
    for (size_t i = 0; i < size.places; i++, from++) {
        if (bytes_of(*from) != optimc_foreign_bytes(foreign, i))
            return "ValueError: the compiled step is of another optimizer: an array has another size";
        call->places[i] = frame->results.buffers[1 + size.scalars + i]->data;
    }
    if (rated && !read_real(*from++, &call->rate))
        return "TypeError: expected a learning rate that is a floating-point number";
    ptrdiff_t *axes = call->axes;
    for (size_t i = 0; i < size.gradients; i++, from++) {
        call->views[i] = view_of(*from, axes);
        call->gradients[i] = (struct foreign_gradient){.whole = &call->views[i]};
        axes += 2 * (*from)->ndim;
    }
    return NULL;
}

/* Writes the numbers of a step that was done. */
static void write_numbers(const struct xla_frame *frame, const struct foreign_step *step)
{
    struct xla_buffer *const *to = frame->results.buffers;
    write_count(*to++, step->calls);
    for (size_t i = 0; i < step->n_scalars; i++)
        write_real(*to++, step->scalars[i]);
}

/* The target that steps an optimizer. */
static void *step_optimizer(struct xla_frame *frame)
{
    if (is_question(frame))
        return NULL;
    const int64_t *number = attribute(&frame->attributes, "foreign");
    if (!number)
        return make_error(frame->api, "TypeError: expected an attribute `foreign`, a 64-bit integer");
    struct foreign *foreign = optimc_foreign_enter(*number);
    if (!foreign)
        return make_error(frame->api, "RuntimeError: " FOREIGN_GONE);
    struct stepping call;
    const char *wrong = read_call(foreign, frame, &call);
    const enum foreign_answer answer = wrong ? FOREIGN_REFUSED : optimc_foreign_step(foreign, &call.step);
    optimc_foreign_leave(foreign);
    void *error = NULL;
    if (wrong) {
        error = make_error(frame->api, wrong);
    } else if (answer == FOREIGN_REFUSED) {
        error = make_error(frame->api, call.step.message);
    } else if (answer == FOREIGN_DONE) {
        write_numbers(frame, &call.step);
    }
    free(call.room);
    return answer == FOREIGN_NEEDS_PYTHON ? call_python(frame) : error;
}

PyDoc_STRVAR(xla_targets_doc, "_xla_targets($module, function, /)\n--\n\n"
"Returns two capsules for jax.ffi.register_ffi_target.  By the first XLA calls function(number, arguments,\n"
"results), where arguments and results are memoryviews of the bytes of its buffers; those of the results are\n"
"writable.  By the second it steps an optimizer that has a number, and calls the function only where that needs\n"
"Python.  There is one function per process: the last one given.");

static PyObject *capsule_of(void *(*function)(struct xla_frame *))
{
    union { void *(*function)(struct xla_frame *); void *pointer; } entry = {function};
    return PyCapsule_New(entry.pointer, XLA_CAPSULE, NULL);
}

static PyObject *core_xla_targets(PyObject *Py_UNUSED(module), PyObject *function)
{
    if (optimc_set_callee(function))
        return NULL;
    return Py_BuildValue("NN", capsule_of(call_python), capsule_of(step_optimizer));
}

PyMethodDef optimc_xla_functions[] = {
    METHOD("_xla_targets", core_xla_targets, METH_O, xla_targets_doc),
    {NULL, NULL, 0, NULL},
};
