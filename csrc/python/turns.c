/* turns.c - one step of an optimizer at a time: threads wait for their turn, and take it in order.

   It is not a lock of the system: the GIL guards who the owner is, so that a turn costs nothing while one thread
   steps.  A child process after a fork() inherits turns of threads that it does not have; take_over ends them. */
#define NO_IMPORT_ARRAY
#include "python/boundary.h"
#include "plan/pool.h"

/* Thread states have numbers of their own, which no later thread gets again, not even in a child process. */
uint64_t optimc_this_thread(void)
{
    return PyThreadState_GetID(PyThreadState_Get());
}

static int is_alive(uint64_t thread)
{
    PyThreadState *state = PyInterpreterState_ThreadHead(PyInterpreterState_Get());
    while (state && PyThreadState_GetID(state) != thread)
        state = PyThreadState_Next(state);
    return state != NULL;
}

/* The first time in a child process: nobody waits, and an owner may have stayed in the parent.  Its step was whole
   or had written nothing (optimc_pool_enter); what it left is dropped. */
static void take_over(Optimizer *self)
{
    self->forks = optimc_pool_forks();
    self->waiters = NULL;
    if (self->owner && !is_alive(self->owner)) {
        self->owner = 0;
        optimc_restore_scale(self);
        optimc_leave_step(self);
        Py_CLEAR(self->before);
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

/* One step at a time.  The GIL guards who owns it, so that this costs nothing while one thread steps.  A step asked
   for from inside a step (by a schedule, say) is an error; one from another thread waits for its turn, in order: a
   thread that steps again and again would otherwise be first each time. */
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

/* Calls a method that changes what a step reads, while no step of another thread is in progress.  In this
   thread one may be: it is being checked then, and not yet running. */
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
