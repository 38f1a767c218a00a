/* kernels.h - the types that kernels, plan and boundary share: rules, kernels, coefficient rows.

   Whatever there is per rule or kernel comes from optimizers.def, so this file names no optimizer.
   Next: table.inc, the types that exist for float and for double. */
#ifndef OPTIMC_KERNELS_H
#define OPTIMC_KERNELS_H

#include <float.h>
#include <stddef.h>
#include <stdint.h>

#include "kernels/exact.h"

#if defined(__FAST_MATH__)
#error "optimc promises exact results: do not compile it with -ffast-math or -Ofast"
#endif
#if FLT_EVAL_METHOD != 0
#error "optimc needs float arithmetic in float (on 32-bit x86: -msse2 -mfpmath=sse)"
#endif

/* Element types.  Kernels compute in the first two, the real types; gradients may have any of the floats.  The
   integers after them hold codes of numbers: see codecs.inc. */
enum type { TYPE_F32, TYPE_F64, TYPE_F16, TYPE_BF16, TYPE_LONG_DOUBLE, FLOAT_TYPES, TYPE_U8 = FLOAT_TYPES, TYPE_I16,
    TYPE_U16, TYPE_OTHER };

/* The rounding that a slot allows, if it is stored in fewer bits than its real type has: see optimizers.def. */
enum rounding { EXACT, NEAREST, RANDOM, NEAREST_16 };

/* The codes of numbers, and how they are rounded: codecs.inc defines them.
     CODEC_SPLIT, CODEC_HALF    of weights: their master, beside them, has what their codes lack */
enum codec { NO_CODEC, CODEC_BF16, CODEC_BF16_RANDOM, CODEC_S8, CODEC_U8_RANDOM, CODEC_SPLIT, CODEC_HALF, CODEC_F16,
    CODECS };

/* Flags of KERNEL_ROW: constants inside one kernel.  The plan reads these of them:
     MEASURED      MEASURE and SETTLE of the rule come before the kernel
     FACTORED      its second moment is the product of SLOT_1, means of rows, and SLOT_2, means of columns
     REBUILT       FACTORED, and SLOT_0 is no array: each pass makes that product anew, in scratch
     NO_GRADIENT   its rule does not read the gradient, which MEASURE has used up
     DECAYS_LATE   weight decay comes after MEASURE, which may ask COEFS for step->decay; for others it comes
                   before
     DECOUPLES_LATE    only decoupled decay comes after MEASURE
     ROWWISE       SLOT_0 is a number for each row of the weight, to which the mean of the squares of the row's
                   gradient is added; the kernel steps a row at a time, after SETTLE with that number
     WHOLE         its rule, or what runs beside it, looks at whole weights: as MEASURED and FACTORED, it takes no
                   gradients by rows
   loop.inc reads one:
     COMMON        it keeps slots 0 and 1, and is stepped so often that it has loops of its own */
enum { PLAIN = 0, MOMENTUM = 1, NESTEROV = 2, CENTERED = 4, AMSGRAD = 8, ANY_POWER = 16, MEASURED = 32,
    FACTORED = 64, NO_GRADIENT = 128, DECAYS_LATE = 256, WHOLE = 512, ROWWISE = 1024,
    REBUILT = 2048, DECOUPLES_LATE = 4096, COMMON = 8192 };
enum { NO_SLOT = 0, SLOT_0 = 1, SLOT_1 = 2, SLOT_2 = 4, SLOT_3 = 8 };
enum { MAX_SLOTS = 4, MAX_HYPERS = 8, MAX_COEFS = 12, MAX_SCALARS = 2, MAX_SUMS = 4,
    MAX_NDIM = 64 };

/* The numbers of elements that are handled at a time:
     CODE_BLOCK    that are decoded and encoded at once, and share a scale: it fixes the bits of codes
     SUB_BLOCK     when a gradient is converted; with more, the hardware prefetchers lose track
     STAGE_BLOCK   when a gradient of the real type is prepared in scratch; with fewer, they do
     AVERAGE_BLOCK of a weight that are updated before their average is, which reads them from the core's cache
     SUM_BLOCK     in one block of a sum, in SUM_LANES lanes: these two fix the bits of every norm
     ROW_LANES     lanes of the mean over a row of a ROWWISE kernel, in the real type */
