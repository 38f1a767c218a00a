/* kernels_avx512.c - the kernels for AVX-512.  Features are named one by one: a level that a compiler
   does not know would drop the whole attribute in silence.  gcc must be told to use all 512 bits. */
#if defined(__x86_64__)
#define ISA avx512
#define ASKS_AHEAD 1
#if defined(__clang__)
#define TARGET __attribute__((target("avx512f,avx512vl,avx512dq,avx512bw")))
#else
#define TARGET __attribute__((target("avx512f,avx512vl,avx512dq,avx512bw,prefer-vector-width=512")))
#endif
#include "kernels/kernels.inc"
#else
typedef int optimc_no_avx512;
#endif
