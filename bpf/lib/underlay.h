/* What comes in from other hosts: by the NIC, or by the VXLAN device. */
#ifndef BULKHEAD_UNDERLAY_H
#define BULKHEAD_UNDERLAY_H

#include "deliver.h"
#include "tunnel.h"

/* Begins with a packet of a tunnel's. */
static __always_inline struct pkt *arrived(struct __sk_buff *skb, struct scratch *room)
{
	struct pkt *p = &room->pkt;

	*p = (struct pkt){};
	p->ifindex = room->arrival.tunnel;
	p->tunnel = room->arrival.tunnel;
	p->len = skb->len;
	p->kind = PORT_REMOTE;
	p->flags = room->arrival.test ? PKT_TEST : 0;
	p->src.sw = room->arrival.host.sw;
	p->dst.sw = room->arrival.host.sw;
	return p;
}

/* A verification border. Drops a packet as it came: what is known of it is its host. */
__noinline int refuse(struct __sk_buff *skb, __u32 reason)
{
	struct scratch *room = scratch();
	struct pkt *p;

	if (!room)
		return TC_ACT_SHOT;
	p = arrived(skb, room);
	__builtin_memcpy(p->src.ip, room->arrival.host.ip, 16);
	p->ethertype = is_mapped(p->src.ip) ? ETH_P_IP : ETH_P_IPV6;
	p->proto = IPPROTO_UDP;
	return drop(skb, p, reason);
}

/* Whose network is it, and may the packet's host send anything into it? 0, or why not. By is the VXLAN
 * device that it came by, 0 at a NIC. */
static __always_inline int identify(struct scratch *room, const struct vni_key *key, __u32 by)
{
	const struct overlay *o;
	struct addr_key host;
	__u32 *sw;

	room->arrival.host.sw = 0;
	sw = bpf_map_lookup_elem(&bh_vnis_v1, key);
	o = sw ? overlay_of(*sw) : 0;
	if (!o)
		return DROP_UNKNOWN_VNI;
	room->arrival.host.sw = *sw;
	room->arrival.tunnel = o->tunnel == NO_TUNNEL ? 0 : o->tunnel;
	/* Nothing comes to a NIC, or out of a socket of the host's, that was encrypted. */
	if (o->flags & OVERLAY_SEALED && by != o->tunnel)
		return DROP_CLEAR;
	host = room->arrival.host;
	return bpf_map_lookup_elem(&bh_vteps_v1, &host) ? DROP_NONE : DROP_UNKNOWN_VTEP;
}

/* A verification border. A frame without its outer headers. */
__noinline int from_remote(struct __sk_buff *skb)
{
	struct scratch *room = scratch();
	struct pkt *p;
	int step;

	if (!room)
		return TC_ACT_SHOT;
	p = arrived(skb, room);
	step = parse(skb, p);
	if (!step && p->flags & PKT_GROUP && !has_multicast(p))
		step = DROP_FLOODED;
	if (!step)
		step = guard_remote(p);
	if (step)
		return drop(skb, p, step);
	step = carry(skb, p);
	if (step)
		return step;
	if (p->flags & PKT_NO_L4)
		balance(skb, p); /* an answer's */
	step = guard_inner(p);
	if (!step)
		step = balance_remote(skb, p);
	if (!step && p->flags & PKT_GROUP)
		step = guard_spread(p);
	if (step)
		return drop(skb, p, step);
	return p->flags & PKT_GROUP ? replicate(skb, p) : deliver(skb, p);
}

/* A verification border. What the network between the hosts has said of congestion goes to the packet inside
 * (RFC 6040): a mark for what was only able to bear one replaces that. 0, or a reason. */
