/* ICMP errors about connections to services: their receiver, and the packet that they quote, are to have the
 * addresses that each side knows. */
#ifndef BULKHEAD_ERROR_H
#define BULKHEAD_ERROR_H

#include "balance.h"
#include "related.h"

static __always_inline int mend4(struct __sk_buff *skb, const struct pkt *p, const struct mend *m, __u32 l4)
{
	__u32 at = p->l4 + 8, old = words(m->from)[3], new = words(m->to)[3], ip = m->dst ? 16 : 12;
	__be16 ports[2] = {bpf_htons(m->port), bpf_htons(m->to_port)};

	if (bpf_l3_csum_replace(skb, at + 10, old, new, 4) || bpf_skb_store_bytes(skb, at + ip, &new, 4, 0))
		return -1;
	/* The quoted header's checksum makes up for its address. */
	at = l4 + (m->dst ? 2 : 0);
	if (bpf_l4_csum_replace(skb, p->l4 + 2, ports[0], ports[1], 2) || bpf_skb_store_bytes(skb, at, &ports[1], 2, 0))
		return -1;
	if (!m->outer)
		return 0;
	return bpf_l3_csum_replace(skb, ETH_HLEN + 10, old, new, 4) ||
	       bpf_skb_store_bytes(skb, ETH_HLEN + (m->dst ? 12 : 16), &new, 4, 0);
}

static __always_inline int mend6(struct __sk_buff *skb, const struct pkt *p, struct mend *m, __u32 l4)
{
	__u32 at = p->l4 + 8 + (m->dst ? 24 : 8);
	__be16 ports[2] = {bpf_htons(m->port), bpf_htons(m->to_port)};
	__s64 diff = bpf_csum_diff((__be32 *)m->from, 16, (__be32 *)m->to, 16, 0);

	if (bpf_l4_csum_replace(skb, p->l4 + 2, 0, diff, 0) || bpf_skb_store_bytes(skb, at, m->to, 16, 0))
		return -1;
	at = l4 + (m->dst ? 2 : 0);
	if (bpf_l4_csum_replace(skb, p->l4 + 2, ports[0], ports[1], 2) || bpf_skb_store_bytes(skb, at, &ports[1], 2, 0))
		return -1;
	if (!m->outer)
		return 0;
	return bpf_l4_csum_replace(skb, p->l4 + 2, 0, diff, BPF_F_PSEUDO_HDR) ||
	       bpf_skb_store_bytes(skb, ETH_HLEN + (m->dst ? 8 : 24), m->to, 16, 0);
}

/* A verification border. Does what the scratch space says, to the packet that quoted() has read. */
__noinline int mend(struct __sk_buff *skb, struct pkt *p)
{
	struct scratch *room = scratch();

	if (!p || !room)
		return -1;
	return p->ethertype == ETH_P_IP ? mend4(skb, p, &room->mend, room->inner.l4) : mend6(skb, p, &room->mend, room->inner.l4);
}

/* A verification border, for the stack: the packet that an error quotes, into the scratch space. */
__noinline int quoted(struct __sk_buff *skb, struct pkt *p)
{
	struct scratch *room = scratch();
	struct inner in = {};

	if (!p || !room || read_inner(skb, p, &in))
		return -1;
	room->inner = in;
	return 0;
}

/* The flow of the packet that an error quotes, and which end has sent that. */
static __always_inline const struct flow *quoted_flow(struct scratch *room, const struct pkt *p, int *end)
{
	const struct inner *in = &room->inner;

	room->key = (struct flow_key){};
	*end = flow_key(&room->key, p->src.sw, in->proto, in->src, in->sport, in->dst, in->dport);
	return bpf_map_lookup_elem(&bh_flows_v4, &room->key);
}

/* A verification border. Is the quoted packet one that a client has sent to a service? Then the scratch space says
 * what it is to see. */
