/* callee.h - the one Python function that compiled programs call, from a thread of theirs, with memory of theirs. */
#ifndef OPTIMC_CALLEE_H
#define OPTIMC_CALLEE_H

#include "python/boundary.h"

/* Sets it, once before the first call: 0, or -1 with an error. */
int optimc_set_callee(PyObject *function);

struct memory_of {                          /* a buffer that a program lends for the call */
    void *data;
    size_t size;
};

/* Takes the GIL and calls function(number, given, made), of memoryviews: those of `made` are writable.  0; or -1 with
   the exception in `message`, cut to its room. */
int optimc_call_python(int64_t number, const struct memory_of *given, size_t n_given, const struct memory_of *made,
    size_t n_made, char *message, size_t room);

#endif
