/* Delivery: known unicast to the one port, group frames to all others of the switch. */
#ifndef BULKHEAD_DELIVER_H
#define BULKHEAD_DELIVER_H

#include "balance.h"
#include "drop.h"
#include "error.h"
#include "flow.h"
#include "group.h"
#include "guard.h"
#include "judge.h"
#include "offload_call.h"
#include "owner.h"
#include "rate.h"
#include "reject.h"
#include "related.h"
#include "route.h"
#include "send.h"
#include "steer.h"
#include "tunnel.h"
#include "wire.h"

/* Ports of one switch that get broadcast; plan and loader refuse more. */
#define MAX_MEMBERS 4096

/* A verification border. What a container gets by the router of an overlay has its MAC. */
__noinline int pass_router(struct __sk_buff *skb, struct pkt *p)
{
	const struct overlay *o = p ? overlay_of(p->src.sw) : 0;

	if (!o || !same_mac(p->dmac, o->router))
		return 0;
	return bpf_skb_store_bytes(skb, ETH_ALEN, o->router, ETH_ALEN, 0) != 0;
}

/* send() on an overlay. */
static __always_inline int send_overlay(struct __sk_buff *skb, struct pkt *p, __u32 device, __u32 kind)
{
	if (p->flags & PKT_TEST)
		return TC_ACT_SHOT;
	return kind == PORT_REMOTE ? to_remote(skb, p) : send(skb, device, kind);
}

/* Who has the address that a frame is delivered to. */
static __always_inline const struct owner *receiver(const struct pkt *p)
{
	struct addr_key to = p->dst;

	if (p->turned & TURNED_KEPT)
		__builtin_memcpy(to.ip, p->alias, 16);
	else if (p->turned == (TURNED_ANSWER | TURNED_SELF))
		__builtin_memcpy(to.ip, p->src.ip, 16);
	return owner_of(&to);
}

/* A verification border: the MAC of the host's vNIC, if that is behind a port. */
__noinline int host_mac(__u32 port, struct mac_key *mac)
{
	const struct port *host = bpf_map_lookup_elem(&bh_ports_v3, &port);

	if (!mac || !host || host->kind != PORT_HOST)
		return 0;
	__builtin_memcpy(mac->mac, host->mac, ETH_ALEN);
	return 1;
}

/* A verification border. Gives a frame the MAC of who has its destination address, or of
 * the host that it is sent by. */
__noinline int redress(struct __sk_buff *skb, struct pkt *p, __u32 port)
{
	const struct owner *o;
	struct mac_key host = {};

	if (!p)
		return DROP_MALFORMED;
	if (p->routed && hop_mac(p, port, &host))
		return bpf_skb_store_bytes(skb, 0, host.mac, ETH_ALEN, 0) ? 1 : pass_router(skb, p);
	if (steer_mac(p, port, &host))
		return bpf_skb_store_bytes(skb, 0, host.mac, ETH_ALEN, 0);
	if (p->turned & TURNED_SOURCED && host_mac(port, &host)) /* nobody else has the address that it bears */
		return bpf_skb_store_bytes(skb, 0, host.mac, ETH_ALEN, 0);
	o = receiver(p);
	if (!o || bpf_skb_store_bytes(skb, 0, o->mac, ETH_ALEN, 0))
		return 1;
	return on_overlay(p) ? pass_router(skb, p) : 0;
}

/* A verification border, to keep its variables off the stack of the long way.
 * The short way: a flow that was judged under the rules that hold now. 0 means the long
 * one. What its first packet passed, the source guard among it, holds for each: the key
 * has its addresses, the entry its ports and MACs. */
