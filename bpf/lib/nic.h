/* The uplink port: a NIC that stays the host's own. Its two programs take out what is for the
 * switch's ports, and leave everything else alone. */
#ifndef BULKHEAD_NIC_H
#define BULKHEAD_NIC_H

#include "deliver.h"
#include "pending.h"
#include "turn.h"
#include "wire.h"

/* A test run at the egress: a frame that the host sends has no ingress_ifindex there, so that
 * cannot tell. No clock shows this time. */
#define TEST_TIME 0xb01cb01cb01cb01cULL

static __always_inline int pass(struct __sk_buff *skb, const struct pkt *p)
{
	report(skb, p, OUTCOME_PASS, 0, 0, 0);
	return TC_ACT_UNSPEC;
}

/* A verification border: copies of a group frame for the ports; the frame itself goes on,
 * unless the host has had it. The tag stays outside the compartments. */
__noinline int share(struct __sk_buff *skb, struct pkt *p, __u32 back)
{
	__u32 present = skb->vlan_present, tci = skb->vlan_tci;

	if (!p)
		return TC_ACT_UNSPEC;
	if (present && bpf_skb_vlan_pop(skb))
		return TC_ACT_UNSPEC;
	replicate(skb, p);
	if (back)
		return TC_ACT_SHOT;
	if (present && bpf_skb_vlan_push(skb, bpf_htons(ETH_P_8021Q), tci))
		return TC_ACT_SHOT;
	return TC_ACT_UNSPEC;
}

/* Frames that come back from the wire, or claim to: from a port's MAC, or from the NIC's own.
 * The ports have had them, but for those of a tunnel. */
static __always_inline int is_reflected(const struct pkt *p)
{
	if (same_mac(p->smac, p->port_mac))
		return !(p->lan & LAN_TUNNEL) || (p->flags & PKT_GROUP && !port_at(&p->src));
	return is_ours(p->src.sw, p->smac);
}

/* A question of the wire for one of our ports. */
static __always_inline int ask_nic(struct __sk_buff *skb, struct pkt *p)
{
	int step = answer_wire(skb, p);

	if (step != STEP_ANSWERED)
		return step;
	report(skb, p, OUTCOME_ANSWER, 0, p->ifindex, 0);
	skb->tc_index = WIRE_OUT;
	return STEP_ANSWERED;
}

/* A frame at the NIC, from the wire or from the host's stack. */
static __always_inline int from_nic(struct __sk_buff *skb, __u8 kind, int test)
{
	struct scratch *room = scratch();
	const struct port *port;
	struct ethhdr eth;
	struct pkt *p;
	__u32 index, segment, lan;
	int step, back = 0;

	index = skb->ifindex;
	port = bpf_map_lookup_elem(&bh_ports_v2, &index);
	if (!room || !port || port->kind != PORT_UPLINK || bpf_skb_load_bytes(skb, 0, &eth, sizeof(eth)))
		return TC_ACT_UNSPEC;
	segment = port->sw;
	lan = LAN | LAN_OF(port->flags);
	if (skb->vlan_present) {
		if (skb->vlan_proto != bpf_htons(ETH_P_8021Q))
			return TC_ACT_UNSPEC;
		segment = SEGMENT(port->sw, skb->vlan_tci & 0xfff);
	}
	if (is_overdue(segment))
		return TC_ACT_UNSPEC;
	if (!test && !(eth.dest[0] & 1) && !is_ours(segment, eth.dest) &&
	    !(lan & LAN_ONE_MAC && same_mac(eth.dest, port->mac)))
		return TC_ACT_UNSPEC;

	p = &room->pkt;
	*p = (struct pkt){};
	p->ifindex = index;
	p->len = skb->len;
	p->lan = lan;
	p->flags = test ? PKT_TEST : 0;
	p->kind = kind;
	p->src.sw = segment;
	p->dst.sw = segment;
	__builtin_memcpy(p->port_mac, port->mac, ETH_ALEN);
	step = parse(skb, p);
	if (!step && p->lan & LAN_ONE_MAC && same_mac(p->dmac, p->port_mac))
		turned(p);
	if (!(p->flags & PKT_GROUP) && !(p->lan & LAN_TURNED) && !is_ours(segment, p->dmac))
		return pass(skb, p);
	if (p->kind == PORT_UPLINK && is_reflected(p)) {
		/* The host's own frames are its business. */
		if (p->flags & PKT_GROUP && same_mac(p->smac, p->port_mac))
			return pass(skb, p);
		return drop(skb, p, DROP_REFLECTED);
	}
	if (!step && p->ethertype != ETH_P_ARP && ((!is_unspecified(p->src.ip) && is_martian(p, p->src.ip)) || is_martian(p, p->dst.ip)))
		step = DROP_MARTIAN;
	if (step)
		return p->flags & PKT_GROUP ? pass(skb, p) : drop(skb, p, step);
	if (p->kind == PORT_UPLINK && p->lan & LAN_ONE_MAC) {
		back = same_mac(p->smac, p->port_mac);
		step = back ? STEP_NEXT : ask_nic(skb, p);
		if (step == STEP_ANSWERED)
			return bpf_redirect(index, 0);
		if (step)
			return drop(skb, p, step);
	}
	if (p->flags & PKT_GROUP)
		return p->ethertype != ETH_P_ARP && guard_group(p) ? pass(skb, p) : share(skb, p, back);
	step = carry(skb, p);
	if (step)
		return step;
	return deliver(skb, p);
}

#endif
