/* dlpack.h - what is needed of DLPack 1.x to look at a tensor of another library without copying it.

   The layout is that of the public standard; only the parts read here are named.  A library that offers
   the exchange table (an object's `__dlpack_c_exchange_api__`, a capsule) describes a tensor in about a
   hundred nanoseconds, with no Python object made. */
#ifndef OPTIMC_DLPACK_H
#define OPTIMC_DLPACK_H

#include <stdint.h>

enum { TENSOR_MAJOR = 1, TENSOR_ON_CPU = 1, TENSOR_INT = 0, TENSOR_UINT = 1, TENSOR_FLOAT = 2, TENSOR_BFLOAT = 4 };
#define TENSOR_CAPSULE "dlpack_exchange_api"

struct tensor {
    void *data;
    struct { int32_t kind, index; } device;
    int32_t ndim;
    struct { uint8_t code, bits; uint16_t lanes; } type;
    int64_t *shape, *strides;               /* strides in elements; NULL: C order */
    uint64_t byte_offset;
};

struct tensor_exchange {
    struct { uint32_t major, minor; } version;
    struct tensor_exchange *older;
    void (*unused[3])(void);                /* allocator, to and from managed tensors */
    int (*look)(void *object, struct tensor *out);  /* 0, or -1 with a Python error; may be NULL */
    void (*unused_too)(void);               /* the current stream */
};

#endif
