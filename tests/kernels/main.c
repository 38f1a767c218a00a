/* main.c - the bits of every kernel and codec, without Python: a hash per kernel, real type and set of options.

   usage: kernels             names the ISAs of this machine, one a line
          kernels isa         prints the hashes of that ISA: "kernel lane options hash", one a line; before them, a
                              line per codec, of the codes of all kinds of numbers

   Every line is computed by one thread and again by three, and it is an error if they differ.  Inputs come from
   an integer generator and are exact, so every machine and compiler must print what kernels.txt holds;
   .ci/platforms asks them.  Kernels and hyperparameters are read from optimizers.def: a new kernel is in the
   output by itself, and a hyperparameter without a value below is an error that names it. */

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/isa.h"
#include "plan/plan.h"
#include "plan/pool.h"

enum { STEPS = 6, MOST_ARRAYS = 5, MOST = 3000, THREADS = 3, AXES = 3, SEED = 7, UPPER_HALVES = 1 << 16 };

/* The value of each hyperparameter, and its value in the set of options "others". */
static const struct { const char *name; double value, other; } hyper_values[] = {
    {"momentum", 0.9, 0.5}, {"dampening", 0, 0.25}, {"rate_in_velocity", 1, 0}, {"rho", 0.9, 0.75},
    {"epsilon", 1e-7, 1e-3}, {"epsilon_outside", 0, 1}, {"beta_1", 0.9, 0.5}, {"beta_2", 0.999, 0.9},
    {"beta_3", 0.99, 0.9}, {"bias_correction", 1, 0}, {"corrected_epsilon", 0, 1},
    {"learning_rate_decay", 0, 0.1}, {"epsilon_in_norm", 0, 1}, {"momentum_decay", 1, 0.004},
    {"learning_rate_power", -0.4, -0.7}, {"l1_regularization_strength", 0.01, 0},
    {"l2_regularization_strength", 0.01, 0}, {"l2_shrinkage_regularization_strength", 0.01, 0},
    {"beta", 0.1, 0}, {"warmup_steps", 0, 3}, {"eta_minus", 0.5, 0.75}, {"eta_plus", 1.2, 1.5},
    {"min_step", 1e-6, 0.01}, {"max_step", 50, 0.1}, {"lambd", 1e-4, 0.1}, {"alpha", 0.75, 0.5}, {"t0", 2, 1e6},
    {"beta_2_decay", -0.8, -0.5}, {"epsilon_1", 1e-30, 1e-6}, {"epsilon_2", 1e-3, 0.1},
    {"clip_threshold", 1, 0.5}, {"adam_beta_1", 0.9, 0.5}, {"adam_beta_2", 0.999, 0.9},
    {"adam_lr_ratio", 1, 0.5}, {"rms_rate", 0.2, 0}, {"adam_weight_decay", 0, 0.1},
    {"trust_coefficient", 0.02, 0.5}, {"joint_norm", 0, 1}, {"epsilon_as_floor", 0, 1},
};
enum { HYPER_VALUES = sizeof hyper_values / sizeof *hyper_values };

/* A set of options; what is 0 is off.  `type` is the gradients', TYPE_OTHER the lane's.  `slots` is the type of those
   that may be stored in fewer bits, `weights` that of the weights, if they are of 16 bits. */
