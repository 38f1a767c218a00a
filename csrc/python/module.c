/* module.c - the module _core: threads, ISA, the registry as Python sees it, and what the import prepares.

   It holds no optimizer; boundary.h says where each subject is. */
#include "python/rows_type.h"

#include <stdlib.h>
#include <string.h>

#include "plan/latch.h"
#include "plan/pool.h"
#include "plan/team.h"
#include "python/foreign.h"
#include "python/tensors.h"

_Static_assert(sizeof(npy_intp) == sizeof(ptrdiff_t), "shapes and strides are passed as they are");

static struct PyModuleDef core_module;

static struct state *state_of(PyObject *module)
{
    return PyModule_GetState(module);
}

struct state *optimc_state(Optimizer *self)
{
    PyObject *module = PyType_GetModuleByDef(Py_TYPE(self), &core_module);
    return module ? state_of(module) : NULL;
}

PyDoc_STRVAR(set_num_threads_doc, "set_num_threads($module, threads, /)\n--\n\n"
"Sets how many threads a large step may use, the calling one included.  Results do not depend on it.\n"
"A number above that of the processors that this process may use is reduced to it, with a UserWarning.");

static int set_threads(long threads, const char *what)
{
    if (threads < 1 || threads > MAX_THREADS) {
        PyErr_Format(PyExc_ValueError, "%s must be between 1 and %d, got %ld", what, MAX_THREADS, threads);
        return -1;
    }
    const int most = optimc_processors();
    if (threads > most && PyErr_WarnFormat(PyExc_UserWarning, 1,
            "%s: using %d threads, not %ld: this process may use %d processors", what, most, threads, most))
        return -1;
    optimc_pool_set_threads(threads < most ? (int)threads : most);
    return 0;
}

static PyObject *core_set_num_threads(PyObject *Py_UNUSED(module), PyObject *argument)
{
    if (PyBool_Check(argument) || !PyIndex_Check(argument)) {
        PyErr_Format(PyExc_TypeError, "threads must be an int, got %s", Py_TYPE(argument)->tp_name);
        return NULL;
    }
    int overflow;
    const long threads = PyLong_AsLongAndOverflow(argument, &overflow);
    if (threads == -1 && PyErr_Occurred())
        return NULL;
    if (set_threads(overflow ? -1 : threads, "threads"))
        return NULL;
    Py_RETURN_NONE;
}

static PyObject *core_get_num_threads(PyObject *Py_UNUSED(module), PyObject *Py_UNUSED(ignored))
{
    return PyLong_FromLong(optimc_pool_threads());
}

static PyObject *core_force_threads(PyObject *Py_UNUSED(module), PyObject *argument)
{
    const long threads = PyLong_AsLong(argument);
    if (threads < 0 || threads > MAX_THREADS)
        return PyErr_Occurred() ? NULL : PyErr_Format(PyExc_ValueError, "bad number of threads");
    optimc_pool_set_eager(threads > 0);
    optimc_pool_set_threads((int)threads);
    Py_RETURN_NONE;
}

PyDoc_STRVAR(use_team_doc, "_use_team($module, run, size, /)\n--\n\n"
"Names, by their addresses, GOMP_parallel and omp_get_max_threads of the program's OpenMP runtime; 0 and 0\n"
"for none.  Large steps run in its threads while they are awake, and use no more threads than it would.");

static PyObject *core_use_team(PyObject *Py_UNUSED(module), PyObject *args)
{
    unsigned long long run, size;
    if (!PyArg_ParseTuple(args, "KK:_use_team", &run, &size))
        return NULL;
    if (!optimc_pool_forks())                   /* a team has no workers in the child of a fork */
        optimc_team_use((team_run *)(uintptr_t)run, (team_size *)(uintptr_t)size);
    Py_RETURN_NONE;
}

static PyObject *tuple_of(const char *const *strings, size_t n)
{
    PyObject *tuple = PyTuple_New((Py_ssize_t)n);
    for (size_t i = 0; tuple && i < n; i++) {
        PyObject *string = PyUnicode_FromString(strings[i]);
        if (!string)
            Py_CLEAR(tuple);
        else
            PyTuple_SET_ITEM(tuple, (Py_ssize_t)i, string);
    }
    return tuple;
}

/* The ISAs as a tuple of names. */
static PyObject *isa_names(void)
{
    const struct isa *found[MAX_ISAS];
    const char *names[MAX_ISAS];
    const size_t n = optimc_isas(found);
    for (size_t i = 0; i < n; i++)
        names[i] = found[i]->name;
    return tuple_of(names, n);
}

