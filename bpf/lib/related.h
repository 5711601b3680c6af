/* ICMP errors: they pass as part of the connection that they are about. */
#ifndef BULKHEAD_RELATED_H
#define BULKHEAD_RELATED_H

#include "flow.h"

#define ICMP_UNREACHABLE 3
#define ICMP_TIME_EXCEEDED 11
#define ICMP_PARAMETER 12
#define ICMP6_ERROR_LAST 4

static __always_inline int is_icmp_error(const struct pkt *p)
{
	if (p->flags & (PKT_FRAGMENT | PKT_GROUP))
		return 0;
	if (p->ethertype == ETH_P_IP && p->proto == IPPROTO_ICMP)
		return p->type == ICMP_UNREACHABLE || p->type == ICMP_TIME_EXCEEDED || p->type == ICMP_PARAMETER;
	return p->ethertype == ETH_P_IPV6 && p->proto == IPPROTO_ICMPV6 && p->type >= 1 && p->type <= ICMP6_ERROR_LAST;
}

static __always_inline int inner_ports(struct __sk_buff *skb, struct inner *in, __u32 at)
{
	__be16 head[4];

	if (at > 0xffff || bpf_skb_load_bytes(skb, at, head, sizeof(head)))
		return -1;
	in->l4 = at;
	if (in->proto == IPPROTO_TCP || in->proto == IPPROTO_UDP) {
		in->sport = bpf_ntohs(head[0]);
		in->dport = bpf_ntohs(head[1]);
	} else if (in->proto == IPPROTO_ICMP || in->proto == IPPROTO_ICMPV6) {
		in->sport = bpf_ntohs(head[2]);
		in->dport = in->sport;
	}
	return 0;
}

/* Extension headers that a quoted packet may have: of what a stack sends, a fragment header is the most. */
#define MAX_QUOTED_EXTENSIONS 4

/* The transport header of a quoted packet of IPv6; a later fragment has none. */
static __always_inline int inner_transport6(struct __sk_buff *skb, struct inner *in, __u32 at)
{
	__u8 head[4];

	for (int i = 0; i < MAX_QUOTED_EXTENSIONS; i++) {
		__u8 next = in->proto;

		if (next != NEXTHDR_HOP && next != NEXTHDR_ROUTING && next != NEXTHDR_DEST && next != NEXTHDR_AUTH &&
		    next != NEXTHDR_FRAGMENT)
			return inner_ports(skb, in, at);
		if (bpf_skb_load_bytes(skb, at, head, sizeof(head)))
			return -1;
		if (next == NEXTHDR_FRAGMENT && (head[2] || head[3] & 0xf8))
			return -1;
		in->proto = head[0];
		if (next == NEXTHDR_FRAGMENT)
			at += 8;
		else if (next == NEXTHDR_AUTH)
			at += (head[1] + 2) * 4;
		else
			at += (head[1] + 1) * 8;
	}
	return -1;
}

static __always_inline int read_inner(struct __sk_buff *skb, const struct pkt *p, struct inner *in)
{
	__u32 at = p->l4 + 8;

	if (p->ethertype == ETH_P_IP) {
		struct iphdr ip;

		if (bpf_skb_load_bytes(skb, at, &ip, sizeof(ip)) || ip.version_ihl >> 4 != 4 || (ip.version_ihl & 15) < 5 ||
		    ip.frag_off & bpf_htons(0x1fff))
			return -1;
		map_ip4(in->src, ip.saddr);
		map_ip4(in->dst, ip.daddr);
		in->proto = ip.protocol;
		return inner_ports(skb, in, at + (ip.version_ihl & 15) * 4);
	}
	struct ipv6hdr ip;

	if (bpf_skb_load_bytes(skb, at, &ip, sizeof(ip)))
		return -1;
	__builtin_memcpy(in->src, ip.saddr, 16);
	__builtin_memcpy(in->dst, ip.daddr, 16);
	in->proto = ip.nexthdr;
	return inner_transport6(skb, in, at + sizeof(ip));
}

/* A verification border: is the error about a flow of the port it goes to? Its sender may
 * be any router on the way, but a container speaks only about its own flows. */
__noinline int related(struct __sk_buff *skb, struct pkt *p, __u32 to)
{
	struct flow_key key = {};
	struct inner in = {};
	const struct flow *f;
	const __u32 *x, *y;
	int end;

	if (!p || read_inner(skb, p, &in))
		return 0;
	x = words(in.src);
	y = words(p->dst.ip);
	if (x[0] != y[0] || x[1] != y[1] || x[2] != y[2] || x[3] != y[3])
		return 0;
	end = flow_key(&key, p->src.sw, in.proto, in.src, in.sport, in.dst, in.dport);
	key.sw |= half(p, !end);
	f = bpf_map_lookup_elem(&bh_flows_v4, &key);
	if (!f || f->generation != generation() || f->end[end & 1].port != to)
		return 0;
	return p->kind != PORT_CONTAINER || f->end[!(end & 1)].port == p->ifindex;
}

#endif
