/* kernels_baseline.c - the kernels in the compiler's default instruction set: SSE2 on x86-64, NEON on
   arm64, plain C elsewhere. */
#define ISA baseline
#define TARGET
#include "kernels/kernels.inc"
