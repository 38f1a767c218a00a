/* isa.c - detects what the CPU and the operating system support and chooses among the compiled ISAs.
   The only file that asks which CPU this is (pool.c is the only one that asks which system). */

#include <string.h>

#include "isa.h"

size_t optimc_isas(const struct isa *found[MAX_ISAS])
{
    size_t n = 0;
    found[n++] = &optimc_isa_baseline;
#if defined(__x86_64__)
    __builtin_cpu_init();
    /* These ask XGETBV too: a system that does not save the wide registers is no AVX machine. */
    if (__builtin_cpu_supports("avx2"))
        found[n++] = &optimc_isa_avx2;
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512vl")
        && __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512bw"))
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