static const struct setting {
    const char *name;
    int others, special, ema, overwrite, steps, cautious, coupled, as_factor, maximize, check, type, swapped, reversed;
    int slots, weights, masters;
    double decay, clipnorm, clipvalue, global_clipnorm, loss_scale;
} settings[] = {
    {.name = "plain", .type = TYPE_OTHER},
    {.name = "others", .type = TYPE_OTHER, .others = 1},
    {.name = "special", .type = TYPE_OTHER, .special = 1, .clipvalue = 1e30},
    {.name = "decayed", .type = TYPE_OTHER, .decay = 0.01, .ema = 1, .loss_scale = 8},
    {.name = "clipped", .type = TYPE_F64, .clipnorm = 1.5, .loss_scale = 3, .check = 1},
    {.name = "accumulated", .type = TYPE_F32, .reversed = 1, .steps = 2, .global_clipnorm = 0.7, .ema = 1,
        .overwrite = 1, .maximize = 1},
    {.name = "coupled", .type = TYPE_F16, .coupled = 1, .decay = 0.1, .clipvalue = 0.25},
    {.name = "cautious", .type = TYPE_BF16, .swapped = 1, .cautious = 1, .decay = 0.01, .ema = 1},
    {.name = "wide", .type = TYPE_LONG_DOUBLE, .reversed = 1},
    {.name = "halves", .type = TYPE_F32, .slots = TYPE_U16},
    {.name = "bytes", .type = TYPE_F32, .slots = TYPE_U8, .decay = 0.01},
    {.name = "split", .type = TYPE_BF16, .slots = TYPE_U16, .weights = TYPE_BF16, .masters = 1, .decay = 0.01},
    {.name = "split_bytes", .type = TYPE_BF16, .slots = TYPE_U8, .weights = TYPE_BF16, .masters = 1},
    {.name = "split_special", .type = TYPE_F32, .slots = TYPE_U8, .weights = TYPE_BF16, .masters = 1, .special = 1,
        .clipvalue = 1e30, .ema = 1},
    {.name = "random", .type = TYPE_F16, .slots = TYPE_U16, .weights = TYPE_BF16, .decay = 0.1, .cautious = 1},
    {.name = "random_bytes", .type = TYPE_BF16, .slots = TYPE_U8, .weights = TYPE_BF16, .steps = 2, .ema = 1,
        .overwrite = 1, .global_clipnorm = 0.7},
    {.name = "float16", .type = TYPE_F16, .weights = TYPE_F16, .masters = 1, .clipnorm = 1.5, .loss_scale = 3,
        .decay = 0.1, .coupled = 1},
    {.name = "factor", .type = TYPE_OTHER, .decay = 0.1, .as_factor = 1},
};
enum { SETTINGS = sizeof settings / sizeof *settings };

#define TEXT_(...) #__VA_ARGS__
#define TEXT(...) TEXT_(__VA_ARGS__)
static const char *const hypers_of[RULES] = {
#define RULE_ROW(rule, slots, roundings, hypers, coefs, scalars) TEXT(UNWRAP hypers),
#include "optimizers.def"
#undef RULE_ROW
};

static const struct { const char *name; enum rule rule; int variant, used; } kernels[KERNELS] = {
#define KERNEL_ROW(kernel, rule, variant, used) {#kernel, RULE_##rule, variant, used},
#include "optimizers.def"
#undef KERNEL_ROW
};

static void fail(const char *what, const char *which)
{
    fprintf(stderr, "kernels_main: %s %s\n", what, which);
    exit(1);
}

static void *take(size_t n, size_t size)
{
    void *memory = calloc(n, size);
    if (!memory)
        fail("no memory for", "arrays");
    return memory;
}

/* --------------------------------------------------------------------------------------- numbers - */

static uint64_t seed;

static uint64_t draw(void)
{
    seed = seed * 6364136223846793005u + 1442695040888963407u;
    return seed >> 32;
}

/* In [-1, 1) and of very different sizes; of 24 bits, so exact in float. */
static double number(void)
{
    const double size = 1.0 / (double)(1u << draw() % 12);
    return ((double)(draw() >> 8) * 0x1p-23 - 1) * size;
}

static double special(void)
{
    static const double rare[] = {0.0, -0.0, INFINITY, -INFINITY, NAN, 0x1p-149, -0x1p-149, 0x1p-127, 0x1p127};
    return draw() % 16 ? number() : rare[draw() % (sizeof rare / sizeof *rare)];
}

static size_t size_of(int type)
{
    static const size_t sizes[TYPE_OTHER] = {
        [TYPE_F32] = sizeof(float), [TYPE_F64] = sizeof(double), [TYPE_F16] = 2, [TYPE_BF16] = 2,
        [TYPE_LONG_DOUBLE] = sizeof(long double), [TYPE_U8] = 1, [TYPE_I16] = 2, [TYPE_U16] = 2};
    return sizes[type];
}

