/* Tunnels: how a frame goes to another host, in a VXLAN packet (RFC 7348), and what of those that
 * come in is believed.
 *
 * Over IPv4, a port's program writes the outer headers itself and hands the packet to the NIC; the
 * NIC's program takes them off. The VXLAN device is for what cannot be done so: an outer checksum, which
 * IPv6 wants; ARP, which the kernel does not let a program wrap; packets that were unpacked on this
 * host; kernels before 6.3, which do not say what an unpacked packet is. On the wire nobody can tell. */
#ifndef BULKHEAD_TUNNEL_H
#define BULKHEAD_TUNNEL_H

#include "drop.h"
#include "guard.h"
#include "remote.h"
#include "route.h"
#include "send.h"
#include "step.h"

#define ECN_MASK 3
#define ECN_ECT1 1
#define ECN_ECT0 2
#define ECN_CE 3
#define TUNNEL_TTL 64
#define IP_DF 0x4000

/* What stands before the inner packet on the wire. */
struct wrapping {
	struct ethhdr eth;
	struct iphdr ip;
	struct udphdr udp;
	struct vxlanhdr vxlan;
	struct ethhdr inner;
} __attribute__((packed, aligned(2)));

/* Encapsulation adds this: the inner Ethernet header takes the place of the outer one. */
#define WRAPPING (sizeof(struct wrapping) - ETH_HLEN)

static __always_inline __u8 traffic_class(struct __sk_buff *skb, const struct pkt *p)
{
	__u8 head[2];

	if (bpf_skb_load_bytes(skb, ETH_HLEN, head, sizeof(head)))
		return 0;
	if (p->ethertype == ETH_P_IP)
		return head[1];
	return p->ethertype == ETH_P_IPV6 ? (__u8)(head[0] << 4 | head[1] >> 4) : 0;
}

static __always_inline __u16 header_sum(const struct iphdr *ip)
{
	const __u16 *half = (const __u16 *)ip;
	__u32 sum = 0;

	for (int i = 0; i < 10; i++)
		sum += half[i];
	sum = (sum & 0xffff) + (sum >> 16);
	sum = (sum & 0xffff) + (sum >> 16);
	return ~sum;
}

/* A verification border. Writes the headers around a frame: TC_ACT_REDIRECT, or 0 when the kernel
 * will not. Congestion shows outside as it does inside (RFC 6040); the port tells flows apart. */
__noinline int wrap(struct __sk_buff *skb, struct pkt *p, const struct remote *r, const struct overlay *o)
{
	const __u64 how = BPF_F_ADJ_ROOM_FIXED_GSO | BPF_F_ADJ_ROOM_ENCAP_L3_IPV4 | BPF_F_ADJ_ROOM_ENCAP_L4_UDP |
			  BPF_F_ADJ_ROOM_ENCAP_L2_ETH | BPF_F_ADJ_ROOM_ENCAP_L2(ETH_HLEN) | BPF_F_ADJ_ROOM_NO_CSUM_RESET;
	struct wrapping w = {};
	__u32 hash, len;

	if (!p || !r || !o)
		return 0;
	w.ip.tos = traffic_class(skb, p) & ECN_MASK;
	hash = bpf_get_hash_recalc(skb);
	len = skb->len + WRAPPING - ETH_HLEN;
	if (bpf_skb_adjust_room(skb, WRAPPING, BPF_ADJ_ROOM_MAC, how))
		return 0;
	w.eth.proto = bpf_htons(ETH_P_IP);
	w.ip.version_ihl = 0x45;
	w.ip.tot_len = len > 65535 ? 0 : bpf_htons(len);
	w.ip.frag_off = bpf_htons(IP_DF);
	w.ip.ttl = TUNNEL_TTL;
	w.ip.protocol = IPPROTO_UDP;
	w.ip.saddr = words(o->from)[3];
	w.ip.daddr = words(r->host)[3];
	w.ip.check = header_sum(&w.ip);
	w.udp.source = bpf_htons(0xc000 | ((hash ^ hash >> 16) & 0x3fff));
	w.udp.dest = bpf_htons(o->port);
	w.udp.len = len > 65535 ? 0 : bpf_htons(len - sizeof(struct iphdr));
	w.vxlan.flags = bpf_htonl(VXLAN_HAS_VNI);
	w.vxlan.vni = bpf_htonl(r->vni << 8);
	__builtin_memcpy(w.inner.dest, r->mac, ETH_ALEN);
	__builtin_memcpy(w.inner.source, same_mac(p->dmac, o->router) ? o->router : p->smac, ETH_ALEN);
	w.inner.proto = bpf_htons(p->ethertype);
	if (bpf_skb_store_bytes(skb, 0, &w, sizeof(w), BPF_F_INVALIDATE_HASH))
		return TC_ACT_SHOT;
	return bpf_redirect_neigh(o->nic, 0, 0, 0);
}

