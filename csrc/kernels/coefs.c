/* coefs.c - what rules compute once a step or once a weight: COEFS, SETTLE and FACTOR of rules.inc.  It is compiled
   once, for no ISA of its own: there are no vectors in it. */
#define ISA once
#define TARGET
#define STAMPED "kernels/coefs.inc"
#include "kernels/stamp.inc"
