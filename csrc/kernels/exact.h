/* exact.h - powers and 16-bit numbers, with the same bits on every machine. */
#ifndef OPTIMC_EXACT_H
#define OPTIMC_EXACT_H

#include <stddef.h>
#include <stdint.h>

/* The value of an IEEE half and of a bfloat16, exactly. */
float optimc_half(uint16_t bits);
float optimc_bfloat(uint16_t bits);

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