/* A verification border. The way by the VXLAN device. */
__noinline int by_device(struct __sk_buff *skb, struct pkt *p, const struct remote *r, const struct overlay *o)
{
	struct bpf_tunnel_key key = {};
	__u64 how = BPF_F_ZERO_CSUM_TX | BPF_F_DONT_FRAGMENT;

	if (!p || !r || !o)
		return TC_ACT_SHOT;
	if (bpf_skb_store_bytes(skb, 0, r->mac, ETH_ALEN, 0) ||
	    (same_mac(p->dmac, o->router) && bpf_skb_store_bytes(skb, ETH_ALEN, o->router, ETH_ALEN, 0)))
		return TC_ACT_SHOT;
	key.tunnel_id = r->vni;
	key.ttl = TUNNEL_TTL;
	if (is_mapped(r->host)) {
		key.remote[0] = bpf_ntohl(words(r->host)[3]);
		key.local[0] = bpf_ntohl(words(o->from)[3]);
	} else {
		how = BPF_F_TUNINFO_IPV6 | BPF_F_DONT_FRAGMENT;
		__builtin_memcpy(key.remote, r->host, 16);
		__builtin_memcpy(key.local, o->from, 16);
	}
	if (bpf_skb_set_tunnel_key(skb, &key, sizeof(key), how))
		return TC_ACT_SHOT;
	return bpf_redirect(o->tunnel, 0);
}

/* Does an encrypted network lack what this host needs to send anything? */
static __always_inline int is_mute(const struct overlay *o)
{
	return o->flags & OVERLAY_SEALED && (o->flags & OVERLAY_KEYLESS || is_unspecified(o->from));
}

/* A host whose address inside WireGuard is not known, because nobody told its key, has none here. */
static __always_inline int is_keyless(const struct remote *r, const struct overlay *o)
{
	return is_mute(o) || (o->flags & OVERLAY_SEALED && (is_mapped(r->host) || is_unspecified(r->host)));
}

/* The host that a packet goes to, 0 for none. A next hop is an endpoint, and never behind a router. */
static __always_inline const struct remote *target_of(struct pkt *p, const struct overlay *o)
{
	struct addr_key to = {};
	int hop = target(p, &to);

	if (!o)
		return 0;
	return hop ? endpoint_of(&to) : remote_of(&to, o);
}

/* A verification border. Why a frame cannot go by a tunnel: 0, or a reason. */
__noinline int fits_tunnel(struct __sk_buff *skb, struct pkt *p)
{
	const struct overlay *o;
	const struct remote *r;
	__u32 most;

	if (!p)
		return DROP_MALFORMED;
	o = overlay_of(p->src.sw);
	r = target_of(p, o);
	if (r && is_keyless(r, o))
		return DROP_NO_KEY;
	if (!r || is_mapped(r->host) != is_mapped(o->from))
		return DROP_NO_ROUTE;
	most = o->mtu - WRAPPING - (is_mapped(r->host) ? 0 : sizeof(struct ipv6hdr) - sizeof(struct iphdr));
	return fits(skb, p, most) ? DROP_NONE : DROP_MTU;
}

/* A verification border. Sends a frame to the host that its destination is on. Who that is, is
 * looked up for each: what moved is found where it is now. */
__noinline int to_remote(struct __sk_buff *skb, struct pkt *p)
{
	const struct overlay *o;
	const struct remote *r;
	int step;

	if (!p)
		return TC_ACT_SHOT;
	o = overlay_of(p->src.sw);
	r = target_of(p, o);
	if (!r || is_keyless(r, o))
		return TC_ACT_SHOT;
	if (skb->mark)
		skb->mark = 0;
	if (p->ethertype != ETH_P_ARP && is_mapped(r->host) && !(o->flags & OVERLAY_SEALED)) {
		step = wrap(skb, p, r, o);
		if (step)
			return step;
	}
	return by_device(skb, p, r, o);
}

/* A verification border: is a frame's sender on the host that it came from? Asked of each frame,
 * also of one that belongs to a flow. A router speaks for all that is behind it, and a next hop to whom it is one. */
__noinline int guard_remote(struct pkt *p)
{
	struct scratch *room = scratch();
	const struct overlay *o;
	const struct remote *r;

	if (!p || !room)
		return DROP_MALFORMED;
	o = overlay_of(p->src.sw);
	if (!o)
		return DROP_UNKNOWN_VNI;
	if (p->smac[0] & 1)
		return DROP_MARTIAN;
	r = endpoint_of(&p->src);
	if (!r && o->flags & OVERLAY_ROUTES)
		r = router_of(&p->src);
	if (!r)
		return speaks(p) ? DROP_NONE : DROP_INNER_SOURCE;
	return same_ip(r->host, room->arrival.host.ip) ? DROP_NONE : DROP_INNER_SOURCE;
}

/* A verification border: what the first frame of a flow is asked besides. No question for a
 * neighbour is answered by another host, for its own host has the answer. */
__noinline int guard_inner(struct pkt *p)
{
	int reason;

	if (!p)
		return DROP_MALFORMED;
	if (owner_of(&p->src))
		return DROP_INNER_SOURCE;
	if (p->ethertype == ETH_P_ARP)
		return p->type == 1 ? DROP_NONE : DROP_ARP_SPOOF;
	if (is_martian(p, p->src.ip) || is_group_ip(p, p->src.ip) || is_martian(p, p->dst.ip) || is_unspecified(p->dst.ip))
		return DROP_MARTIAN;
	if (is_icmp6(p, ND_ADVERT))
		return DROP_ND_SPOOF;
	reason = guard_role(p);
	return reason ? reason : guard_quiet(p);
}

#endif
