/* The short way of nearly every packet: what carry() does with a plain packet of a plain flow, and nothing else. A real
 * packet finds the CPU's caches full of the kernel's own data, so what costs here is memory that is touched: this way does
 * without the scratch space, and its struct pkt is a few registers. Whatever is out of the ordinary goes the other way, which
 * begins anew: nothing is written here before all is decided. */
#ifndef BULKHEAD_QUICK_H
#define BULKHEAD_QUICK_H

#include "deliver.h"
#include "near.h"
#include "parse.h"

/* A flow whose packets need more than their way. */
#define FLOW_UNUSUAL (FLOW_TURNED | FLOW_SELF | FLOW_KEPT | FLOW_SOURCED)

/* TCP and UDP in whole packets without options or extension headers, in memory that can be read in place: as parse()
 * reads them. */
static __always_inline int parse_quick(struct __sk_buff *skb, struct pkt *p, __u8 *src, __u8 *dst)
{
	void *data = (void *)(long)skb->data, *data_end = (void *)(long)skb->data_end;
	struct ethhdr *eth = data;
	struct iphdr *ip4 = data + ETH_HLEN;
	struct ipv6hdr *ip6 = data + ETH_HLEN;
	__u32 total;

	if ((void *)(ip6 + 1) > data_end || skb->vlan_present || eth->dest[0] & 1)
		return 0;
	__builtin_memcpy(p->smac, eth->source, ETH_ALEN);
	__builtin_memcpy(p->dmac, eth->dest, ETH_ALEN);
	p->ethertype = bpf_ntohs(eth->proto);
	if (p->ethertype == ETH_P_IP) {
		total = bpf_ntohs(ip4->tot_len);
		if (!total && skb->gso_size)
			total = p->len - ETH_HLEN;
		if (ip4->version_ihl != 0x45 || ip4->frag_off & bpf_htons(0x3fff))
			return 0;
		map_ip4(src, ip4->saddr);
		map_ip4(dst, ip4->daddr);
		p->proto = ip4->protocol;
		p->l4 = ETH_HLEN + sizeof(*ip4);
		p->end = ETH_HLEN + total;
		return p->end <= p->len && parse_plain(p, ip4 + 1, data_end);
	}
	if (p->ethertype != ETH_P_IPV6 || (ip6->version_class_flow & bpf_htonl(0xf0000000)) != bpf_htonl(0x60000000))
		return 0;
	total = bpf_ntohs(ip6->payload_len);
	p->l4 = ETH_HLEN + sizeof(*ip6);
	if (!total && skb->gso_size)
		total = p->len - p->l4;
	__builtin_memcpy(src, ip6->saddr, 16);
	__builtin_memcpy(dst, ip6->daddr, 16);
	p->proto = ip6->nexthdr;
	p->end = p->l4 + total;
	/* With a mapped address it would be of an IPv4 flow. */
	return !is_mapped(src) && p->end <= p->len && parse_plain(p, ip6 + 1, data_end);
}

/* The packet as parsed, for the offload: what is_plain() and those who come after it ask for. */
static __always_inline int keep(const struct pkt *p, __u32 sw, const __u8 *src, const __u8 *dst)
{
	struct scratch *room = scratch();
	struct pkt *to;

	if (!room)
		return 0;
	to = &room->pkt;
	*to = (struct pkt){};
	to->src.sw = sw;
	to->dst.sw = sw;
	__builtin_memcpy(to->src.ip, src, 16);
	__builtin_memcpy(to->dst.ip, dst, 16);
	to->ifindex = p->ifindex;
	to->len = p->len;
	to->l4 = p->l4;
	to->end = p->end;
	to->ethertype = p->ethertype;
	to->sport = p->sport;
	to->dport = p->dport;
	to->proto = p->proto;
	to->tcp = p->tcp;
	to->kind = p->kind;
	return 1;
}

/* A function of its own, so that its variables are not on the other way's stack. 0: the packet goes that way. */
static __noinline int quick(struct __sk_buff *skb, const struct port *port)
{
	const struct flow_end *you;
	/* Not in the struct: what is chosen between by address stays in memory, and all of a struct with it. */
	__u8 src[16] __attribute__((aligned(4))), dst[16] __attribute__((aligned(4)));
	struct flow_key key = {};
	__u32 device, to;
	struct pkt p = {};
	struct flow *f;
	int end;
	__u8 kind;

	/* A frame without a device is a built one. */
	if ((port->kind != PORT_CONTAINER && port->kind != PORT_HOST) || port->flags & ~PORT_ISOLATED || port->tunnel ||
	    !skb->ingress_ifindex)
		return 0;
	p.ifindex = skb->ifindex;
	p.len = skb->len;
	p.kind = port->kind;
	if (!parse_quick(skb, &p, src, dst) || p.flags & PKT_OPENER)
		return 0;
	if (p.kind == PORT_CONTAINER && !same_mac(p.smac, port->mac))
		return 0;
	end = flow_key(&key, port->sw, p.proto, src, p.sport, dst, p.dport);
	f = bpf_map_lookup_elem(&bh_flows_v4, &key);
	if (!f)
		return 0;
	/* Read before the checks, as in carry(). */
	you = &f->end[!(end & 1)];
	device = *(volatile const __u32 *)&you->device;
	to = *(volatile const __u32 *)&you->port;
	kind = *(volatile const __u8 *)&you->kind;
	if (f->generation != generation() || f->state & (FLOW_UNUSUAL | (end ? FLOW_STALE_A : FLOW_STALE_B)) ||
	    you->flags & PORT_RATE_IN || !same_ends(f, &p, end))
		return 0;
	if (kind != PORT_HOST && kind != PORT_CONTAINER)
		return 0;
	if (p.tcp & (TCP_FIN | TCP_RST) || f->state & FLOW_RESET)
		flow_tcp(f, &p, end);
	count_flow(f, &p, end);
	if (is_closed(f) && !(f->state & FLOW_RESET) && !(p.tcp & (TCP_FIN | TCP_RST)))
		flow_last(&key);
	count_sent(p.ifindex, p.len);
	count_rx(to, p.len);
	if (kind == PORT_HOST && p.kind == PORT_CONTAINER && offload_offer(skb, f, &p, device))
		return keep(&p, port->sw, src, dst) ? CARRY_OFFERED : TC_ACT_SHOT;
	return send(skb, device, kind);
}

#endif
