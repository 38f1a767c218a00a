/* tensorflow.c - finds TensorFlow's C interface in the library that Python has loaded, and registers optimc's
   operations with it, once per process.  Their kernels are in graph.c.  On Windows there are none.

   Attributes of a node:
     process, number    the random number of this process, and the optimizer's
     order              for each value its index among the optimizer's, those that are lent last
     callee             the number of the function that steps in Python
     scalars, rated     the number of scalars; 1 if the learning rate is an input
     lent               how many values OptimcHold has claimed
     rows               for each weight 1 if its gradient is indices and values */
#define NO_IMPORT_ARRAY
#include "python/callee.h"
#include "python/graph.h"

#if !defined(_WIN32)
#include <dlfcn.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "plan/homes.h"
#include "plan/lent.h"

#define tf optimc_tf

struct tensorflow optimc_tf;
static int64_t process;

/* ---------------------------------------------------------------------------------- nodes - */

static int64_t get_number(void *construction, const char *name, void *status)
{
    int64_t number = 0;
    tf.OpKernelConstruction_GetAttrInt64(construction, name, &number, status);
    return number;
}

/* A list of numbers, to be freed, and its length; NULL with a status or without memory. */
static int64_t *get_list(void *construction, const char *name, size_t *n, void *status)
{
    int32_t length = 0, total;
    tf.OpKernelConstruction_GetAttrSize(construction, name, &length, &total, status);
    int64_t *list = calloc((size_t)length + 1, sizeof *list);
    if (list && length && !tf.GetCode(status))
        tf.OpKernelConstruction_GetAttrInt64List(construction, name, list, length, status);
    *n = (size_t)length;
    return list;
}

static void delete_node(void *given)
{
    struct node *node = given;
    if (node->home)
        optimc_home_release(node->home);
    free(node->order);
    free(node->by_rows);
    free(node->inputs);
    free(node->outputs);
    free(node->numbers);
    free(node->places);
    free(node->gradients);
    free(node->views);
    free(node);
}

/* Reads what both operations have: 0, or -1 with a status or without memory. */
static int read_node(struct node *node, void *construction, void *status)
{
    const int64_t of = get_number(construction, "process", status);
    const int64_t number = get_number(construction, "number", status);
    int64_t *order = get_list(construction, "order", &node->n, status);
    node->order = order ? calloc(node->n + 1, sizeof *node->order) : NULL;
    struct home *home = node->order && of == process ? optimc_home_find(number) : NULL;
    int fits = home != NULL;
    for (size_t i = 0; fits && i < node->n; i++) {
        node->order[i] = (size_t)order[i];
        fits = order[i] >= 0 && node->order[i] < home->n;
    }
    free(order);
    node->n_inputs = node->n;
    node->home = home;
    if (home && !fits) {
        optimc_home_release(home);
        node->home = NULL;
    }
    return node->order && !tf.GetCode(status) ? 0 : -1;
}

/* Reads the rest of OptimcStep, and makes room for its work: likewise. */
static int read_step(struct node *node, void *construction, void *status)
{
    int64_t *rows = get_list(construction, "rows", &node->weights, status);
    node->callee = get_number(construction, "callee", status);
    node->scalars = (size_t)get_number(construction, "scalars", status);
    node->rated = get_number(construction, "rated", status) != 0;
    node->lent = (size_t)get_number(construction, "lent", status);
    if (!rows || tf.GetCode(status) || node->lent > node->n || node->scalars > (1 << 24)) {
        free(rows);
        return -1;
    }
    node->n_inputs = 1 + node->scalars + (size_t)node->rated + (node->lent > 0) + node->n - node->lent;
    node->by_rows = calloc(node->weights + 1, 1);
    for (size_t i = 0; node->by_rows && i < node->weights; i++) {
        node->by_rows[i] = rows[i] != 0;
        node->n_inputs += 1 + (size_t)node->by_rows[i];
    }
    free(rows);
    node->inputs = calloc(node->n_inputs, sizeof *node->inputs);
    node->outputs = calloc(1 + node->scalars + node->n, sizeof *node->outputs);
    node->numbers = calloc(node->scalars + 1, sizeof *node->numbers);
    node->places = calloc(node->n + 1, sizeof *node->places);
    node->gradients = calloc(node->weights + 1, sizeof *node->gradients);
    node->views = calloc(node->weights + 1, sizeof *node->views);
    return node->by_rows && node->inputs && node->outputs && node->numbers && node->places && node->gradients
        && node->views ? 0 : -1;
}