__noinline int error_back(struct pkt *p)
{
	struct scratch *room = scratch();
	const struct inner *in;
	const struct flow *f;
	int end;

	if (!p || !room)
		return 0;
	in = &room->inner;
	f = quoted_flow(room, p, &end);
	if (!f || !(f->state & FLOW_TURNED) || f->state & FLOW_SELF || f->opener != end)
		return 0;
	room->mend.dst = 1;
	__builtin_memcpy(room->mend.from, in->dst, 16);
	__builtin_memcpy(room->mend.to, f->alias, 16);
	room->mend.port = in->dport;
	room->mend.to_port = f->aport;
	room->mend.outer = same_ip(p->src.ip, in->dst);
	return 1;
}

/* A verification border. Where packets are delivered as they are, errors are, too: what one is about belongs to a flow
 * as it is quoted. From the back end it has the service's address, and from the client it goes to the back end. */
__noinline int error_kept(struct pkt *p)
{
	struct scratch *room = scratch();
	const struct inner *in;
	const struct flow *f;
	int end;

	if (!p || !room)
		return 0;
	in = &room->inner;
	f = quoted_flow(room, p, &end);
	if (!f || !(f->state & FLOW_KEPT))
		return 0;
	if (f->opener == end) {
		if (f->end[!(end & 1)].port == p->ifindex && same_ip(p->src.ip, in->dst))
			p->turned = TURNED_OWNED;
		return 0;
	}
	if (f->end[!(end & 1)].port != p->ifindex || !same_ip(p->dst.ip, in->src))
		return 0;
	p->turned = TURNED_KEPT;
	__builtin_memcpy(p->alias, f->alias, 16);
	return BALANCED;
}

/* What is about a connection with a source of ours has both ends mended. */
static __always_inline void mend_end(struct scratch *room, __u8 dst, const __u8 *from, __u16 port, const __u8 *to, __u16 to_port)
{
	__builtin_memcpy(room->mend.from, from, 16);
	__builtin_memcpy(room->mend.to, to, 16);
	room->mend.port = port;
	room->mend.to_port = to_port;
	room->mend.dst = dst;
}

/* A verification border. An error about what went to a back end that is on no port here: it comes to the source, and
 * goes to the client. */
__noinline int error_sourced(struct __sk_buff *skb, struct pkt *p)
{
	struct scratch *room = scratch();
	const struct client *c;
	const struct inner *in;
	const struct flow *f;
	int end;

	if (!p || !room)
		return 0;
	in = &room->inner;
	f = quoted_flow(room, p, &end);
	if (!f || !(f->state & FLOW_SOURCED) || f->opener != end || !same_ip(p->dst.ip, in->src))
		return 0;
	c = bpf_map_lookup_elem(&bh_clients_v1, &room->key);
	if (!c)
		return 0;
	mend_end(room, 1, in->dst, in->dport, f->alias, f->aport);
	room->mend.outer = same_ip(p->src.ip, in->dst);
	if (mend(skb, p))
		return DROP_KERNEL;
	mend_end(room, 0, in->src, in->sport, c->ip, c->port);
	room->mend.outer = 1;
	if (mend(skb, p))
		return DROP_KERNEL;
	p->turned = TURNED_SOURCED;
	return 0;
}

/* A verification border. An error of a router on the way to the client has the router's source, of which the back end's
 * host knows nothing: it gets the one in mend.to. */
__noinline int mend_source(struct __sk_buff *skb, struct pkt *p)
{
	struct scratch *room = scratch();
	__u32 old, new;
	__s64 diff;

	if (!p || !room)
		return -1;
	if (p->ethertype == ETH_P_IP) {
		old = words(p->src.ip)[3];
		new = words(room->mend.to)[3];
		return bpf_l3_csum_replace(skb, ETH_HLEN + 10, old, new, 4) || bpf_skb_store_bytes(skb, ETH_HLEN + 12, &new, 4, 0);
	}
	diff = bpf_csum_diff((__be32 *)p->src.ip, 16, (__be32 *)room->mend.to, 16, 0);
	return bpf_l4_csum_replace(skb, p->l4 + 2, 0, diff, BPF_F_PSEUDO_HDR) ||
	       bpf_skb_store_bytes(skb, ETH_HLEN + 8, room->mend.to, 16, 0);
}

