/* transaction.h - steps that are checked one after the other and then run together, or not at all.

   transaction.c has the type, changes.c what else a commit changes, shares.c the steps over parts of weights. */
#ifndef OPTIMC_TRANSACTION_H
#define OPTIMC_TRANSACTION_H

#include <stddef.h>

#include "python/boundary.h"

enum { LOSS_SCALE = offsetof(struct options, loss_scale_factor) / sizeof(double) };     /* its index */

/* What a commit does with a step.  It gives up one that was matched only. */
enum progress {
    ENTERED,                            /* only its optimizer is locked */
    TAKEN,                              /* its gradients are matched, and have not been looked at */
    READY,                              /* runs */
    SKIPPED,                            /* is counted as skipped: a gradient is not finite */
    REFUSED,                            /* is given up: likewise, but the caller asked whether all are finite */
    BEGUN,                              /* parts of it have run: see shares.c */
};

/* A step whose optimizer is locked by this transaction. */
struct checked {
    Optimizer *optimizer;               /* a strong reference */
    uint64_t thread;                    /* that locked it; in a child process it may not exist any more */
    enum progress progress;
    Plan *whole;                        /* that no optimizer holds: its step ends with this one; or NULL */
    struct group *groups;               /* room for the groups as they were checked, if values change; or NULL */
};

/* A change that belongs to the commit: a value or the plan of an optimizer, or an entry of a dict. */
struct change {
    Optimizer *optimizer;               /* NULL for an entry of a dict */
    Plan *plan;                         /* NULL for a value */
    Py_ssize_t group, k;
    double number;
    PyObject *dict, *key, *value;
    int counts;                         /* the entry is a count, and grows by one: its value is found last */
    int new;                            /* the entry may be missing so far */
    PyObject *before[2];                /* what the change replaced, kept so that no code runs during a commit */
};

/* What a method that is at work does. */
enum { CHECKING = 1, COMMITTING };

typedef struct transaction {
    PyObject_HEAD
    struct checked *steps;
    struct change *changes;
    size_t n_steps, n_changes;
    int over;                           /* committed, or given up */
    int busy;                           /* a method is at work, which may run foreign code or give up the GIL */
    char committed;
} Transaction;

/* An error if the transaction has ended, or if code that its method calls (a schedule, say), or another thread,
   uses it meanwhile: 0 or -1. */
int optimc_refuse_use(const Transaction *self);

/* The step of an optimizer in a transaction, not only ENTERED, or NULL with an error. */
struct checked *optimc_step_of(Transaction *self, PyObject *optimizer);
struct checked *optimc_locked_step(Transaction *self, PyObject *optimizer);     /* the same, or only ENTERED */

/* Locks an optimizer and adds a step that is ENTERED, or NULL with an error.  optimc_drop_step takes it out again,
   given up and unlocked: it is the last. */
struct checked *optimc_add_step(Transaction *self, PyObject *optimizer);
void optimc_drop_step(Transaction *self);

/* Notes what a look into the gradients said: 1 they are good, 0 they are not, -1 an error; `finite`: the caller asks.
   A bool, or NULL. */
PyObject *optimc_note_look(struct checked *step, int good, int finite);

/* Looks whether the optimizers can still take over their plans: 0, or -1 with an error. */
int optimc_check_plans(const Transaction *self);

/* Stores the entries of dicts: 0, or -1 with an error, and then all is as it was. */
int optimc_store_entries(Transaction *self);

/* Sets the values.  What they replace is kept, so that no code of the caller's runs. */
void optimc_set_values(Transaction *self);

extern PyMethodDef optimc_changes_methods[], optimc_shares_methods[];

#endif
