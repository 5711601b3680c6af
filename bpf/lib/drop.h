/* Ends of a frame's way: counting, sampled events, and the report of a test run. */
#ifndef BULKHEAD_DROP_H
#define BULKHEAD_DROP_H

#include "maps.h"
#include "near.h"
#include "owner.h"
#include "parse.h"

/* Events: at most this many per CPU and window, and one per port, reason and
 * millisecond*10, so that one flooding port does not hide the others. */
#define EVENT_WINDOW_NS 100000000ULL
#define EVENTS_PER_WINDOW 100
#define EVENT_SPACING_NS 10000000ULL

/* In a test run the program writes down what it did; a real frame's cb is not ours. */
static __always_inline void report(struct __sk_buff *skb, const struct pkt *p, __u32 outcome, __u32 reason, __u32 port,
				   __u32 detail)
{
	if (!(p->flags & PKT_TEST))
		return;
	skb->cb[0] = outcome;
	skb->cb[1] = reason;
	skb->cb[2] = port;
	skb->cb[3] = detail;
	skb->cb[4] = p->rule;
}

/* A verification border, so that its key is not on the stack of the long way. The host's
 * stack routes what an endpoint in it sends by the host's own vNIC: whose is a frame? */
__noinline __u32 sender(struct pkt *p)
{
	const struct owner *o;

	if (!p)
		return 0;
	o = owner_of(&p->src);
	return o && o->flags & OWNER_GUEST ? o->port : p->ifindex;
}

/* A verification border, for the same reason. A vNIC of the host's own on a LAN is the NIC in all
 * that is decided; what passes it is counted under its index. */
__noinline __u32 vnic(struct pkt *p)
{
	struct mac_key key = {};
	const struct dest *d;

	if (!p)
		return 0;
	key.sw = p->src.sw;
	__builtin_memcpy(key.mac, p->port_mac, ETH_ALEN);
	d = bpf_map_lookup_elem(&bh_macs_v1, &key);
	return d ? d->device : p->ifindex;
}

/* Where what goes that way is counted. */
static __always_inline __u32 counted(__u32 port, __u32 device, __u32 kind)
{
	return kind == PORT_GUEST ? device : port;
}

static __always_inline void count_sent(__u32 port, __u32 len)
{
	struct traffic *t = traffic(port);
	struct stats *s;

	if (t) {
		t->tx_packets++;
		t->tx_bytes += len;
		return;
	}
	s = bpf_map_lookup_elem(&bh_stats_v1, &port);
	if (s) {
		s->tx_packets++;
		s->tx_bytes += len;
	}
}

/* Only a switch that has endpoints in the host's stack pays for the look-up. */
static __always_inline void count_tx(struct pkt *p)
{
	__u32 port = p->ifindex;

	if (p->flags & PKT_TEST)
		return;
	if (p->flags & PKT_GUESTS)
		port = sender(p);
	if (p->lan & LAN_VNIC)
		port = vnic(p);
	count_sent(port, p->len);
}

static __always_inline void count_rx(__u32 port, __u32 len)
{
	struct traffic *t = traffic(port);
	struct stats *s;

	if (t) {
		t->rx_packets++;
		t->rx_bytes += len;
		return;
	}
	s = bpf_map_lookup_elem(&bh_stats_v1, &port);
	if (s) {
		s->rx_packets++;
		s->rx_bytes += len;
	}
}

static __always_inline int event_allowed(struct drop_count *c, __u64 now)
{
	struct event_budget *b;
	__u32 zero = 0;

	if (now - c->last_event < EVENT_SPACING_NS)
		return 0;
	b = bpf_map_lookup_elem(&bh_budget_v1, &zero);
	if (!b)
		return 0;
	if (now - b->window >= EVENT_WINDOW_NS) {
		b->window = now;
		b->used = 0;
	}
	if (b->used >= EVENTS_PER_WINDOW) {
		b->lost++;
		return 0;
	}
	b->used++;
	c->last_event = now;
	return 1;
}

static __always_inline void event(const struct pkt *p, __u32 port, enum drop_reason reason, __u64 now)
{
	struct drop_event *e = bpf_ringbuf_reserve(&bh_events_v1, sizeof(*e), 0);

	if (!e)
		return;
	e->time = now;
	e->port = port;
	e->sw = p->src.sw;
	e->reason = reason;
	e->rule = p->rule;
	e->len = p->len;
	e->ethertype = p->ethertype;
	e->sport = p->sport;
	e->dport = p->dport;
	e->proto = p->proto;
	e->icmp_type = p->type;
	__builtin_memcpy(e->smac, p->smac, ETH_ALEN);
	__builtin_memcpy(e->dmac, p->dmac, ETH_ALEN);
	__builtin_memcpy(e->src, p->src.ip, 16);
	__builtin_memcpy(e->dst, p->dst.ip, 16);
	bpf_ringbuf_submit(e, 0);
}

/* A verification border, off the fast path. A full table costs only the split by
 * reason: the port's own total is elsewhere. */
__noinline int count_drop(struct pkt *p, __u32 reason)
{
	struct drop_key key = {};
	struct drop_count *c;
	struct stats *s;
	__u32 port;
	__u64 now;

	if (!p || p->flags & PKT_TEST)
		return 0;
	port = p->at ? p->at : p->lan & LAN_VNIC ? vnic(p) : p->ifindex;
	key.port = p->kind ? port : 0;
	key.reason = reason;
	c = bpf_map_lookup_elem(&bh_drops_v1, &key);
	if (!c) {
		struct drop_count none = {};

		bpf_map_update_elem(&bh_drops_v1, &key, &none, BPF_NOEXIST);
		c = bpf_map_lookup_elem(&bh_drops_v1, &key);
	}
	if (c) {
		__sync_fetch_and_add(&c->packets, 1);
		__sync_fetch_and_add(&c->bytes, p->len);
	}
	if (reason >= DROP_QUIET)
		return 0;
	s = bpf_map_lookup_elem(&bh_stats_v1, &port);
	if (s) {
		if (p->at)
			s->rx_dropped++;
		else
			s->tx_dropped++;
	}
	now = bpf_ktime_get_ns();
	if (c && event_allowed(c, now))
		event(p, key.port, reason, now);
	return 0;
}

static __always_inline int drop(struct __sk_buff *skb, struct pkt *p, int reason)
{
	count_drop(p, reason);
	report(skb, p, OUTCOME_DROP, reason, 0, p->rule_out);
	return TC_ACT_SHOT;
}

#endif