static PyObject *core_use_isa(PyObject *module, PyObject *argument)
{
    const char *name = PyUnicode_AsUTF8(argument);
    const struct isa *isa = name ? optimc_isa_choose(name) : NULL;
    if (!isa)
        return PyErr_Occurred() ? NULL : PyErr_Format(PyExc_ValueError, "no ISA %R here", argument);
    state_of(module)->isa = isa;
    Py_RETURN_NONE;
}


#ifdef OPTIMC_PLANT
#include "python/views.h"

#include "python/plant.inc"
#endif

/* Functions of this file; those of the files beside it follow in core_exec. */
static PyMethodDef core_methods[] = {
#ifdef OPTIMC_PLANT
    METHOD("_plant", core_plant, METH_VARARGS, plant_doc),
    METHOD("_foreign_steps", core_foreign_steps, METH_VARARGS, foreign_steps_doc),
#endif
    METHOD("set_num_threads", core_set_num_threads, METH_O, set_num_threads_doc),
    METHOD("_use_team", core_use_team, METH_VARARGS, use_team_doc),
    METHOD("get_num_threads", core_get_num_threads, METH_NOARGS,
        "get_num_threads($module)\n--\n\nHow many threads a large step may use."),
    METHOD("_force_threads", core_force_threads, METH_O,
        "_force_threads($module, threads, /)\n--\n\nFor tests: every step of several chunks uses that many threads, "
        "however small it is; 0 ends it."),
    METHOD("_use_isa", core_use_isa, METH_O,
        "_use_isa($module, name, /)\n--\n\nFor tests: optimizers built from now on use this ISA."),
    {NULL, NULL, 0, NULL},
};

#define LIST(...) #__VA_ARGS__
#define NAMES(list) names_in(LIST list)

/* A tuple of the names in a list of optimizers.def, such as "m, v". */
static PyObject *names_in(const char *list)
{
    PyObject *names = PyList_New(0);
    while (names && *list) {
        const size_t length = strcspn(list, ", ");
        PyObject *name = length ? PyUnicode_FromStringAndSize(list, (Py_ssize_t)length) : NULL;
        if (length && (!name || PyList_Append(names, name)))
            Py_CLEAR(names);
        Py_XDECREF(name);
        list += length ? length : 1;
    }
    PyObject *tuple = names ? PyList_AsTuple(names) : NULL;
    Py_XDECREF(names);
    return tuple;
}

/* optimizers.def as Python sees it: {rule: (slots, hyperparameters, coefficients, scalars)}, tuples of names, and
   {kernel: (index, rule, mask of slots)}. */
