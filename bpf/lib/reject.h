/* Refusing a packet so that its sender knows: a reset, or "port unreachable". */
#ifndef BULKHEAD_REJECT_H
#define BULKHEAD_REJECT_H

#include "csum.h"
#include "drop.h"
#include "parse.h"
#include "related.h"

#define REJECT_TTL 64
#define ICMP_PORT_UNREACHABLE 3
#define ICMP6_UNREACHABLE 1
#define ICMP6_PORT_UNREACHABLE 4

struct icmphdr {
	__u8 type;
	__u8 code;
	__u16 check;
	__be32 rest;
} __attribute__((packed, aligned(2)));

/* What stands before the transport header of an IPv6 packet in its checksum. */
struct pseudo6 {
	__u8 src[16];
	__u8 dst[16];
	__be32 len;
	__be32 next;
} __attribute__((aligned(4)));

struct reset4 {
	struct ethhdr eth;
	struct iphdr ip;
	struct tcphdr tcp;
} __attribute__((packed, aligned(2)));

struct reset6 {
	struct ethhdr eth;
	struct ipv6hdr ip;
	struct tcphdr tcp;
} __attribute__((packed, aligned(2)));

static __always_inline __u32 sum(const void *from, __u32 n, __u32 seed)
{
	const __u16 *half = from;

	for (__u32 i = 0; i < n / 2; i++)
		seed += half[i];
	return seed;
}

static __always_inline void turn_eth(struct ethhdr *eth, const struct pkt *p)
{
	__builtin_memcpy(eth->dest, p->smac, ETH_ALEN);
	__builtin_memcpy(eth->source, p->dmac, ETH_ALEN);
	eth->proto = bpf_htons(p->ethertype);
}

static __always_inline void ip4_back(struct iphdr *ip, const struct pkt *p, __u8 proto, __u16 len)
{
	ip->version_ihl = 0x45;
	ip->tot_len = bpf_htons(len);
	ip->frag_off = bpf_htons(0x4000);
	ip->ttl = REJECT_TTL;
	ip->protocol = proto;
	ip->saddr = words(p->dst.ip)[3];
	ip->daddr = words(p->src.ip)[3];
	ip->check = csum_fold(sum(ip, sizeof(*ip), 0));
}

static __always_inline void ip6_back(struct ipv6hdr *ip, const struct pkt *p, __u8 next, __u16 len)
{
	ip->version_class_flow = bpf_htonl(0x60000000);
	ip->payload_len = bpf_htons(len);
	ip->nexthdr = next;
	ip->hop_limit = REJECT_TTL;
	__builtin_memcpy(ip->saddr, p->dst.ip, 16);
	__builtin_memcpy(ip->daddr, p->src.ip, 16);
}

static __always_inline __u32 pseudo4(const struct iphdr *ip, __u16 len)
{
	return sum(&ip->saddr, 8, (__u32)bpf_htons(ip->protocol) + bpf_htons(len));
}

static __always_inline __u32 pseudo_6(const struct ipv6hdr *ip, __u8 next, __u16 len)
{
	return sum(ip->saddr, 32, (__u32)bpf_htons(next) + bpf_htons(len));
}

/* A verification border. What a reset says to a segment (RFC 9293, section 3.5.2). */
__noinline int reset_of(struct __sk_buff *skb, struct pkt *p, struct tcphdr *out)
{
	struct tcphdr in;
	__u32 len;

	if (!p || !out || bpf_skb_load_bytes(skb, p->l4, &in, sizeof(in)))
		return -1;
	len = p->end - p->l4 - (in.words >> 4) * 4 + !!(in.flags & TCP_SYN) + !!(in.flags & TCP_FIN);
	out->source = in.dest;
	out->dest = in.source;
	out->words = sizeof(*out) / 4 << 4;
	if (in.flags & TCP_ACK) {
		out->seq = in.ack;
		out->flags = TCP_RST;
	} else {
		out->ack = bpf_htonl(bpf_ntohl(in.seq) + len);
		out->flags = TCP_RST | TCP_ACK;
	}
	return 0;
}

/* A verification border. */
__noinline int reset4(struct __sk_buff *skb, struct pkt *p)
{
	struct reset4 r = {};

	if (!p || reset_of(skb, p, &r.tcp))
		return -1;
	turn_eth(&r.eth, p);
	ip4_back(&r.ip, p, IPPROTO_TCP, sizeof(r.ip) + sizeof(r.tcp));
	r.tcp.check = csum_fold(sum(&r.tcp, sizeof(r.tcp), pseudo4(&r.ip, sizeof(r.tcp))));
	return bpf_skb_change_tail(skb, sizeof(r), 0) || bpf_skb_store_bytes(skb, 0, &r, sizeof(r), BPF_F_INVALIDATE_HASH);
}

