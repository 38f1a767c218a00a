/* turns.c - one step of an optimizer at a time: threads wait for their turn, and step in the order they came.

   A turn is no lock of the operating system.  The GIL protects the field that names the owner, so a turn costs
   nothing while only one thread steps.  After a fork() the child inherits turns of threads that it does not have;
   take_over ends them. */
#define NO_IMPORT_ARRAY
#include "python/boundary.h"
#include "plan/pool.h"

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

/* Called the first time in a child process.  No thread waits here, and the owner may exist in the parent only.  Its
   step was complete or had written nothing (optimc_pool_enter), so it ends here as it would have ended there. */
static void take_over(Optimizer *self)
{
    self->forks = optimc_pool_forks();
    self->waiters = NULL;
    if (self->owner && !optimc_is_alive(self->owner)) {
        self->owner = optimc_this_thread();     /* the end of an array may run code of the caller's */
        optimc_restore_scale(self);
        optimc_end_step(self, self->begun);
        self->owner = 0;
    }
}

int optimc_refuse_nested(Optimizer *self)
{
    PyErr_Format(PyExc_RuntimeError, "%s: a step was asked for while one is in progress in this thread "
        "(a schedule or callback may not step or rebuild its own optimizer)", Py_TYPE(self)->tp_name);
    return -1;
}

/* Waits without the GIL until it is this thread's turn. */
static int await_turn(Optimizer *self, uint64_t me)
{
    struct waiter mine = {me, PyThread_allocate_lock(), NULL}, **last = &self->waiters;
    if (!mine.turn) {
        PyErr_NoMemory();
        return -1;
    }
    PyThread_acquire_lock(mine.turn, NOWAIT_LOCK);
    while (*last)
        last = &(*last)->next;
    *last = &mine;
    Py_BEGIN_ALLOW_THREADS
    PyThread_acquire_lock(mine.turn, WAIT_LOCK);
    Py_END_ALLOW_THREADS
    PyThread_free_lock(mine.turn);
    return 0;
}

/* Begins this thread's turn.  A step within a step (from a schedule, say) is an error.  A step from another thread
   waits, and turns are given in order: otherwise a thread that steps in a loop would always be first. */
int optimc_lock(Optimizer *self)
{
    const uint64_t me = optimc_this_thread();
    if (self->owner == me)
        return optimc_refuse_nested(self);
    if (self->forks != optimc_pool_forks())
        take_over(self);
    if (self->owner)
        return await_turn(self, me);
    self->owner = me;
    return 0;
}

void optimc_unlock(Optimizer *self)
{
    if (self->forks != optimc_pool_forks())
        take_over(self);
    struct waiter *next = self->waiters;
    self->owner = next ? next->thread : 0;
    if (next) {
        self->waiters = next->next;
        PyThread_release_lock(next->turn);
    }
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
