/* What a step of the port program decides: a drop reason (positive), or one of these. */
#ifndef BULKHEAD_STEP_H
#define BULKHEAD_STEP_H

#define STEP_NEXT 0	/* go on */
#define STEP_ANSWERED -1 /* turned round, redirected to its sender */

#endif
