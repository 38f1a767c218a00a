/* numbers.c - counts and scalars of weights, as their owner keeps them in tensors of its own.

   Programs read and edit the step count that torch keeps for each parameter.  A step over tensors whose owner has
   such tensors compares them with what it counts itself, before it does anything, and writes the new numbers into
   them when it has run.  What is no longer the tensor that was given, or holds another number, is left to Python. */
#define NO_IMPORT_ARRAY
#include "python/tensors.h"

int optimc_read_numbers(const Plan *plan, PyObject *given, struct tensors *tensors)
{
    const size_t n = (size_t)PyTuple_GET_SIZE(given), weights = optimc_plan_weights(plan->core);
    tensors->numbers = PyMem_Calloc(n + 1, sizeof *tensors->numbers);
    if (!tensors->numbers) {
        PyErr_NoMemory();
        return -1;
    }
    for (size_t k = 0; k < n; k++) {
        struct tensor_number *number = &tensors->numbers[k];
        Py_ssize_t weight;
        if (!PyTuple_Check(PyTuple_GET_ITEM(given, (Py_ssize_t)k))) {
            PyErr_Format(PyExc_TypeError, "numbers[%zu]: expected (weight, which, dict, key, tensor)", k);
            return -1;
        }
        if (!PyArg_ParseTuple(PyTuple_GET_ITEM(given, (Py_ssize_t)k), "niO!OO", &weight, &number->which,
                &PyDict_Type, &number->dict, &number->key, &number->tensor))
            return -1;
        if (weight < 0 || (size_t)weight >= weights || number->which < 0 || number->which > MAX_SCALARS) {
            PyErr_Format(PyExc_ValueError, "numbers[%zu]: no weight %zd, or no number %d of it", k, weight,
                number->which);
            return -1;
        }
        number->weight = (size_t)weight;
    }
    tensors->n_numbers = n;
    return 0;
}

/* A number as the next step will read it. */
static double number_now(const Optimizer *self, const struct tensor_number *number)
{
    const struct plan *core = self->plan->core;
    const struct weight_progress *progress = optimc_plan_progress(core, number->weight);
    if (!number->which)
        return (double)(progress ? progress->t : self->calls / self->accumulate);
    const double *scalars = progress ? progress->scalars
        : self->groups[optimc_plan_group(core, number->weight)].before;
    return scalars[number->which - 1];
}

/* The memory of the tensor that holds a number, a float or a double, and its bits; NULL if its owner has put
   something else in its place. */
static void *find(const struct tensor_exchange *table, const struct tensor_number *number, int *bits)
{
    struct tensor tensor;
    if (PyDict_GetItemWithError(number->dict, number->key) != number->tensor
        || table->look(number->tensor, &tensor)) {
        PyErr_Clear();
        return NULL;
    }
    int64_t size = 1;
    for (int k = 0; k < tensor.ndim; k++)
        size *= tensor.shape[k];
    char *data = (char *)tensor.data + tensor.byte_offset;
    *bits = tensor.type.bits;
    const int fits = tensor.data && size == 1 && tensor.device.kind == TENSOR_ON_CPU
        && tensor.type.code == TENSOR_FLOAT && tensor.type.lanes == 1 && (*bits == 32 || *bits == 64)
        && !((uintptr_t)data % ((unsigned)*bits / 8));
    return fits ? data : NULL;
}

static int is_left(const Optimizer *self, const struct tensor_exchange *table, const struct tensor_number *number)
{
    const double now = number_now(self, number);
    int bits;
    const void *data = find(table, number, &bits);
    if (!data)
        return 0;
    if (bits == 64)
        return *(const double *)data == now;
    return (double)*(const float *)data == now && (number->which || now < LAST_WHOLE);
}

int optimc_numbers_are_left(const Optimizer *self, const struct tensor_exchange *table)
{
    const struct tensors *tensors = self->tensors;
    for (size_t k = 0; k < tensors->n_numbers; k++)
        if (!tensors->rests[tensors->numbers[k].weight] && !is_left(self, table, &tensors->numbers[k]))
            return 0;
    return 1;
}

void optimc_write_numbers(const Optimizer *self)
{
    const struct tensors *tensors = self->tensors;
    for (size_t k = 0; tensors->table && k < tensors->n_numbers; k++) {
        const struct tensor_number *number = &tensors->numbers[k];
        int bits;
        void *data = tensors->rests[number->weight] ? NULL : find(tensors->table, number, &bits);
        if (data && bits == 64)
            *(double *)data = number_now(self, number);
        else if (data)
            *(float *)data = (float)number_now(self, number);
    }
}
