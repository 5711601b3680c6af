/* The kernel's interface to programs: only what we use of it, pinned here so that
 * the object is the same whatever headers the building machine has. */
#ifndef BULKHEAD_KERNEL_H
#define BULKHEAD_KERNEL_H

typedef unsigned char __u8;
typedef unsigned short __u16;
typedef unsigned int __u32;
typedef unsigned long long __u64;
typedef signed int __s32;
typedef signed long long __s64;
typedef __u16 __be16;
typedef __u32 __be32;
typedef __u32 __wsum;

/* enum bpf_map_type */
#define BPF_MAP_TYPE_HASH 1
#define BPF_MAP_TYPE_ARRAY 2
#define BPF_MAP_TYPE_PROG_ARRAY 3
#define BPF_MAP_TYPE_PERCPU_HASH 5
#define BPF_MAP_TYPE_PERCPU_ARRAY 6
#define BPF_MAP_TYPE_LRU_HASH 9
#define BPF_MAP_TYPE_LPM_TRIE 11
#define BPF_MAP_TYPE_RINGBUF 27

/* Flags of maps and helpers. */
#define BPF_F_NO_PREALLOC (1U << 0)
#define BPF_NOEXIST 1
#define BPF_F_RECOMPUTE_CSUM (1ULL << 0)
#define BPF_F_INVALIDATE_HASH (1ULL << 1)
#define BPF_F_INGRESS (1ULL << 0)
#define BPF_F_PSEUDO_HDR (1ULL << 4)
#define BPF_F_MARK_MANGLED_0 (1ULL << 5)
#define CLOCK_MONOTONIC 1

/* Flags of bpf_skb_adjust_room and of the tunnel keys. */
#define BPF_ADJ_ROOM_MAC 1
#define BPF_F_ADJ_ROOM_FIXED_GSO (1ULL << 0)
#define BPF_F_ADJ_ROOM_ENCAP_L3_IPV4 (1ULL << 1)
#define BPF_F_ADJ_ROOM_ENCAP_L4_UDP (1ULL << 4)
#define BPF_F_ADJ_ROOM_NO_CSUM_RESET (1ULL << 5)
#define BPF_F_ADJ_ROOM_ENCAP_L2_ETH (1ULL << 6)
#define BPF_F_ADJ_ROOM_DECAP_L3_IPV4 (1ULL << 7)
#define BPF_F_ADJ_ROOM_DECAP_L3_IPV6 (1ULL << 8)
#define BPF_F_ADJ_ROOM_ENCAP_L2(len) ((__u64)(len) << 56)
#define BPF_F_TUNINFO_IPV6 (1ULL << 0)
#define BPF_F_ZERO_CSUM_TX (1ULL << 1)
#define BPF_F_DONT_FRAGMENT (1ULL << 2)

/* Where a tunnel device sends a packet, or where it had it from. IPv4 in the host's byte order. */
struct bpf_tunnel_key {
	__u32 tunnel_id;
	__u32 remote[4];
	__u8 tos;
	__u8 ttl;
	__u16 flags;
	__u32 label;
	__u32 local[4];
};

/* A timer in a map's value (include/uapi/linux/bpf.h). */
struct bpf_timer {
	__u64 opaque[2];
} __attribute__((aligned(8)));

/* What a tc program may answer. TCX knows fewer: anything but these means "go on". */
#define TC_ACT_UNSPEC -1 /* the next program's turn, or the stack's */
#define TC_ACT_OK 0
#define TC_ACT_SHOT 2
#define TC_ACT_REDIRECT 7

/* __sk_buff.pkt_type */
#define PACKET_HOST 0

/* The context of a tc program (include/uapi/linux/bpf.h). Pointers that we do not
 * follow are plain numbers here. */
struct __sk_buff {
	__u32 len;
	__u32 pkt_type;
	__u32 mark;
	__u32 queue_mapping;
	__u32 protocol;
	__u32 vlan_present;
	__u32 vlan_tci;
	__u32 vlan_proto;
	__u32 priority;
	__u32 ingress_ifindex;
	__u32 ifindex;
	__u32 tc_index;
	__u32 cb[5];
	__u32 hash;
	__u32 tc_classid;
	__u32 data;
	__u32 data_end;
	__u32 napi_id;
	__u32 family;
	__u32 remote_ip4;
	__u32 local_ip4;
	__u32 remote_ip6[4];
	__u32 local_ip6[4];
	__u32 remote_port;
	__u32 local_port;
	__u32 data_meta;
	__u64 flow_keys;
	__u64 tstamp;
	__u32 wire_len;
	__u32 gso_segs;
	__u64 sk;
	__u32 gso_size;
	__u32 tstamp_type; /* a byte, then padding */
	__u64 hwtstamp;
};

#endif
