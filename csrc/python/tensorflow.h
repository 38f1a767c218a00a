/* tensorflow.h - what is needed of TensorFlow's C interface, declared by hand and found when it is asked for.

   tensorflow.c finds the functions and registers the operations, graph.c is their kernels.  No header of TensorFlow's
   is needed, and nothing is linked with it. */
#ifndef OPTIMC_TENSORFLOW_H
#define OPTIMC_TENSORFLOW_H

#include <stddef.h>
#include <stdint.h>

/* Element types, and codes of errors. */
enum {
    TF_FLOAT = 1, TF_DOUBLE = 2, TF_INT32 = 3, TF_UINT8 = 4, TF_INT16 = 5, TF_INT64 = 9, TF_BFLOAT16 = 14,
    TF_UINT16 = 17, TF_HALF = 19,
};
enum { TF_OK = 0, TF_INVALID_ARGUMENT = 3, TF_RESOURCE_EXHAUSTED = 8, TF_FAILED_PRECONDITION = 9 };

typedef void tf_end(void *data, size_t size, void *argument);
typedef void tf_compute(void *kernel, void *context);
typedef void *tf_create(void *construction);
typedef void tf_delete(void *kernel);
typedef void tf_shapes(void *context, void *status);

/* FUNCTION(result, name, arguments): TF_name.  All objects of TensorFlow's are void here. */
#define TF_FUNCTIONS(FUNCTION) \
    FUNCTION(void *, NewStatus, (void)) \
    FUNCTION(void, DeleteStatus, (void *status)) \
    FUNCTION(void, SetStatus, (void *status, int code, const char *message)) \
    FUNCTION(int, GetCode, (const void *status)) \
    FUNCTION(const char *, Message, (const void *status)) \
    FUNCTION(void *, NewOpDefinitionBuilder, (const char *name)) \
    FUNCTION(void, OpDefinitionBuilderAddAttr, (void *builder, const char *spec)) \
    FUNCTION(void, OpDefinitionBuilderAddInput, (void *builder, const char *spec)) \
    FUNCTION(void, OpDefinitionBuilderAddOutput, (void *builder, const char *spec)) \
    FUNCTION(void, OpDefinitionBuilderSetIsStateful, (void *builder, _Bool stateful)) \
    FUNCTION(void, OpDefinitionBuilderSetShapeInferenceFunction, (void *builder, tf_shapes *shapes)) \
    FUNCTION(void, RegisterOpDefinition, (void *builder, void *status)) \
    FUNCTION(void, ShapeInferenceContextSetUnknownShape, (void *context, void *status)) \
    FUNCTION(void *, NewKernelBuilder, \
        (const char *op, const char *device, tf_create *create, tf_compute *compute, tf_delete *end)) \
    FUNCTION(void, RegisterKernelBuilder, (const char *name, void *builder, void *status)) \
    FUNCTION(void, OpKernelConstruction_GetAttrInt64, \
        (void *construction, const char *name, int64_t *value, void *status)) \
    FUNCTION(void, OpKernelConstruction_GetAttrSize, \
        (void *construction, const char *name, int32_t *n, int32_t *total, void *status)) \
    FUNCTION(void, OpKernelConstruction_GetAttrInt64List, \
        (void *construction, const char *name, int64_t *values, int most, void *status)) \
    FUNCTION(void, OpKernelConstruction_Failure, (void *construction, void *status)) \
    FUNCTION(void, OpKernelContext_Failure, (void *context, void *status)) \
    FUNCTION(int, NumInputs, (void *context)) \
    FUNCTION(int, NumOutputs, (void *context)) \
    FUNCTION(void, GetInput, (void *context, int i, void **tensor, void *status)) \
    FUNCTION(void, SetOutput, (void *context, int i, const void *tensor, void *status)) \
    FUNCTION(void *, AllocateOutput, (void *context, int i, int type, const int64_t *shape, int ndim, size_t size, \
        void *status)) \
    FUNCTION(void *, NewTensor, (int type, const int64_t *shape, int ndim, void *data, size_t size, tf_end *end, \
        void *argument)) \
    FUNCTION(void, DeleteTensor, (void *tensor)) \
    FUNCTION(int, TensorType, (const void *tensor)) \
    FUNCTION(int, NumDims, (const void *tensor)) \
    FUNCTION(int64_t, Dim, (const void *tensor, int axis)) \
    FUNCTION(size_t, TensorByteSize, (const void *tensor)) \
    FUNCTION(void *, TensorData, (const void *tensor))

#define TF_POINTER(result, name, arguments) result (*name) arguments;
struct tensorflow { TF_FUNCTIONS(TF_POINTER) };

/* The functions, once the operations are registered. */
extern struct tensorflow optimc_tf;

#endif
