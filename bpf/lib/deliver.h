/* Delivery: known unicast to the one port, group frames to all others of the switch. */
#ifndef BULKHEAD_DELIVER_H
#define BULKHEAD_DELIVER_H

#include "drop.h"
#include "owner.h"

/* Ports of one switch that get broadcast; plan and loader refuse more. */
#define MAX_MEMBERS 4096

/* To the host's vNIC the frame is handed on its receiving side: redirect_peer refuses
 * when both ends are in one namespace. Into a compartment redirect_peer saves the way
 * through the veth and its queue. */
static __always_inline int send(struct __sk_buff *skb, const struct dest *d)
{
	/* The frame was not for the MAC of the device it came in by, so the kernel takes it
	 * for somebody else's; and the host's mark means nothing in a compartment. */
	if (skb->pkt_type != PACKET_HOST)
		bpf_skb_change_type(skb, PACKET_HOST);
	if (skb->mark)
		skb->mark = 0;
	if (d->kind == PORT_HOST)
		return bpf_redirect(d->device, BPF_F_INGRESS);
	return bpf_redirect_peer(d->device, 0);
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

/* A verification border. */
__noinline int deliver(struct __sk_buff *skb, struct pkt *p)
{
	struct mac_key key = {};
	struct dest to = {};
	const struct dest *d;

	if (!p)
		return TC_ACT_SHOT;
	key.sw = p->src.sw;
	__builtin_memcpy(key.mac, p->dmac, ETH_ALEN);
	d = bpf_map_lookup_elem(&bh_macs_v1, &key);
	if (!d)
		return drop(skb, p, DROP_UNKNOWN_MAC);
	if (d->port == p->ifindex)
		return drop(skb, p, DROP_TO_SELF);
	to = *d;
	if (to.kind == PORT_HOST && for_resolver(p)) {
		const struct vswitch *sw = bpf_map_lookup_elem(&bh_switches_v1, &key.sw);

		if (p->flags & PKT_FRAGMENT)
			return drop(skb, p, DROP_FRAGMENT);
		if (!sw || !sw->resolver)
			return drop(skb, p, DROP_RESOLVER);
		to.port = sw->resolver;
		to.device = sw->resolver;
		to.kind = PORT_RESOLVER;
	}
	/* Layers of the receiving port run here: its ingress ACLs, its counters by rule. */
	count_tx(p);
	if (!(p->flags & PKT_TEST))
		count_rx(to.port, p->len);
	report(skb, p, OUTCOME_DELIVER, 0, to.port, 1);
	return send(skb, &to);
}

struct flood {
	struct __sk_buff *skb;
	struct member_key key;
	__u32 self;
	__u32 len;
	__u32 copies;
	__u32 test;
};

static long flood_one(__u32 slot, void *ctx)
{
	struct flood *f = ctx;
	const struct dest *d;

	f->key.slot = slot;
	d = bpf_map_lookup_elem(&bh_members_v1, &f->key);
	if (!d || d->port == f->self)
		return 0;
	/* The receiving port's layers run here too, once for each copy. */
	f->copies++;
	if (f->test)
		return 0;
	count_rx(d->port, f->len);
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

	if (!p)
		return TC_ACT_SHOT;
	f.skb = skb;
	f.key.sw = p->src.sw;
	f.self = p->ifindex;
	f.len = p->len;
	f.test = p->flags & PKT_TEST;
	sw = bpf_map_lookup_elem(&bh_switches_v1, &f.key.sw);
	members = sw ? sw->members : 0;
	if (skb->mark)
		skb->mark = 0;
	bpf_loop(members < MAX_MEMBERS ? members : MAX_MEMBERS, flood_one, &f, 0);
	count_tx(p);
	report(skb, p, OUTCOME_REPLICATE, 0, 0, f.copies);
	return TC_ACT_SHOT; /* the original: every receiver has its copy */
}

#endif
