/* ARP: known addresses are answered at the asker's own port. */
#ifndef BULKHEAD_ARP_H
#define BULKHEAD_ARP_H

#include "owner.h"
#include "remote.h"
#include "parse.h"
#include "step.h"

#define ARP_REQUEST 1
#define ARP_REPLY 2

/* Overwrites the request with the answer. Written by a helper, not in place: a
 * program with direct writes makes the kernel unclone every frame that enters it. */
static __always_inline int arp_answer(struct __sk_buff *skb, struct arp_ipv4 *arp, const __u8 *mac)
{
	struct ethhdr eth;

	__builtin_memcpy(eth.dest, arp->sha, ETH_ALEN);
	__builtin_memcpy(eth.source, mac, ETH_ALEN);
	eth.proto = bpf_htons(ETH_P_ARP);
	arp->op = bpf_htons(ARP_REPLY);
	*(__be32 *)arp->spa ^= *(__be32 *)arp->tpa;
	*(__be32 *)arp->tpa ^= *(__be32 *)arp->spa;
	*(__be32 *)arp->spa ^= *(__be32 *)arp->tpa;
	__builtin_memcpy(arp->tha, arp->sha, ETH_ALEN);
	__builtin_memcpy(arp->sha, mac, ETH_ALEN);
	if (bpf_skb_store_bytes(skb, 0, &eth, sizeof(eth), 0) ||
	    bpf_skb_store_bytes(skb, ETH_HLEN, arp, sizeof(*arp), 0))
		return DROP_KERNEL;
	return STEP_ANSWERED;
}

static __always_inline int arp_guard(const struct pkt *p, const struct arp_ipv4 *arp)
{
	const struct owner *o;

	if (p->kind == PORT_HOST)
		return STEP_NEXT;
	if (!same_mac(arp->sha, p->port_mac))
		return DROP_ARP_SPOOF;
	/* A probe (RFC 5227) has no sender address; an answer must have one. */
	if (p->type == ARP_REQUEST && is_unspecified(p->src.ip))
		return STEP_NEXT;
	o = owner_of(&p->src);
	if (o && o->port == p->ifindex)
		return STEP_NEXT;
	if (o && p->kind == PORT_RESOLVER && o->flags & OWNER_GATEWAY && p->type == ARP_REQUEST)
		return STEP_NEXT;
	return DROP_ARP_SPOOF;
}

/* A verification border. What is left after it, announcements and replies, goes on as
 * any other frame. */
__noinline int arp(struct __sk_buff *skb, struct pkt *p)
{
	const struct owner *o;
	struct arp_ipv4 arp;
	int step;

	if (!p || bpf_skb_load_bytes(skb, ETH_HLEN, &arp, sizeof(arp)))
		return DROP_MALFORMED;
	step = arp_guard(p, &arp);
	if (step)
		return step;
	/* The owner of an address announcing itself after a move. */
	if (p->type == ARP_REPLY || words(p->src.ip)[3] == words(p->dst.ip)[3])
		return p->kind == PORT_RESOLVER ? DROP_RESOLVER : STEP_NEXT;
	o = owner_of(&p->dst);
	if (!o && on_overlay(p)) {
		struct mac_key mac = {};

		return elsewhere(p, &mac) ? arp_answer(skb, &arp, mac.mac) : DROP_UNKNOWN_ADDRESS;
	}
	/* What the switch does not know, somebody on the wire may. */
	if (!o)
		return p->lan ? STEP_NEXT : DROP_UNKNOWN_ADDRESS;
	if (o->port == p->ifindex || (p->kind == PORT_RESOLVER && o->flags & OWNER_GATEWAY)) /* has anybody else its address? */
		return p->lan ? STEP_NEXT : DROP_DAD;
	return arp_answer(skb, &arp, o->mac);
}

#endif