__noinline int carry(struct __sk_buff *skb, struct pkt *p)
{
	const struct flow_end *you;
	struct flow_key key = {};
	__u32 device, port;
	struct flow *f;
	struct scratch *room = scratch();
	int end, step;
	__u8 kind, came;

	if (!p || !room)
		return TC_ACT_SHOT;
	came = p->turned;
	if (p->flags & (PKT_OPENER | PKT_TEST) || !has_flow(p))
		return 0;
	if (p->kind != PORT_HOST && p->kind != PORT_UPLINK && p->kind != PORT_REMOTE && !same_mac(p->smac, p->port_mac))
		return 0;
	end = flow_key(&key, p->src.sw, p->proto, p->src.ip, p->sport, p->dst.ip, p->dport);
	key.sw |= half(p, end);
	f = bpf_map_lookup_elem(&bh_flows_v4, &key);
	if (!f)
		return 0;
	/* Read before the checks: should the entry become another flow's in between, that one
	 * goes the same way, or does not match. */
	you = &f->end[!(end & 1)];
	device = *(volatile const __u32 *)&you->device;
	port = *(volatile const __u32 *)&you->port;
	kind = *(volatile const __u8 *)&you->kind;
	/* Its receiver is its sender, or has its address nowhere on the switch: the long way has to know. */
	if (f->state & (FLOW_SELF | FLOW_SOURCED) && f->opener != end)
		to_answer(f, p);
	/* And that its sender may have this source. */
	if (f->state & FLOW_KEPT && f->opener != end && f->end[end & 1].port == p->ifindex) {
		p->turned = TURNED_OWNED;
		note_turn(room, p);
	}
	if (p->flags & PKT_FRAGMENT || f->generation != generation() || !same_ends(f, p, end))
		return 0;
	if (f->opener == end && turned_otherwise(f, p))
		return 0;
	/* Who opened it, nobody knows: it may be one for a detour (steer.h). */
	if (p->flags & PKT_STEERED && f->state & FLOW_MIDWAY)
		return 0;
	if (f->state & (FLOW_TURNED | FLOW_KEPT))
		recall(f, p, end);
	if (p->flags & PKT_STEERED && on_overlay(p) && f->opener == end && !p->turned)
		p->routed = 1;
	if ((f->state & (end ? FLOW_STALE_A : FLOW_STALE_B) || p->turned == (TURNED_ANSWER | TURNED_SELF) ||
	     p->turned == (TURNED_ANSWER | TURNED_SOURCED)) && redress(skb, p, port)) {
		if (p->turned & TURNED_KEPT) /* what balance() has not seen it is to see as it came */
			p->turned = came;
		return 0;
	}
	if (you->flags & PORT_RATE_IN)
		p->limits |= LIMIT_IN;
	step = kind == PORT_REMOTE ? fits_tunnel(skb, p) : DROP_NONE;
	if (step == DROP_NO_ROUTE) /* it may be here by now */
		return 0;
	if (!step)
		step = rates(skb, p, port);
	if (step)
		return drop(skb, p, step);
	if (p->turned & TURNED_ANSWER && answer(skb, p))
		return drop(skb, p, DROP_KERNEL);
	if (p->tcp & (TCP_FIN | TCP_RST) || f->state & FLOW_RESET)
		flow_tcp(f, p, end);
	count_flow(f, p, end);
	if (is_closed(f) && !(f->state & FLOW_RESET) && !(p->tcp & (TCP_FIN | TCP_RST)))
		flow_last(&key);
	count_tx(p);
	count_rx(counted(port, device, kind), p->len);
	if (p->lan)
		return send_lan(skb, p, device, kind);
	if (on_overlay(p))
		return send_overlay(skb, p, device, kind);
	if (kind == PORT_HOST && p->kind == PORT_CONTAINER && !(f->state & FLOW_TURNED) && offload_offer(skb, f, p, device))
		return CARRY_OFFERED;
	return send(skb, device, kind);
}

/* Does the gateway's port 53 mean the resolver? It has the same MAC and addresses as
 * the host's vNIC, so nothing is rewritten. The first fragment of a query cannot be
 * followed by the others, which have no port: it is dropped, so the query never
 * completes anywhere. */
static __always_inline int for_resolver(const struct pkt *p)
{
	const struct owner *o;

	if (p->kind != PORT_CONTAINER || p->dport != 53 || (p->proto != IPPROTO_TCP && p->proto != IPPROTO_UDP))
		return 0;
	o = owner_of(&p->dst);
	return o && o->flags & OWNER_RESOLVER;
}

/* On a LAN, whoever is not on the switch is on the wire, but for the host. Who has the
 * destination address says nothing: the frame may be for a router between the two. */
static __always_inline int find_beyond(const struct pkt *p, struct dest *to)
{
	__u32 sw = SWITCH_OF(p->src.sw), index = uplink_of(sw);
	const struct port *nic = bpf_map_lookup_elem(&bh_ports_v3, &index);

	if (!nic || p->kind != PORT_CONTAINER)
		return nic ? DROP_UNKNOWN_MAC : DROP_NO_UPLINK;
	to->port = index;
	to->device = index;
	to->kind = same_mac(nic->mac, p->dmac) ? PORT_HOST : PORT_UPLINK;
	return DROP_NONE;
}

