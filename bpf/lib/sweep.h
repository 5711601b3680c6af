/* Takes flows out of the table when they have been silent for long enough. */
#ifndef BULKHEAD_SWEEP_H
#define BULKHEAD_SWEEP_H

#include "flow.h"

/* How often, and how many times as long as the last sweep took that is at least: of a full
 * table one takes tens of milliseconds, so it would be a good part of a CPU. */
#define SWEEP_EVERY SECOND
#define SWEEP_SHARE 64

/* A flow's ports are looked at with one sweep in this many, for they may have gone. */
#define SWEEP_PORTS 32

struct sweep {
	__u64 now;
	__u64 ports; /* look at the ports, too */
};

static __always_inline int has_ports(const struct flow *f)
{
	__u32 a = f->end[0].port, b = f->end[1].port;

	return bpf_map_lookup_elem(&bh_ports_v3, &a) && bpf_map_lookup_elem(&bh_ports_v3, &b);
}

static long sweep_flow(void *map, struct flow_key *k, struct flow *f, struct sweep *s)
{
	__s64 quiet = s->now - f->seen;

	/* Carried over from another version's table by the daemon, which cannot count it: two
	 * that sweep at once count it once. */
	if (f->state & FLOW_CARRIED && __sync_fetch_and_and(&f->state, ~FLOW_CARRIED) & FLOW_CARRIED)
		share_add(f->charged, 1);
	/* The clocks differ by a tick: a packet of this moment may lie ahead. */
	if (quiet < (__s64)patience(f, k->proto) && (!s->ports || has_ports(f)))
		return 0;
	flow_end(k, f);
	return 0;
}

/* A verification border. */
__noinline int sweep(__u64 turn)
{
	struct sweep s = {.now = bpf_ktime_get_ns(), .ports = turn % SWEEP_PORTS == 0};

	bpf_for_each_map_elem(&bh_flows_v4, sweep_flow, &s, 0);
	return 0;
}

static int sweep_timer(void *map, __u32 *key, struct sweeper *s)
{
	__u64 begun = bpf_ktime_get_ns(), wait;

	sweep(s->turn++);
	wait = (bpf_ktime_get_ns() - begun) * SWEEP_SHARE;
	bpf_timer_start(&s->timer, wait < SWEEP_EVERY ? SWEEP_EVERY : wait, 0);
	return 0;
}

/* Lets the kernel sweep by itself from now on, with this program's code: 0, or that it cannot,
 * for want of memory. */
static __always_inline int sweep_start(void)
{
	__u32 zero = 0;
	struct sweeper *s = bpf_map_lookup_elem(&bh_sweeper_v1, &zero);

	if (!s)
		return -1;
	/* It is there already where an earlier program has made it. */
	bpf_timer_init(&s->timer, &bh_sweeper_v1, CLOCK_MONOTONIC);
	return bpf_timer_set_callback(&s->timer, sweep_timer) || bpf_timer_start(&s->timer, SWEEP_EVERY, 0);
}

#endif
