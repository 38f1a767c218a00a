/* lent.c - see lent.h.  One mutex guards all blocks, for moments only. */
#define _GNU_SOURCE
#include "plan/lent.h"

#if !defined(_WIN32)
#include <pthread.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "plan/forks.h"

enum { PAGE = 4096, BUCKETS = 1024 };
static const size_t LARGE = (size_t)4 << 20, HUGE_PAGE = (size_t)2 << 20;

struct lender {
    struct block *spare;                    /* blocks that nobody uses */
    size_t spare_bytes, most;
    size_t blocks;                          /* all of them */
    int closed;
};

struct block {
    struct lender *lender;
    struct block *next;                     /* in its bucket, or among the spare ones */
    char *memory, *data;
    size_t size, shift;
    size_t loans, claims;                   /* that have not ended */
};

struct loan {
    struct block *block;
    int over, watched;                      /* it is freed when it is over and no claim watches it */
};

static struct {
    pthread_mutex_t mutex;
    struct block *buckets[BUCKETS];         /* the blocks in use, by their address */
    struct lent_counts counts;
} all = {.mutex = PTHREAD_MUTEX_INITIALIZER};

/* -------------------------------------------------------------------------------- memory - */

/* Memory for a block: `shift` bytes into a page, and into a huge page if it is large enough for one. */
static struct block *new_block(struct lender *lender, size_t size, size_t shift)
{
    const size_t alignment = size >= LARGE ? HUGE_PAGE : PAGE;
    struct block *block = calloc(1, sizeof *block);
    void *memory = NULL;
    if (!block || posix_memalign(&memory, alignment, shift + size)) {
        free(block);
        return NULL;
    }
#if defined(MADV_HUGEPAGE)
    if (size >= LARGE)
        madvise(memory, shift + size, MADV_HUGEPAGE);
#endif
    *block = (struct block){.lender = lender, .memory = memory, .data = (char *)memory + shift, .size = size,
        .shift = shift};
    return block;
}

static void free_block(struct block *block)
{
    block->lender->blocks--;
    all.counts.blocks--;
    free(block->memory);
    free(block);
}

static void free_if_done(struct lender *lender)
{
    if (lender->closed && !lender->blocks)
        free(lender);
}

static struct block **bucket_of(const void *data)
{
    const uintptr_t line = (uintptr_t)data / 64;
    return &all.buckets[(line ^ line / BUCKETS ^ line / BUCKETS / BUCKETS) % BUCKETS];
}

static struct block *find_block(const void *data, size_t size)
{
    struct block *block = *bucket_of(data);
    while (block && block->data != data)
        block = block->next;
    return block && block->size == size ? block : NULL;
}

/* A block that is claimed, its content undefined, or NULL.  The mutex is not held. */
static struct block *take_block(struct lender *lender, size_t size, size_t shift)
{
    pthread_mutex_lock(&all.mutex);
    struct block **place = &lender->spare, *block;
    while (*place && ((*place)->size != size || (*place)->shift != shift))
        place = &(*place)->next;
    block = *place;
    if (block) {
        *place = block->next;
        lender->spare_bytes -= size;
    } else if ((block = new_block(lender, size, shift))) {
        lender->blocks++;
        all.counts.blocks++;
    }
    if (block) {
        struct block **bucket = bucket_of(block->data);
        block->next = *bucket;
        *bucket = block;
        block->claims = 1;
    }
    pthread_mutex_unlock(&all.mutex);
    return block;
}

/* Puts a block away that nobody uses any more. */
static void look_for_end(struct block *block)
{
    struct lender *lender = block->lender;
    if (block->loans || block->claims)
        return;
    struct block **place = bucket_of(block->data);
    while (*place != block)
        place = &(*place)->next;
    *place = block->next;
    if (!lender->closed && lender->spare_bytes + block->size <= lender->most) {
        block->next = lender->spare;
        lender->spare = block;
        lender->spare_bytes += block->size;
        return;
    }
    free_block(block);
    free_if_done(lender);
}