/* A verification border. In a tunnel a port reaches another one by the wire only. */
__noinline int find_tunnel(struct pkt *p, struct dest *to)
{
	const struct port *from, *you;
	__u32 index;

	if (!p || !to)
		return DROP_MALFORMED;
	index = p->ifindex;
	from = bpf_map_lookup_elem(&bh_ports_v3, &index);
	index = to->port;
	you = bpf_map_lookup_elem(&bh_ports_v3, &index);
	if (!from || !you)
		return DROP_UNKNOWN_PORT;
	/* The receiver's port takes it for a frame of the wire's. */
	if ((from->flags | you->flags) & PORT_ISOLATED)
		return DROP_ISOLATED;
	index = uplink_of(SWITCH_OF(p->src.sw));
	if (!index)
		return DROP_NO_UPLINK;
	to->port = index;
	to->device = index;
	to->kind = PORT_UPLINK;
	return DROP_NONE;
}

/* A verification border. Where a frame goes on an overlay. Its router is on no interface: what has its
 * MAC is for whoever has the address, here or elsewhere, and else for the host. */
__noinline int find_overlay(struct pkt *p, struct dest *to)
{
	struct mac_key key = {};
	const struct overlay *o;
	const struct owner *own;
	const struct dest *d;
	int routed;

	if (!p || !to)
		return DROP_MALFORMED;
	key.sw = p->src.sw;
	o = overlay_of(key.sw);
	if (!o || (p->kind == PORT_HOST && !(o->flags & OVERLAY_HOST)))
		return DROP_NO_ROUTE;
	routed = same_mac(p->dmac, o->router);
	__builtin_memcpy(key.mac, p->dmac, ETH_ALEN);
	d = routed ? 0 : bpf_map_lookup_elem(&bh_macs_v1, &key);
	own = d ? 0 : owner_of(&p->dst);
	if (own && !(own->flags & OWNER_GATEWAY)) {
		__builtin_memcpy(key.mac, own->mac, ETH_ALEN);
		d = bpf_map_lookup_elem(&bh_macs_v1, &key);
		p->stale = 1;
	} else if (!d && !own && p->kind == PORT_CONTAINER && remote_of(&p->dst, o)) {
		if (p->tunnel == NO_TUNNEL)
			return DROP_NO_UPLINK;
		to->port = p->tunnel;
		to->device = p->tunnel;
		to->kind = PORT_REMOTE;
		return DROP_NONE;
	} else if (!d && routed && p->kind == PORT_CONTAINER) {
		if (!(o->flags & OVERLAY_HOST) && !own)
			return DROP_NO_ROUTE;
		d = bpf_map_lookup_elem(&bh_macs_v1, &key);
	}
	if (!d)
		return routed ? DROP_NO_ROUTE : DROP_UNKNOWN_MAC;
	if (d->port == p->ifindex)
		return DROP_TO_SELF;
	if (d->kind == PORT_HOST && p->kind == PORT_REMOTE)
		return DROP_NO_ROUTE;
	*to = *d;
	return DROP_NONE;
}

/* A verification border: may an overlay's port reach the host at all? */
__noinline int has_host(__u32 sw)
{
	const struct overlay *o = overlay_of(sw);

	return o && o->flags & OVERLAY_HOST;
}

/* A verification border. Where the back end is that a packet is for: FOUND, or a reason, or 0 for one that is
 * on no port here, to which the packet goes as to anybody there. */
#define FOUND -1
__noinline int find_backend(struct pkt *p, struct dest *to)
{
	struct mac_key key = {};
	const struct owner *o;
	const struct dest *d;

	if (!p || !to)
		return DROP_MALFORMED;
	if (p->turned & TURNED_SELF) {
		to->port = p->ifindex;
		to->device = p->ifindex;
		to->kind = PORT_CONTAINER;
		p->stale = 1;
		return FOUND;
	}
	o = receiver(p);
	if (!o || o->flags & OWNER_GATEWAY)
		return 0;
	key.sw = p->src.sw;
	__builtin_memcpy(key.mac, o->mac, ETH_ALEN);
	d = bpf_map_lookup_elem(&bh_macs_v1, &key);
	if (!d)
		return 0;
	if (d->port == p->ifindex)
		return DROP_TO_SELF;
	*to = *d;
	p->stale = 1;
	return FOUND;
}

