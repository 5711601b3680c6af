/* Flows that the daemon has carried over from another version's table. */
#ifndef BULKHEAD_ADOPT_H
#define BULKHEAD_ADOPT_H

#include "flow.h"

/* Gives one its timer, which only a program can. */
static long adopt_flow(void *map, struct flow_key *k, struct flow *f, void *ctx)
{
	if (!(f->state & FLOW_CARRIED))
		return 0;
	__sync_fetch_and_and(&f->state, ~FLOW_CARRIED);
	share_add(f->charged, 1);
	if (bpf_timer_init(&f->timer, &bh_flows_v2, CLOCK_MONOTONIC) || bpf_timer_set_callback(&f->timer, flow_timer) ||
	    bpf_timer_start(&f->timer, IDLE_CLOSED, 0))
		flow_end(k, f);
	return 0;
}

#endif
