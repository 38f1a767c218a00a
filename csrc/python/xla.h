/* xla.h - what is needed of XLA's foreign function interface, version 0, to be called with buffers.

   The layout is that of the public interface, which grows only at the ends of its structures; only the parts
   used here are named. */
#ifndef OPTIMC_XLA_H
#define OPTIMC_XLA_H

#include <stddef.h>
#include <stdint.h>

#define XLA_CAPSULE "xla._CUSTOM_CALL_TARGET"

enum { XLA_MAJOR = 0, XLA_EXTENSION_METADATA = 1, XLA_EXECUTE = 3, XLA_SCALAR = 3, XLA_INTERNAL = 13 };

/* Element types. */
enum {
    XLA_PRED = 1, XLA_S8, XLA_S16, XLA_S32, XLA_S64, XLA_U8, XLA_U16, XLA_U32, XLA_U64, XLA_F16, XLA_F32, XLA_F64,
    XLA_C64 = 15, XLA_BF16 = 16, XLA_C128 = 18,
};

struct xla_extension {
    size_t struct_size;
    int type;
    struct xla_extension *next;
};

struct xla_version {
    size_t struct_size;
    struct xla_extension *extensions;
    int major, minor;
};

struct xla_metadata_extension {
    struct xla_extension base;
    struct {
        size_t struct_size;
        struct xla_version version;
        uint32_t traits;
    } *metadata;
};

struct xla_error_args {
    size_t struct_size;
    struct xla_extension *extensions;
    const char *message;
    int code;
};

struct xla_api {
    size_t struct_size;
    struct xla_extension *extensions;
    struct xla_version version;
    const void *internal;
    void *(*make_error)(struct xla_error_args *args);
};

struct xla_buffer {
    size_t struct_size;
    struct xla_extension *extensions;
    int type;
    void *data;
    int64_t ndim;
    const int64_t *shape;
};

struct xla_buffers {                        /* arguments, and results */
    size_t struct_size;
    struct xla_extension *extensions;
    int64_t n;
    const int *types;
    struct xla_buffer *const *buffers;
};

struct xla_scalar {
    int type;
    const void *value;
};

struct xla_span {
    const char *text;
    size_t length;
};

struct xla_attributes {
    size_t struct_size;
    struct xla_extension *extensions;
    int64_t n;
    const int *types;
    const struct xla_span *const *names;
    const struct xla_scalar *const *values;
};

struct xla_frame {
    size_t struct_size;
    struct xla_extension *extensions;
    const struct xla_api *api;
    void *context;
    int stage;
    struct xla_buffers arguments, results;
    struct xla_attributes attributes;
};

#endif