/* A verification border. Where a packet goes between a source of ours and a back end that is on no port here: to
 * another host, or by this one. Its answers go to the host, whose client it is. */
__noinline int find_far(struct pkt *p, struct dest *to)
{
	struct mac_key key = {};
	const struct overlay *o;
	const struct dest *d;

	if (!p || !to)
		return DROP_MALFORMED;
	key.sw = p->src.sw;
	o = on_overlay(p) ? overlay_of(p->src.sw) : 0;
	if (o && !(p->turned & TURNED_ANSWER) && remote_of(&p->dst, o)) {
		if (p->tunnel == NO_TUNNEL)
			return DROP_NO_UPLINK;
		to->port = p->tunnel;
		to->device = p->tunnel;
		to->kind = PORT_REMOTE;
		return DROP_NONE;
	}
	__builtin_memcpy(key.mac, o ? o->router : p->port_mac, ETH_ALEN);
	d = bpf_map_lookup_elem(&bh_macs_v1, &key);
	if (!d || d->kind != PORT_HOST)
		return DROP_NO_ROUTE;
	*to = *d;
	p->stale = 1;
	return DROP_NONE;
}

/* Where it goes on the other switches. */
static __always_inline int find_here(struct pkt *p, struct dest *to)
{
	struct mac_key key = {.sw = p->src.sw};
	const struct dest *d;

	__builtin_memcpy(key.mac, p->dmac, ETH_ALEN);
	d = bpf_map_lookup_elem(&bh_macs_v1, &key);
	if (!d && p->lan) {
		int step = find_beyond(p, to);

		if (step)
			return step;
		if (!(p->lan & LAN_ONE_MAC) || to->kind != PORT_HOST || !port_at(&p->dst)) {
			if (p->flags & PKT_STEERED)
				steer(p, to);
			return DROP_NONE;
		}
	}
	if (!d) {
		/* And with one MAC on the wire, who has learnt it there means who has the address. */
		/* An address that is used again has another MAC, and those who knew the last one
		 * ask only when it has been silent for long. The switch knows who has it. */
		const struct owner *o = owner_of(&p->dst);

		if (!o)
			return DROP_UNKNOWN_MAC;
		__builtin_memcpy(key.mac, o->mac, ETH_ALEN);
		d = bpf_map_lookup_elem(&bh_macs_v1, &key);
		if (!d)
			return DROP_UNKNOWN_MAC;
		p->stale = 1;
	}
	if (d->port == p->ifindex)
		return DROP_TO_SELF;
	*to = *d;
	if (p->lan & LAN_TUNNEL && p->kind == PORT_CONTAINER && to->kind == PORT_CONTAINER)
		return find_tunnel(p, to);
	if (p->flags & PKT_STEERED && !p->lan)
		steer(p, to);
	return DROP_NONE;
}

/* What is for the host may be for its resolver. */
static __always_inline int find_host(const struct pkt *p, struct dest *to)
{
	const struct vswitch *sw;
	__u32 number = p->src.sw;

	if (!for_resolver(p))
		return on_overlay(p) && !has_host(number) ? DROP_NO_ROUTE : DROP_NONE;
	if (p->flags & PKT_FRAGMENT)
		return DROP_FRAGMENT;
	sw = bpf_map_lookup_elem(&bh_switches_v2, &number);
	if (!sw || !sw->resolver)
		return DROP_RESOLVER;
	to->port = sw->resolver;
	to->device = sw->resolver;
	to->kind = PORT_RESOLVER;
	return DROP_NONE;
}

/* Where a frame goes: 0, or why nowhere. */
static __always_inline int find(struct pkt *p, struct dest *to)
{
	int step = 0;

	p->routed = 0; /* the short way may have begun with it */
	if (p->turned & (TURNED | TURNED_KEPT | TURNED_SELF)) {
		step = find_backend(p, to);
		if (step)
			return step == FOUND ? DROP_NONE : step;
	}
	if (p->turned & TURNED_SOURCED)
		return find_far(p, to);
	step = on_overlay(p) ? find_overlay(p, to) : find_here(p, to);
	if (on_overlay(p) && p->flags & PKT_STEERED && !p->turned && !is_exempt(p))
		step = route(p, to, step, find_hop(p));
	return step || to->kind != PORT_HOST ? step : find_host(p, to);
}

