/* boundary.h - the Optimizer as C sees it, and what the files of csrc/python need of each other.

   csrc/python is the Python boundary: it parses, checks, calls and translates errors.  No other folder includes
   Python's or NumPy's headers, and this one does no arithmetic on weights.

   _core.Optimizer is the base of every optimizer class.  It owns what a step touches: the values of the
   hyperparameters and where they come from (numbers, schedules, callables), the step count, the plan and the
   arrays that the plan points into.  Options, names, copies and files belong to Python.

   To follow a step, read apply.c first.  It uses turns.c (one step at a time), settings.c (the values), sources.c
   (what gives them), match.c (the gradients of the step), rows_type.c (those that are rows), pairs.c (gradients
   beside weights), trees.c (nested ones), views.h (an array as the plan sees it) and refuse.c (errors).  Then read
   bind.c (taking over a plan), plan_type.c (its type), tensors.c, transaction.c and shares.c (other ways to step),
   optimizer.c (the type) and module.c (the module). */
#ifndef OPTIMC_BOUNDARY_H
#define OPTIMC_BOUNDARY_H

#define PY_SSIZE_T_CLEAN
#define NPY_NO_DEPRECATED_API NPY_2_0_API_VERSION
#define NPY_TARGET_VERSION NPY_1_23_API_VERSION
/* One table of NumPy's functions for all files: module.c imports it, the others define NO_IMPORT_ARRAY first. */
#define PY_ARRAY_UNIQUE_SYMBOL optimc_array_api
#include <Python.h>
#include <numpy/arrayobject.h>

#include "kernels/isa.h"
#include "plan/plan.h"

struct state {
    const struct isa *isa;              /* chosen at import; tests change it between optimizers */
    PyTypeObject *type, *plan_type, *rows_type;     /* Optimizer, Plan, Rows */
};

/* The source of a value: a number (source NULL), a schedule (called with the step), a callable, or an
   item of a dict (`key` not NULL), or entry `item` of a list or tuple there; then 0 may mean that it is off.  A
   group's value that is not its own is the first group's. */
struct setting {
    PyObject *source, *key;
    int with_step, own, item, zero_is_off, items;
};

/* The range of a value.  The ends are allowed if closed. */
enum { LOW_OPEN = 1, HIGH_OPEN = 2 };
struct bound {
    PyObject *name;
    double low, high;
    int open, optional;
};

enum { PROPAGATE, RAISE, SKIP };        /* policies for gradients that are not finite */

/* A thread that waits for its turn. */
struct waiter {
    uint64_t thread, number;            /* who, and when it came */
    PyThread_type_lock turn;            /* released when it is the owner */
    struct waiter *next;
};

/* A context in which the weights hold their averages, and the thread that entered it. */
struct evaluation {
    uint64_t thread;
    struct evaluation *next;
};

/* The progress of a step.  BUSY: code of the caller's may run, or other threads, and none may use the plan. */
enum matching { IDLE, BUSY, MATCHED };

/* Weights and what belongs to them: see plan_type.c. */
typedef struct {
    PyObject_HEAD
    struct plan *core;
    PyObject *weights;                  /* in order: a tuple, or a list until it is sealed */
    PyObject *names;                    /* their names, likewise; NULL if they have none */
    PyObject *parts;                    /* for each, the names of its slots and the arrays that belong to it */
    PyObject *state;                    /* Python's */
    PyObject *tree;                     /* its weights in the form of nested gradients, or NULL: see trees.c */
    PyObject **gradients;               /* of the step in progress: strong references */
    size_t *places;                     /* the weight of each, where match.c has matched them */
    size_t n_gradients;
    enum matching matching;
    int keeps_gil;                      /* the step in progress, however long: what it touches is not held */
    uint64_t user, forks;               /* without an owner: the thread that made it BUSY, in which process */
    struct request request;             /* the step in progress, once it is MATCHED */
    struct group *group;                /* the values of steps without an optimizer, or NULL */
    Py_ssize_t n;                       /* weights that it must have to be sealed; -1: it cannot be */
    Py_ssize_t n_groups, n_values;      /* that an optimizer must have to hold it */
    int sealed;
    int accumulates;                    /* every weight has an accumulator */
    struct optimizer *owner;            /* the optimizer that holds it, borrowed, or NULL */
} Plan;

