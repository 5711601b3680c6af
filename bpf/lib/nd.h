/* IPv6 neighbour discovery: as ARP, with a checksum and options. */
#ifndef BULKHEAD_ND_H
#define BULKHEAD_ND_H

#include "csum.h"
#include "guard.h"
#include "owner.h"
#include "remote.h"
#include "step.h"

#define ND_SOURCE_MAC 1
#define ND_TARGET_MAC 2
#define ND_MAX_OPTIONS 4
#define ND_ROUTER 0x80
#define ND_SOLICITED 0x40
#define ND_OVERRIDE 0x20

/* A whole advertisement. The two bytes in front align what the checksum reads. */
struct nd_frame {
	__u8 pad[2];
	struct ethhdr eth;
	struct ipv6hdr ip;
	struct nd_msg nd;
	__u8 option[8];
};

#define ND_PAYLOAD (sizeof(struct nd_msg) + 8)

/* Built anew, checksum and all: the solicitation may be shorter (no option) or longer
 * (other options) than its answer. */
static __always_inline int nd_answer(struct __sk_buff *skb, const struct pkt *p, const __u8 *mac, __u8 flags)
{
	struct nd_frame f = {};
	__s64 sum;

	__builtin_memcpy(f.eth.source, mac, ETH_ALEN);
	f.eth.proto = bpf_htons(ETH_P_IPV6);
	f.ip.version_class_flow = bpf_htonl(0x60000000);
	f.ip.payload_len = bpf_htons(ND_PAYLOAD);
	f.ip.nexthdr = IPPROTO_ICMPV6;
	f.ip.hop_limit = 255;
	__builtin_memcpy(f.ip.saddr, p->dst.ip, 16);
	f.nd.type = ND_ADVERT;
	f.nd.flags = ND_OVERRIDE | flags;
	if (is_unspecified(p->src.ip)) {
		/* Asker has no address yet: to all nodes (RFC 4861, 7.2.4), yet only on its port. */
		f.eth.dest[0] = 0x33;
		f.eth.dest[1] = 0x33;
		f.eth.dest[5] = 1;
		f.ip.daddr[0] = 0xff;
		f.ip.daddr[1] = 2;
		f.ip.daddr[15] = 1;
	} else {
		__builtin_memcpy(f.eth.dest, p->smac, ETH_ALEN);
		__builtin_memcpy(f.ip.daddr, p->src.ip, 16);
		f.nd.flags |= ND_SOLICITED;
	}
	__builtin_memcpy(f.nd.target, p->dst.ip, 16);
	f.option[0] = ND_TARGET_MAC;
	f.option[1] = 1;
	__builtin_memcpy(f.option + 2, mac, ETH_ALEN);
	sum = bpf_csum_diff(0, 0, (__be32 *)f.ip.saddr, 32, bpf_htonl(ND_PAYLOAD + IPPROTO_ICMPV6));
	sum = bpf_csum_diff(0, 0, (__be32 *)&f.nd, ND_PAYLOAD, sum);
	f.nd.check = csum_fold((__u32)sum);
	if (bpf_skb_change_tail(skb, sizeof(f) - sizeof(f.pad), 0) ||
	    bpf_skb_store_bytes(skb, 0, &f.eth, sizeof(f) - sizeof(f.pad), 0))
		return DROP_KERNEL;
	return STEP_ANSWERED;
}

/* Link-layer options must name the sender. */
static __always_inline int nd_options(struct __sk_buff *skb, const struct pkt *p, __u8 kind)
{
	__u32 at = p->l4 + sizeof(struct nd_msg);
	__u8 option[8] __attribute__((aligned(4)));

	for (int i = 0; i < ND_MAX_OPTIONS; i++) {
		if (at == p->end)
			return STEP_NEXT;
		if (at + 8 > p->end || bpf_skb_load_bytes(skb, at, option, sizeof(option)) || option[1] == 0)
			return DROP_ND_INVALID;
		if (option[0] == kind && (option[1] != 1 || !same_mac(option + 2, p->port_mac)))
			return DROP_ND_SPOOF;
		at += option[1] * 8;
	}
	return at == p->end ? STEP_NEXT : DROP_ND_INVALID;
}

/* Solicitation: p->dst becomes the target, so a drop event names what was asked for. */
static __always_inline int nd_solicit(struct __sk_buff *skb, struct pkt *p)
{
	const struct owner *o;

	if (p->kind != PORT_HOST) {
		int step = nd_options(skb, p, ND_SOURCE_MAC);

		if (step)
			return step;
	}
	o = owner_of(&p->dst);
	if (!o && on_overlay(p)) {
		struct mac_key mac = {};

		return elsewhere(p, &mac) ? nd_answer(skb, p, mac.mac, 0) : DROP_UNKNOWN_ADDRESS;
	}
	if (!o)
		return p->lan ? STEP_NEXT : DROP_UNKNOWN_ADDRESS;
	if (o->port == p->ifindex || (p->kind == PORT_RESOLVER && o->flags & OWNER_GATEWAY))
		return p->lan ? STEP_NEXT : DROP_DAD;
	return nd_answer(skb, p, o->mac, o->flags & OWNER_GATEWAY ? ND_ROUTER : 0);
}

static __always_inline int nd_advert(struct __sk_buff *skb, const struct pkt *p, const struct addr_key *target)
{
	const struct owner *o;

	if (p->kind == PORT_HOST)
		return STEP_NEXT;
	o = owner_of(target);
	if (!o || o->port != p->ifindex)
		return DROP_ND_SPOOF;
	return nd_options(skb, p, ND_TARGET_MAC);
}

/* A verification border, for solicitations and advertisements. */
__noinline int nd(struct __sk_buff *skb, struct pkt *p)
{
	struct addr_key target = {};
	struct nd_msg msg;
	__u8 hops;

	if (!p || bpf_skb_load_bytes(skb, ETH_HLEN + 7, &hops, 1) || hops != 255)
		return DROP_ND_INVALID; /* came from farther than this link */
	if (p->flags & PKT_FRAGMENT)
		return DROP_FRAGMENT; /* RFC 6980 */
	if (p->l4 + sizeof(msg) > p->end || bpf_skb_load_bytes(skb, p->l4, &msg, sizeof(msg)))
		return DROP_ND_INVALID;
	if (msg.code || msg.target[0] == 0xff || is_mapped(msg.target))
		return DROP_ND_INVALID;
	target.sw = p->src.sw;
	__builtin_memcpy(target.ip, msg.target, 16);
	if (p->type == ND_ADVERT)
		return nd_advert(skb, p, &target);
	p->dst = target;
	return nd_solicit(skb, p);
}

#endif
