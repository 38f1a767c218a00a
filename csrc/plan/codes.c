/* codes.c - the parts of a weight that are stored in fewer bits: which codec each has, and codes of whole arrays.

   codecs.inc in csrc/kernels defines the codes, and coded.inc runs a step over them. */

#include "plan/internal.h"

static const unsigned char roundings[RULES][MAX_SLOTS] = {
#define RULE_ROW(rule, slots, roundings, hypers, coefs, scalars) [RULE_##rule] = {UNWRAP roundings},
#include "optimizers.def"
};

static const struct { enum rule rule; int variant; } kernels[KERNELS] = {
#define KERNEL_ROW(kernel, rule, variant, used) [KERNEL_##kernel] = {RULE_##rule, variant},
#include "optimizers.def"
};

/* A centered rule takes the root of a difference of slots, which rounding could make negative. */
enum rounding optimc_slot_rounding(enum kernel kernel, int slot)
{
    return kernels[kernel].variant & CENTERED ? EXACT : roundings[kernels[kernel].rule][slot];
}

static size_t scales_at(size_t size)
{
    return (size + sizeof(float) - 1) / sizeof(float) * sizeof(float);
}

size_t optimc_coded_size(size_t size)
{
    return scales_at(size) + (size + CODE_BLOCK - 1) / CODE_BLOCK * sizeof(float);
}

struct coded optimc_coded_at(const struct weight *weight, const struct array *array, size_t i)
{
    const struct array *master = &weight->master;
    char *const code = array->data + i * optimc_storage[array->type].width;
    if (array->type == TYPE_U8)
        return (struct coded){code, array->data + scales_at(weight->size) + i / CODE_BLOCK * sizeof(float)};
    return (struct coded){code, array == &weight->self && master->data
        ? master->data + i * optimc_storage[master->type].width : NULL};
}

/* The codec of 16 bits that nothing stands beside. */
static enum codec short_codec(enum type type, int to_nearest)
{
    return type == TYPE_F16 ? CODEC_F16 : to_nearest ? CODEC_BF16 : CODEC_BF16_RANDOM;
}

enum codec optimc_weight_codec(const struct weight *weight)
{
    const enum type type = weight->self.type;
    if (type != TYPE_F16 && type != TYPE_BF16)
        return NO_CODEC;
    return weight->to_nearest || (type == TYPE_BF16 && !weight->master.data) ? short_codec(type, weight->to_nearest)
        : type == TYPE_F16 ? CODEC_HALF : CODEC_SPLIT;
}

enum codec optimc_slot_codec(const struct weight *weight, int k, enum type type)
{
    const enum rounding rounding = optimc_slot_rounding(weight->kernel, k);
    if (rounding == EXACT)
        return NO_CODEC;
    if (type == TYPE_U16 || type == TYPE_BF16 || (type == TYPE_F16 && weight->to_nearest))
        return short_codec(type, weight->to_nearest || rounding != RANDOM);
    return type != TYPE_U8 || rounding == NEAREST_16 ? NO_CODEC : rounding == RANDOM ? CODEC_U8_RANDOM : CODEC_S8;
}

const struct fused *optimc_fused(const struct isa *isa, const struct weight *weight, enum type gradient)
{
    const struct fused *fused = isa->fused;
    const int others = weight->slots[2].data || weight->slots[3].data || weight->real_type != TYPE_F32;
    for (; fused->run && !others; fused++)
        if (fused->kernel == weight->kernel && fused->gradient == gradient
            && fused->codecs[0] == weight->self.codec && fused->codecs[1] == weight->slots[0].codec
            && fused->codecs[2] == weight->slots[1].codec)
            return fused;
    return NULL;
}

uint64_t optimc_random_key(uint64_t seed, uint64_t number, int64_t t, int part)
{
    const uint64_t stream = part == PART_WEIGHT ? MAX_SLOTS : (uint64_t)part;
    return optimc_mixed(optimc_mixed(optimc_mixed(optimc_mixed(seed) ^ number) ^ (uint64_t)t) ^ stream);
}

/* A weight of n elements whose only slot, or itself, is `codes`. */
static struct weight weight_of(const struct view *codes, const struct view *master, size_t n)
{
    struct weight weight = {.size = n};
    weight.self = (struct array){.data = codes->data, .n = n, .type = (enum type)codes->type};
    if (master)
        weight.master = (struct array){.data = master->data, .n = n, .type = (enum type)master->type};
    return weight;
}

static size_t block_at(size_t i, size_t n)
{
    return n - i < CODE_BLOCK ? n - i : CODE_BLOCK;
}

void optimc_decode_all(const struct isa *isa, enum codec codec, const struct view *codes, const struct view *master,
    size_t n, float *to)
{
    const struct weight weight = weight_of(codes, master, n);
    for (size_t i = 0; i < n; i += CODE_BLOCK)
        isa->coders[codec].decode(block_at(i, n), optimc_coded_at(&weight, &weight.self, i), to + i);
}

void optimc_encode_all(const struct isa *isa, enum codec codec, uint64_t key, uint64_t begin, const float *from,
    size_t n, const struct view *codes, const struct view *master)
{
    const struct weight weight = weight_of(codes, master, n);
    uint16_t random[CODE_BLOCK];
    for (size_t i = 0; i < n; i += CODE_BLOCK) {
        if (is_random(codec))
            isa->random_numbers(key, begin + i, block_at(i, n), random);
        isa->coders[codec].encode(block_at(i, n), from + i, random, optimc_coded_at(&weight, &weight.self, i));
    }
}
