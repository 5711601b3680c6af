/* Writing other addresses and ports into a packet. */
#ifndef BULKHEAD_NAT_H
#define BULKHEAD_NAT_H

#include "flow.h"
#include "maps.h"
#include "parse.h"
#include "steer.h"

/* The later fragments of a packet have no ports: they get the addresses that its first one got.
 * Keys are of the packet as its sender made it. */
FIXED(bh_turns_v2, LRU_HASH, 8192, struct fragment_key, struct turn);

/* Protocols whose checksum covers the addresses and whose ports are known. */
static __always_inline int is_ported(const struct pkt *p)
{
	return !(p->flags & PKT_NO_L4) && (p->proto == IPPROTO_TCP || p->proto == IPPROTO_UDP);
}

static __always_inline int write_l4(struct __sk_buff *skb, const struct pkt *p, const struct tuple *to, __u32 diff)
{
	__u32 at = p->l4 + (p->proto == IPPROTO_TCP ? 16 : 6);
	__u64 mangled = p->proto == IPPROTO_UDP ? BPF_F_MARK_MANGLED_0 : 0;
	__be16 from[2] = {bpf_htons(p->sport), bpf_htons(p->dport)}, next[2] = {bpf_htons(to->sport), bpf_htons(to->dport)};

	if (diff && bpf_l4_csum_replace(skb, at, 0, diff, BPF_F_PSEUDO_HDR | mangled))
		return -1;
	if (*(__u32 *)from == *(__u32 *)next)
		return 0;
	if (bpf_l4_csum_replace(skb, at, *(__u32 *)from, *(__u32 *)next, 4 | mangled))
		return -1;
	return bpf_skb_store_bytes(skb, p->l4, next, sizeof(next), 0);
}

static __always_inline int write_ip4(struct __sk_buff *skb, const struct pkt *p, const struct tuple *to)
{
	__be32 from[2] = {words(p->src.ip)[3], words(p->dst.ip)[3]}, next[2] = {words(to->src)[3], words(to->dst)[3]};
	__s64 diff = bpf_csum_diff(from, sizeof(from), next, sizeof(next), 0);

	if (is_ported(p) && write_l4(skb, p, to, diff))
		return -1;
	return bpf_l3_csum_replace(skb, ETH_HLEN + __builtin_offsetof(struct iphdr, check), 0, diff, 0) ||
	       bpf_skb_store_bytes(skb, ETH_HLEN + __builtin_offsetof(struct iphdr, saddr), next, sizeof(next), 0);
}

static __always_inline int write_ip6(struct __sk_buff *skb, const struct pkt *p, const struct tuple *to)
{
	__be32 from[8], next[8];
	__s64 diff;

	__builtin_memcpy(from, p->src.ip, 16);
	__builtin_memcpy(from + 4, p->dst.ip, 16);
	__builtin_memcpy(next, to->src, 16);
	__builtin_memcpy(next + 4, to->dst, 16);
	diff = bpf_csum_diff(from, sizeof(from), next, sizeof(next), 0);
	if (is_ported(p) && write_l4(skb, p, to, diff))
		return -1;
	/* Where the NIC has summed the packet: in IPv4 the header's own checksum makes up for this. */
	bpf_csum_update(skb, diff);
	return bpf_skb_store_bytes(skb, ETH_HLEN + __builtin_offsetof(struct ipv6hdr, saddr), next, sizeof(next), 0);
}

/* Notes for the rest of a fragmented packet what its first part gets: of what is rewritten the addresses in the
 * scratch space. */
static __always_inline void note_turn(struct scratch *room, const struct pkt *p)
{
	if (!(p->flags & PKT_FRAGMENT) || p->flags & (PKT_NO_L4 | PKT_TEST))
		return;
	room->fragment = (struct fragment_key){};
	fragment_key(&room->fragment, p);
	room->turn.time = bpf_ktime_get_ns();
	__builtin_memcpy(room->turn.src, room->tuple.src, 16);
	__builtin_memcpy(room->turn.dst, room->tuple.dst, 16);
	__builtin_memcpy(room->turn.alias, p->alias, 16);
	room->turn.port = p->ifindex;
	room->turn.turned = p->turned;
	bpf_map_update_elem(&bh_turns_v2, &room->fragment, &room->turn, 0);
}

/* A verification border. Gives a packet the addresses and ports in the scratch space, and the rest of a fragmented
 * one, too: 0, or that the kernel will not. */
__noinline int translate(struct __sk_buff *skb, struct pkt *p)
{
	struct scratch *room = scratch();
	struct tuple *to;

	if (!p || !room)
		return -1;
	to = &room->tuple;
	note_turn(room, p);
	if (p->ethertype == ETH_P_IP ? write_ip4(skb, p, to) : write_ip6(skb, p, to))
		return -1;
	__builtin_memcpy(p->src.ip, to->src, 16);
	__builtin_memcpy(p->dst.ip, to->dst, 16);
	if (is_ported(p)) {
		p->sport = to->sport;
		p->dport = to->dport;
	}
	return 0;
}

/* What the first part of a fragmented packet got; null for one that got nothing. */
static __always_inline const struct turn *turn_of(struct scratch *room, const struct pkt *p)
{
	const struct turn *t;

	room->fragment = (struct fragment_key){};
	fragment_key(&room->fragment, p);
	t = bpf_map_lookup_elem(&bh_turns_v2, &room->fragment);
	return t && t->port == p->ifindex && bpf_ktime_get_ns() - t->time <= FRAGMENT_PATIENCE ? t : 0;
}

/* A verification border. Whom an answer to a source of ours is for, into the tuple in the scratch space: 0, or that
 * nobody knows. */
__noinline int to_client(struct pkt *p)
{
	struct scratch *room = scratch();
	const struct client *c;
	const struct turn *t;

	if (!p || !room)
		return -1;
	if (p->flags & PKT_NO_L4) {
		t = turn_of(room, p);
		if (!t)
			return -1;
		__builtin_memcpy(room->tuple.dst, t->dst, 16);
		return 0;
	}
	room->key = (struct flow_key){};
	flow_key(&room->key, p->src.sw, p->proto, p->src.ip, p->sport, p->dst.ip, p->dport);
	c = bpf_map_lookup_elem(&bh_clients_v1, &room->key);
	if (!c)
		return -1;
	__builtin_memcpy(room->tuple.dst, c->ip, 16);
	room->tuple.dport = c->port;
	return 0;
}

/* A verification border. Gives an answer from a back end the address that its receiver has asked. */
__noinline int answer(struct __sk_buff *skb, struct pkt *p)
{
	struct scratch *room = scratch();

	if (!p || !room)
		return -1;
	__builtin_memcpy(room->tuple.src, p->alias, 16);
	__builtin_memcpy(room->tuple.dst, p->turned & TURNED_SELF ? p->src.ip : p->dst.ip, 16);
	room->tuple.sport = p->aport;
	room->tuple.dport = p->dport;
	if (p->turned & TURNED_SOURCED && to_client(p))
		return -1;
	return translate(skb, p);
}

#endif