/* Stores x as `type`; as one of 16 bits, what the upper half of the float means there, below 2 in size. */
static void put(char *to, int type, int swapped, double x)
{
    const float f = (float)x;
    const long double wide = x;
    uint32_t bits;
    memcpy(&bits, &f, sizeof bits);
    const uint16_t upper = (uint16_t)(bits >> 16 & 0xbfff);
    const void *const from = type == TYPE_F32 ? &f : type == TYPE_F64 ? &x
        : type == TYPE_LONG_DOUBLE ? (const void *)&wide : &upper;
    const size_t size = size_of(type);
    for (size_t i = 0; i < size; i++)
        to[swapped ? size - 1 - i : i] = ((const char *)from)[i];
}

/* ---------------------------------------------------------------------------------------- arrays - */

struct array {
    char *memory;
    ptrdiff_t shape[AXES], strides[AXES];
    struct view view;
};

/* An array of zeros, in C order `offset` elements behind the start of its memory, or in reverse with gaps. */
static void make(struct array *array, const ptrdiff_t *shape, int ndim, int type, size_t offset, int reversed)
{
    const size_t size = size_of(type);
    array->view = (struct view){NULL, array->shape, array->strides, size, ndim, type, 0, 1, ndim < 2, 1, 1};
    ptrdiff_t stride = (ptrdiff_t)size * (reversed ? -2 : 1);
    for (int k = ndim; k-- > 0; stride *= shape[k]) {
        array->shape[k] = shape[k];
        array->strides[k] = stride;
    }
    const size_t n = optimc_view_size(&array->view);
    array->memory = array->view.data = take(2 * n + offset + 1, size);
    if (!reversed)
        array->view.data += offset * size;
    else if (n > 1) {
        array->view.data += 2 * (n - 1) * size;
        array->view.c_order = array->view.f_order = 0;
    }
}

/* Element i in C order. */
static char *element(const struct array *array, size_t i)
{
    const ptrdiff_t width = array->view.ndim ? array->strides[array->view.ndim - 1] : 0;
    return array->view.data + (ptrdiff_t)i * width;
}

static void fill(struct array *array, double (*next)(void), double least)
{
    const size_t n = optimc_view_size(&array->view);
    for (size_t i = 0; i < n; i++) {
        const double x = next();
        put(element(array, i), array->view.type, array->view.swapped, x < least ? -x : x);
    }
}

static const uint64_t HASH_OF_NOTHING = 0xcbf29ce484222325u;

static uint64_t hash_bytes(uint64_t hash, const void *data, size_t n)
{
    for (const unsigned char *byte = data; n--; byte++)
        hash = (hash ^ *byte) * 0x100000001b3u;
    return hash;
}

/* 1 if an element is no number.  Integers of 8 bits, and those beside a bfloat16, always are. */
static int is_nan(const struct array *array, const char *at)
{
    float f;
    double d;
    uint16_t half;
    memcpy(&half, at, array->view.itemsize < sizeof half ? array->view.itemsize : sizeof half);
    switch (array->view.type) {
    case TYPE_F32: return memcpy(&f, at, sizeof f), isnan(f) != 0;
    case TYPE_F64: return memcpy(&d, at, sizeof d), isnan(d) != 0;
    case TYPE_F16: return (half & 0x7fff) > 0x7c00;
    case TYPE_BF16: case TYPE_U16: return (half & 0x7fff) > 0x7f80;
    default: return 0;
    }
}

/* FNV-1a.  Which NaN an operation gives is not IEEE's to say: all are one here.  The last bit of a power is the
   C library's: with `rounded`, doubles are hashed as floats. */