/* A verification border. */
__noinline int reset6(struct __sk_buff *skb, struct pkt *p)
{
	struct reset6 r = {};

	if (!p || reset_of(skb, p, &r.tcp))
		return -1;
	turn_eth(&r.eth, p);
	ip6_back(&r.ip, p, IPPROTO_TCP, sizeof(r.tcp));
	r.tcp.check = csum_fold(sum(&r.tcp, sizeof(r.tcp), pseudo_6(&r.ip, IPPROTO_TCP, sizeof(r.tcp))));
	return bpf_skb_change_tail(skb, sizeof(r), 0) || bpf_skb_store_bytes(skb, 0, &r, sizeof(r), BPF_F_INVALIDATE_HASH);
}

/* An error, with the head of the packet that it is about. */
struct unreachable4 {
	struct ethhdr eth;
	struct iphdr ip;
	struct icmphdr icmp;
	struct iphdr about;
	__be16 head[4];
} __attribute__((packed, aligned(2)));

struct unreachable6 {
	struct ethhdr eth;
	struct ipv6hdr ip;
	struct icmphdr icmp;
	struct ipv6hdr about;
	__be16 head[4];
} __attribute__((packed, aligned(2)));

/* A verification border. Options are left out: nobody needs them to find the socket. */
__noinline int unreachable4(struct __sk_buff *skb, struct pkt *p)
{
	struct unreachable4 u = {};

	if (!p || bpf_skb_load_bytes(skb, ETH_HLEN, &u.about, sizeof(u.about)) || bpf_skb_load_bytes(skb, p->l4, u.head, sizeof(u.head)))
		return -1;
	turn_eth(&u.eth, p);
	u.about.version_ihl = 0x45;
	ip4_back(&u.ip, p, IPPROTO_ICMP, sizeof(u) - ETH_HLEN);
	u.icmp.type = ICMP_UNREACHABLE;
	u.icmp.code = ICMP_PORT_UNREACHABLE;
	u.icmp.check = csum_fold(sum(&u.icmp, sizeof(u) - ETH_HLEN - sizeof(u.ip), 0));
	return bpf_skb_change_tail(skb, sizeof(u), 0) || bpf_skb_store_bytes(skb, 0, &u, sizeof(u), BPF_F_INVALIDATE_HASH);
}

/* A verification border. */
__noinline int unreachable6(struct __sk_buff *skb, struct pkt *p)
{
	const __u16 len = sizeof(struct unreachable6) - ETH_HLEN - sizeof(struct ipv6hdr);
	struct unreachable6 u = {};

	if (!p || bpf_skb_load_bytes(skb, ETH_HLEN, &u.about, sizeof(u.about)) || bpf_skb_load_bytes(skb, p->l4, u.head, sizeof(u.head)))
		return -1;
	turn_eth(&u.eth, p);
	u.about.nexthdr = p->proto;
	ip6_back(&u.ip, p, IPPROTO_ICMPV6, len);
	u.icmp.type = ICMP6_UNREACHABLE;
	u.icmp.code = ICMP6_PORT_UNREACHABLE;
	u.icmp.check = csum_fold(sum(&u.icmp, len, pseudo_6(&u.ip, IPPROTO_ICMPV6, len)));
	return bpf_skb_change_tail(skb, sizeof(u), 0) || bpf_skb_store_bytes(skb, 0, &u, sizeof(u), BPF_F_INVALIDATE_HASH);
}

/* A verification border. Turns a packet into its refusal: 0, or that it is only dropped. */
__noinline int refusal(struct __sk_buff *skb, struct pkt *p)
{
	int v4;

	if (!p || p->flags & (PKT_TEST | PKT_NO_L4))
		return -1;
	v4 = p->ethertype == ETH_P_IP;
	if (p->proto == IPPROTO_TCP) {
		if (p->tcp & TCP_RST)
			return -1;
		return v4 ? reset4(skb, p) : reset6(skb, p);
	}
	return v4 ? unreachable4(skb, p) : unreachable6(skb, p);
}

/* drop() of a packet; where it is for want of a back end, its sender knows at once. */
static __always_inline int reject(struct __sk_buff *skb, struct pkt *p, int reason)
{
	int step = drop(skb, p, reason);

	if (reason != DROP_NO_BACKEND || refusal(skb, p))
		return step;
	return bpf_redirect(skb->ifindex, 0);
}

#endif
