/* exact.h - powers, 16-bit numbers and hashes, with the same bits on every machine. */
#ifndef OPTIMC_EXACT_H
#define OPTIMC_EXACT_H

#include <stddef.h>
#include <stdint.h>
#include <string.h>

static inline uint32_t optimc_bits(float x)
{
    uint32_t bits;
    memcpy(&bits, &x, sizeof bits);
    return bits;
}

static inline float optimc_float(uint32_t bits)
{
    float x;
    memcpy(&x, &bits, sizeof x);
    return x;
}

/* The value of a bfloat16 and of an IEEE half, exactly.  Both halves of a select are computed, and comparisons are of
   signed numbers of 32 bits, so that compilers vectorise it well: a subnormal half is a difference of normal ones. */
static inline float optimc_bfloat(uint16_t code)
{
    return optimc_float((uint32_t)code << 16);
}

static inline float optimc_half(uint16_t code)
{
    const uint32_t bits = (uint32_t)code << 16, sign = bits & 0x80000000u, rest = (bits & 0x7fff0000u) >> 3;
    const uint32_t normal = rest + ((int32_t)rest < 0x0f800000 ? 0x38000000u : 0x70000000u);
    const uint32_t subnormal = optimc_bits(optimc_float(rest + 0x38800000u) - 0x1p-14f);
    return optimc_float(sign | ((int32_t)rest < 0x00800000 ? subnormal : normal));
}

/* Two 16-bit numbers that lie side by side, from the word that they are in memory: the first in the lower half.  And
   back. */
static inline uint32_t optimc_pair(uint32_t word)
{
#if defined(__BYTE_ORDER__) && __BYTE_ORDER__ == __ORDER_BIG_ENDIAN__
    word = word << 16 | word >> 16;
#endif
    return word;
}

/* A 64-bit number mixed well: one step of splitmix64 (Steele et al., 2014, doi 10.1145/2660193.2660195). */
static inline uint64_t optimc_mixed(uint64_t x)
{
    x += 0x9e3779b97f4a7c15u;
    x = (x ^ x >> 30) * 0xbf58476d1ce4e5b9u;
    x = (x ^ x >> 27) * 0x94d049bb133111ebu;
    return x ^ x >> 31;
}

/* The part of a power that is the same for 64 steps. */
struct power { double x; int64_t high; double value; };

/* The step that COEFS computes coefficients for. */
struct step {
    int64_t t;                              /* 1 for the first update */
    double factor;                          /* of the weights this is for, see struct binding */
    struct power *powers;                   /* one per hyperparameter, kept from step to step */
    const double *products;                 /* per hyperparameter: its product over the steps if it varies, or NaN */
    const void *before;                     /* the rule's scalars after the last update ... */
    void *after;                            /* ... and after this one */
    double decay;                           /* the weight decay that is added to the gradient, or 0 */
};

/* Hyperparameter k, whose value is x, to the power of t.  If it varies, this is its product over the steps so far.
   Else it is x^(t - t mod 64), remembered in step->powers, times x^(t mod 64), both by squaring: the order of the
   multiplications is fixed, so the bits are the same everywhere, unlike those of pow(). */
double optimc_power(const struct step *step, ptrdiff_t k, double x);
double optimc_plain_power(double x, int64_t t);     /* the same without memory */

#endif
