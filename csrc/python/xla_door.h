/* xla_door.h - what module.c needs of xla.c. */
#ifndef OPTIMC_XLA_DOOR_H
#define OPTIMC_XLA_DOOR_H

/* A capsule for jax.ffi.register_ffi_target that calls `function(number, arguments, results)`; NULL with an error.
   Process-wide: the last function given is called. */
PyObject *optimc_xla_target(PyObject *function);

#endif