static uint64_t hash_array(uint64_t hash, const struct array *array, int rounded)
{
    const size_t n = optimc_view_size(&array->view);
    for (size_t i = 0; i < n; i++) {
        const char *const at = element(array, i);
        double d = 0;
        if (array->view.type == TYPE_F64)
            memcpy(&d, at, sizeof d);
        const float short_d = (float)d;
        if (is_nan(array, at))
            hash = hash_bytes(hash, "nan", 3);
        else if (array->view.type == TYPE_F64 && rounded)
            hash = hash_bytes(hash, &short_d, sizeof short_d);
        else
            hash = hash_bytes(hash, at, array->view.itemsize);
    }
    return hash;
}

/* ---------------------------------------------------------------------------------------- codecs - */

/* The names of codecs, with the types of their codes and of what lies beside these. */
static const struct { const char *name; int type, beside; } codecs[] = {
    [NO_CODEC] = {"none", TYPE_OTHER, TYPE_OTHER},
    [CODEC_BF16] = {"bf16", TYPE_U16, TYPE_OTHER},
    [CODEC_BF16_RANDOM] = {"bf16_random", TYPE_U16, TYPE_OTHER},
    [CODEC_S8] = {"s8", TYPE_U8, TYPE_OTHER},
    [CODEC_U8_RANDOM] = {"u8_random", TYPE_U8, TYPE_OTHER},
    [CODEC_SPLIT] = {"split", TYPE_BF16, TYPE_I16},
    [CODEC_HALF] = {"half", TYPE_F16, TYPE_F32},
    [CODEC_F16] = {"f16", TYPE_F16, TYPE_OTHER},
};
_Static_assert(sizeof codecs / sizeof *codecs == CODECS, "codecs lacks one");

static enum codec codec_of_slot(int type, enum rounding rounding)
{
    return type == TYPE_U16 ? (rounding == RANDOM ? CODEC_BF16_RANDOM : CODEC_BF16)
        : rounding == RANDOM ? CODEC_U8_RANDOM : CODEC_S8;
}

/* Fills an array of codes, and its master if it has one, with `n` numbers. */
static void fill_codes(const struct isa *isa, enum codec codec, struct array *array, struct array *master, size_t n,
    double (*next)(void), double least)
{
    float numbers[MOST];
    for (size_t i = 0; i < n; i++) {
        const double x = next();
        numbers[i] = (float)(x < least ? -x : x);
    }
    optimc_encode_all(isa, codec, SEED, 0, numbers, n, &array->view, master ? &master->view : NULL);
}

/* The hash of the codes of every upper half of a float32 with some lower halves, and of what they decode to.  The
   places of their random numbers pass 2^32. */
static uint64_t hash_codec(const struct isa *isa, enum codec codec)
{
    static const uint32_t lower[] = {0, 1, 0x7fff, 0x8000, 0x8001, 0xffff};
    const ptrdiff_t n = UPPER_HALVES, coded = (ptrdiff_t)optimc_coded_size(UPPER_HALVES);
    const int has_master = codecs[codec].beside != TYPE_OTHER;
    struct array numbers, codes, master;
    make(&numbers, &n, 1, TYPE_F32, 0, 0);
    make(&codes, codecs[codec].type == TYPE_U8 ? &coded : &n, 1, codecs[codec].type, 0, 0);
    make(&master, &n, 1, has_master ? codecs[codec].beside : TYPE_F32, 0, 0);
    const struct view *const beside = has_master ? &master.view : NULL;
    float *const x = (float *)(void *)numbers.view.data;
    uint64_t hash = HASH_OF_NOTHING;
    for (size_t k = 0; k < sizeof lower / sizeof *lower; k++) {
        for (uint32_t upper = 0; upper < UPPER_HALVES; upper++) {
            const uint32_t sign = codec == CODEC_U8_RANDOM ? 0x7fff : 0xffff, bits = (upper & sign) << 16 | lower[k];
            memcpy(&x[upper], &bits, sizeof bits);
        }
        optimc_encode_all(isa, codec, SEED, (UINT64_C(1) << 32) - UPPER_HALVES / 2, x, UPPER_HALVES, &codes.view,
            beside);
        optimc_decode_all(isa, codec, &codes.view, beside, UPPER_HALVES, x);
        hash = hash_array(hash_array(hash, &codes, 0), &numbers, 0);
        hash = has_master ? hash_array(hash, &master, 0) : hash;
    }
    free(numbers.memory);
    free(codes.memory);
    free(master.memory);
    return hash;
}

