/* graph.c - the operations by which a compiled program of TensorFlow steps an optimizer, without Python and the GIL.

   OptimcStep takes the count, the rule's scalars, the learning rate, the weights with their state and the gradients;
   it gives the first two, and the weights with their state, as they are after the step.  Small values are copied into
   the optimizer's home and out again.  Large ones go through OptimcHold first, which gives variables new tensors over
   the same memory, and OptimcStep writes there if it may: see plan/lent.h.  The function of callee.c does what cannot
   be done without Python (foreign.h), over the same memory.  A step that fails has written nothing.

   Next: tensorflow.c, which registers them. */
#define NO_IMPORT_ARRAY
#include "python/callee.h"
#include "python/graph.h"

#if !defined(_WIN32)
#include <stdlib.h>
#include <string.h>

#include "plan/homes.h"
#include "plan/lent.h"

#define tf optimc_tf

static const char GONE[] = FOREIGN_GONE;
static const char NO_MEMORY[] = "no memory";
static const char OTHER_VALUE[] = "a variable has another shape or type than the optimizer was built for";

/* A value that OptimcHold has claimed, and what its tensor is like. */
struct held {
    struct claim claim;
    size_t size;
    int type, ndim;
    int64_t shape[MOST_AXES];
};

/* The content of the tensor that leads from OptimcHold to OptimcStep in one run.  The tensor's end frees it. */
struct ticket {
    const struct ticket *self;                  /* a copy of the tensor is no ticket */
    size_t n;
    struct held held[];
};

/* Reads the shape of a tensor: 0, or -1 if it has too many axes. */
static int read_shape(const void *tensor, int *ndim, int64_t *shape)
{
    *ndim = tf.NumDims(tensor);
    if (*ndim > MOST_AXES)
        return -1;
    for (int k = 0; k < *ndim; k++)
        shape[k] = tf.Dim(tensor, k);
    return 0;
}

/* ---------------------------------------------------------------------------------- hold - */

static void end_ticket(void *data, size_t size, void *argument)
{
    (void)size;
    (void)argument;
    struct ticket *ticket = data;
    for (size_t i = 0; i < ticket->n; i++)
        optimc_drop_claim(&ticket->held[i].claim);
    free(ticket);
}

/* A tensor over a claimed block, or NULL without memory. */
static void *lend(struct held *held)
{
    struct loan *loan = optimc_lend(&held->claim);
    void *tensor = loan ? tf.NewTensor(held->type, held->shape, held->ndim, optimc_claimed(&held->claim), held->size,
        optimc_end_loan, loan) : NULL;
    if (loan && !tensor)
        optimc_end_loan(optimc_claimed(&held->claim), held->size, loan);
    return tensor;
}

/* Claims a value: NULL, or the message of an error. */
static const char *claim(const struct home *home, const struct value *value, const void *tensor, struct held *held)
{
    held->size = tf.TensorByteSize(tensor);
    held->type = tf.TensorType(tensor);
    if (held->size != value->size || value->data || read_shape(tensor, &held->ndim, held->shape))
        return OTHER_VALUE;
    return optimc_claim(&held->claim, home->lender, tf.TensorData(tensor), held->size, value->shift)
        ? NO_MEMORY : NULL;
}

/* Claims value i, and gives a tensor over its block: NULL, or the message of an error. */
static const char *hold_one(const struct node *node, size_t i, struct held *held, void *context, void *status)
{
    void *tensor = NULL;
    tf.GetInput(context, (int)i, &tensor, status);
    if (!tensor)
        return tf.Message(status);
    const char *error = claim(node->home, &node->home->values[node->order[i]], tensor, held);
    tf.DeleteTensor(tensor);
    if (error)
        return error;
    void *loan = lend(held);
    if (!loan)
        return NO_MEMORY;
    tf.SetOutput(context, 1 + (int)i, loan, status);
    tf.DeleteTensor(loan);
    return NULL;
}

