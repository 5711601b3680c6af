/* The short way past netfilter, for flows that it has accepted: finding them, and giving a
 * frame the form in which netfilter and the routes sent the last one. How they are learnt
 * is in learn.h, and the whole story in docs/adr/0013. */
#ifndef BULKHEAD_OFFLOAD_H
#define BULKHEAD_OFFLOAD_H

#include "../include/conntrack.h"
#include "offload_structs.h"
#include "parse.h"

/* "Learn from this packet", for the program where it leaves the stack. The stack keeps the
 * field, and nothing that forwards looks at it. */
#define OFFLOAD_MAGIC 0xb01c

/* How long a flow is carried before netfilter has to see a packet of it again, so that
 * what no generation tells of is obeyed too: iptables-legacy, quotas, times of day, a
 * deleted conntrack entry, policy routes. It also keeps conntrack's entry alive. After
 * the first half, one that is small enough not to hurt when others overtake it. */
#define OFFLOAD_LEASE 1000000000ULL
#define SMALL_L4 60

static __always_inline void offload_count(__u32 which)
{
	__u64 *n = bpf_map_lookup_elem(&bh_offload_stats_v1, &which);

	if (n)
		(*n)++;
}

static __always_inline const struct offload_config *offload_config(void)
{
	__u32 zero = 0;

	return bpf_map_lookup_elem(&bh_offload_config_v1, &zero);
}

/* Identifies the nftables ruleset of the namespace. The cursor is what the kernel's own
 * packet path goes by, so a packet that comes after a change sees that there was one, with
 * no word from the daemon. Before 6.17 the cursor is all there is; it takes two values, and
 * the daemon's generation tells apart what has the same one. */
static __always_inline __u64 nft_stamp(struct __sk_buff *skb)
{
	struct sk_buff *k = bpf_cast_to_kern_ctx(skb);
	struct net *net = k->dev->nd_net.net;
	__u64 stamp = net->nft.gencursor;

	if (bpf_core_field_exists(net->nft.base_seq))
		stamp |= (__u64)net->nft.base_seq << 8;
	return stamp;
}

static __always_inline int is_live(struct __sk_buff *skb, const struct offload *o, const struct offload_config *c,
				   __u64 now)
{
	return o->state == OFFLOAD_LIVE && o->generation == c->generation && now < o->until &&
	       o->stamp == nft_stamp(skb);
}

/* Is it time for netfilter to see one, and this one a good one? */
static __always_inline int is_sample(const struct pkt *p, const struct offload *o, __u64 now)
{
	return now + OFFLOAD_LEASE / 2 > o->until &&
	       (p->proto == IPPROTO_UDP || p->end - p->l4 <= SMALL_L4);
}

/* Only whole packets with plain headers. */
static __always_inline int is_plain(const struct pkt *p)
{
	if (p->flags & (PKT_FRAGMENT | PKT_GROUP | PKT_TEST) || (p->proto != IPPROTO_TCP && p->proto != IPPROTO_UDP))
		return 0;
	if (p->ethertype == ETH_P_IP)
		return p->l4 == ETH_HLEN + sizeof(struct iphdr);
	return p->ethertype == ETH_P_IPV6 && !is_mapped(p->src.ip) && p->l4 == ETH_HLEN + sizeof(struct ipv6hdr);
}

static __always_inline int is_ending(const struct pkt *p)
{
	return p->tcp & (TCP_SYN | TCP_FIN | TCP_RST);
}

static __always_inline void in_key(struct offload_key *k, const struct pkt *p, __u32 scope)
{
	k->scope = scope;
	__builtin_memcpy(k->src, p->src.ip, 16);
	__builtin_memcpy(k->dst, p->dst.ip, 16);
	k->sport = p->sport;
	k->dport = p->dport;
	k->proto = p->proto;
}

/* The key under which the other direction comes in: what this one goes out as, turned
 * round. */
static __always_inline void peer_key(struct offload_key *k, const struct offload *o, __u8 proto)
{
	k->scope = o->peer;
	__builtin_memcpy(k->src, o->dst, 16);
	__builtin_memcpy(k->dst, o->src, 16);
	k->sport = o->dport;
	k->dport = o->sport;
	k->proto = proto;
}

/* A verification border: both directions go, so that neither hangs on the other. */
__noinline int offload_end(struct pkt *p, __u32 scope)
{
	struct offload_key key = {}, peer = {};
	const struct offload *o;

	if (!p)
		return 0;
	in_key(&key, p, scope);
	o = bpf_map_lookup_elem(&bh_offload_v1, &key);
	if (!o)
		return 0;
	peer_key(&peer, o, p->proto);
	if (o->state != OFFLOAD_WANTED)
		bpf_map_delete_elem(&bh_offload_v1, &peer);
	bpf_map_delete_elem(&bh_offload_v1, &key);
	offload_count(OFFLOAD_ENDED);
	return 0;
}

