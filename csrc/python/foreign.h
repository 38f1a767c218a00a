/* foreign.h - steps that a framework asks for from a thread of its own, without Python and its lock, the GIL.

   The optimizers that frameworks may step so have numbers, which compiled programs hold.  Between enter and leave a
   thread has the optimizer to itself: Python's steps and setters wait, without the GIL, and a thread within never
   asks for the GIL, so none waits for the other for ever.  The files of the frameworks call; optimc.keras decides
   which steps go this way. */
#ifndef OPTIMC_FOREIGN_H
#define OPTIMC_FOREIGN_H

#include <stddef.h>
#include <stdint.h>

#include "plan/plan.h"

struct foreign;

/* The view of an array in C order, as those of frameworks are.  Its shape is in `room`; its strides go behind it. */
struct view optimc_view_in_order(char *data, int type, size_t width, int ndim, ptrdiff_t *room);

/* The gradient of a weight: of all of it, or of some of its rows; the other is NULL. */
struct foreign_gradient {
    const struct view *whole;
    const struct row_views *rows;
};

struct foreign_step {
    int64_t calls;                      /* before the step; afterwards with it */
    const double *rate;                 /* the learning rate that is the optimizer's, or NULL: as it was set */
    double *scalars;                    /* of the rule, group by group; they are changed in place */
    size_t n_scalars;
    char *const *places;                /* where the weights and their state lie now, in the order in which the */
    size_t n_places;                    /* optimizer was given its number; they are changed in place */
    const struct foreign_gradient *gradients;
    size_t n_gradients;                 /* one per weight */
    char message[256];                  /* one line, "Exception: ...", if the step is refused */
};

/* REFUSED: a gradient was not finite, a FloatingPointError of Python's.  NEEDS_PYTHON: the step needs what only
   Python can do, or its numbers of arrays are not the optimizer's; the caller leaves first. */
enum foreign_answer { FOREIGN_DONE, FOREIGN_SKIPPED, FOREIGN_REFUSED, FOREIGN_NEEDS_PYTHON };

/* Takes the turn of the optimizer of this number, waiting for it; NULL: the optimizer is gone, in these words. */
struct foreign *optimc_foreign_enter(int64_t number);
#define FOREIGN_GONE "the optimizer of this compiled step is gone"

/* The numbers that a step is to have, and the bytes of a place: a program may have been made for another one. */
struct foreign_size { size_t scalars, places, gradients; };
struct foreign_size optimc_foreign_size(const struct foreign *foreign);
size_t optimc_foreign_bytes(const struct foreign *foreign, size_t place);

/* One step over what the plan has, wherever it lies now.  Unless DONE, nothing has changed; SKIPPED: a gradient was
   not finite, and the optimizer skips such steps. */
enum foreign_answer optimc_foreign_step(struct foreign *foreign, struct foreign_step *step);

void optimc_foreign_leave(struct foreign *foreign);

#endif