/* A node, or NULL with TensorFlow told. */
static void *create(void *construction, int is_step)
{
    void *status = tf.NewStatus();
    struct node *node = calloc(1, sizeof *node);
    if (node && (read_node(node, construction, status) || (is_step && read_step(node, construction, status)))) {
        delete_node(node);
        node = NULL;
    }
    if (!node) {
        if (!tf.GetCode(status))
            tf.SetStatus(status, TF_RESOURCE_EXHAUSTED, "no memory");
        tf.OpKernelConstruction_Failure(construction, status);
    }
    tf.DeleteStatus(status);
    return node;
}

static void *create_hold(void *construction)
{
    return create(construction, 0);
}

static void *create_step(void *construction)
{
    return create(construction, 1);
}

static void delete_kernel(void *node)
{
    if (node)
        delete_node(node);
}

/* --------------------------------------------------------------------------- registration - */

/* A step gives tensors like those that it takes; optimc.keras tells their shapes. */
static void no_shapes(void *context, void *status)
{
    tf.ShapeInferenceContextSetUnknownShape(context, status);
}

struct operation {
    const char *name, *attributes[10], *inputs[3], *outputs[3];
    tf_create *create;
    tf_compute *compute;
};

static const struct operation operations[] = {
    {"OptimcHold", {"process: int", "number: int", "order: list(int)", "V: list(type) >= 0"},
        {"values: V"}, {"claims: int64", "held: V"}, create_hold, optimc_hold_kernel},
    {"OptimcStep", {"process: int", "number: int", "order: list(int)", "callee: int", "scalars: int", "rated: int",
        "lent: int", "rows: list(int)", "I: list(type) >= 0", "O: list(type) >= 0"},
        {"inputs: I"}, {"outputs: O"}, create_step, optimc_step_kernel},
};

static void register_operation(const struct operation *operation, void *status)
{
    void *builder = tf.NewOpDefinitionBuilder(operation->name);
    for (size_t i = 0; i < 10 && operation->attributes[i]; i++)
        tf.OpDefinitionBuilderAddAttr(builder, operation->attributes[i]);
    for (size_t i = 0; i < 3 && operation->inputs[i]; i++)
        tf.OpDefinitionBuilderAddInput(builder, operation->inputs[i]);
    for (size_t i = 0; i < 3 && operation->outputs[i]; i++)
        tf.OpDefinitionBuilderAddOutput(builder, operation->outputs[i]);
    tf.OpDefinitionBuilderSetIsStateful(builder, 1);
    tf.OpDefinitionBuilderSetShapeInferenceFunction(builder, no_shapes);
    tf.RegisterOpDefinition(builder, status);
    if (!tf.GetCode(status))
        tf.RegisterKernelBuilder(operation->name, tf.NewKernelBuilder(operation->name, "CPU", operation->create,
            operation->compute, delete_kernel), status);
}

/* Finds all functions: NULL, or a new str that says what is missing. */
static PyObject *find_functions(const char *path)
{
#define TF_SYMBOL(result, name, arguments) {"TF_" #name, offsetof(struct tensorflow, name)},
    static const struct { const char *name; size_t offset; } symbols[] = { TF_FUNCTIONS(TF_SYMBOL) };
    void *library = dlopen(path, RTLD_LAZY | RTLD_NOLOAD);
    if (!library)
        return PyUnicode_FromFormat("%s is not loaded", path);
    for (size_t i = 0; i < sizeof symbols / sizeof *symbols; i++) {
        void *function = dlsym(library, symbols[i].name);
        if (!function)
            return PyUnicode_FromFormat("TensorFlow has no %s", symbols[i].name);
        memcpy((char *)&tf + symbols[i].offset, &function, sizeof function);
    }
    return NULL;
}

/* Registers the operations: NULL, or a new str that says why that cannot be.  An error may be set in either case. */
static PyObject *register_all(const char *path)
{
    static int done;
    if (done)
        return NULL;
    PyObject *reason = find_functions(path);
    if (reason || PyErr_Occurred())
        return reason;
    struct timespec now;
    timespec_get(&now, TIME_UTC);
    process = (int64_t)((uint64_t)now.tv_sec * 1000003 ^ (uint64_t)now.tv_nsec << 20 ^ (uintptr_t)&now) >> 1;
    void *status = tf.NewStatus();
    for (size_t i = 0; !tf.GetCode(status) && i < sizeof operations / sizeof *operations; i++)
        register_operation(&operations[i], status);
    reason = tf.GetCode(status) ? PyUnicode_FromFormat("TensorFlow refuses the operations: %s", tf.Message(status))
        : optimc_lent_setup() || optimc_homes_setup() ? PyErr_NoMemory() : NULL;
    done = !tf.GetCode(status);
    tf.DeleteStatus(status);
    return reason;
}
PyDoc_STRVAR(register_doc, "_register_tensorflow($module, path, function, /)\n--\n\n"
"Registers the operations of csrc/python/graph.c with the TensorFlow whose framework library is at path, once per\n"
"process.  What they leave to Python they do by function(number, arguments, results), of memoryviews.\n\n"
"Returns None, or a str that says why there are none.");

