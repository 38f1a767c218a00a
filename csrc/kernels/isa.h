/* isa.h - which instruction set the kernels run in: detected once at import, or forced. */
#ifndef OPTIMC_ISA_H
#define OPTIMC_ISA_H

#include "kernels/kernels.h"

enum { MAX_ISAS = 8 };

extern const struct isa optimc_isa_baseline, optimc_isa_avx2, optimc_isa_avx512;

/* Fills `found` with the ISAs this machine can run, slowest first, and returns how many. */
size_t optimc_isas(const struct isa *found[MAX_ISAS]);

/* The ISA called `name`, or the fastest for NULL; NULL if there is no such ISA here. */
const struct isa *optimc_isa_choose(const char *name);

/* True if loops are faster on this machine that ask for memory ahead of themselves.  Measured with 25 million weights
   on a server of Intel's (Sapphire Rapids), one thread: a COMMON kernel takes 0.87 of the time, and 0.61 with all in
   bfloat16.  Zen 3 reads as fast as it can without; a trial of it there lost a third of the speed. */
int optimc_asks_ahead(void);

/* The compiler the package was built with, for show_config. */
const char *optimc_compiler(void);

#endif
