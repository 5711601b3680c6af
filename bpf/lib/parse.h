/* Reads a frame once into a struct pkt, which every later step works on. */
#ifndef BULKHEAD_PARSE_H
#define BULKHEAD_PARSE_H

#include "../include/helpers.h"
#include "../include/net.h"
#include "structs.h"

#define PKT_FRAGMENT 1	/* part of a fragmented packet */
#define PKT_NO_L4 2	/* a later fragment: no ports, no type */
#define PKT_GROUP 4	/* broadcast or multicast MAC */
#define PKT_TEST 8	/* a built frame under BPF_PROG_TEST_RUN: send and count nothing */
#define PKT_ECHO 16	/* ICMP echo: both "ports" are its identifier */
#define PKT_OPENER 32	/* may only open a flow and never answer one: SYN, echo request */
#define PKT_GUESTS 64	/* from a port with PORT_GUESTS */

/* Rates that bear on the packet. */
#define LIMIT_OUT 1  /* the sender's, of what it sends */
#define LIMIT_IN 2   /* the receiver's, of what it receives */
#define LIMIT_BACK 4 /* the sender's, of what it receives: answers */

#define TCP_FIN 1
#define TCP_SYN 2
#define TCP_RST 4
#define TCP_ACK 16

#define ICMP_ECHO_REPLY 0
#define ICMP_ECHO 8
#define ICMP6_ECHO 128
#define ICMP6_ECHO_REPLY 129

/* Extension headers of IPv6 that are walked before the packet counts as hiding. */
#define MAX_EXTENSIONS 8

struct pkt {
	struct addr_key src; /* ARP: sender */
	struct addr_key dst; /* ARP: target */
	__u32 ifindex;
	__u32 len;
	__u32 at;   /* the receiving port when that one drops it */
	__u32 rule; /* that decided last, for counters and events; 0: none */
	__u32 rule_out; /* that let it leave its port */
	__u32 frag; /* identification of a fragmented packet */
	__u32 l4;   /* offset of the transport header */
	__u32 end;  /* offset behind the packet, without the frame's padding */
	__u32 tunnel; /* on an overlay: its VXLAN device, or NO_TUNNEL; else 0 */
	__u16 ethertype;
	__u16 sport;
	__u16 dport;
	__u8 proto;
	__u8 type; /* ICMP type, or ARP operation */
	__u8 smac[ETH_ALEN];
	__u8 dmac[ETH_ALEN];
	__u8 port_mac[ETH_ALEN];
	__u8 kind; /* of the sender's port */
	__u8 flags;
	__u8 tcp; /* TCP_* */
	__u8 limits; /* LIMIT_* */
	__u8 stale; /* dmac is not that of who has dst: the sender's neighbour table is behind */
	__u8 copied; /* a port has a copy of it */
	__u8 lan; /* LAN_*; from PORT_HOST: seen at the NIC's egress, or from a vNIC of the host's */
	__u8 turned; /* TURNED_* */
	__u8 routed; /* by what the SDN routes of its port say (route.h) */
	__u8 pad;
	__u16 aport; /* with alias */
	__u8 alias[16] __attribute__((aligned(4)));
};

/* What load balancers do with a packet (balance.h). */
#define TURNED 1	/* dst is that of a back end; alias and aport are what the packet was for */
#define TURNED_SELF 2	/* between a back end and itself, which sees itself under another address */
#define TURNED_KEPT 4	/* alias is the back end, dst as it was */
#define TURNED_ANSWER 8 /* alias and aport are what the receiver has asked: the source is to be given those */
#define TURNED_FIRST 16 /* for a service, and no back end is chosen yet */
#define TURNED_OWNED 32 /* from a back end that has the service's address */
#define TURNED_SOURCED 64 /* of a connection whose back end sees a source of ours */

/* On a switch with an uplink: the port's flags from PORT_LAN on, and what follows. */
#define LAN 1
#define LAN_ONE_MAC 2
#define LAN_TUNNEL 4
#define LAN_TURNED 8 /* from the wire, for the NIC's MAC: dmac is that of the port it is for */
#define LAN_VNIC 16  /* from a vNIC of the host's own, which has counters of its own */
#define LAN_OF(flags) ((flags) >> 5)