static PyObject *core_register_tensorflow(PyObject *Py_UNUSED(module), PyObject *args)
{
    const char *path;
    PyObject *function;
    if (!PyArg_ParseTuple(args, "sO:_register_tensorflow", &path, &function) || optimc_set_callee(function))
        return NULL;
    PyObject *reason = register_all(path);
    if (reason || PyErr_Occurred())
        return reason;
    Py_RETURN_NONE;
}

static const char HOME[] = "optimc home";

static void close_home(PyObject *capsule)
{
    optimc_home_close(PyCapsule_GetPointer(capsule, HOME));
}

/* Reads n sizes: to be freed, or NULL with an error. */
static size_t *read_sizes(PyObject *given, size_t n)
{
    if ((size_t)PyTuple_GET_SIZE(given) != n) {
        PyErr_Format(PyExc_ValueError, "expected %zu sizes, got %zd", n, PyTuple_GET_SIZE(given));
        return NULL;
    }
    size_t *sizes = PyMem_Calloc(n + 1, sizeof *sizes);
    if (!sizes)
        PyErr_NoMemory();
    for (size_t i = 0; sizes && i < n; i++) {
        sizes[i] = PyLong_AsSize_t(PyTuple_GET_ITEM(given, (Py_ssize_t)i));
        if (PyErr_Occurred()) {
            PyMem_Free(sizes);
            return NULL;
        }
    }
    return sizes;
}

PyDoc_STRVAR(open_home_doc, "_open_home($module, number, sizes, shifts, lent_from, /)\n--\n\n"
"Makes the home of the optimizer of a number: returns an object that must live as long as the optimizer, and the\n"
"number of this process.  sizes: the bytes of its weights and their state, a tuple.  Values of `lent_from` bytes or\n"
"more are changed in place where nobody else holds them; shifts: by how many bytes they are shifted in memory.");

static PyObject *core_open_home(PyObject *Py_UNUSED(module), PyObject *args)
{
    long long number;
    PyObject *given_sizes, *given_shifts;
    Py_ssize_t lent_from;
    if (!PyArg_ParseTuple(args, "LO!O!n:_open_home", &number, &PyTuple_Type, &given_sizes, &PyTuple_Type,
            &given_shifts, &lent_from))
        return NULL;
    const size_t n = (size_t)PyTuple_GET_SIZE(given_sizes);
    size_t *sizes = read_sizes(given_sizes, n), *shifts = sizes ? read_sizes(given_shifts, n) : NULL;
    struct home *home = shifts ? optimc_home_open(number, sizes, shifts, n, (size_t)lent_from) : NULL;
    PyMem_Free(sizes);
    PyMem_Free(shifts);
    if (PyErr_Occurred())
        return NULL;
    if (!home)
        return PyErr_NoMemory();
    PyObject *capsule = PyCapsule_New(home, HOME, close_home);
    if (!capsule)
        optimc_home_close(home);
    return capsule ? Py_BuildValue("NL", capsule, (long long)process) : NULL;
}

PyDoc_STRVAR(lent_doc, "_lent_blocks($module, /)\n--\n\n"
"Of blocks that are lent to TensorFlow: (how many there are, written in place, copied because shared, filled).");

static PyObject *core_lent_blocks(PyObject *Py_UNUSED(module), PyObject *Py_UNUSED(ignored))
{
    const struct lent_counts now = optimc_lent_counts();
    return Py_BuildValue("nnnn", now.blocks, now.in_place, now.shared, now.filled);
}

PyMethodDef optimc_tensorflow_functions[] = {
    METHOD("_register_tensorflow", core_register_tensorflow, METH_VARARGS, register_doc),
    METHOD("_open_home", core_open_home, METH_VARARGS, open_home_doc),
    METHOD("_lent_blocks", core_lent_blocks, METH_NOARGS, lent_doc),
    {NULL, NULL, 0, NULL},
};
#else
PyMethodDef optimc_tensorflow_functions[] = {{NULL, NULL, 0, NULL}};
#endif