typedef struct optimizer {
    PyObject_HEAD
    uint64_t owner;                     /* the thread whose step is in progress, 0 for none */
    struct waiter *waiters;             /* those that wait for its end, the longest first */
    uint64_t arrivals;                  /* threads that have waited so far */
    uint64_t forks;                     /* when it was last stepped here: in a child it may have no owner */
    Plan *plan;                         /* NULL until built */
    PyObject *state;                    /* Python's: what is kept for the weights; the plan's, if there is a plan */
    PyObject *before;                   /* if it built the plan: the state before that, else NULL */
    int begun;                          /* the step in progress writes, or has written: it is kept */
    int n_values;                       /* options and the rule's hyperparameters */
    struct bound bounds[MAX_VALUES];
    PyObject *scalars;                  /* names of the rule's scalars, a tuple of str, or NULL */
    size_t n_groups;
    struct group *groups;               /* the first is of all weights that are in no other */
    struct setting (*settings)[MAX_VALUES];
    int n_sources;                      /* settings that must be asked at every update */
    int64_t calls;                      /* steps so far, those that only accumulated included */
    int64_t skipped;                    /* steps skipped because a gradient was not finite */
    int accumulate;                     /* gradients per update, 1 without accumulation */
    int overwrite;                      /* updates between two at which averages become weights, or 0 */
    int use_ema;
    int cautious, coupled, decay_as_factor, maximize;   /* as in struct request */
    int check_finite;
    int evaluating;                     /* contexts in which the weights hold their averages: no steps */
    struct evaluation *evaluations;     /* these contexts, which own their entries */
    PyObject *shown, *kept;             /* in these contexts, else NULL: what holds the weights, and as it was */
    struct optimizer *next_shown;       /* in these contexts: another that has some, or NULL; see averages.c */
    int moved;                          /* tensors have moved since the plan was taken over */
    struct tensors *tensors;            /* what steps over tensors need, or NULL: see tensors.h */
    struct foreign *foreign;            /* what steps of frameworks' threads need, or NULL: see foreign.c */
    int alone;                          /* 1: this turn is of `_alone`, in which one more may be taken; 2: it is */
    unsigned long long seed;            /* of random rounding */
    double own_scale;                   /* the loss scale to be put back after the step in progress ... */
    int scaled;                         /* ... if that step has another */
    double norm;                        /* the last global norm computed ... */
    int normed;                         /* ... if one was */
} Optimizer;

/* The most steps that are counted, of every kind: what can be counted can be set, saved and loaded. */
static const int64_t MOST_STEPS = (INT64_C(1) << 62) - 1;

static inline void optimc_count_skipped(Optimizer *self, int skipped)
{
    self->skipped += skipped && self->skipped < MOST_STEPS;
}

/* A row of a table of methods.  Each file has such a table, which ends with a row of NULL. */
#define METHOD(name, function, flags, doc) {name, (PyCFunction)(void (*)(void))function, flags, doc}

/* plan_type.c: the type of plans.  A new reference, or NULL. */
PyTypeObject *optimc_plan_type(PyObject *module);

/* plan_add.c: its method `add`. */
extern const char optimc_plan_add_doc[];
PyObject *optimc_plan_add_weight(Plan *self, PyObject *args, PyObject *kwargs);

/* bind.c: the plan and the state that an optimizer holds. */
extern PyMethodDef optimc_bind_methods[];
int optimc_check_plan(Optimizer *self, PyObject *plan);     /* whether it can hold it: 0, or -1 with an error */
int optimc_check_bind(Optimizer *self, PyObject *plan);     /* the same, and whether its weights may be others now */
/* Holds a checked plan, or NULL, and a state.  Nothing here takes memory, and no Python code runs in between. */
void optimc_hold(Optimizer *self, Plan *plan, PyObject *state);
void optimc_leave_step(Optimizer *self);                    /* forgets the gradients of the step */