static const char *hold(const struct node *node, void *context, void *status)
{
    const size_t bytes = (sizeof(struct ticket) + node->n * sizeof(struct held) + 63) / 64 * 64;
    const int64_t length = (int64_t)(bytes / sizeof(int64_t));
    struct ticket *ticket = optimc_lines(bytes);
    if (!ticket)
        return NO_MEMORY;
    ticket->self = ticket;
    const char *error = NULL;
    while (!error && ticket->n < node->n) {
        error = hold_one(node, ticket->n, &ticket->held[ticket->n], context, status);
        ticket->n++;
    }
    void *tensor = tf.NewTensor(TF_INT64, &length, 1, ticket, bytes, end_ticket, NULL);
    if (!tensor) {
        end_ticket(ticket, bytes, NULL);
        return error ? error : NO_MEMORY;
    }
    if (!error)
        tf.SetOutput(context, 0, tensor, status);
    tf.DeleteTensor(tensor);
    return error;
}

/* Ends a kernel's work: tells TensorFlow of an error, if there is one. */
static void finish(void *context, void *status, int code, const char *error)
{
    if (error)
        tf.SetStatus(status, code, error);
    if (tf.GetCode(status))
        tf.OpKernelContext_Failure(context, status);
    tf.DeleteStatus(status);
}

void optimc_hold_kernel(void *given, void *context)
{
    const struct node *node = given;
    void *status = tf.NewStatus();
    if (!node->home || !optimc_home_enter(node->home)) {
        finish(context, status, TF_FAILED_PRECONDITION, GONE);
        return;
    }
    const char *error = (size_t)tf.NumInputs(context) == node->n_inputs ? hold(node, context, status) : OTHER_VALUE;
    optimc_home_leave(node->home);
    finish(context, status, TF_INVALID_ARGUMENT, error);
}

/* ---------------------------------------------------------------------------------- step - */

/* A step: its inputs, and the outputs that it prepares before anything is written. */
struct run {
    struct node *node;
    void *context, *status;
    struct foreign_step step;
    double rate;
    char message[1024];
};

/* The first of the inputs of each kind. */
static size_t first_value(const struct node *node)
{
    return 1 + node->scalars + (size_t)node->rated + (node->lent > 0);
}

static size_t first_gradient(const struct node *node)
{
    return first_value(node) + node->n - node->lent;
}

static const char *get_inputs(const struct run *run)
{
    const struct node *node = run->node;
    if ((size_t)tf.NumInputs(run->context) != node->n_inputs
        || (size_t)tf.NumOutputs(run->context) != 1 + node->scalars + node->n)
        return OTHER_VALUE;
    for (size_t i = 0; i < node->n_inputs; i++) {
        tf.GetInput(run->context, (int)i, &node->inputs[i], run->status);
        if (!node->inputs[i])
            return tf.Message(run->status);
    }
    return NULL;
}

/* Makes output i like a tensor: its memory, or NULL with an error. */
static char *make_output(const struct run *run, size_t i, const void *like, size_t size)
{
    int ndim;
    int64_t shape[MOST_AXES];
    if (read_shape(like, &ndim, shape))
        return NULL;
    void *made = tf.AllocateOutput(run->context, (int)i, tf.TensorType(like), shape, ndim, size, run->status);
    run->node->outputs[i] = made;
    return made ? tf.TensorData(made) : NULL;
}

static int read_number(const void *tensor, double *number)
{
    const void *data = tf.TensorData(tensor);
    const int type = tf.TensorType(tensor);
    if (tf.TensorByteSize(tensor) != (type == TF_FLOAT ? sizeof(float) : sizeof(double)))
        return -1;
    *number = type == TF_FLOAT ? (double)*(const float *)data : *(const double *)data;
    return type == TF_FLOAT || type == TF_DOUBLE ? 0 : -1;
}

/* Reads the count, the scalars and the rate, and copies the first two to their outputs. */
static const char *take_numbers(struct run *run)
{
    struct node *node = run->node;
    for (size_t i = 0; i <= node->scalars; i++) {
        const void *in = node->inputs[i];
        const size_t size = tf.TensorByteSize(in);
        char *out = make_output(run, i, in, size);
        if (!out)
            return NO_MEMORY;
        memcpy(out, tf.TensorData(in), size);
        if (i ? read_number(in, &node->numbers[i - 1]) : tf.TensorType(in) != TF_INT64 || size != sizeof(int64_t))
            return OTHER_VALUE;
    }
    memcpy(&run->step.calls, tf.TensorData(node->inputs[0]), sizeof run->step.calls);
    if (node->rated && read_number(node->inputs[1 + node->scalars], &run->rate))
        return "the learning rate is no number";
    run->step.rate = node->rated ? &run->rate : NULL;
    run->step.scalars = node->numbers;
    run->step.n_scalars = node->scalars;
    return NULL;
}