static int add_registry(PyObject *module)
{
    PyObject *rules = PyDict_New(), *kernels = PyDict_New(), *row = NULL;
    int failed = !rules || !kernels;
#define RULE_ROW(rule, slots, roundings, hypers, coefs, scalars) \
    row = failed ? NULL : Py_BuildValue("(NNNN)", NAMES(slots), NAMES(hypers), NAMES(coefs), \
        NAMES(scalars)); \
    failed |= !row || PyDict_SetItemString(rules, #rule, row); \
    Py_CLEAR(row);
#define KERNEL_ROW(kernel, rule, variant, used) \
    row = failed ? NULL : Py_BuildValue("(isi)", KERNEL_##kernel, #rule, used); \
    failed |= !row || PyDict_SetItemString(kernels, #kernel, row); \
    Py_CLEAR(row);
#include "optimizers.def"
    failed |= failed || PyModule_AddObjectRef(module, "rules", rules);
    failed |= failed || PyModule_AddObjectRef(module, "kernels", kernels);
    Py_XDECREF(rules);
    Py_XDECREF(kernels);
    return failed ? -1 : 0;
}

/* {rule: {slot: axis}} of the slots that lack an axis of their weight; see optimc_slot_axis. */
static int add_factors(PyObject *module)
{
    static const char *const rule_of[KERNELS] = {
#define KERNEL_ROW(kernel, rule, variant, used) [KERNEL_##kernel] = #rule,
#include "optimizers.def"
    };
    PyObject *factors = PyDict_New(), *rules = PyObject_GetAttrString(module, "rules");
    int failed = !factors || !rules;
    for (int kernel = 0; !failed && kernel < KERNELS; kernel++) {
        PyObject *slots = PyTuple_GET_ITEM(PyDict_GetItemString(rules, rule_of[kernel]), 0);
        for (Py_ssize_t slot = 0; !failed && slot < PyTuple_GET_SIZE(slots); slot++) {
            const int axis = optimc_slot_axis((enum kernel)kernel, (int)slot);
            if (!axis)
                continue;
            PyObject *rule = PyUnicode_FromString(rule_of[kernel]), *none = PyDict_New();
            PyObject *number = PyLong_FromLong(axis);
            PyObject *own = rule && none ? PyDict_SetDefault(factors, rule, none) : NULL;
            failed = !own || !number || PyDict_SetItem(own, PyTuple_GET_ITEM(slots, slot), number);
            Py_XDECREF(rule);
            Py_XDECREF(number);
            Py_XDECREF(none);
        }
    }
    failed = failed || PyModule_AddObjectRef(module, "factors", factors);
    Py_XDECREF(factors);
    Py_XDECREF(rules);
    return failed ? -1 : 0;
}

/* {kernel: how each slot of its rule may be rounded}; see optimc_slot_rounding. */
static int add_roundings(PyObject *module)
{
    static const char *const kernels[KERNELS] = {
#define KERNEL_ROW(kernel, rule, variant, used) [KERNEL_##kernel] = #kernel,
#include "optimizers.def"
    };
    PyObject *roundings = PyDict_New();
    int failed = !roundings;
    for (int kernel = 0; !failed && kernel < KERNELS; kernel++) {
        PyObject *row = PyTuple_New(MAX_SLOTS);
        for (int slot = 0; row && slot < MAX_SLOTS; slot++)
            PyTuple_SET_ITEM(row, slot, PyLong_FromLong(optimc_slot_rounding((enum kernel)kernel, slot)));
        failed = !row || PyErr_Occurred() || PyDict_SetItemString(roundings, kernels[kernel], row);
        Py_XDECREF(row);
    }
    failed = failed || PyModule_AddObjectRef(module, "roundings", roundings);
    Py_XDECREF(roundings);
    return failed ? -1 : 0;
}

/* Adds an object that it takes over, which may be NULL after an error. */
static int add_new(PyObject *module, const char *name, PyObject *object)
{
    const int failed = !object || PyModule_AddObjectRef(module, name, object);
    Py_XDECREF(object);
    return failed ? -1 : 0;
}

/* What Python must number and name as C does. */
static int add_constants(PyObject *module)
{
    static const char *const policies[] = {[PROPAGATE] = "propagate", [RAISE] = "raise", [SKIP] = "skip"};
    return add_new(module, "options", NAMES((OPTION_NAMES)))
        || add_new(module, "MOST_STEPS", PyLong_FromLongLong(MOST_STEPS))
        || add_new(module, "SPELLINGS", tuple_of(optimc_spellings, SPELLINGS))
        || add_new(module, "policies", tuple_of(policies, sizeof policies / sizeof *policies))
        || PyModule_AddIntMacro(module, LOW_OPEN) || PyModule_AddIntMacro(module, HIGH_OPEN)
        || PyModule_AddIntMacro(module, PART_AVERAGE) || PyModule_AddIntMacro(module, PART_ACCUMULATOR)
        || PyModule_AddIntMacro(module, PART_WEIGHT) || PyModule_AddIntMacro(module, PART_MASTER)
        || PyModule_AddIntMacro(module, EXACT) || PyModule_AddIntMacro(module, NEAREST)
        || PyModule_AddIntMacro(module, RANDOM) || PyModule_AddIntMacro(module, NEAREST_16)
        || PyModule_AddIntMacro(module, CODE_BLOCK)
        || PyModule_AddIntMacro(module, CODEC_BF16) || PyModule_AddIntMacro(module, CODEC_BF16_RANDOM)
        || PyModule_AddIntMacro(module, CODEC_S8) || PyModule_AddIntMacro(module, CODEC_U8_RANDOM)
        || PyModule_AddIntMacro(module, CODEC_SPLIT) || PyModule_AddIntMacro(module, CODEC_HALF)
        || PyModule_AddIntMacro(module, CODEC_F16) || PyModule_AddIntMacro(module, TYPE_BF16)
        || PyModule_AddIntMacro(module, TYPE_F32) || PyModule_AddIntMacro(module, TYPE_F64)
        || PyModule_AddIntMacro(module, TYPE_F16) || PyModule_AddStringMacro(module, FOREIGN_GONE)
        || PyModule_AddIntMacro(module, SUM_BLOCK) || PyModule_AddIntMacro(module, LAST_WHOLE)
        || PyModule_AddIntMacro(module, NO_GRADIENTS)
        || PyModule_AddIntMacro(module, CHECKED) || PyModule_AddIntMacro(module, NOT_AS_PLANNED) ? -1 : 0;
}

/* The threads that OMP_NUM_THREADS allows, the first of its list; 0 if it says nothing that OpenMP takes. */
static int threads_of_openmp(void)
{
    const char *const threads = getenv("OMP_NUM_THREADS");
    char *end = NULL;
    const long n = threads ? strtol(threads, &end, 10) : 0;
    end += end ? strspn(end, " ") : 0;
    return n < 1 || (*end && *end != ',') ? 0 : n < MAX_THREADS ? (int)n : MAX_THREADS;
}

/* OPTIMC_ISA and OPTIMC_NUM_THREADS: one clear error each. */
static int read_environment(struct state *state)
{
    const char *name = getenv("OPTIMC_ISA"), *threads = getenv("OPTIMC_NUM_THREADS");
    state->isa = optimc_isa_choose(name && *name ? name : NULL);
    if (!state->isa) {
        PyObject *names = isa_names();
        if (names)
            PyErr_Format(PyExc_ImportError, "OPTIMC_ISA=%s: no such ISA here, only %S", name, names);
        Py_XDECREF(names);
        return -1;
    }
    optimc_pool_set_usual(threads_of_openmp());
    if (threads && *threads) {
        char *end;
        const long n = strtol(threads, &end, 10);
        if (*end || n < 1 || n > MAX_THREADS) {
            PyErr_Format(PyExc_ImportError, "OPTIMC_NUM_THREADS=%s: expected a number from 1 to %d",
                threads, MAX_THREADS);
            return -1;
        }
        return set_threads(n, "OPTIMC_NUM_THREADS");
    }
    return 0;
}

static PyMethodDef *const functions[] = {
    optimc_sources_functions, optimc_pairs_functions, optimc_views_functions, optimc_warn_functions,
    optimc_xla_functions, optimc_several_functions, optimc_averages_functions, optimc_coding_functions,
    optimc_tensorflow_functions,
};

/* Adds a type that it takes over, which may be NULL after an error. */
static int add_type(PyObject *module, PyTypeObject *type)
{
    const int failed = !type || PyModule_AddType(module, type);
    Py_XDECREF(type);
    return failed ? -1 : 0;
}

static int core_exec(PyObject *module)
{
    if (PyArray_ImportNumPyAPI() < 0 || read_environment(state_of(module)))
        return -1;
    if (optimc_pool_setup() || optimc_latch_setup()) {
        PyErr_NoMemory();
        return -1;
    }
    for (size_t i = 0; i < sizeof functions / sizeof *functions; i++)
        if (PyModule_AddFunctions(module, functions[i]))
            return -1;
    PyTypeObject *type = state_of(module)->type = optimc_optimizer_type(module);
    PyTypeObject *plan_type = state_of(module)->plan_type = optimc_plan_type(module);
    PyTypeObject *rows_type = state_of(module)->rows_type = optimc_rows_type(module);
    if (!type || PyModule_AddType(module, type) || !plan_type || PyModule_AddType(module, plan_type)
        || !rows_type || PyModule_AddType(module, rows_type)
        || add_registry(module) || add_factors(module) || add_roundings(module))
        return -1;
    if (add_type(module, optimc_transaction_type(module)) || add_type(module, optimc_turn_type(module))
        || add_type(module, optimc_averaged_type(module)))
        return -1;
    return add_constants(module) || add_new(module, "isas", isa_names())
        || PyModule_AddStringConstant(module, "isa", state_of(module)->isa->name)
        || PyModule_AddStringConstant(module, "compiler", optimc_compiler()) ? -1 : 0;
}

static PyModuleDef_Slot core_slots[] = {
    {Py_mod_exec, core_exec},
#ifdef Py_mod_multiple_interpreters
    {Py_mod_multiple_interpreters, Py_MOD_MULTIPLE_INTERPRETERS_NOT_SUPPORTED},
#endif
#ifdef Py_mod_gil
    /* The lists and dicts of a call are read through borrowed references, and values without the optimizer's
       lock: that rests on the GIL, so a free-threaded interpreter is to turn it on.  Large steps give it up. */
    {Py_mod_gil, Py_MOD_GIL_USED},
#endif
    {0, NULL},
};

static int core_traverse(PyObject *module, visitproc visit, void *arg)
{
    Py_VISIT(state_of(module)->type);
    Py_VISIT(state_of(module)->plan_type);
    Py_VISIT(state_of(module)->rows_type);
    return 0;
}

static int core_clear(PyObject *module)
{
    Py_CLEAR(state_of(module)->type);
    Py_CLEAR(state_of(module)->plan_type);
    Py_CLEAR(state_of(module)->rows_type);
    return 0;
}

static struct PyModuleDef core_module = {
    PyModuleDef_HEAD_INIT,
    .m_name = "optimc._core",
    .m_doc = "The C side of optimc: see optimc.",
    .m_size = sizeof(struct state),
    .m_methods = core_methods,
    .m_slots = core_slots,
    .m_traverse = core_traverse,
    .m_clear = core_clear,
};

PyMODINIT_FUNC PyInit__core(void)
{
    return PyModuleDef_Init(&core_module);
}