/* A verification border. */
__noinline int deliver(struct __sk_buff *skb, struct pkt *p)
{
	struct dest to = {};
	int step;

	if (!p)
		return TC_ACT_SHOT;
	step = find(p, &to);
	if (step)
		return drop(skb, p, step);
	step = judge(skb, p, &to);
	if (!step && p->stale && redress(skb, p, to.port))
		step = DROP_KERNEL;
	if (!step && p->turned & TURNED_ANSWER && answer(skb, p))
		step = DROP_KERNEL;
	if (!step && is_icmp_error(p) && !(p->flags & PKT_TEST) && !p->turned && !quoted(skb, p) && error_back(p) &&
	    mend(skb, p))
		step = DROP_KERNEL;
	if (!step && to.kind == PORT_REMOTE)
		step = fits_tunnel(skb, p);
	if (!step)
		step = rates(skb, p, to.port);
	if (step)
		return drop(skb, p, step);
	count_tx(p);
	if (!(p->flags & PKT_TEST))
		count_rx(counted(to.port, to.device, to.kind), p->len);
	report(skb, p, to.kind == PORT_UPLINK ? OUTCOME_WIRE : OUTCOME_DELIVER, 0, to.port, p->rule_out);
	if (p->lan)
		return send_lan(skb, p, to.device, to.kind);
	if (on_overlay(p))
		return send_overlay(skb, p, to.device, to.kind);
	return send(skb, to.device, to.kind);
}

struct flood {
	struct __sk_buff *skb;
	struct pkt *p;
	struct member_key key;
	__u32 isolated;
	__u32 except; /* the port that it came from, by way of the wire */
	__u32 copies;
};

static long flood_one(__u32 slot, void *ctx)
{
	struct flood *f = ctx;
	const struct dest *d;
	int step;

	f->key.slot = slot;
	d = bpf_map_lookup_elem(&bh_members_v1, &f->key);
	if (!d || d->port == f->p->ifindex || d->port == f->except)
		return 0;
	if (f->p->kind == PORT_REMOTE && (d->kind != PORT_CONTAINER || !in_group(f->p, d->port)))
		return 0;
	step = judge_copy(f->p, d->port, f->isolated);
	if (step == NO_COPY)
		return 0;
	if (!step)
		step = rates(f->skb, f->p, d->port);
	if (step) {
		f->p->at = d->port;
		count_drop(f->p, step);
		f->p->at = 0;
		f->p->rule = 0;
		return 0;
	}
	f->copies++;
	f->p->copied = 1;
	if (f->p->flags & PKT_TEST)
		return 0;
	count_rx(d->port, f->p->len);
	bpf_clone_redirect(f->skb, d->device, d->kind == PORT_HOST ? BPF_F_INGRESS : 0);
	return 0;
}

/* A verification border. A bounded loop does not verify at 4,096 turns, and walking a
 * hash visits its empty buckets: so numbered slots and bpf_loop. */
__noinline int replicate(struct __sk_buff *skb, struct pkt *p)
{
	const struct vswitch *sw;
	struct flood f = {};
	__u32 members;
	int step;

	if (!p)
		return TC_ACT_SHOT;
	step = judge_group(p, &f.isolated);
	if (!step)
		step = rates(skb, p, 0);
	if (step)
		return drop(skb, p, step);
	f.skb = skb;
	f.p = p;
	f.key.sw = p->src.sw;
	sw = bpf_map_lookup_elem(&bh_switches_v2, &f.key.sw);
	members = sw ? sw->members : 0;
	if (p->lan & LAN_TUNNEL) {
		const struct owner *o = owner_of(&p->src);

		f.except = o ? o->port : 0;
		if (p->kind == PORT_CONTAINER)
			members = 0;
	}
	if (p->kind == PORT_CONTAINER && skb->mark)
		skb->mark = 0;
	bpf_loop(members < MAX_MEMBERS ? members : MAX_MEMBERS, flood_one, &f, 0);
	if (p->kind == PORT_REMOTE && !p->copied)
		count_drop(p, DROP_NO_MEMBER);
	count_tx(p);
	report(skb, p, OUTCOME_REPLICATE, 0, 0, f.copies);
	if (p->lan && p->kind == PORT_CONTAINER)
		flood_beyond(skb, p);
	if (on_overlay(p) && !f.isolated)
		spread(skb, p);
	return TC_ACT_SHOT; /* the original: every receiver has its copy */
}

#endif