/* turns.c: one step of an optimizer at a time. */

/* Numbers of threads, which no later thread gets again, not even in a child process. */
uint64_t optimc_this_thread(void);
int optimc_is_alive(uint64_t thread);               /* whether this process has it */

/* Takes the turn, or waits for it; an error if this thread's step is in progress.  0 or -1. */
int optimc_lock(Optimizer *self);
int optimc_take_turn(Optimizer *self);              /* the same for one that has no values, and is a turn only */
void optimc_unlock(Optimizer *self);
void optimc_look_for_fork(Optimizer *self);         /* in a child process: drops what threads of the parent hold */
void optimc_restore_scale(Optimizer *self);         /* ends the loss scale of a single step */
int optimc_refuse_nested(Optimizer *self);          /* raises that error: -1 */

/* foreign.c: steps of frameworks' threads, and Python's wait for them.  The thread whose turn it is calls await and
   admit; close comes before an optimizer goes. */
extern PyMethodDef optimc_foreign_methods[];
void optimc_await_foreign(Optimizer *self);
void optimc_admit_foreign(Optimizer *self);
void optimc_close_foreign(Optimizer *self);

/* Calls a method that changes what a step reads, while no step of another thread is in progress.  In this
   thread one may be: it is being checked then, and not yet running. */
PyObject *optimc_between_steps(Optimizer *self, PyObject *args,
    PyObject *(*method)(Optimizer *, PyObject *));

PyObject *optimc_beside_steps(Optimizer *self, PyObject *args,      /* the same for one that reads: a number, say */
    PyObject *(*method)(Optimizer *, PyObject *));