__noinline int pass_ecn(struct __sk_buff *skb, __u32 outer)
{
	__u8 head[2] __attribute__((aligned(2)));
	__u16 was;

	if (outer == ECN_CE)
		return bpf_skb_ecn_set_ce(skb) ? DROP_NONE : DROP_CONGESTED;
	if (outer != ECN_ECT1)
		return DROP_NONE;
	if (bpf_skb_load_bytes(skb, ETH_HLEN, head, sizeof(head)))
		return DROP_MALFORMED;
	was = *(__u16 *)head;
	if (head[0] >> 4 == 6) {
		if ((head[1] >> 4 & ECN_MASK) != ECN_ECT0)
			return DROP_NONE;
		head[1] ^= (ECN_ECT0 ^ ECN_ECT1) << 4;
		return bpf_skb_store_bytes(skb, ETH_HLEN, head, sizeof(head), BPF_F_RECOMPUTE_CSUM) ? DROP_KERNEL : DROP_NONE;
	}
	if ((head[1] & ECN_MASK) != ECN_ECT0)
		return DROP_NONE;
	head[1] ^= ECN_ECT0 ^ ECN_ECT1;
	if (bpf_l3_csum_replace(skb, ETH_HLEN + 10, was, *(__u16 *)head, sizeof(was)) ||
	    bpf_skb_store_bytes(skb, ETH_HLEN, head, sizeof(head), 0))
		return DROP_KERNEL;
	return DROP_NONE;
}

/* A verification border. Takes a packet's outer headers off: 0, or what becomes of it instead. */
__noinline int unwrap(struct __sk_buff *skb)
{
	__u64 flags = BPF_F_ADJ_ROOM_FIXED_GSO;
	struct wrapping w;
	int reason;

	if (bpf_skb_load_bytes(skb, 0, &w, sizeof(w)))
		return TC_ACT_UNSPEC;
	flags |= w.inner.proto == bpf_htons(ETH_P_IP) ? BPF_F_ADJ_ROOM_DECAP_L3_IPV4 : BPF_F_ADJ_ROOM_DECAP_L3_IPV6;
	if (bpf_skb_adjust_room(skb, -(__s32)WRAPPING, BPF_ADJ_ROOM_MAC, flags))
		return TC_ACT_UNSPEC;
	if (bpf_skb_store_bytes(skb, 0, &w.inner, sizeof(w.inner), 0))
		return TC_ACT_SHOT;
	reason = pass_ecn(skb, w.ip.tos & ECN_MASK);
	return reason ? refuse(skb, reason) : 0;
}

/* Is it a VXLAN packet that can be read here? One with options or in fragments is for the stack to look at. */
static __always_inline int is_tunnelled(const struct wrapping *w)
{
	return w->ip.version_ihl == 0x45 && w->ip.protocol == IPPROTO_UDP && !(w->ip.frag_off & bpf_htons(0x3fff)) &&
	       w->vxlan.flags == bpf_htonl(VXLAN_HAS_VNI);
}

/* And one that the program can unpack? One with a checksum of its own is the stack's as well. */
static __always_inline int is_plain(const struct wrapping *w)
{
	return !w->udp.check && (w->inner.proto == bpf_htons(ETH_P_IP) || w->inner.proto == bpf_htons(ETH_P_IPV6));
}

/* A verification border. A packet at the NIC: 0 when it was a tunnel's and is unpacked. What is for
 * no network of ours may be somebody else's. */
__noinline int from_nic_tunnel(struct __sk_buff *skb)
{
	void *data = (void *)(long)skb->data, *data_end = (void *)(long)skb->data_end;
	struct scratch *room = scratch();
	struct wrapping *w = data;
	struct vni_key key = {};
	int plain, step;

	if (!room || data + ETH_HLEN + sizeof(struct iphdr) > data_end || w->ip.protocol != IPPROTO_UDP)
		return TC_ACT_UNSPEC;
	if (data + sizeof(*w) > data_end) {
		if (skb->len < sizeof(*w) || bpf_skb_pull_data(skb, sizeof(*w)))
			return TC_ACT_UNSPEC;
		data = (void *)(long)skb->data;
		data_end = (void *)(long)skb->data_end;
		w = data;
		if (data + sizeof(*w) > data_end)
			return TC_ACT_UNSPEC;
	}
	if (!is_tunnelled(w))
		return TC_ACT_UNSPEC;
	plain = is_plain(w);
	key.vni = bpf_ntohl(w->vxlan.vni) >> 8;
	key.port = bpf_ntohs(w->udp.dest);
	map_ip4(key.to, w->ip.daddr);
	map_ip4(room->arrival.host.ip, w->ip.saddr);
	room->arrival.test = !skb->ingress_ifindex;
	step = identify(room, &key, 0);
	if (step == DROP_UNKNOWN_VNI || (!plain && step != DROP_CLEAR))
		return TC_ACT_UNSPEC;
	return step ? refuse(skb, step) : unwrap(skb);
}