static __always_inline int on_overlay(const struct pkt *p)
{
	return p->tunnel != 0;
}

/* Three halves: clang 14 turns a compare of six bytes into a call of memcmp, which
 * no program can make. */
static __always_inline int same_mac(const __u8 *a, const __u8 *b)
{
	const __u16 *x = (const __u16 *)a, *y = (const __u16 *)b;

	return x[0] == y[0] && x[1] == y[1] && x[2] == y[2];
}

static __always_inline const __u32 *words(const __u8 *ip)
{
	return (const __u32 *)ip;
}

static __always_inline int same_ip(const __u8 *a, const __u8 *b)
{
	const __u32 *x = words(a), *y = words(b);

	return x[0] == y[0] && x[1] == y[1] && x[2] == y[2] && x[3] == y[3];
}

static __always_inline void map_ip4(__u8 *to, __be32 ip)
{
	__u32 *w = (__u32 *)to;

	w[0] = 0;
	w[1] = 0;
	w[2] = bpf_htonl(0xffff);
	w[3] = ip;
}

static __always_inline int is_mapped(const __u8 *ip)
{
	const __u32 *w = words(ip);

	return w[0] == 0 && w[1] == 0 && w[2] == bpf_htonl(0xffff);
}

/* :: and, mapped, 0.0.0.0 */
static __always_inline int is_unspecified(const __u8 *ip)
{
	const __u32 *w = words(ip);

	return w[0] == 0 && w[1] == 0 && w[3] == 0 && (w[2] == 0 || w[2] == bpf_htonl(0xffff));
}

/* Echoes are told apart by their identifier, which takes the place of both ports. */
static __always_inline void parse_echo(struct __sk_buff *skb, struct pkt *p)
{
	int v4 = p->proto == IPPROTO_ICMP;
	__be16 id;

	if (p->type == (v4 ? ICMP_ECHO : ICMP6_ECHO))
		p->flags |= PKT_OPENER;
	else if (p->type != (v4 ? ICMP_ECHO_REPLY : ICMP6_ECHO_REPLY))
		return;
	if (p->l4 + 8 > p->end || bpf_skb_load_bytes(skb, p->l4 + 4, &id, sizeof(id)))
		return;
	p->flags |= PKT_ECHO;
	p->sport = bpf_ntohs(id);
	p->dport = p->sport;
}

/* The first transport bytes must lie in this packet: a first fragment that leaves
 * them to the next one wants to hide them (RFC 3128, RFC 7112). */
static __always_inline int parse_l4(struct __sk_buff *skb, struct pkt *p)
{
	int broken = p->flags & PKT_FRAGMENT ? DROP_FRAGMENT : DROP_MALFORMED;
	__be16 head[2];
	__u32 least;

	if (p->proto == IPPROTO_TCP)
		least = 20;
	else if (p->proto == IPPROTO_UDP || p->proto == IPPROTO_ICMP)
		least = 8;
	else if (p->proto == IPPROTO_ICMPV6)
		least = 4;
	else
		return DROP_NONE;
	if (p->l4 + least > p->end || bpf_skb_load_bytes(skb, p->l4, head, sizeof(head)))
		return broken;
	if (p->proto == IPPROTO_TCP || p->proto == IPPROTO_UDP) {
		p->sport = bpf_ntohs(head[0]);
		p->dport = bpf_ntohs(head[1]);
		if (p->proto == IPPROTO_UDP)
			return DROP_NONE;
		if (bpf_skb_load_bytes(skb, p->l4 + 13, &p->tcp, 1))
			return broken;
		if ((p->tcp & (TCP_SYN | TCP_ACK)) == TCP_SYN)
			p->flags |= PKT_OPENER;
		return DROP_NONE;
	}
	p->type = *(__u8 *)head;
	parse_echo(skb, p);
	return DROP_NONE;
}

/* TCP and UDP behind a plain header, which most packets are: all that is read lies in bytes
 * that are known to be there, so no helper has to fetch them. */
