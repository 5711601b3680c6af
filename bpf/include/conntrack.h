/* Inner structures of the kernel, as far as the offload reads them. They are no stable
 * interface: the loader finds each member by its name in the running kernel's type
 * information (CO-RE), and a kernel that lacks one gets no offload. */
#ifndef BULKHEAD_CONNTRACK_H
#define BULKHEAD_CONNTRACK_H

#include "helpers.h"

#pragma clang attribute push(__attribute__((preserve_access_index)), apply_to = record)

struct netns_nftables {
	unsigned int base_seq; /* here since 6.17 */
	__u8 gencursor;
};

struct net {
	struct netns_nftables nft;
};

typedef struct {
	struct net *net;
} possible_net_t;

struct net_device {
	possible_net_t nd_net;
};

struct sk_buff {
	struct net_device *dev;
};

union nf_inet_addr {
	__u32 all[4];
};

union nf_conntrack_man_proto {
	__be16 all;
};

struct nf_conntrack_man {
	union nf_inet_addr u3;
	union nf_conntrack_man_proto u;
};

struct nf_conntrack_tuple {
	struct nf_conntrack_man src;
	struct {
		union nf_inet_addr u3;
		union {
			__be16 all;
		} u;
	} dst;
};

struct nf_conntrack_tuple_hash {
	struct nf_conntrack_tuple tuple;
};

struct ip_ct_tcp_state {
	__u8 flags;
};

struct ip_ct_tcp {
	struct ip_ct_tcp_state seen[2];
	__u8 state;
};

union nf_conntrack_proto {
	struct ip_ct_tcp tcp;
};

struct nf_conn {
	struct nf_conntrack_tuple_hash tuplehash[2];
	unsigned long status;
	union nf_conntrack_proto proto;
};

#pragma clang attribute pop

/* enum ip_conntrack_status */
#define IPS_ASSURED (1UL << 2)
#define IPS_CONFIRMED (1UL << 3)
#define IPS_SEQ_ADJUST (1UL << 6)
#define IPS_DYING (1UL << 9)
#define IPS_HELPER (1UL << 13)

#define TCP_CONNTRACK_ESTABLISHED 3

/* struct ip_ct_tcp_state.flags */
#define IP_CT_TCP_FLAG_BE_LIBERAL 0x08
#define IP_CT_TCP_FLAG_MAXACK_SET 0x20

#define BPF_F_CURRENT_NETNS (-1)

/* The first 12 bytes of the options are the same in every kernel that has the call. */
struct bpf_ct_opts {
	__s32 netns_id;
	__s32 error;
	__u8 l4proto;
	__u8 dir;
	__u8 reserved[2];
};

struct bpf_sock_tuple {
	union {
		struct {
			__be32 saddr;
			__be32 daddr;
			__be16 sport;
			__be16 dport;
		} ipv4;
		struct {
			__be32 saddr[4];
			__be32 daddr[4];
			__be16 sport;
			__be16 dport;
		} ipv6;
	};
};

#define __ksym __attribute__((section(".ksyms")))

extern void *bpf_cast_to_kern_ctx(void *ctx) __ksym;
extern struct nf_conn *bpf_skb_ct_lookup(struct __sk_buff *skb, struct bpf_sock_tuple *tuple, __u32 tuple_size,
					 struct bpf_ct_opts *opts, __u32 opts_size) __ksym;
extern void bpf_ct_release(struct nf_conn *ct) __ksym;

/* Is a member there in the running kernel? */
#define bpf_core_field_exists(field) __builtin_preserve_field_info(field, 2)

#endif
