/* tensors.h - what steps over tensors need beside the plan.  tensors.c makes it, look.c steps with it. */
#ifndef OPTIMC_TENSORS_H
#define OPTIMC_TENSORS_H

#include "python/boundary.h"
#include "python/dlpack.h"

/* Attributes and methods of a tensor. */
enum tensor_name { GRAD, STORAGE, ADDRESS, BYTES, IS_NEGATIVE, RESOLVE_NEGATIVE, IS_INFERENCE, TENSOR_NAMES };

/* A part of a weight that lies in a tensor of its owner: an item of a dict, borrowed from `given`. */
struct tensor_part {
    struct place place;
    int ndim;
    PyObject *dict, *key;
};

/* The last count up to which float has all; torch keeps counts in it. */
enum { LAST_WHOLE = 1 << 24 };

/* A number of a weight that its owner keeps in a tensor, an item of a dict: its count (0) or scalar which - 1.
   Borrowed from `kept`. */
struct tensor_number {
    size_t weight;
    int which;
    PyObject *dict, *key, *tensor;
};

/* Memory that is held: from low to high. */
struct reach { const char *low, *high; };

struct tensors {
    PyObject *orders;                   /* how to order the axes of each weight, None for as they are */
    PyObject *watched;                  /* (dict, key, value) that must not change */
    PyObject *given, *types;            /* the parts, and types whose methods run no Python code: tuples */
    PyObject *rows;                     /* a function that makes Rows of a sparse gradient, or None */
    PyObject *kept;                     /* the numbers that the owner keeps: a tuple, or NULL */
    PyObject *names[TENSOR_NAMES];
    size_t n, n_parts;                  /* weights; parts of weights beside them */
    struct tensor_part *parts;
    struct tensor_number *numbers;
    size_t n_numbers;
    /* Of the step in progress: */
    const struct tensor_exchange *table;        /* NULL without one */
    PyObject **items;                   /* the tensors of the parts, n_parts, or NULL */
    char *by_rows;                      /* whether the gradient of a weight is Rows, or was at the last step */
    char *rests;                        /* whether a weight has no gradient */
    PyObject **storages;                /* of the weights, the gradients and the parts; NULL where none is held */
    struct reach *reaches;              /* the memory of these, if holding them may run foreign code */
    int held, measured;                 /* whether storages are held; whether their reaches are known */
};

/* Frees what steps over tensors need; NULL is accepted. */
void optimc_free_tensors(struct tensors *tensors);

/* Lets go of what the step in progress holds. */
void optimc_release_tensors(struct tensors *tensors);

/* Puts Rows in the place of gradient k of the step, if it is sparse; the list has the weights.  0, or -1 with an
   error; if it is not sparse, that is the error that is set, if any.  It runs foreign code. */
int optimc_make_rows(Optimizer *self, PyObject *list, size_t k);

/* 1 if all watched items are unchanged, else 0; -1 with an error. */
int optimc_is_as_watched(const Optimizer *self);

/* numbers.c.
   - read takes the numbers that `_prepare_tensors` was given.  0, or -1 with an error.
   - are_left tells whether those of the weights of this step are what their owner was left with: 1 or 0.
   - write gives their owner those that the step has made. */
int optimc_read_numbers(const Plan *plan, PyObject *given, struct tensors *tensors);
int optimc_numbers_are_left(const Optimizer *self, const struct tensor_exchange *table);
void optimc_write_numbers(const Optimizer *self);

/* The part of optimc_check_tensors that reads no element of a gradient. */
int optimc_match_tensors(Optimizer *self, PyObject *list, const struct tensor_exchange *table, PyObject *grads,
    int held);

#endif