/* --------------------------------------------------------------------------------- loans - */

void *optimc_lines(size_t size)
{
    void *memory = NULL;
    return posix_memalign(&memory, 64, size) ? NULL : memset(memory, 0, size);
}

struct lender *optimc_lender_new(size_t most)
{
    struct lender *lender = calloc(1, sizeof *lender);
    if (lender)
        lender->most = most;
    return lender;
}

void optimc_lender_free(struct lender *lender)
{
    if (!lender)
        return;
    pthread_mutex_lock(&all.mutex);
    lender->closed = 1;
    while (lender->spare) {
        struct block *block = lender->spare;
        lender->spare = block->next;
        free_block(block);
    }
    free_if_done(lender);
    pthread_mutex_unlock(&all.mutex);
}

static void unwatch(struct loan *loan)
{
    if (!loan)
        return;
    loan->watched = 0;
    if (loan->over)
        free(loan);
}

struct loan *optimc_lend(struct claim *claim)
{
    struct loan *loan = malloc(sizeof *loan);
    if (!loan)
        return NULL;
    pthread_mutex_lock(&all.mutex);
    unwatch(claim->loan);
    *loan = (struct loan){.block = claim->block, .watched = 1};
    claim->loan = loan;
    claim->block->loans++;
    pthread_mutex_unlock(&all.mutex);
    return loan;
}

void optimc_end_loan(void *data, size_t size, void *given)
{
    (void)data;
    (void)size;
    struct loan *loan = given;
    pthread_mutex_lock(&all.mutex);
    struct block *block = loan->block;
    loan->over = 1;
    if (!loan->watched)
        free(loan);
    block->loans--;
    look_for_end(block);
    pthread_mutex_unlock(&all.mutex);
}

/* -------------------------------------------------------------------------------- claims - */

int optimc_claim(struct claim *claim, struct lender *lender, const void *data, size_t size, size_t shift)
{
    pthread_mutex_lock(&all.mutex);
    *claim = (struct claim){find_block(data, size), NULL};
    if (claim->block)
        claim->block->claims++;
    else
        all.counts.filled++;
    pthread_mutex_unlock(&all.mutex);
    if (claim->block)
        return 0;
    claim->block = take_block(lender, size, shift);
    if (!claim->block)
        return -1;
    memcpy(claim->block->data, data, size);
    return 0;
}

void *optimc_claimed(const struct claim *claim)
{
    return claim->block->data;
}

char *optimc_take_claimed(struct claim *claim, struct lender *lender)
{
    struct block *block = claim->block;
    pthread_mutex_lock(&all.mutex);
    const int alone = block->claims == 1 && block->loans == 1 && !claim->loan->over;
    all.counts.in_place += (size_t)alone;
    all.counts.shared += (size_t)!alone;
    pthread_mutex_unlock(&all.mutex);
    if (alone)
        return block->data;
    struct block *copy = take_block(lender, block->size, block->shift);
    if (!copy)
        return NULL;
    memcpy(copy->data, block->data, block->size);
    optimc_drop_claim(claim);
    claim->block = copy;
    return copy->data;
}

void optimc_drop_claim(struct claim *claim)
{
    pthread_mutex_lock(&all.mutex);
    unwatch(claim->loan);
    claim->loan = NULL;
    if (claim->block) {
        claim->block->claims--;
        look_for_end(claim->block);
    }
    claim->block = NULL;
    pthread_mutex_unlock(&all.mutex);
}

int optimc_lent_setup(void)
{
    return optimc_survive_fork(&all.mutex, NULL);
}

struct lent_counts optimc_lent_counts(void)
{
    pthread_mutex_lock(&all.mutex);
    const struct lent_counts counts = all.counts;
    pthread_mutex_unlock(&all.mutex);
    return counts;
}
#endif
