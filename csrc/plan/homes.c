/* homes.c - see homes.h.  A mutex guards the list of homes and their counts, for moments only; the turn of a home is
   held for a step. */
#include "plan/homes.h"

#if !defined(_WIN32)
#include <pthread.h>
#include <stdlib.h>

#include "plan/forks.h"
#include "plan/lent.h"

enum { LINE = 64 };

struct housekeeping {
    pthread_mutex_t turn;
    struct home *next;
    size_t references, users;
    int closed;
    char *memory;                           /* of all values at home */
};

static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
static struct home *homes;

/* The child has none of the threads that are inside. */
static void in_child(void)
{
    for (struct home *home = homes; home; home = home->own->next) {
        pthread_mutex_init(&home->own->turn, NULL);
        home->own->users = 0;
    }
}

int optimc_homes_setup(void)
{
    return optimc_survive_fork(&mutex, in_child);
}

static void free_memory(struct home *home)
{
    optimc_lender_free(home->lender);
    free(home->own->memory);
    free(home->values);
    home->lender = NULL;
    home->own->memory = NULL;
    home->values = NULL;
}

static void free_home(struct home *home)
{
    if (home->own) {
        free_memory(home);
        pthread_mutex_destroy(&home->own->turn);
    }
    free(home->own);
    free(home);
}

/* Says where the values are to lie: the bytes of those that stay at home. */
static size_t place_values(struct home *home, const size_t *sizes, const size_t *shifts, size_t lent_from)
{
    size_t room = 0;
    for (size_t i = 0; i < home->n; i++) {
        home->values[i].size = sizes[i];
        if (sizes[i] >= lent_from)
            home->values[i].shift = shifts[i];
        else
            room += (sizes[i] + LINE - 1) / LINE * LINE;
    }
    return room;
}

static struct home *new_home(int64_t number, const size_t *sizes, const size_t *shifts, size_t n,
    size_t lent_from)
{
    struct home *home = calloc(1, sizeof *home);
    if (!home || !(home->own = calloc(1, sizeof *home->own)) || pthread_mutex_init(&home->own->turn, NULL)) {
        if (home)
            free(home->own);
        free(home);
        return NULL;
    }
    size_t lent = 0;
    home->number = number;
    home->n = n;
    home->own->references = 1;
    home->values = calloc(n + 1, sizeof *home->values);
    const size_t room = home->values ? place_values(home, sizes, shifts, lent_from) : 0;
    for (size_t i = 0; i < n; i++)
        lent += sizes[i] >= lent_from ? sizes[i] : 0;
    home->lender = optimc_lender_new(lent);
    char *next = home->own->memory = optimc_lines(room + LINE);
    if (!home->values || !home->lender || !next) {
        free_home(home);
        return NULL;
    }
    for (size_t i = 0; i < n; i++)
        if (sizes[i] < lent_from) {
            home->values[i].data = next;
            next += (sizes[i] + LINE - 1) / LINE * LINE;
        }
    return home;
}

struct home *optimc_home_find(int64_t number)
{
    pthread_mutex_lock(&mutex);
    struct home *home = homes;
    while (home && home->number != number)
        home = home->own->next;
    if (home)
        home->own->references++;
    pthread_mutex_unlock(&mutex);
    return home;
}

struct home *optimc_home_open(int64_t number, const size_t *sizes, const size_t *shifts, size_t n,
    size_t lent_from)
{
    struct home *home = new_home(number, sizes, shifts, n, lent_from);
    if (!home)
        return NULL;
    pthread_mutex_lock(&mutex);
    home->own->next = homes;
    homes = home;
    pthread_mutex_unlock(&mutex);
    return home;
}

static void release(struct home *home)
{
    if (!--home->own->references)
        free_home(home);
}

void optimc_home_release(struct home *home)
{
    pthread_mutex_lock(&mutex);
    release(home);
    pthread_mutex_unlock(&mutex);
}

void optimc_home_close(struct home *home)
{
    pthread_mutex_lock(&mutex);
    struct home **place = &homes;
    while (*place && *place != home)
        place = &(*place)->own->next;
    if (*place)
        *place = home->own->next;
    home->own->closed = 1;
    if (!home->own->users)
        free_memory(home);
    release(home);
    pthread_mutex_unlock(&mutex);
}

int optimc_home_enter(struct home *home)
{
    pthread_mutex_lock(&mutex);
    const int open = !home->own->closed;
    home->own->users += (size_t)open;
    pthread_mutex_unlock(&mutex);
    if (open)
        pthread_mutex_lock(&home->own->turn);
    return open;
}

void optimc_home_leave(struct home *home)
{
    pthread_mutex_unlock(&home->own->turn);
    pthread_mutex_lock(&mutex);
    if (!--home->own->users && home->own->closed)
        free_memory(home);
    pthread_mutex_unlock(&mutex);
}
#endif