/* A verification border. The rest of error_forth() where the back end knows the client under a source of ours, which
 * the choice in the scratch space says. */
__noinline int forth_sourced(struct __sk_buff *skb, struct pkt *p)
{
	struct scratch *room = scratch();
	struct vip_key key = {};
	const struct inner *in;
	const struct vip *v;

	if (!p || !room)
		return 0;
	in = &room->inner;
	key.sw = SWITCH_OF(p->src.sw);
	key.port = in->sport;
	key.proto = in->proto;
	__builtin_memcpy(key.ip, in->src, 16);
	v = bpf_map_lookup_elem(&bh_vips_v2, &key);
	if (!v || !(v->flags & VIP_SOURCED))
		return DROP_NO_BACKEND;
	mend_end(room, 1, in->dst, in->dport, v->source, room->choice.sport);
	room->mend.outer = same_ip(p->src.ip, in->dst);
	if (mend(skb, p) || (!room->mend.outer && mend_source(skb, p)))
		return DROP_KERNEL;
	__builtin_memcpy(p->src.ip, room->mend.to, 16);
	__builtin_memcpy(p->smac, v->smac, ETH_ALEN);
	if (bpf_skb_store_bytes(skb, ETH_ALEN, p->smac, ETH_ALEN, 0))
		return DROP_KERNEL;
	p->turned = TURNED | TURNED_SOURCED;
	return BALANCED;
}

/* A verification border. An error about what a back end has answered: it comes to the service, and goes to the
 * back end. */
__noinline int error_forth(struct __sk_buff *skb, struct pkt *p)
{
	struct scratch *room = scratch();
	const struct choice *c;
	const struct inner *in;

	if (!p || !room)
		return 0;
	in = &room->inner;
	if (!same_ip(p->dst.ip, in->src))
		return 0;
	room->choice_key = (struct choice_key){};
	room->choice_key.sw = p->src.sw;
	room->choice_key.proto = in->proto;
	room->choice_key.sport = in->dport;
	room->choice_key.dport = in->sport;
	__builtin_memcpy(room->choice_key.src, in->dst, 16);
	__builtin_memcpy(room->choice_key.dst, in->src, 16);
	c = bpf_map_lookup_elem(&bh_choices_v1, &room->choice_key);
	if (!c)
		return 0;
	room->mend.dst = 0;
	room->mend.outer = 1;
	__builtin_memcpy(room->mend.from, in->src, 16);
	__builtin_memcpy(room->mend.to, c->ip, 16);
	room->mend.port = in->sport;
	room->mend.to_port = c->port;
	room->choice = *c;
	if (mend(skb, p))
		return DROP_KERNEL;
	__builtin_memcpy(p->dst.ip, room->mend.to, 16);
	if (room->choice.sport)
		return forth_sourced(skb, p);
	p->turned = TURNED;
	return BALANCED;
}

/* A verification border. balance() of an error. */
__noinline int balance_error(struct __sk_buff *skb, struct pkt *p)
{
	int step;

	if (!p || !is_served(p) || p->turned || p->flags & PKT_TEST || !is_icmp_error(p) || quoted(skb, p))
		return 0;
	step = error_kept(p);
	if (!step && !p->turned && p->kind == PORT_HOST)
		step = error_sourced(skb, p);
	return step || p->turned ? step : error_forth(skb, p);
}

/* A verification border. The same at a tunnel, where what comes to a source of ours is the only thing to do with services:
 * 0, or why it goes nowhere. */
__noinline int balance_remote(struct __sk_buff *skb, struct pkt *p)
{
	if (!p || p->turned || p->flags & PKT_TEST || !is_icmp_error(p) || quoted(skb, p))
		return 0;
	return error_sourced(skb, p);
}

#endif