struct head4 {
	struct ethhdr eth;
	struct iphdr ip;
} __attribute__((packed, aligned(2)));

struct head6 {
	struct ethhdr eth;
	struct ipv6hdr ip;
} __attribute__((packed, aligned(2)));

#define TOS_MASK 0xfc /* ECN is the ends' own affair */

static __always_inline __u8 tos6(const struct ipv6hdr *ip)
{
	return bpf_ntohs(*(const __u16 *)ip) >> 4;
}

static __always_inline __u16 fold(__u64 sum)
{
	return ~csum_fold(sum);
}

/* The transport header: its checksum covers the addresses, too. Nothing is changed when
 * it fails, for the first call is the one that reaches farthest. */
static __always_inline int rewrite_l4(struct __sk_buff *skb, const struct pkt *p, const struct offload *o, __u32 diff)
{
	__u32 at = p->l4 + (p->proto == IPPROTO_TCP ? 16 : 6);
	__u64 mangled = p->proto == IPPROTO_UDP ? BPF_F_MARK_MANGLED_0 : 0;
	__be16 from[2] = {bpf_htons(p->sport), bpf_htons(p->dport)}, to[2] = {bpf_htons(o->sport), bpf_htons(o->dport)};

	if (diff && bpf_l4_csum_replace(skb, at, 0, diff, BPF_F_PSEUDO_HDR | mangled))
		return -1;
	if (*(__u32 *)from == *(__u32 *)to)
		return 0;
	if (bpf_l4_csum_replace(skb, at, *(__u32 *)from, *(__u32 *)to, 4 | mangled))
		return -1;
	return bpf_skb_store_bytes(skb, p->l4, to, sizeof(to), 0);
}

/* A checksum that is wrong stays so: it is brought forward, not made anew. */
static __always_inline int rewrite4(struct __sk_buff *skb, const struct pkt *p, const struct offload *o)
{
	__be32 from[2], to[2];
	__u16 was, now;
	struct head4 h;
	__u64 diff;

	if (bpf_skb_load_bytes(skb, 0, &h, sizeof(h)) || h.ip.ttl <= 1 || (h.ip.tos ^ o->tos) & TOS_MASK)
		return -1;
	from[0] = h.ip.saddr;
	from[1] = h.ip.daddr;
	to[0] = words(o->src)[3];
	to[1] = words(o->dst)[3];
	diff = bpf_csum_diff(from, sizeof(from), to, sizeof(to), 0);
	if (rewrite_l4(skb, p, o, diff))
		return -1;
	__builtin_memcpy(h.eth.dest, o->dmac, ETH_ALEN);
	__builtin_memcpy(h.eth.source, o->smac, ETH_ALEN);
	was = *(__u16 *)&h.ip.ttl;
	h.ip.ttl--;
	now = *(__u16 *)&h.ip.ttl;
	h.ip.check = csum_fold((__u64)(__u16)~h.ip.check + fold(diff) + (__u16)~was + now);
	h.ip.saddr = to[0];
	h.ip.daddr = to[1];
	return bpf_skb_store_bytes(skb, 0, &h, sizeof(h), 0);
}

static __always_inline int rewrite6(struct __sk_buff *skb, const struct pkt *p, const struct offload *o)
{
	__be32 from[10], to[10];
	struct head6 h;
	__u64 diff;

	if (bpf_skb_load_bytes(skb, 0, &h, sizeof(h)) || h.ip.hop_limit <= 1 || (tos6(&h.ip) ^ o->tos) & TOS_MASK)
		return -1;
	__builtin_memcpy(from, &h.ip, sizeof(from));
	__builtin_memcpy(h.eth.dest, o->dmac, ETH_ALEN);
	__builtin_memcpy(h.eth.source, o->smac, ETH_ALEN);
	h.ip.hop_limit--;
	__builtin_memcpy(h.ip.saddr, o->src, 16);
	__builtin_memcpy(h.ip.daddr, o->dst, 16);
	__builtin_memcpy(to, &h.ip, sizeof(to));
	diff = bpf_csum_diff(from + 2, 32, to + 2, 32, 0);
	if (rewrite_l4(skb, p, o, diff))
		return -1;
	/* Where the NIC has summed the packet: in IPv4 the header's own checksum makes up for
	 * its changes, and the helper counts on that. */
	bpf_csum_update(skb, bpf_csum_diff(from, sizeof(from), to, sizeof(to), 0));
	return bpf_skb_store_bytes(skb, 0, &h, sizeof(h), 0);
}

/* A verification border. 0: the frame has the form in which it leaves. */
__noinline int rewrite(struct __sk_buff *skb, struct pkt *p, struct offload *o)
{
	if (!p || !o)
		return -1;
	return p->ethertype == ETH_P_IP ? rewrite4(skb, p, o) : rewrite6(skb, p, o);
}

#endif
