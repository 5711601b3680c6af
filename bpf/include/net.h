/* Headers of the protocols that the switch reads, as they lie on the wire. */
#ifndef BULKHEAD_NET_H
#define BULKHEAD_NET_H

#include "kernel.h"

#define ETH_ALEN 6
#define ETH_HLEN 14
#define ETH_P_IP 0x0800
#define ETH_P_ARP 0x0806
#define ETH_P_8021Q 0x8100
#define ETH_P_IPV6 0x86DD
#define ETH_P_8021AD 0x88A8

#define IPPROTO_ICMP 1
#define IPPROTO_IGMP 2
#define IPPROTO_TCP 6
#define IPPROTO_UDP 17
#define IPPROTO_ICMPV6 58

/* IPv6 extension headers (RFC 8200, RFC 4302). */
#define NEXTHDR_HOP 0
#define NEXTHDR_ROUTING 43
#define NEXTHDR_FRAGMENT 44
#define NEXTHDR_AUTH 51
#define NEXTHDR_NONE 59
#define NEXTHDR_DEST 60

struct ethhdr {
	__u8 dest[ETH_ALEN];
	__u8 source[ETH_ALEN];
	__be16 proto;
} __attribute__((packed, aligned(2)));

struct iphdr {
	__u8 version_ihl;
	__u8 tos;
	__be16 tot_len;
	__be16 id;
	__be16 frag_off;
	__u8 ttl;
	__u8 protocol;
	__u16 check;
	__be32 saddr;
	__be32 daddr;
} __attribute__((packed, aligned(2)));

struct ipv6hdr {
	__be32 version_class_flow;
	__be16 payload_len;
	__u8 nexthdr;
	__u8 hop_limit;
	__u8 saddr[16];
	__u8 daddr[16];
} __attribute__((packed, aligned(2)));

struct tcphdr {
	__be16 source;
	__be16 dest;
	__be32 seq;
	__be32 ack;
	__u8 words; /* of the header, in the upper half */
	__u8 flags;
	__be16 window;
	__u16 check;
	__be16 urgent;
} __attribute__((packed, aligned(2)));

struct udphdr {
	__be16 source;
	__be16 dest;
	__be16 len;
	__u16 check;
} __attribute__((packed, aligned(2)));

/* VXLAN (RFC 7348). */
struct vxlanhdr {
	__be32 flags;
	__be32 vni; /* the upper 24 bits */
} __attribute__((packed, aligned(2)));

#define VXLAN_HAS_VNI 0x08000000

/* ARP for IPv4 over Ethernet (RFC 826). */
struct arp_ipv4 {
	__be16 htype;
	__be16 ptype;
	__u8 hlen;
	__u8 plen;
	__be16 op;
	__u8 sha[ETH_ALEN];
	__u8 spa[4];
	__u8 tha[ETH_ALEN];
	__u8 tpa[4];
} __attribute__((packed, aligned(2)));

/* Neighbour solicitation and advertisement (RFC 4861), without options. */
struct nd_msg {
	__u8 type;
	__u8 code;
	__u16 check;
	__u8 flags; /* advertisement: router, solicited, override */
	__u8 reserved[3];
	__u8 target[16];
};

#endif
