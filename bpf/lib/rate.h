/* Rates: what a port may send and receive. A frame that comes too early is dropped at the
 * port, for there is nowhere to hold it: the kernel's fq queue, which could, is not in
 * every kernel, and frames for a compartment pass no queue. Long before, one that
 * can bear it is marked, so that a sender who knows ECN slows down without a loss. */
#ifndef BULKHEAD_RATE_H
#define BULKHEAD_RATE_H

#include "drop.h"
#include "maps.h"

/* Time is in ticks of 1/256 ns: at 10 GB/s a small packet takes six nanoseconds. */
#define TICK_SHIFT 8

/* A bucket is a moment: when it will be full again. Before each frame that moment is
 * moved up to now, after it by what the frame costs, in time; a frame that would move
 * it further away than a full bucket lasts does not pass. One that costs more than that
 * passes by a full bucket, and is owed. 0: it does not pass; 2: it does, and leaves less
 * than half. */
static __always_inline int draw(const struct rate_key *key, __u64 cost, __u64 burst)
{
	struct bucket *b = bpf_map_lookup_elem(&bh_buckets_v1, key);
	__u64 now, full;

	if (!b) {
		struct bucket first = {};

		bpf_map_update_elem(&bh_buckets_v1, key, &first, BPF_NOEXIST);
		b = bpf_map_lookup_elem(&bh_buckets_v1, key);
		if (!b)
			return 1;
	}
	now = bpf_ktime_get_ns() << TICK_SHIFT;
	full = b->full;
	if (full < now) {
		/* Only one of several CPUs may give the time since away. */
		__sync_val_compare_and_swap(&b->full, full, now);
		full = b->full;
		if (full < now)
			full = now;
	}
	if (full + (cost < burst ? cost : burst) > now + burst)
		return 0;
	__sync_fetch_and_add(&b->full, cost);
	return full + cost > now + burst / 2 ? 2 : 1;
}

/* A verification border. Takes a frame out of a port's bucket: 1, or 0 when it is not full
 * enough. */
__noinline int take(struct __sk_buff *skb, __u32 port, __u32 side)
{
	struct rate_key key = {.port = port, .side = side};
	const struct rate *r = bpf_map_lookup_elem(&bh_rates_v1, &key);
	int left;

	if (!r || !r->bytes)
		return 1;
	left = draw(&key, (((__u64)skb->len * 1000000000ULL) << TICK_SHIFT) / r->bytes, r->burst);
	if (left == 2)
		bpf_skb_ecn_set_ce(skb);
	return left != 0;
}

/* Both ports' rates over a frame: 0, or whose is used up. */
static __always_inline int rates(struct __sk_buff *skb, struct pkt *p, __u32 to)
{
	if (!(p->limits & (LIMIT_OUT | LIMIT_IN)) || p->flags & PKT_TEST)
		return DROP_NONE;
	if (p->limits & LIMIT_OUT && !take(skb, p->ifindex, RATE_OUT))
		return DROP_RATE_OUT;
	if (p->limits & LIMIT_IN && !take(skb, to, RATE_IN)) {
		p->at = to;
		return DROP_RATE_IN;
	}
	return DROP_NONE;
}

#endif