/* ----------------------------------------------------------------------------------------- a run - */

/* A weight and what goes with it. */
enum { WEIGHT, SLOTS, AVERAGE = SLOTS + MAX_SLOTS, ACCUMULATOR, MASTER, GRADIENT, BUNDLE };
struct bundle { struct array parts[BUNDLE]; };

static int may_have(int type, enum rounding rounding)
{
    return rounding != EXACT && !(rounding == NEAREST_16 && type == TYPE_U8);
}

/* The type of a part of a weight with this kernel; TYPE_OTHER if it has no such part. */
static int type_of(enum kernel kernel, int part, int lane, const struct setting *setting)
{
    const int k = part - SLOTS, is_slot = k >= 0 && k < MAX_SLOTS;
    if (part == WEIGHT && setting->weights)
        return setting->weights;
    if (part == MASTER)
        return !setting->masters ? TYPE_OTHER : setting->weights == TYPE_BF16 ? TYPE_I16 : TYPE_F32;
    if (is_slot && !(kernels[kernel].used >> k & 1))
        return TYPE_OTHER;
    return is_slot && setting->slots && may_have(setting->slots, optimc_slot_rounding(kernel, k)) ? setting->slots : lane;
}

/* 1 if a set of options makes sense for a kernel and a lane. */
static int has_sense(enum kernel kernel, int lane, const struct setting *setting)
{
    int narrow = !setting->slots;
    for (int k = 0; k < MAX_SLOTS; k++)
        narrow |= type_of(kernel, SLOTS + k, lane, setting) == setting->slots;
    return setting->weights ? lane == TYPE_F32 : narrow;
}

static void set_values(double *values, enum rule rule, const struct setting *setting)
{
    const struct options base = {0.01, setting->decay, setting->clipnorm, setting->clipvalue,
        setting->global_clipnorm, setting->ema ? 0.9 : 0, setting->loss_scale};
    memcpy(values, &base, sizeof base);
    for (size_t k = 1; k < OPTIONS; k++)
        values[k] = values[k] > 0 ? values[k] : NAN;
    char names[512], *name = names;
    snprintf(names, sizeof names, "%s", hypers_of[rule]);
    for (size_t k = OPTIONS, i = 0; *name; k++, i = 0) {
        const size_t length = strcspn(name, ", "), gap = strspn(name + length, ", ");
        name[length] = 0;
        while (i < HYPER_VALUES && strcmp(hyper_values[i].name, name))
            i++;
        if (i == HYPER_VALUES)
            fail("hyper_values lacks", name);
        values[k] = setting->others ? hyper_values[i].other : hyper_values[i].value;
        name += length + gap;
    }
}