/* The method optimizer_name: name_now, between steps. */
#define BETWEEN_STEPS(name) \
    static PyObject *optimizer_##name(Optimizer *self, PyObject *args) \
    { \
        return optimc_between_steps(self, args, name##_now); \
    }

/* several.c: the turns of several optimizers at once, given as a tuple in order. */
extern PyMethodDef optimc_several_functions[];
PyObject *optimc_in_order(PyTypeObject *type, PyObject *optimizers);    /* that tuple, or NULL with an error */
int optimc_lock_all(PyObject *optimizers);                              /* all or none: 0 or -1 */
void optimc_unlock_all(PyObject *optimizers);

/* averages.c: weights that hold their averages for a while.  The type is a new reference, or NULL. */
extern PyMethodDef optimc_averages_functions[];
PyTypeObject *optimc_averaged_type(PyObject *module);
void optimc_put_back(Optimizer *self);              /* ends all evaluations: the weights are as they were trained */
void optimc_leave_dead_evaluations(Optimizer *self);    /* those of threads that this child process does not have */

/* settings.c: the values. */
extern PyMethodDef optimc_settings_methods[];
PyObject *optimc_add_group(Optimizer *self, PyObject *ignored);
int optimc_ask_all(Optimizer *self);                /* reads all values, calling schedules: 0 or -1 */
void optimc_share_values(Optimizer *self);          /* gives groups without their own the first's */

/* Reads a number that a value may be set to, NaN for None if it is optional: 1; 0 if it is none; -1 out of range. */
int optimc_read_value(Optimizer *self, int k, PyObject *object, double *number);
int optimc_find_value(Optimizer *self, Py_ssize_t group, Py_ssize_t k);     /* 0, or -1 if there is none */
int optimc_refuse_new(Optimizer *self);             /* raises the error for one without values, before __init__: -1 */
int optimc_is_weight(Optimizer *self, Py_ssize_t index);                    /* 1, or 0 with an IndexError */

/* sources.c: what gives a number.  All of it may run code of the caller's. */
extern PyMethodDef optimc_sources_functions[];

/* Reads a real number, also of an array of no axes if `array_too`: 1; 0 if it is none; -1 with an error. */
int optimc_read_number(PyObject *object, int array_too, double *number);

int optimc_is_in_range(const struct bound *bound, double number);

/* Checks that a number is in its range: 0, or -1 with an error that says it came `from` somewhere, or "". */
int optimc_check_bound(const struct bound *bound, double number, PyObject *object, const char *from);

/* The number in an item of a dict; the setting must own its references.  0 or -1. */
int optimc_read_item(Optimizer *self, const struct setting *setting, int k, double *number);

/* Asks the source of a value.  0 or -1. */
int optimc_ask(Optimizer *self, size_t group, int k, double *number);

/* running.c: what runs along with the updates. */
extern PyMethodDef optimc_running_methods[];
void optimc_settle_groups(Optimizer *self);         /* counts this update in the products of values that vary */

struct running {                        /* of one group */
    double products[MAX_HYPERS], scalars[MAX_SCALARS + 1];
};

/* Reads the result of `_get_running`: an entry per group, to be freed by PyMem_Free; or NULL with an error.  It may
   run code of the caller's, but adds no group while the optimizer is locked. */
struct running *optimc_read_running(Optimizer *self, PyObject *given);
void optimc_set_running(Optimizer *self, const struct running *running);    /* runs no code and takes no memory */

/* pairs.c: gradients and weights side by side. */
struct pairs {
    PyObject *grads, *weights;          /* both list or tuple, or both dict, or weights a tuple */
    PyObject *keys;                     /* a tuple of names for tuples that have them, or NULL */
    PyObject *tree;                     /* the nested weights that the weights are the leaves of, or NULL */
    const Plan *plan;                   /* that names the weights, or NULL */
    Py_ssize_t i, n, position;
    PyObject *key, *grad, *weight;      /* the current pair, owned: __eq__ and __repr__ of keys may drop it */
};

extern PyMethodDef optimc_pairs_functions[];
extern PyMethodDef optimc_warn_functions[];

/* Begins with no current pair; weights None: those of the plan.  0 or -1.  optimc_close_pairs must follow. */
int optimc_open_pairs(const Plan *plan, PyObject *grads, PyObject *weights, struct pairs *pairs);

/* Makes the next pair the current one: 1, 0 at the end, -1 on an error.  Of the caller's code it runs only
   __hash__ and __eq__ of keys that are not plain str. */
int optimc_next_pair(struct pairs *pairs);
int optimc_refuse_container(const char *argument, PyObject *object);        /* the error for what is none: -1 */
void optimc_close_pairs(struct pairs *pairs);

/* The current entry as the caller calls it: "grads[1]" or "grads['bias']". */
PyObject *optimc_pair_label(const struct pairs *pairs, const char *argument);

/* refuse.c: errors.  Each releases `entry`, the label of what is wrong, and returns -1. */
PyObject *optimc_label(const char *argument, PyObject *keys, Py_ssize_t i);
PyObject *optimc_part_name(PyObject *weight, PyObject *slot_names, int part);   /* releases the label `weight` */
PyObject *optimc_place_name(PyObject *names, PyObject *slot_names, struct place place);
int optimc_refuse(PyObject *type, const char *format, PyObject *entry, PyObject *a, PyObject *b);
/* The ValueError with the shapes of two arrays. */
int optimc_refuse_shape(const char *format, PyObject *entry, PyArrayObject *a, PyArrayObject *b);
int optimc_refuse_kind(const char *format, PyObject *entry, PyObject *object);
int optimc_refuse_weight(enum fault fault, PyObject *entry, PyArrayObject *array, PyArrayObject *like);
int optimc_refuse_norm(void);
extern const char optimc_infinite_norm[];           /* its words */
/* The error for a gradient, an array or rows: FAULT_REPEATED, _NO_MEMORY, _OVERLAP or _MEMORY. */
int optimc_refuse_taken(enum fault fault, PyObject *entry, PyObject *names, struct place overlap);
/* The error for a weight or a gradient that is a tensor. */
int optimc_refuse_tensor(enum fault fault, const char *argument, size_t i);
/* Adds a question to the error for weights that no step can be built for, if the gradients look like the weights. */
void optimc_ask_swapped(PyObject *grads, PyObject *weights);

/* warn.c: a UserWarning that points at the caller of optimc; -1 if warnings are errors. */
int optimc_warn(PyObject *text);

/* match.c: the gradients of a step, which belong to the plan. */
/* Steps that take longer, in nanoseconds, give up the GIL.  Taking it back can cost another thread's time slice
   (5 ms), so it is not worth it for less. */
static const double GIL_WORTH = 50e3;
/* Matches gradients to weights: 0, or -1 with an error.  The plan is BUSY then.  optimc_end_match comes last. */
int optimc_match(Plan *self, PyObject *grads, PyObject *weights, int quiet);
void optimc_end_match(Plan *self);
/* Looks at the gradients of a request: 1 if they are good, 0 if the step is to be skipped, -1 with an error. */
int optimc_survey(Plan *self, PyObject *grads, PyObject *weights, int finite);
PyObject *optimc_taken(Plan *self);                 /* for each weight whether it takes part: a tuple of bool */
int optimc_is_long(const Plan *self);               /* whether the step is worth giving up the GIL for */

/* apply.c: one step.  The lock is held throughout, and optimc_end_step comes last. */
extern PyMethodDef optimc_apply_methods[];
enum { SPELLINGS = 5 };
extern const char *const optimc_spellings[SPELLINGS];   /* the argument `weights`, then its other names */
int optimc_match_step(Optimizer *self, PyObject *grads, PyObject *weights, int quiet);
struct request optimc_request_now(const Optimizer *self);       /* of the next step, with its own policy */
void optimc_make_request(Optimizer *self, int finite);
int optimc_survey_step(Optimizer *self, PyObject *grads, PyObject *weights, int finite);
int optimc_check_step(Optimizer *self, PyObject *grads, PyObject *weights, int finite);
void optimc_open_step(Optimizer *self);
void optimc_close_step(Optimizer *self);
void optimc_count_step(Optimizer *self, const struct request *request);     /* the counts of these two */
void optimc_keep_step(Optimizer *self, const struct request *request);
/* The writing half, which cannot fail.  A fork() comes before all of it or after. */
void optimc_run_step(Optimizer *self);
void optimc_end_step(Optimizer *self, int ran);

/* tensors.c, look.c: a step over tensors.  A check with the lock held finds one of these, or -1 with an error:
     NO_GRADIENTS       no tensor has a gradient
     CHECKED            the step may run
     NOT_AS_PLANNED     only some have a gradient, and weights do not count; or what was watched has changed
     NOT_FINITE         a gradient is not finite: the step is to be skipped
   Python knows the first three by their names.  `grads` is a list, or NULL for the tensors' own.  `held`: other code
   runs before the step does, so all that it touches must be held. */
enum { NO_GRADIENTS, CHECKED, NOT_AS_PLANNED, NOT_FINITE };
extern PyMethodDef optimc_tensors_methods[];
int optimc_check_tensors(Optimizer *self, PyObject *tensors, PyObject *exchange, PyObject *grads, int held);

/* The whole step, with the lock: one of the first three, or -1 with an error.  `stepped`, unless NULL, gets a new
   list of the tensors that were CHECKED. */
int optimc_apply_tensors(Optimizer *self, PyObject *tensors, PyObject *exchange, PyObject *grads, PyObject **stepped);

/* transaction.c: steps of several optimizers; transaction.h has more.  A new reference, or NULL. */
PyTypeObject *optimc_transaction_type(PyObject *module);

/* turn_type.c: the type of turns for Python code.  A new reference, or NULL. */
PyTypeObject *optimc_turn_type(PyObject *module);

/* views.c, xla.c, tensorflow.c, coding.c. */
extern PyMethodDef optimc_views_functions[], optimc_xla_functions[], optimc_tensorflow_functions[],
    optimc_coding_functions[];

/* optimizer.c: the type.  A new reference, or NULL. */
PyTypeObject *optimc_optimizer_type(PyObject *module);
int optimc_add_methods(PyTypeObject *type, PyMethodDef *table);      /* 0 or -1 */

/* module.c. */
struct state *optimc_state(Optimizer *self);        /* of the module, or NULL with an error */

#endif