static __always_inline int parse_plain(struct pkt *p, void *at, void *data_end)
{
	struct {
		__be16 sport, dport;
		__u8 other[9], flags;
	} *l4 = at;

	if ((void *)(l4 + 1) > data_end || p->l4 + 20 > p->end)
		return 0;
	if (p->proto == IPPROTO_TCP) {
		p->tcp = l4->flags;
		if ((p->tcp & (TCP_SYN | TCP_ACK)) == TCP_SYN)
			p->flags |= PKT_OPENER;
	} else if (p->proto != IPPROTO_UDP) {
		return 0;
	}
	p->sport = bpf_ntohs(l4->sport);
	p->dport = bpf_ntohs(l4->dport);
	return 1;
}

static __always_inline int parse_ip4(struct __sk_buff *skb, struct pkt *p, void *data, void *data_end)
{
	struct iphdr *ip = data + ETH_HLEN;
	__u32 avail = p->len - ETH_HLEN, total, ihl;
	__u16 frag;

	if ((void *)(ip + 1) > data_end)
		return DROP_MALFORMED;
	ihl = (ip->version_ihl & 15) * 4;
	total = bpf_ntohs(ip->tot_len);
	if (total == 0 && skb->gso_size)
		total = avail; /* BIG TCP: more than the field can say */
	if (ip->version_ihl >> 4 != 4 || ihl < sizeof(*ip) || total < ihl || total > avail)
		return DROP_MALFORMED;
	map_ip4(p->src.ip, ip->saddr);
	map_ip4(p->dst.ip, ip->daddr);
	p->proto = ip->protocol;
	p->l4 = ETH_HLEN + ihl;
	p->end = ETH_HLEN + total;
	frag = bpf_ntohs(ip->frag_off);
	if (!(frag & 0x3fff) && ihl == sizeof(*ip) && parse_plain(p, ip + 1, data_end))
		return DROP_NONE;
	if (frag & 0x3fff) {
		p->flags |= PKT_FRAGMENT;
		p->frag = ip->id;
	}
	if (frag & 0x1fff) {
		p->flags |= PKT_NO_L4;
		/* Eight bytes in: it would overwrite the TCP flags of the first. */
		return p->proto == IPPROTO_TCP && (frag & 0x1fff) == 1 ? DROP_FRAGMENT : DROP_NONE;
	}
	return parse_l4(skb, p);
}

/* Walks the extension headers. Those that an attacker stacks to push the transport
 * header out of sight get the packet dropped. */
static __always_inline int parse_extensions(struct __sk_buff *skb, struct pkt *p, __u8 next)
{
	__u8 head[8];

	for (int i = 0; i < MAX_EXTENSIONS; i++) {
		p->proto = next;
		if (next != NEXTHDR_HOP && next != NEXTHDR_ROUTING && next != NEXTHDR_DEST && next != NEXTHDR_AUTH &&
		    next != NEXTHDR_FRAGMENT)
			return parse_l4(skb, p);
		if (p->l4 + 8 > p->end || bpf_skb_load_bytes(skb, p->l4, head, sizeof(head)))
			return p->flags & PKT_FRAGMENT ? DROP_FRAGMENT : DROP_MALFORMED;
		if (next == NEXTHDR_FRAGMENT) {
			p->l4 += 8;
			/* Offset and more-flag zero: an atomic fragment, a whole packet. */
			if (head[2] || head[3] & 0xf9) {
				p->flags |= PKT_FRAGMENT;
				p->frag = *(__u32 *)(head + 4);
			}
			if (head[2] || head[3] & 0xf8) {
				p->proto = head[0];
				p->flags |= PKT_NO_L4;
				/* As in IPv4: it would overwrite the TCP flags. */
				return p->proto == IPPROTO_TCP && !head[2] && (head[3] & 0xf8) == 8 ? DROP_FRAGMENT
												    : DROP_NONE;
			}
		} else if (next == NEXTHDR_AUTH) {
			p->l4 += (head[1] + 2) * 4;
		} else {
			p->l4 += (head[1] + 1) * 8;
		}
		next = head[0];
	}
	return DROP_EXTENSION_HEADERS;
}

