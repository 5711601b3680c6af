/* One MAC on the wire: on some switches all ports have the NIC's there. What a port sends is
 * given that MAC as it leaves by the NIC, and what comes in for it is given the port's. The
 * host, behind the same NIC, sees the ports' own. */
#ifndef BULKHEAD_TURN_H
#define BULKHEAD_TURN_H

#include "arp.h"
#include "guard.h"
#include "nd.h"
#include "owner.h"

#define ARP_SENDER_MAC (ETH_HLEN + __builtin_offsetof(struct arp_ipv4, sha))
#define ARP_TARGET_MAC (ETH_HLEN + __builtin_offsetof(struct arp_ipv4, tha))

/* A verification border: is a frame's destination MAC a port's, or its source? */
__noinline int is_ours(struct pkt *p, __u32 source)
{
	struct mac_key key = {};

	if (!p)
		return 0;
	key.sw = p->src.sw;
	__builtin_memcpy(key.mac, source ? p->smac : p->dmac, ETH_ALEN);
	return bpf_map_lookup_elem(&bh_macs_v1, &key) != 0;
}

/* A port's address; those of the host's own stack are its business, by whatever way they
 * are asked for. */
static __always_inline const struct owner *port_at(const struct addr_key *addr)
{
	const struct owner *o = owner_of(addr);

	return o && !(o->flags & OWNER_GUEST) ? o : 0;
}

/* A verification border: has a port the frame's source address? */
__noinline int of_port(struct pkt *p)
{
	return p && port_at(&p->src);
}

/* The option in which a message says its sender's MAC; 0: none. */
static __always_inline __u8 nd_says(const struct pkt *p)
{
	if (p->flags & PKT_FRAGMENT)
		return 0;
	if (is_icmp6(p, ND_ADVERT))
		return ND_TARGET_MAC;
	return is_icmp6(p, ND_SOLICIT) || is_icmp6(p, ND_ROUTER_SOLICIT) ? ND_SOURCE_MAC : 0;
}

static __always_inline int turn_nd(struct __sk_buff *skb, const struct pkt *p, __u8 says, const __u8 *mac)
{
	__u32 at = p->l4 + (p->type == ND_ROUTER_SOLICIT ? 8 : sizeof(struct nd_msg));
	__u8 old[8] __attribute__((aligned(4))), new[8] __attribute__((aligned(4)));
	__s64 sum;

	for (int i = 0; i < ND_MAX_OPTIONS; i++) {
		if (at + 8 > p->end || bpf_skb_load_bytes(skb, at, old, sizeof(old)) || !old[1])
			return 0;
		if (old[0] == says) {
			__builtin_memcpy(new, old, 2);
			__builtin_memcpy(new + 2, mac, ETH_ALEN);
			sum = bpf_csum_diff((__be32 *)old, sizeof(old), (__be32 *)new, sizeof(new), 0);
			return bpf_skb_store_bytes(skb, at, new, sizeof(new), 0) ||
			       bpf_l4_csum_replace(skb, p->l4 + __builtin_offsetof(struct nd_msg, check), 0, sum, 0);
		}
		at += old[1] * 8;
	}
	return 0;
}

/* A server's answer goes to the MAC that the question says, which is not the one on the wire: it is
 * asked to answer all (RFC 2131, section 4.1). */
static __always_inline int turn_dhcp(struct __sk_buff *skb, const struct pkt *p)
{
	__u16 old, new;

	if (bpf_skb_load_bytes(skb, p->l4 + DHCP_FLAGS, &old, sizeof(old)))
		return 0;
	new = old | bpf_htons(DHCP_BROADCAST);
	return new != old && (bpf_skb_store_bytes(skb, p->l4 + DHCP_FLAGS, &new, sizeof(new), 0) ||
			      bpf_l4_csum_replace(skb, p->l4 + UDP_CHECK, old, new, sizeof(new) | BPF_F_MARK_MANGLED_0));
}

/* A verification border: a port's frame, as it is on the wire. */
__noinline int turn_out(struct __sk_buff *skb, struct pkt *p, __u32 device)
{
	const struct port *nic = bpf_map_lookup_elem(&bh_ports_v3, &device);
	__u8 says;

	if (!p || !nic || bpf_skb_store_bytes(skb, ETH_ALEN, nic->mac, ETH_ALEN, 0))
		return 1;
	/* It is to come back. */
	if (p->lan & LAN_TUNNEL && is_ours(p, 0) && bpf_skb_store_bytes(skb, 0, nic->mac, ETH_ALEN, 0))
		return 1;
	if (p->ethertype == ETH_P_ARP)
		return bpf_skb_store_bytes(skb, ARP_SENDER_MAC, nic->mac, ETH_ALEN, 0) != 0;
	if (asks_dhcp(p))
		return turn_dhcp(skb, p);
	says = nd_says(p);
	return says ? turn_nd(skb, p, says, nic->mac) : 0;
}

/* A verification border: a frame for the NIC's MAC, as its port shall see it. */
__noinline int turn_in(struct __sk_buff *skb, struct pkt *p)
{
	__u8 mac[ETH_ALEN];

	if (!p)
		return 1;
	__builtin_memcpy(mac, p->dmac, ETH_ALEN);
	return bpf_skb_store_bytes(skb, 0, mac, ETH_ALEN, 0) ||
	       (p->ethertype == ETH_P_ARP && bpf_skb_store_bytes(skb, ARP_TARGET_MAC, mac, ETH_ALEN, 0));
}

/* A verification border: which port is a frame for the NIC's MAC for? */
__noinline int turned(struct pkt *p)
{
	const struct owner *o;

	if (!p)
		return 0;
	/* Who has an address that somebody probes names no target (RFC 5227). */
	if (p->ethertype == ETH_P_ARP && p->type == ARP_REPLY && is_unspecified(p->dst.ip))
		o = port_at(&p->src);
	else
		o = port_at(&p->dst);
	if (!o)
		return 0;
	__builtin_memcpy(p->dmac, o->mac, ETH_ALEN);
	p->lan |= LAN_TURNED;
	return 1;
}

/* A verification border: asks the wire for the MAC of one of our ports? Then it is the NIC's. */
__noinline int answer_wire(struct __sk_buff *skb, struct pkt *p)
{
	struct addr_key target = {};
	struct arp_ipv4 arp;
	struct nd_msg msg;

	if (!p)
		return DROP_MALFORMED;
	if (p->ethertype == ETH_P_ARP) {
		if (p->type != ARP_REQUEST || !port_at(&p->dst) || bpf_skb_load_bytes(skb, ETH_HLEN, &arp, sizeof(arp)))
			return STEP_NEXT;
		return arp_answer(skb, &arp, p->port_mac);
	}
	if (!is_icmp6(p, ND_SOLICIT) || p->l4 + sizeof(msg) > p->end || bpf_skb_load_bytes(skb, p->l4, &msg, sizeof(msg)))
		return STEP_NEXT;
	target.sw = p->src.sw;
	__builtin_memcpy(target.ip, msg.target, 16);
	if (!port_at(&target))
		return STEP_NEXT;
	p->dst = target;
	return nd_answer(skb, p, p->port_mac, 0);
}

#endif
