/* coding.c - whole arrays decoded and encoded, for Python: initial values, views, loading, averages.

   A step does not come here: plan/coded.inc runs its codes.  optimc/base/narrow.py calls these functions. */
#define NO_IMPORT_ARRAY
#include "python/boundary.h"

#include "python/views.h"

/* The arrays of a call: `numbers` is float32, one for each code. */
struct arrays { struct view codes, master, numbers; size_t n; int has_master; };

/* Looks at an array in its order of memory: 0 or -1. */
static int look(PyObject *object, const char *name, int written, struct view *view)
{
    if (!PyArray_Check(object)) {
        PyErr_Format(PyExc_TypeError, "%s: expected an array, got %s", name, Py_TYPE(object)->tp_name);
        return -1;
    }
    optimc_look((PyArrayObject *)object, view);
    if ((view->c_order || view->f_order) && view->aligned && !view->swapped && (view->writeable || !written))
        return 0;
    PyErr_Format(PyExc_ValueError, "%s: expected an array that is contiguous, aligned and writable", name);
    return -1;
}

/* Looks at the arrays of a codec, and checks that they fit each other: 0 or -1. */
static int look_at_all(int codec, PyObject *codes, PyObject *master, PyObject *numbers, int encodes,
    struct arrays *arrays)
{
    arrays->has_master = master != Py_None;
    if (look(codes, "codes", encodes, &arrays->codes) || look(numbers, "numbers", !encodes, &arrays->numbers)
        || (arrays->has_master && look(master, "master", encodes, &arrays->master)))
        return -1;
    const size_t n = arrays->n = optimc_view_size(&arrays->numbers), size = optimc_view_size(&arrays->codes);
    const int eight = codec == CODEC_S8 || codec == CODEC_U8_RANDOM;
    const int wants_master = codec == CODEC_SPLIT || codec == CODEC_HALF;
    const int fits = codec > NO_CODEC && codec < CODECS && arrays->numbers.type == TYPE_F32
        && arrays->codes.itemsize == (eight ? 1 : 2) && size == (eight ? optimc_coded_size(n) : n)
        && !((uintptr_t)arrays->codes.data % (eight ? sizeof(float) : 2)) && wants_master == arrays->has_master
        && (!wants_master || (arrays->master.type == (codec == CODEC_HALF ? TYPE_F32 : TYPE_I16)
            && optimc_view_size(&arrays->master) == n));
    if (fits)
        return 0;
    PyErr_SetString(PyExc_ValueError, "codec, codes, master and numbers do not fit each other");
    return -1;
}

PyDoc_STRVAR(decode_doc, "decode($module, codec, codes, master, numbers, /)\n--\n\n"
"Decodes an array into `numbers`, a float32 array of as many elements in the same order of memory.");

static PyObject *core_decode(PyObject *module, PyObject *args)
{
    PyObject *codes, *master, *numbers;
    struct arrays arrays;
    int codec;
    if (!PyArg_ParseTuple(args, "iOOO:decode", &codec, &codes, &master, &numbers)
        || look_at_all(codec, codes, master, numbers, 0, &arrays))
        return NULL;
    const struct state *state = PyModule_GetState(module);
    optimc_decode_all(state->isa, (enum codec)codec, &arrays.codes, arrays.has_master ? &arrays.master : NULL,
        arrays.n, (float *)(void *)arrays.numbers.data);
    Py_RETURN_NONE;
}

PyDoc_STRVAR(encode_doc, "encode($module, codec, numbers, codes, master, key, begin, /)\n--\n\n"
"Encodes float32 `numbers` into an array.  `key` and `begin`, the place of the first in its weight, choose the\n"
"random numbers by which they are rounded, if they are.");

static PyObject *core_encode(PyObject *module, PyObject *args)
{
    PyObject *codes, *master, *numbers;
    struct arrays arrays;
    int codec;
    unsigned long long key, begin;
    if (!PyArg_ParseTuple(args, "iOOOKK:encode", &codec, &numbers, &codes, &master, &key, &begin)
        || look_at_all(codec, codes, master, numbers, 1, &arrays))
        return NULL;
    const struct state *state = PyModule_GetState(module);
    optimc_encode_all(state->isa, (enum codec)codec, key, begin, (const float *)(const void *)arrays.numbers.data,
        arrays.n, &arrays.codes, arrays.has_master ? &arrays.master : NULL);
    Py_RETURN_NONE;
}

PyDoc_STRVAR(coded_size_doc, "coded_size($module, size, /)\n--\n\n"
"The bytes of a slot of so many elements in 8 bits: codes, padding and scales.");

static PyObject *core_coded_size(PyObject *Py_UNUSED(module), PyObject *size)
{
    const size_t n = PyLong_AsSize_t(size);
    return PyErr_Occurred() ? NULL : PyLong_FromSize_t(optimc_coded_size(n));
}

PyDoc_STRVAR(random_key_doc, "random_key($module, seed, number, t, part, /)\n--\n\n"
"The key of the random numbers of a part of weight `number` at update `t`: a slot's number, or PART_WEIGHT.");

static PyObject *core_random_key(PyObject *Py_UNUSED(module), PyObject *args)
{
    unsigned long long seed, number;
    long long t;
    int part;
    if (!PyArg_ParseTuple(args, "KKLi:random_key", &seed, &number, &t, &part))
        return NULL;
    return PyLong_FromUnsignedLongLong(optimc_random_key(seed, number, t, part));
}

PyMethodDef optimc_coding_functions[] = {
    METHOD("decode", core_decode, METH_VARARGS, decode_doc),
    METHOD("encode", core_encode, METH_VARARGS, encode_doc),
    METHOD("coded_size", core_coded_size, METH_O, coded_size_doc),
    METHOD("random_key", core_random_key, METH_VARARGS, random_key_doc),
    {NULL, NULL, 0, NULL},
};
