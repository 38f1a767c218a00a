/* kernels_baseline.c - the kernels in the compiler's default instruction set: SSE2 on x86-64, NEON on
   arm64, plain C elsewhere.  x86-64 processors of the last ten years have more, so there its kernels are small. */
#if defined(__x86_64__)
#define ONE_LOOP 1
#define FUSED 0
#endif
#define ISA baseline
#define TARGET
#include "kernels/kernels.inc"
