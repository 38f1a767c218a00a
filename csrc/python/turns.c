/* turns.c - one step of an optimizer at a time: threads wait for their turn, and step in the order they came.

   A turn is no lock of the operating system.  The GIL protects the field that names the owner, so a turn costs
   nothing while only one thread steps.  The turn of a thread that is gone is nobody's: after a fork() the child
   inherits turns of threads that it does not have, and at its end the interpreter ends daemon threads wherever they
   are.  A thread that waits hears of signals, and of owners that are gone. */
#define NO_IMPORT_ARRAY
#include "python/boundary.h"
#include "plan/pool.h"

enum { PATIENCE = 100000 };                 /* microseconds of waiting between two looks for a dead owner */

/* The number of this thread's state.  No later thread gets the same number, not even in a child process. */
uint64_t optimc_this_thread(void)
{
    return PyThreadState_GetID(PyThreadState_Get());
}

int optimc_is_alive(uint64_t thread)
{
    PyThreadState *state = PyInterpreterState_ThreadHead(PyInterpreterState_Get());
    while (state && PyThreadState_GetID(state) != thread)
        state = PyThreadState_Next(state);
    return state != NULL;
}

/* Ends the turn of a thread that is gone.  Its step was complete or had written nothing (optimc_pool_enter), so it
   ends here as it would have ended there. */
static void end_turn(Optimizer *self)
{
    self->owner = optimc_this_thread();         /* the end of an array may run code of the caller's */
    optimc_restore_scale(self);
    optimc_end_step(self, self->begun);
    self->alone = 0;
    if (self->foreign)
        optimc_admit_foreign(self);
    self->owner = 0;
}

static void free_waiter(struct waiter *waiter)
{
    PyThread_free_lock(waiter->turn);
    PyMem_RawFree(waiter);
}

/* Called the first time in a child process.  No thread waits here, and the owner may exist in the parent only. */
static void take_over(Optimizer *self)
{
    self->forks = optimc_pool_forks();
    while (self->waiters) {
        struct waiter *waiter = self->waiters;
        self->waiters = waiter->next;
        free_waiter(waiter);
    }
    if (self->owner && !optimc_is_alive(self->owner))
        end_turn(self);
    if (self->evaluating)
        optimc_leave_dead_evaluations(self);
}

void optimc_look_for_fork(Optimizer *self)
{
    if (self->forks != optimc_pool_forks())
        take_over(self);
}

/* Gives the turn, which is nobody's, to the first thread in the queue.  A thread that is gone leaves its entry, and
   may still be blocked in it: the entry is not freed. */
static void hand_over(Optimizer *self)
{
    while (self->waiters && !self->owner) {
        struct waiter *first = self->waiters;
        self->waiters = first->next;
        if (!optimc_is_alive(first->thread))
            continue;
        self->owner = first->thread;
        PyThread_release_lock(first->turn);
    }
}

/* Called before this thread waits, and while it does.  An owner may be gone: the interpreter ends daemon threads when
   it ends, and a transaction may outlive the thread that began it.  The step that it ran is waited for. */
static void end_turn_of_the_dead(Optimizer *self)
{
    if (self->owner && !optimc_is_alive(self->owner)) {
        optimc_pool_land();
        end_turn(self);
    }
    hand_over(self);
}

int optimc_refuse_nested(Optimizer *self)
{
    PyErr_Format(PyExc_RuntimeError, "%s: a step was asked for while one is in progress in this thread "
        "(a schedule or callback may not step or rebuild its own optimizer)", Py_TYPE(self)->tp_name);
    return -1;
}

/* Puts an entry into the queue, in the order of arrival. */
static void line_up(Optimizer *self, struct waiter *waiter)
{
    struct waiter **place = &self->waiters;
    while (*place && (*place)->number < waiter->number)
        place = &(*place)->next;
    waiter->next = *place;
    *place = waiter;
}

static void step_out(Optimizer *self, const struct waiter *waiter)
{
    struct waiter **place = &self->waiters;
    while (*place && *place != waiter)
        place = &(*place)->next;
    if (*place)
        *place = waiter->next;
}

/* Runs signal handlers.  They may use the optimizer, so this thread is not in the queue meanwhile: a turn that came
   could not be used.  0, or -1 with an error. */
static int hear_signals(Optimizer *self, struct waiter *mine)
{
    step_out(self, mine);
    const int raised = PyErr_CheckSignals();
    optimc_look_for_fork(self);
    if (raised)
        return -1;
    line_up(self, mine);
    end_turn_of_the_dead(self);
    return 0;
}

/* Waits without the GIL until it is this thread's turn.  A signal handler that raises ends the wait. */
static int await_turn(Optimizer *self, uint64_t me)
{
    struct waiter *mine = PyMem_RawMalloc(sizeof *mine);
    PyThread_type_lock turn = mine ? PyThread_allocate_lock() : NULL;
    if (!turn) {
        PyMem_RawFree(mine);
        PyErr_NoMemory();
        return -1;
    }
    *mine = (struct waiter){.thread = me, .number = self->arrivals++, .turn = turn};
    PyThread_acquire_lock(turn, NOWAIT_LOCK);
    line_up(self, mine);
    int failed = 0;
    do {
        Py_BEGIN_ALLOW_THREADS
        PyThread_acquire_lock_timed(turn, PATIENCE, 1);
        Py_END_ALLOW_THREADS
        if (self->owner != me)
            end_turn_of_the_dead(self);
        if (self->owner != me)
            failed = hear_signals(self, mine);
    } while (!failed && self->owner != me);
    free_waiter(mine);
    return failed;
}

/* Begins this thread's turn.  A step within a step (from a schedule, say) is an error.  A step from another thread
   waits, and turns are given in order: otherwise a thread that steps in a loop would always be first. */
int optimc_take_turn(Optimizer *self)
{
    const uint64_t me = optimc_this_thread();
    if (self->owner == me && self->alone == 1) {
        self->alone = 2;
        return 0;
    }
    if (self->owner == me)
        return optimc_refuse_nested(self);
    optimc_look_for_fork(self);
    if (self->owner)
        end_turn_of_the_dead(self);
    if (self->owner && await_turn(self, me))
        return -1;
    self->owner = me;
    if (self->foreign)
        optimc_await_foreign(self);
    return 0;
}

int optimc_lock(Optimizer *self)
{
    return self->n_values ? optimc_take_turn(self) : optimc_refuse_new(self);
}

void optimc_unlock(Optimizer *self)
{
    optimc_look_for_fork(self);
    if (self->alone == 2) {
        self->alone = 1;
        return;
    }
    if (self->foreign)
        optimc_admit_foreign(self);
    self->owner = 0;
    hand_over(self);
}

/* Calls a method that changes values a step reads, while no other thread's step is in progress.  This thread's own
   step may be in progress: it is still being checked then, and has written nothing. */
PyObject *optimc_between_steps(Optimizer *self, PyObject *args,
    PyObject *(*method)(Optimizer *, PyObject *))
{
    const int mine = self->owner == optimc_this_thread();
    if (!mine && optimc_lock(self))
        return NULL;
    PyObject *result = method(self, args);
    if (!mine)
        optimc_unlock(self);
    return result;
}

/* Calls a method that only reads what a step writes.  A thread with the GIL meets none but steps without it. */
PyObject *optimc_beside_steps(Optimizer *self, PyObject *args, PyObject *(*method)(Optimizer *, PyObject *))
{
    return self->foreign ? optimc_between_steps(self, args, method) : method(self, args);
}
