/* The program on every port of a switch: tc ingress of the port's device, so it sees
 * what the vNIC behind it sends. It ends every frame itself, by a redirect or a drop:
 * nothing goes on into the stack of the namespace it runs in. */
#include "include/helpers.h"
#include "include/net.h"

#include "lib/arp.h"
#include "lib/balance.h"
#include "lib/deliver.h"
#include "lib/drop.h"
#include "lib/guard.h"
#include "lib/judge.h"
#include "lib/maps.h"
#include "lib/nd.h"
#include "lib/near.h"
#include "lib/nic.h"
#include "lib/parse.h"
#include "lib/pending.h"
#include "lib/quick.h"
#include "lib/reject.h"
#include "lib/step.h"
#include "lib/sweep.h"
#include "lib/underlay.h"

/* Types that only the ring buffer and skb->cb carry would not reach Go otherwise. */
struct drop_event *unused_drop_event __attribute__((unused));
struct report *unused_report __attribute__((unused));
enum port_kind *unused_port_kind __attribute__((unused));
enum action *unused_action __attribute__((unused));
struct flow_record *unused_flow_record __attribute__((unused));
struct __sk_buff *unused_skb __attribute__((unused));

static __always_inline int neighbour(struct __sk_buff *skb, struct pkt *p)
{
	if (p->ethertype == ETH_P_ARP)
		return arp(skb, p);
	if (is_icmp6(p, ND_SOLICIT) || is_icmp6(p, ND_ADVERT))
		return nd(skb, p);
	return STEP_NEXT;
}

SEC("tc")
int bh_from_port(struct __sk_buff *skb)
{
	const struct port *port = port_of(skb->ifindex);
	struct scratch *room;
	struct pkt *p;
	int step;

	if (port) {
		step = quick(skb, port);
		if (step == CARRY_OFFERED)
			return offload_call(skb);
		if (step)
			return step;
	}
	room = scratch();
	if (!room)
		return TC_ACT_SHOT;
	p = &room->pkt;
	*p = (struct pkt){};
	p->ifindex = skb->ifindex;
	p->len = skb->len;
	/* A received frame always has the index of its device; a built one has none. */
	if (!skb->ingress_ifindex)
		p->flags = PKT_TEST;
	if (!port)
		return drop(skb, p, DROP_UNKNOWN_PORT);
	p->kind = port->kind;
	if (port->flags & PORT_GUESTS)
		p->flags |= PKT_GUESTS;
	if (port->flags & PORT_STEERED)
		p->flags |= PKT_STEERED;
	p->lan = LAN_OF(port->flags);
	if (port->flags & PORT_RATE_OUT)
		p->limits |= LIMIT_OUT;
	if (port->flags & PORT_RATE_IN)
		p->limits |= LIMIT_BACK;
	/* A vNIC of the host's own is behind the NIC, like the rest of it. */
	if (p->lan && p->kind == PORT_HOST) {
		p->ifindex = uplink_of(SWITCH_OF(port->sw));
		p->lan |= LAN_VNIC;
	}
	p->src.sw = port->sw;
	p->dst.sw = port->sw;
	p->tunnel = port->tunnel;
	__builtin_memcpy(p->port_mac, port->mac, ETH_ALEN);

	if (p->lan && is_overdue(port->sw, skb->ifindex))
		return drop(skb, p, DROP_UNCONFIRMED);
	step = parse(skb, p);
	if (step)
		return drop(skb, p, step);
	step = carry(skb, p);
	if (!step) {
		step = balance(skb, p);
		if (!step)
			step = balance_error(skb, p);
		if (step > 0)
			return reject(skb, p, step);
		if (step == BALANCED)
			step = carry(skb, p);
	}
	if (step == CARRY_OFFERED)
		return offload_call(skb);
	if (step)
		return step;
	/* What meets itself by a service was seen to be its own before it was given another source. */
	if (p->turned == (TURNED | TURNED_SELF) || p->turned == TURNED_OWNED)
		step = DROP_NONE;
	else
		step = guard(p);
	if (step == DROP_MEMBERSHIP && on_overlay(p) && p->kind == PORT_CONTAINER && !(p->flags & PKT_TEST))
		snoop(skb, p);
	if (!step)
		step = guard_dhcp(skb, p);
	if (step)
		return drop(skb, p, step);
	step = neighbour(skb, p);
	if (step == STEP_ANSWERED) {
		report(skb, p, OUTCOME_ANSWER, 0, p->ifindex, 0);
		return bpf_redirect(skb->ifindex, 0);
	}
	if (step)
		return drop(skb, p, step);

	if (p->flags & PKT_GROUP)
		return replicate(skb, p);
	step = balance_first(skb, p);
	if (step > 0)
		return reject(skb, p, step);
	return deliver(skb, p);
}

/* tc ingress of a NIC that is a switch's uplink. */
SEC("tc")
int bh_from_wire(struct __sk_buff *skb)
{
	if (skb->tc_index == WIRE_HOST) {
		skb->tc_index = 0;
		return TC_ACT_UNSPEC;
	}
	return from_nic(skb, PORT_UPLINK, !skb->ingress_ifindex);
}

/* tc egress of the same. */
SEC("tc")
int bh_from_host(struct __sk_buff *skb)
{
	if (skb->tc_index == WIRE_OUT) {
		skb->tc_index = 0;
		return TC_ACT_UNSPEC;
	}
	return from_nic(skb, PORT_HOST, skb->tstamp == TEST_TIME);
}

/* tc ingress of a NIC that overlays' tunnels go by. */
SEC("tc")
int bh_from_underlay(struct __sk_buff *skb)
{
	return from_underlay(skb);
}

/* tc ingress of a VXLAN device. */
SEC("tc")
int bh_from_tunnel(struct __sk_buff *skb)
{
	return from_tunnel(skb);
}

/* Run by the daemon when it starts, after it has carried flows over, and now and then:
 * sweeps once, and sets the timer that goes on with it. */
SEC("tc")
int bh_sweep(struct __sk_buff *skb)
{
	sweep(0);
	return sweep_start() ? TC_ACT_SHOT : TC_ACT_OK;
}

/* The kernel lends some of its functions only to programs under a licence that the GPL
 * can take in: what lies under bpf/ is offered under either of these, besides the
 * licence of the whole. */
char bh_license[] SEC("license") = "Dual MIT/GPL";