enum { CODE_BLOCK = 256, SUB_BLOCK = 256, STAGE_BLOCK = 1024, AVERAGE_BLOCK = 2048, SUM_LANES = 16,
    SUM_BLOCK = 2048, ROW_LANES = 8 };

/* The options that a loop of a kernel applies. */
enum { NO_OPTIONS, DECAY_ONLY, ALL_OPTIONS };

/* A loop that asks for memory asks for ASK_BLOCK elements at a time, or for a CODE_BLOCK, ASK_AHEAD elements ahead.
   Calls of fewer than ASK_LEAST elements are rows, and what follows them may be of no use.  LINE is the bytes of a
   cache line. */
enum { ASK_BLOCK = 64, ASK_AHEAD = 512, ASK_LEAST = 2048, LINE = 64 };

/* The hyperparameters that every optimizer has, in the order in which Python passes them; those of the rule follow.
   NaN disables an option. */
#define OPTION_NAMES learning_rate, weight_decay, clipnorm, clipvalue, global_clipnorm, ema_momentum, \
    loss_scale_factor
struct options {
    double OPTION_NAMES;
};
enum { OPTIONS = sizeof(struct options) / sizeof(double), MAX_VALUES = OPTIONS + MAX_HYPERS };

/* Per rule, its hyperparameters and its scalars: doubles one after the other, from the first.  `end` ends a list of
   scalars, which may be empty. */
#define UNWRAP(...) __VA_ARGS__
#define RULE_ROW(rule, slots, roundings, hypers, coefs, scalars) \
    struct rule##_hypers { double UNWRAP hypers; }; \
    struct rule##_scalars { double UNWRAP scalars end; }; \
    _Static_assert(sizeof(struct rule##_hypers) <= MAX_HYPERS * sizeof(double), "MAX_HYPERS"); \
    _Static_assert(offsetof(struct rule##_scalars, end) <= MAX_SCALARS * sizeof(double), "MAX_SCALARS");
#include "optimizers.def"

#define RULE_ROW(rule, slots, roundings, hypers, coefs, scalars) RULE_##rule,
enum rule {
#include "optimizers.def"
    RULES
};

#define KERNEL_ROW(kernel, rule, variant, used) KERNEL_##kernel,
enum kernel {
#include "optimizers.def"
    KERNELS
};

/* A gradient to be converted.  Strides are in bytes; `f_order` says that its weight lies in Fortran order. */
struct source {
    const char *data;
    const ptrdiff_t *shape, *strides;
    size_t itemsize;
    int ndim, type, swapped, f_order;
};

typedef uint32_t word_f32;                  /* the bits of a number */
typedef uint64_t word_f64;

#define real float
#define NAME(x) x##_f32
#include "kernels/table.inc"
#undef NAME
#undef real

#define real double
#define NAME(x) x##_f64
#include "kernels/table.inc"
#undef NAME
#undef real

/* The code of a number, and what belongs to it: the scale of its block, or its master. */
struct coded { void *code, *beside; };

/* Decodes and encodes at most CODE_BLOCK numbers, of one block where a block has a scale.  `random` has a number for
   each, if the codec rounds at random. */
struct coder {
    void (*decode)(size_t n, struct coded from, float *to);
    void (*encode)(size_t n, const float *from, const uint16_t *random, struct coded to);
};

/* Writes the random numbers of elements begin .. begin + n - 1, a block or less, under a key; see codecs.inc. */
typedef void random_numbers(uint64_t key, uint64_t begin, size_t n, uint16_t *to);

/* A loop that reads and writes codes itself: `parts` are the weight and slots 0 and 1, numbers or codes, and `keys`
   has a key for each; the first element is element `begin` of its weight.  It takes whole blocks of CODE_BLOCK. */
enum { FUSED_PARTS = 3 };
typedef void fused_run(size_t n, const void *gradient, const struct coded parts[FUSED_PARTS],
    const struct row_f32 *row, const uint64_t keys[FUSED_PARTS], uint64_t begin);
struct fused {
    enum kernel kernel;
    enum type gradient;                     /* TYPE_F32 or TYPE_BF16 */
    enum codec codecs[FUSED_PARTS];
    fused_run *run;
};

/* One ISA: its name and what is compiled for it. */
struct isa {
    const char *name;
    struct table_f32 f32;
    struct table_f64 f64;
    const struct coder *coders;             /* by enum codec */
    random_numbers *random_numbers;
    const struct fused *fused;              /* ends with a row whose run is NULL */
};

#endif
