/* exact.c - arithmetic that the C library does not promise to the bit: integer powers by squaring, and the values of
   16-bit numbers.

   Every machine gets the same bits from these functions.  Next: rules.inc, whose coefficients ask for powers. */

#include <math.h>
#include <string.h>

#include "kernels/exact.h"

enum { LOW_BITS = 63 };

static double square_up(double x, int64_t t)
{
    double result = 1;
    for (; t > 0; t >>= 1, x *= x)
        if (t & 1)
            result *= x;
    return result;
}

double optimc_plain_power(double x, int64_t t)
{
    return square_up(x, t & ~LOW_BITS) * square_up(x, t & LOW_BITS);
}

double optimc_power(const struct step *step, ptrdiff_t k, double x)
{
    struct power *memo = &step->powers[k];
    if (!isnan(step->products[k]))
        return step->products[k];
    if (memo->x != x || memo->high != (step->t & ~LOW_BITS))
        *memo = (struct power){x, step->t & ~LOW_BITS, square_up(x, step->t & ~LOW_BITS)};
    return memo->value * square_up(x, step->t & LOW_BITS);
}

float optimc_bfloat(uint16_t bits)
{
    const uint32_t word = (uint32_t)bits << 16;
    float x;
    memcpy(&x, &word, sizeof x);
    return x;
}

float optimc_half(uint16_t bits)
{
    const uint32_t sign = (uint32_t)(bits & 0x8000u) << 16, rest = bits & 0x7fffu;
    float x;
    if (rest < 0x0400u) {                   /* zero and subnormals: an integer times 2^-24 */
        x = (float)rest * 0x1p-24f;
        return sign ? -x : x;
    }
    const uint32_t exponent = rest < 0x7c00u ? (rest >> 10) + 112 : 255;
    const uint32_t word = sign | exponent << 23 | (rest & 0x03ffu) << 13;
    memcpy(&x, &word, sizeof x);
    return x;
}