static __always_inline int parse_ip6(struct __sk_buff *skb, struct pkt *p, void *data, void *data_end)
{
	struct ipv6hdr *ip = data + ETH_HLEN;
	__u32 avail = p->len - ETH_HLEN - sizeof(*ip), payload;
	__u8 next;

	if ((void *)(ip + 1) > data_end)
		return DROP_MALFORMED;
	payload = bpf_ntohs(ip->payload_len);
	if (payload == 0 && skb->gso_size)
		payload = avail; /* BIG TCP */
	if ((ip->version_class_flow & bpf_htonl(0xf0000000)) != bpf_htonl(0x60000000) || payload > avail)
		return DROP_MALFORMED;
	__builtin_memcpy(p->src.ip, ip->saddr, 16);
	__builtin_memcpy(p->dst.ip, ip->daddr, 16);
	next = ip->nexthdr;
	p->l4 = ETH_HLEN + sizeof(*ip);
	p->end = p->l4 + payload;
	return parse_extensions(skb, p, next);
}

static __always_inline int parse_arp(struct __sk_buff *skb, struct pkt *p)
{
	struct arp_ipv4 arp;

	if (bpf_skb_load_bytes(skb, ETH_HLEN, &arp, sizeof(arp)) || arp.htype != bpf_htons(1) ||
	    arp.ptype != bpf_htons(ETH_P_IP) || arp.hlen != ETH_ALEN || arp.plen != 4)
		return DROP_MALFORMED;
	map_ip4(p->src.ip, *(__be32 *)arp.spa);
	map_ip4(p->dst.ip, *(__be32 *)arp.tpa);
	p->type = bpf_ntohs(arp.op);
	return p->type == 1 || p->type == 2 ? DROP_NONE : DROP_MALFORMED;
}

/* A verification border: checked on its own, called with the struct on the stack.
 * The headers are read in the packet's memory, which a frame built by a raw socket
 * may have in fragments; pulling them together is rare. */
__noinline int parse(struct __sk_buff *skb, struct pkt *p)
{
	const __u32 most = ETH_HLEN + sizeof(struct ipv6hdr);
	void *data = (void *)(long)skb->data, *data_end = (void *)(long)skb->data_end;
	struct ethhdr *eth;

	if (!p)
		return DROP_MALFORMED;
	if (data + most > data_end) {
		if (bpf_skb_pull_data(skb, skb->len < most ? skb->len : most))
			return DROP_KERNEL;
		data = (void *)(long)skb->data;
		data_end = (void *)(long)skb->data_end;
	}
	eth = data;
	if ((void *)(eth + 1) > data_end)
		return DROP_MALFORMED;
	__builtin_memcpy(p->smac, eth->source, ETH_ALEN);
	__builtin_memcpy(p->dmac, eth->dest, ETH_ALEN);
	p->ethertype = bpf_ntohs(eth->proto);
	if (p->dmac[0] & 1)
		p->flags |= PKT_GROUP;
	/* The kernel takes the outer tag off before tc sees the frame. At an uplink it says which
	 * switch the frame is on; from a vNIC it is none of ours. */
	if ((skb->vlan_present && (!p->lan || p->kind == PORT_CONTAINER)) || p->ethertype == ETH_P_8021Q || p->ethertype == ETH_P_8021AD)
		return DROP_VLAN;
	if (p->ethertype == ETH_P_IP)
		return parse_ip4(skb, p, data, data_end);
	if (p->ethertype == ETH_P_IPV6)
		return parse_ip6(skb, p, data, data_end);
	if (p->ethertype == ETH_P_ARP)
		return parse_arp(skb, p);
	return DROP_ETHERTYPE;
}

/* Does a frame fit an MTU, or, of one that is to be cut, each segment? Other protocols' segments are
 * as large as their stack has made them: what gso_size says of those is no size. */
static __always_inline int fits(struct __sk_buff *skb, const struct pkt *p, __u32 mtu)
{
	__u32 head = p->l4 - ETH_HLEN + 8;
	__u8 words;

	if (!skb->gso_size)
		return p->len - ETH_HLEN <= mtu;
	if (p->proto != IPPROTO_TCP && p->proto != IPPROTO_UDP)
		return 1;
	if (p->proto == IPPROTO_TCP) {
		if (bpf_skb_load_bytes(skb, p->l4 + 12, &words, 1))
			return 0;
		head = p->l4 - ETH_HLEN + (words >> 4) * 4;
	}
	return skb->gso_size + head <= mtu;
}

#endif