/* Makes the parts of a weight, those in codes by an ISA. */
static void make_bundle(struct bundle *bundle, const struct isa *isa, enum kernel kernel, int lane,
    const struct setting *setting, const ptrdiff_t *shape, int ndim, size_t index)
{
    const int gradients = setting->type == TYPE_OTHER ? lane : setting->type;
    double (*const next)(void) = setting->special ? special : number;
    make(&bundle->parts[MASTER], shape, ndim, setting->weights == TYPE_BF16 ? TYPE_I16 : TYPE_F32, index % 5, 0);
    for (int part = 0; part < MASTER; part++) {
        struct array *array = &bundle->parts[part];
        const int k = part - SLOTS, own = type_of(kernel, part, lane, setting), type = own == TYPE_OTHER ? lane : own;
        const int used = k >= 0 && k < MAX_SLOTS && kernels[kernel].used >> k & 1;
        const int lacks = used ? optimc_slot_axis(kernel, k) : 0;
        ptrdiff_t left[AXES];               /* of the shape, without what the slot lacks */
        int n_left = 0;
        for (int axis = 0; axis < ndim; axis++)
            if (lacks == ALL_BUT_FIRST ? axis == 0 : axis != ndim - lacks)
                left[n_left++] = shape[axis];
        size_t n = 1;
        for (int axis = 0; axis < ndim; axis++)
            n *= (size_t)shape[axis];
        const ptrdiff_t coded = (ptrdiff_t)optimc_coded_size(n);
        const size_t offset = (index * 3 + (size_t)part) % 7;
        if (type == TYPE_U8)
            make(array, &coded, 1, type, 4 * offset, 0);
        else
            make(array, lacks ? left : shape, lacks ? n_left : ndim, type, offset, 0);
        if (part == WEIGHT && type != lane)
            fill_codes(isa, type == TYPE_F16 ? CODEC_HALF : setting->masters ? CODEC_SPLIT : CODEC_BF16_RANDOM, array,
                setting->masters ? &bundle->parts[MASTER] : NULL, n, next, -INFINITY);
        else if (part == WEIGHT)
            fill(array, next, -INFINITY);
        else if (k >= 0 && k < MAX_SLOTS && type != lane)
            fill_codes(isa, codec_of_slot(type, optimc_slot_rounding(kernel, k)), array, NULL, n, number, 0);
        else if (k >= 0 && k < MAX_SLOTS)
            fill(array, number, 0);         /* not negative: some are squares */
    }
    make(&bundle->parts[GRADIENT], shape, ndim, gradients, index % 3, setting->reversed);
    bundle->parts[GRADIENT].view.swapped = setting->swapped;
}

static void step(struct plan *plan, struct bundle *bundles, size_t n, struct request *request, int64_t call,
    const struct setting *setting)
{
    optimc_plan_begin(plan);
    for (size_t i = 0; i < n; i++) {
        struct place overlap;
        struct view *const gradient = &bundles[i].parts[GRADIENT].view;
        fill(&bundles[i].parts[GRADIENT], setting->special ? special : number, -INFINITY);
        const int missing = i == 1 && call == 2;
        if (optimc_plan_find(plan, &bundles[i].parts[WEIGHT].view, i) != (ptrdiff_t)i
            || optimc_plan_take(plan, i, missing ? NULL : gradient, &overlap))
            fail("a gradient is refused with", setting->name);
    }
    request->t = call / request->accumulate + 1;
    request->update = (call + 1) % request->accumulate == 0;
    request->overwrite = setting->overwrite && call == STEPS - 1;
    request->norm = request->surveyed = 0;
    if (optimc_plan_survey(plan, request) >= 0)
        fail("a gradient is not finite with", setting->name);
    optimc_plan_run(plan, request);
    if (request->update)
        optimc_group_keep(request->groups);
}

