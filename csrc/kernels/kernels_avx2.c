/* kernels_avx2.c - the kernels for AVX2.  Without `fma` in the list nothing can be contracted. */
#if defined(__x86_64__)
#define ISA avx2
#define TARGET __attribute__((target("avx2")))
#include "kernels/kernels.inc"
#else
typedef int optimc_no_avx2;
#endif