/* Brings small values home, and makes their outputs. */
static const char *take_small(const struct run *run)
{
    const struct node *node = run->node;
    for (size_t i = 0; i < node->n - node->lent; i++) {
        const void *in = node->inputs[first_value(node) + i];
        const struct value *value = &node->home->values[node->order[i]];
        if (tf.TensorByteSize(in) != value->size || !value->data)
            return OTHER_VALUE;
        if (!make_output(run, 1 + node->scalars + i, in, value->size))
            return NO_MEMORY;
        memcpy(value->data, tf.TensorData(in), value->size);
        node->places[node->order[i]] = value->data;
    }
    return NULL;
}

/* Takes the blocks of large values, and makes their outputs. */
static const char *take_lent(const struct run *run)
{
    const struct node *node = run->node;
    if (!node->lent)
        return NULL;
    void *tensor = node->inputs[first_value(node) - 1];
    struct ticket *ticket = tf.TensorData(tensor);
    if (tf.TensorByteSize(tensor) < sizeof *ticket || ticket->self != ticket || ticket->n != node->lent)
        return "the values of a compiled step were not held for it";
    for (size_t k = 0; k < node->lent; k++) {
        struct held *held = &ticket->held[k];
        const size_t i = node->n - node->lent + k;
        char *data = optimc_take_claimed(&held->claim, node->home->lender);
        if (!data || !(node->outputs[1 + node->scalars + i] = lend(held)))
            return NO_MEMORY;
        node->places[node->order[i]] = data;
    }
    return NULL;
}

/* The view of a tensor, its shape and strides in `room`: 0, or -1 if there is none. */
static int look(const void *tensor, ptrdiff_t *room, struct view *view)
{
    static const struct { signed char type, size; } types[] = {
        [TF_FLOAT] = {TYPE_F32, 4}, [TF_DOUBLE] = {TYPE_F64, 8}, [TF_HALF] = {TYPE_F16, 2},
        [TF_BFLOAT16] = {TYPE_BF16, 2}, [TF_INT32] = {TYPE_OTHER, 4}, [TF_INT64] = {TYPE_OTHER, 8},
    };
    const int type = tf.TensorType(tensor), ndim = tf.NumDims(tensor);
    if (type < 0 || (size_t)type >= sizeof types / sizeof *types || !types[type].size || ndim > MOST_AXES)
        return -1;
    for (int k = 0; k < ndim; k++)
        room[k] = (ptrdiff_t)tf.Dim(tensor, k);
    *view = optimc_view_in_order(tf.TensorData(tensor), types[type].type, (size_t)types[type].size, ndim, room);
    return 0;
}

static const char *take_gradients(struct run *run)
{
    const struct node *node = run->node;
    void **in = node->inputs + first_gradient(node);
    for (size_t i = 0; i < node->weights; i++) {
        struct gradient_views *views = &node->views[i];
        if (node->by_rows[i] && (tf.NumDims(*in) != 1 || look(*in++, views->room + 2 * MOST_AXES, &views->indices)
                || views->indices.type != TYPE_OTHER))
            return "the indices of a gradient are no integers";
        if (look(*in++, views->room, &views->whole))
            return "a gradient is of another type than float16, bfloat16, float32 and float64";
        views->rows = (struct row_views){&views->indices, &views->whole, 1};
        node->gradients[i] = node->by_rows[i] ? (struct foreign_gradient){NULL, &views->rows}
            : (struct foreign_gradient){&views->whole, NULL};
    }
    return NULL;
}