struct clear6 {
	struct ethhdr eth;
	struct ipv6hdr ip;
	struct udphdr udp;
	struct vxlanhdr vxlan;
} __attribute__((packed));

/* A verification border. IPv6 at the NIC is for the stack to unpack, but for what is in clear text and
 * for an encrypted network: nobody may be there to refuse it. */
__noinline int clear_at_nic(struct __sk_buff *skb)
{
	struct scratch *room = scratch();
	struct vni_key key = {};
	const struct overlay *o;
	struct clear6 w;
	__u32 *sw;

	if (!room || bpf_skb_load_bytes(skb, 0, &w, sizeof(w)) || w.ip.nexthdr != IPPROTO_UDP)
		return TC_ACT_UNSPEC;
	key.vni = bpf_ntohl(w.vxlan.vni) >> 8;
	key.port = bpf_ntohs(w.udp.dest);
	__builtin_memcpy(key.to, w.ip.daddr, 16);
	sw = bpf_map_lookup_elem(&bh_vnis_v1, &key);
	o = sw ? overlay_of(*sw) : 0;
	if (!o || !(o->flags & OVERLAY_SEALED))
		return TC_ACT_UNSPEC;
	room->arrival.host.sw = *sw;
	room->arrival.tunnel = o->tunnel == NO_TUNNEL ? 0 : o->tunnel;
	room->arrival.test = !skb->ingress_ifindex;
	__builtin_memcpy(room->arrival.host.ip, w.ip.saddr, 16);
	return refuse(skb, DROP_CLEAR);
}

/* tc ingress of a NIC that tunnels go by. */
static __always_inline int from_underlay(struct __sk_buff *skb)
{
	int step;

	if (skb->protocol == bpf_htons(ETH_P_IPV6) && !skb->vlan_present)
		return clear_at_nic(skb);
	if (skb->protocol != bpf_htons(ETH_P_IP) || skb->vlan_present || (skb->ingress_ifindex && skb->pkt_type != PACKET_HOST))
		return TC_ACT_UNSPEC;
	step = from_nic_tunnel(skb);
	return step ? step : from_remote(skb);
}

/* A verification border. A packet that a VXLAN device has unpacked: 0, or what becomes of it. */
__noinline int from_device(struct __sk_buff *skb)
{
	__u32 index = skb->ifindex;
	const struct port *port = bpf_map_lookup_elem(&bh_ports_v3, &index);
	struct scratch *room = scratch();
	struct bpf_tunnel_key from = {};
	struct vni_key key = {};
	int step;

	if (!room)
		return TC_ACT_SHOT;
	room->arrival.test = !skb->ingress_ifindex;
	room->arrival.tunnel = index;
	room->arrival.host = (struct addr_key){};
	if (!port || port->kind != PORT_REMOTE)
		return refuse(skb, DROP_UNKNOWN_PORT);
	if (!bpf_skb_get_tunnel_key(skb, &from, sizeof(from), 0)) {
		map_ip4(room->arrival.host.ip, bpf_htonl(from.remote[0]));
		map_ip4(key.to, bpf_htonl(from.local[0]));
	} else if (!bpf_skb_get_tunnel_key(skb, &from, sizeof(from), BPF_F_TUNINFO_IPV6)) {
		__builtin_memcpy(room->arrival.host.ip, from.remote, 16);
		__builtin_memcpy(key.to, from.local, 16);
	} else {
		return refuse(skb, DROP_KERNEL);
	}
	key.vni = from.tunnel_id;
	key.port = port->tunnel;
	step = identify(room, &key, index);
	return step ? refuse(skb, step) : 0;
}

/* tc ingress of a VXLAN device. */
static __always_inline int from_tunnel(struct __sk_buff *skb)
{
	int step = from_device(skb);

	return step ? step : from_remote(skb);
}

#endif
