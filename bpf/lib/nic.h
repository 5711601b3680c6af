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
	/* Another switch on the NIC has had copies. */
	if (p->flags & PKT_TEST && skb->cb[0] == OUTCOME_REPLICATE)
		return TC_ACT_UNSPEC;
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
static __always_inline int is_reflected(struct pkt *p)
{
	if (same_mac(p->smac, p->port_mac))
		return !(p->lan & LAN_TUNNEL) || (p->flags & PKT_GROUP && !of_port(p));
	return is_ours(p, 1);
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

/* A verification border, for its variables: guard_group() of what is no ARP. */
__noinline int hides_unicast(struct pkt *p)
{
	return p && p->ethertype != ETH_P_ARP && guard_group(p);
}

/* How a frame came to the NIC: by which kind of port, whether it is a test's, and what the switch is. */
#define HOW_KIND 0xff
#define HOW_TEST 0x100
#define HOW_LAN 16 /* from this bit on, LAN_* */
#define HOW_ONE_MAC (LAN_ONE_MAC << HOW_LAN)

/* A verification border. What a frame at the NIC is to one of the switches there; TC_ACT_UNSPEC
 * when it is for others as well, or only for them. */
__noinline int on_switch(struct __sk_buff *skb, const struct port *port, __u32 segment, __u32 how)
{
	struct scratch *room = scratch();
	struct pkt *p;
	int step, back = 0;

	if (!room || !port)
		return TC_ACT_UNSPEC;
	p = &room->pkt;
	if (bpf_skb_load_bytes(skb, 0, p->dmac, ETH_ALEN))
		return TC_ACT_UNSPEC;
	if (skb->vlan_present)
		segment = SEGMENT(segment, skb->vlan_tci & 0xfff);
	if (is_overdue(segment, 0))
		return TC_ACT_UNSPEC;
	p->src.sw = segment;
	if (!(how & HOW_TEST) && !(p->dmac[0] & 1) && !is_ours(p, 0) &&
	    !(how & HOW_ONE_MAC && same_mac(p->dmac, port->mac)))
		return TC_ACT_UNSPEC;

	*p = (struct pkt){};
	p->ifindex = skb->ifindex;
	p->len = skb->len;
	p->lan = how >> HOW_LAN;
	p->flags = how & HOW_TEST ? PKT_TEST : 0;
	p->kind = how & HOW_KIND;
	p->src.sw = segment;
	p->dst.sw = segment;
	__builtin_memcpy(p->port_mac, port->mac, ETH_ALEN);
	step = parse(skb, p);
	if (!step && p->lan & LAN_ONE_MAC && same_mac(p->dmac, p->port_mac))
		turned(p);
	if (!(p->flags & PKT_GROUP) && !(p->lan & LAN_TURNED) && !is_ours(p, 0))
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
			return bpf_redirect(skb->ifindex, 0);
		if (step)
			return drop(skb, p, step);
	}
	if (p->flags & PKT_GROUP)
		return hides_unicast(p) ? pass(skb, p) : share(skb, p, back);
	step = carry(skb, p);
	if (step)
		return step;
	return deliver(skb, p);
}

/* A frame at the NIC, from the wire or from the host's stack. */
static __always_inline int from_nic(struct __sk_buff *skb, __u32 kind, __u32 test)
{
	__u32 how = kind | (test ? HOW_TEST : 0);
	struct lan_key key = {.nic = skb->ifindex};
	const struct port *port = bpf_map_lookup_elem(&bh_ports_v3, &key.nic);
	const struct lan *l;
	int step;

	if (!port || port->kind != PORT_UPLINK || (skb->vlan_present && skb->vlan_proto != bpf_htons(ETH_P_8021Q)))
		return TC_ACT_UNSPEC;
	step = on_switch(skb, port, port->sw, how | (LAN | LAN_OF(port->flags)) << HOW_LAN);
	if (step != TC_ACT_UNSPEC || !(port->flags & PORT_SHARED))
		return step;
	for (int slot = 1; slot < MAX_SHARED; slot++) {
		key.slot = slot;
		l = bpf_map_lookup_elem(&bh_lans_v1, &key);
		if (!l)
			break;
		step = on_switch(skb, port, l->sw, how | (LAN | LAN_OF(l->flags)) << HOW_LAN);
		if (step != TC_ACT_UNSPEC)
			return step;
	}
	return TC_ACT_UNSPEC;
}

#endif
