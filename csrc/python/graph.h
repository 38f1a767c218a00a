/* graph.h - the nodes of a compiled program of TensorFlow that are optimc's. */
#ifndef OPTIMC_GRAPH_H
#define OPTIMC_GRAPH_H

#include "python/foreign.h"
#include "python/tensorflow.h"

enum { MOST_AXES = 32 };

/* The views of the gradient of a weight. */
struct gradient_views {
    struct view whole, indices;             /* `whole` is the values of rows, if there are indices */
    struct row_views rows;
    ptrdiff_t room[3 * MOST_AXES];          /* shapes and strides */
};

/* A node, made from its attributes, and what its kernel works with while it is in the home. */
struct node {
    struct home *home;                      /* NULL: there is none of its number in this process */
    int64_t callee;                         /* the number of the function that steps in Python */
    size_t n, lent;                         /* values, and how many of them are lent: the last ones */
    size_t *order;                          /* for each the index among those of the home */
    size_t scalars, weights;
    int rated;                              /* 1 if the learning rate is an input */
    unsigned char *by_rows;                 /* for each weight, 1 if its gradient is indices and values */
    size_t n_inputs;
    void **inputs, **outputs;
    double *numbers;                        /* the scalars */
    char **places;
    struct foreign_gradient *gradients;
    struct gradient_views *views;
};

void optimc_hold_kernel(void *node, void *context);
void optimc_step_kernel(void *node, void *context);

#endif