static uint64_t run(const struct isa *isa, enum kernel kernel, int lane, const struct setting *setting)
{
    static const struct shape { int ndim; ptrdiff_t axes[AXES]; } vectors[] = {
        {1, {2900}}, {1, {33}}, {0, {0}}, {2, {13, 17}}, {1, {0}}}, matrices[] = {
        {2, {50, 58}}, {3, {2, 3, 7}}, {2, {1, 1}}, {2, {33, 65}}};
    const int variant = kernels[kernel].variant;
    const int factored = variant & FACTORED && kernels[kernel].used & SLOT_1;
    const struct shape *const shapes = factored ? matrices : vectors;
    const size_t n = factored ? sizeof matrices / sizeof *matrices : sizeof vectors / sizeof *vectors;
    struct bundle bundles[MOST_ARRAYS];
    struct group group;
    struct place overlap[2];
    int where;
    seed = 1;
    optimc_group_clear(&group);
    set_values(group.values, kernels[kernel].rule, setting);
    struct plan *plan = optimc_plan_new(n, (struct memory){calloc, free});
    if (!plan)
        fail("no memory for", "a plan");
    for (size_t i = 0; i < n; i++) {
        struct array *parts = bundles[i].parts;
        make_bundle(&bundles[i], isa, kernel, lane, setting, shapes[i].axes, shapes[i].ndim, i);
        struct view slots[MAX_SLOTS];
        for (int k = 0; k < MAX_SLOTS; k++)
            slots[k] = parts[SLOTS + k].view;
        const struct binding binding = {.kernel = kernel, .decay = setting->decay > 0 ? 1 : -1, .factor = 1.5,
            .number = i, .begin = i ? 0 : (UINT64_C(1) << 32) - CODE_BLOCK, .slots = slots,
            .average = setting->ema ? &parts[AVERAGE].view : NULL,
            .accumulator = setting->steps ? &parts[ACCUMULATOR].view : NULL,
            .master = setting->masters ? &parts[MASTER].view : NULL};
        if (optimc_plan_check(&parts[WEIGHT].view, PART_WEIGHT)
            || optimc_plan_add(plan, &parts[WEIGHT].view, &binding, &where))
            fail("a weight is refused for", kernels[kernel].name);
    }
    if (optimc_plan_seal(plan, isa, overlap))
        fail("weights are refused for", kernels[kernel].name);
    struct request request = {.groups = &group, .accumulate = setting->steps ? setting->steps : 1,
        .cautious = setting->cautious && !(variant & (MEASURED | ROWWISE)), .coupled = setting->coupled,
        .decay_as_factor = setting->as_factor, .maximize = setting->maximize, .check = setting->check, .seed = SEED};
    for (int64_t call = 0; call < STEPS; call++)
        step(plan, bundles, n, &request, call, setting);
    uint64_t hash = HASH_OF_NOTHING;
    for (size_t i = 0; i < n; i++)
        for (int part = 0; part < BUNDLE; part++) {
            if (part < GRADIENT && type_of(kernel, part, lane, setting) != TYPE_OTHER)
                hash = hash_array(hash, &bundles[i].parts[part], variant & ANY_POWER);
            free(bundles[i].parts[part].memory);
        }
    optimc_plan_free(plan);
    return hash;
}

static void print_hash(const char *name, const char *lane, const char *options, uint64_t hash)
{
    printf("%s %s %s %08lx%08lx\n", name, lane, options, (unsigned long)(hash >> 32),
        (unsigned long)(hash & 0xffffffff));
}

/* Prints the hash of a kernel, which any number of threads must give. */
static void print_run(const struct isa *isa, enum kernel kernel, int lane, const struct setting *setting)
{
    optimc_pool_set_eager(0);
    optimc_pool_set_threads(1);
    const uint64_t alone = run(isa, kernel, lane, setting);
    optimc_pool_set_threads(THREADS);
    optimc_pool_set_eager(1);
    if (run(isa, kernel, lane, setting) != alone)
        fail("threads change the bits of", kernels[kernel].name);
    print_hash(kernels[kernel].name, lane == TYPE_F32 ? "f32" : "f64", setting->name, alone);
}

int main(int argc, char **argv)
{
    if (argc < 2) {
        const struct isa *found[MAX_ISAS];
        const size_t n = optimc_isas(found);
        for (size_t i = 0; i < n; i++)
            puts(found[i]->name);
        return 0;
    }
    const struct isa *isa = optimc_isa_choose(argv[1]);
    if (!isa)
        fail("no such ISA here:", argv[1]);
    if (optimc_pool_setup())
        fail("no pool of", "threads");
    for (enum codec codec = NO_CODEC + 1; codec < CODECS; codec++)
        print_hash(codecs[codec].name, "codec", "all", hash_codec(isa, codec));
    for (enum kernel kernel = 0; kernel < KERNELS; kernel++)
        for (int lane = TYPE_F32; lane <= TYPE_F64; lane++)
            for (size_t k = 0; k < SETTINGS; k++)
                if (has_sense(kernel, lane, &settings[k]))
                    print_run(isa, kernel, lane, &settings[k]);
    return 0;
}