/* Steps in Python, over the same memory. */
static const char *step_in_python(struct run *run)
{
    const struct node *node = run->node;
    const size_t gradients = first_gradient(node), n_made = 1 + node->scalars + node->n;
    struct memory_of *given = malloc((node->n_inputs + n_made) * sizeof *given), *made = given + node->n_inputs;
    if (!given)
        return NO_MEMORY;
    size_t n = 0;
    for (size_t i = 1 + node->scalars; i < node->n_inputs; i++)
        if (i >= gradients || (node->rated && i == 1 + node->scalars))
            given[n++] = (struct memory_of){tf.TensorData(node->inputs[i]), tf.TensorByteSize(node->inputs[i])};
    for (size_t i = 0; i < n_made; i++)
        made[i] = i <= node->scalars
            ? (struct memory_of){tf.TensorData(node->outputs[i]), tf.TensorByteSize(node->outputs[i])}
            : (struct memory_of){node->places[i - node->scalars - 1], node->home->values[i - node->scalars - 1].size};
    const int failed = optimc_call_python(node->callee, given, n, made, n_made, run->message, sizeof run->message);
    free(given);
    return failed ? run->message : NULL;
}

/* 1 if the optimizer's arrays are as large as the values at home. */
static int fits(const struct run *run, const struct foreign *foreign)
{
    const struct home *home = run->node->home;
    const struct foreign_size size = optimc_foreign_size(foreign);
    size_t i = size.places == home->n ? 0 : home->n + 1;
    while (i < home->n && optimc_foreign_bytes(foreign, i) == home->values[i].size)
        i++;
    return i == home->n;
}

/* Writes the numbers after the step to their outputs. */
static void give_numbers(const struct run *run)
{
    const struct node *node = run->node;
    *(int64_t *)tf.TensorData(node->outputs[0]) = run->step.calls;
    for (size_t i = 0; i < node->scalars; i++) {
        void *to = tf.TensorData(node->outputs[1 + i]);
        if (tf.TensorType(node->outputs[1 + i]) == TF_FLOAT)
            *(float *)to = (float)node->numbers[i];
        else
            *(double *)to = node->numbers[i];
    }
}

static const char *step(struct run *run)
{
    struct node *node = run->node;
    struct foreign_step *own = &run->step;
    struct foreign *foreign = optimc_foreign_enter(node->home->number);
    if (!foreign)
        return GONE;
    own->places = node->places;
    own->n_places = node->n;
    own->gradients = node->gradients;
    own->n_gradients = node->weights;
    const int fitting = fits(run, foreign);
    const enum foreign_answer answer = fitting ? optimc_foreign_step(foreign, own) : FOREIGN_REFUSED;
    optimc_foreign_leave(foreign);
    if (!fitting)
        return OTHER_VALUE;
    if (answer == FOREIGN_NEEDS_PYTHON)
        return step_in_python(run);
    if (answer == FOREIGN_REFUSED)
        return own->message;
    if (answer == FOREIGN_DONE)
        give_numbers(run);
    return NULL;
}

static void give_values(const struct run *run)
{
    const struct node *node = run->node;
    for (size_t i = 0; i < node->n; i++) {
        void *out = node->outputs[1 + node->scalars + i];
        const struct value *value = &node->home->values[node->order[i]];
        if (value->data)
            memcpy(tf.TensorData(out), value->data, value->size);
        else
            tf.SetOutput(run->context, (int)(1 + node->scalars + i), out, run->status);
    }
}

static void delete_all(void **tensors, size_t n)
{
    for (size_t i = 0; i < n; i++) {
        tf.DeleteTensor(tensors[i]);
        tensors[i] = NULL;
    }
}

void optimc_step_kernel(void *given, void *context)
{
    struct run run = {.node = given, .context = context, .status = tf.NewStatus()};
    struct node *node = run.node;
    if (!node->home || !optimc_home_enter(node->home)) {
        finish(context, run.status, TF_FAILED_PRECONDITION, GONE);
        return;
    }
    const char *error = get_inputs(&run);
    error = error ? error : take_numbers(&run);
    error = error ? error : take_small(&run);
    error = error ? error : take_lent(&run);
    error = error ? error : take_gradients(&run);
    error = error ? error : step(&run);
    if (!error)
        give_values(&run);
    delete_all(node->inputs, node->n_inputs);
    delete_all(node->outputs, 1 + node->scalars + node->n);
    optimc_home_leave(node->home);
    finish(context, run.status, error == GONE ? TF_FAILED_PRECONDITION : TF_INVALID_ARGUMENT, error);
}
#endif
