/* How a frame leaves the switch by its uplink, and how it comes in from there. */
#ifndef BULKHEAD_WIRE_H
#define BULKHEAD_WIRE_H

#include "drop.h"
#include "maps.h"
#include "send.h"
#include "turn.h"

/* What our programs say to those at the NIC in skb->tc_index, which a redirect leaves alone:
 * the NIC's hooks see the frames that ports send there, too. It is set on each such frame,
 * so nobody in a compartment can say it. */
#define WIRE_HOST 0xb0c1 /* up the host's stack by the NIC's ingress */
#define WIRE_OUT 0xb0c2	 /* out of the NIC by its egress */

/* The NIC of a switch's uplink; 0: none. */
static __always_inline __u32 uplink_of(__u32 sw)
{
	const struct vswitch *s = bpf_map_lookup_elem(&bh_switches_v2, &sw);

	return s ? s->uplink : 0;
}

/* A verification border: the tag of a frame's VLAN, if it has one there. */
__noinline int tag(struct __sk_buff *skb, __u32 vlan)
{
	if (!vlan)
		return 0;
	return bpf_skb_vlan_push(skb, bpf_htons(ETH_P_8021Q), vlan);
}

/* A verification border. send() on a switch with an uplink. */
__noinline int send_lan(struct __sk_buff *skb, struct pkt *p, __u32 device, __u32 kind)
{
	if (!p)
		return TC_ACT_SHOT;
	if (p->lan & LAN_TURNED && turn_in(skb, p))
		return TC_ACT_SHOT;
	if (p->lan & LAN_ONE_MAC && kind == PORT_UPLINK && turn_out(skb, p, device))
		return TC_ACT_SHOT;
	if (p->flags & PKT_TEST)
		return TC_ACT_SHOT;
	if (p->kind != PORT_CONTAINER) {
		if (skb->vlan_present && bpf_skb_vlan_pop(skb))
			return TC_ACT_SHOT;
		/* From a NIC's egress only the plain redirect is allowed. */
		return p->kind == PORT_HOST ? bpf_redirect(device, 0) : send(skb, device, PORT_CONTAINER);
	}
	if (kind == PORT_CONTAINER)
		return send(skb, device, PORT_CONTAINER);
	if (kind == PORT_GUEST)
		return send(skb, device, PORT_HOST);
	if (skb->mark)
		skb->mark = 0;
	if (tag(skb, VLAN_OF(p->src.sw)))
		return TC_ACT_SHOT;
	skb->tc_index = kind == PORT_HOST ? WIRE_HOST : WIRE_OUT;
	return bpf_redirect(device, kind == PORT_HOST ? BPF_F_INGRESS : 0);
}

/* A verification border. A group frame of a port is for the host and for the wire, too. */
__noinline int flood_beyond(struct __sk_buff *skb, struct pkt *p)
{
	__u32 nic;

	if (!p || p->flags & PKT_TEST)
		return 0;
	nic = uplink_of(SWITCH_OF(p->src.sw));
	if (!nic || tag(skb, VLAN_OF(p->src.sw)))
		return 0;
	count_rx(nic, p->len);
	skb->tc_index = WIRE_HOST;
	bpf_clone_redirect(skb, nic, BPF_F_INGRESS);
	if (p->lan & LAN_ONE_MAC && turn_out(skb, p, nic))
		return 0;
	skb->tc_index = WIRE_OUT;
	bpf_clone_redirect(skb, nic, 0);
	return 0;
}

#endif
