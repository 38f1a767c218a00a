/* exact.c - arithmetic that the C library does not promise to the bit: integer powers by squaring.

   Every machine gets the same bits from these functions.  Next: rules.inc, whose coefficients ask for powers. */

#include <math.h>

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
