/* isa.c - detects the instruction sets that CPU and operating system support, and chooses among the compiled ones.
   No other file asks which CPU this is. */

#include <string.h>

#if defined(__x86_64__)
#include <cpuid.h>
#endif

#include "kernels/isa.h"

#if defined(__x86_64__)
/* The registers that the system saves, by XGETBV: it must save the wide ones.  macOS names the widest only once a
   program has used them, so AVX2 is chosen there. */
enum { SAVES_AVX = 0x06, SAVES_AVX512 = 0xe6 };

static unsigned saved(void)
{
    unsigned eax, ebx, ecx, edx;
    if (!__get_cpuid(1, &eax, &ebx, &ecx, &edx) || !(ecx & bit_OSXSAVE))
        return 0;
    __asm__("xgetbv" : "=a"(eax), "=d"(edx) : "c"(0));
    return eax;
}

/* This asks CPUID itself, because __builtin_cpu_supports needs a library that Windows' linker does not bring. */
static unsigned features(void)
{
    unsigned eax, ebx, ecx, edx;
    return __get_cpuid_count(7, 0, &eax, &ebx, &ecx, &edx) ? ebx : 0;
}
#endif

int optimc_asks_ahead(void)
{
#if defined(__x86_64__)
    static _Atomic int known = -1;                  /* in a virtual machine CPUID takes microseconds */
    unsigned eax, ebx, ecx, edx;
    if (known < 0)
        known = __get_cpuid(0, &eax, &ebx, &ecx, &edx) && ebx == signature_INTEL_ebx && ecx == signature_INTEL_ecx
            && edx == signature_INTEL_edx;
    return known;
#else
    return 0;
#endif
}

size_t optimc_isas(const struct isa *found[MAX_ISAS])
{
    size_t n = 0;
    found[n++] = &optimc_isa_baseline;
#if defined(__x86_64__)
    const unsigned avx512 = bit_AVX512F | bit_AVX512VL | bit_AVX512DQ | bit_AVX512BW;
    if ((saved() & SAVES_AVX) == SAVES_AVX && features() & bit_AVX2)
        found[n++] = &optimc_isa_avx2;
    if ((saved() & SAVES_AVX512) == SAVES_AVX512 && (features() & avx512) == avx512)
        found[n++] = &optimc_isa_avx512;
#endif
    return n;
}

const struct isa *optimc_isa_choose(const char *name)
{
    const struct isa *found[MAX_ISAS];
    const size_t n = optimc_isas(found);
    for (size_t i = n; i-- > 0;)
        if (!name || !strcmp(name, found[i]->name))
            return found[i];
    return NULL;
}

const char *optimc_compiler(void)
{
#if defined(__clang__)
    return "clang " __clang_version__;
#elif defined(__GNUC__)
    return "gcc " __VERSION__;
#else
    return "unknown";
#endif
}
