/* Multicast on an overlay: what ports have asked for (IGMP, MLD), and how a group frame gets to other hosts.
 * The underlay carries no multicast: each host of the network is sent a copy of its own, and gives it to the
 * ports that are in the group. What came from a host goes to no other. */
#ifndef BULKHEAD_GROUP_H
#define BULKHEAD_GROUP_H

#include "guard.h"
#include "judge.h"
#include "maps.h"
#include "rate.h"
#include "remote.h"
#include "tunnel.h"

#define IGMP1_REPORT 0x12
#define IGMP2_REPORT 0x16
#define IGMP_LEAVE 0x17
#define IGMP3_REPORT 0x22
#define MLD_REPORT 131

/* What a record says of a group (RFC 3376, RFC 3810). */
#define RECORD_IS_INCLUDE 1
#define RECORD_IS_EXCLUDE 2
#define RECORD_TO_INCLUDE 3
#define RECORD_TO_EXCLUDE 4
#define RECORD_ALLOW 5

/* Records of one report that are read: stacks begin another long before. */
#define MAX_RECORDS 128

#define ALL_GROUPS (1U << 31)
#define EEXIST 17

/* Hosts of a network that get copies; plan.MaxGroupHosts. */
#define MAX_GROUP_HOSTS 1024

/* How much one port may have copied to other hosts: what a byte of 8 MB a second takes, and what a port may save up,
 * in ticks. */
#define GROUP_SECOND (1000000000ULL << TICK_SHIFT)
#define GROUP_BYTE (GROUP_SECOND / (8ULL << 20))
#define GROUP_SIDE 2 /* of a bucket's key, beside RATE_OUT and RATE_IN */

/* How many groups a port is in is under no address. */
static __always_inline __u32 *group_count(struct addr_key *key, __u32 port)
{
	*key = (struct addr_key){.sw = port};
	return bpf_map_lookup_elem(&bh_groups_v1, key);
}

/* A verification border. A port is in a group from now on, or no more. */
__noinline int note_group(struct pkt *p, struct addr_key *group, __u32 joins)
{
	__u32 one = 1, none = 0, *count;
	struct addr_key key;
	int err = 0;

	if (!p || !group)
		return 0;
	key = *group;
	if (!is_group_ip(p, key.ip))
		return 0;
	if (!joins) {
		if (bpf_map_delete_elem(&bh_groups_v1, &key))
			return 0;
		count = group_count(&key, p->ifindex);
		if (count)
			__sync_fetch_and_add(count, -1);
		return 0;
	}
	if (bpf_map_lookup_elem(&bh_groups_v1, &key))
		return 0;
	count = group_count(&key, p->ifindex);
	if (!count) {
		bpf_map_update_elem(&bh_groups_v1, &key, &none, BPF_NOEXIST);
		count = bpf_map_lookup_elem(&bh_groups_v1, &key);
		if (!count)
			return 0;
	}
	key = *group;
	if ((*count & ~ALL_GROUPS) < MAX_PORT_GROUPS)
		err = bpf_map_update_elem(&bh_groups_v1, &key, &one, BPF_NOEXIST);
	else
		err = -1;
	if (!err)
		__sync_fetch_and_add(count, 1);
	else if (err != -EEXIST) /* else another CPU was faster */
		__sync_fetch_and_or(count, ALL_GROUPS);
	return 0;
}

struct records {
	struct __sk_buff *skb;
	struct pkt *p;
	__u32 at;
};

static long read_record(__u32 i, void *ctx)
{
	struct records *r = ctx;
	__u32 size = r->p->ethertype == ETH_P_IP ? 4 : 16, sources;
	struct addr_key group = {.sw = r->p->ifindex};
	__u8 head[4], ip[4];

	if (r->at + 4 + size > r->p->end || bpf_skb_load_bytes(r->skb, r->at, head, sizeof(head)))
		return 1;
	if (size == 4) {
		if (bpf_skb_load_bytes(r->skb, r->at + 4, ip, sizeof(ip)))
			return 1;
		map_ip4(group.ip, *(__be32 *)ip);
	} else if (bpf_skb_load_bytes(r->skb, r->at + 4, group.ip, 16)) {
		return 1;
	}
	sources = head[2] << 8 | head[3];
	if (head[0] == RECORD_IS_EXCLUDE || head[0] == RECORD_TO_EXCLUDE)
		note_group(r->p, &group, 1);
	else if (head[0] == RECORD_IS_INCLUDE || head[0] == RECORD_TO_INCLUDE || (head[0] == RECORD_ALLOW && sources))
		note_group(r->p, &group, sources != 0);
	r->at += 4 + size + sources * size + head[1] * 4;
	return 0;
}

/* A verification border. Reads what a port's stack says of its groups. The port's own querier is nobody: stacks
 * say what changes by themselves, and nothing again. So they are heard on each overlay, for one that is to carry
 * multicast later. */
__noinline int snoop(struct __sk_buff *skb, struct pkt *p)
{
	struct addr_key group = {};
	struct records r = {};
	__u8 head[8];
	int v4;

	if (!p || p->flags & PKT_FRAGMENT || p->l4 + sizeof(head) > p->end || bpf_skb_load_bytes(skb, p->l4, head, sizeof(head)))
		return 0;
	v4 = p->ethertype == ETH_P_IP;
	group.sw = p->ifindex;
	if (head[0] == (v4 ? IGMP3_REPORT : MLD2_REPORT)) {
		r.skb = skb;
		r.p = p;
		r.at = p->l4 + sizeof(head);
		bpf_loop(MAX_RECORDS, read_record, &r, 0);
		return 0;
	}
	if (v4) {
		map_ip4(group.ip, *(__be32 *)(head + 4));
		if (head[0] == IGMP1_REPORT || head[0] == IGMP2_REPORT || head[0] == IGMP_LEAVE)
			note_group(p, &group, head[0] != IGMP_LEAVE);
		return 0;
	}
	if ((head[0] == MLD_REPORT || head[0] == MLD_DONE) && p->l4 + 24 <= p->end &&
	    !bpf_skb_load_bytes(skb, p->l4 + 8, group.ip, 16))
		note_group(p, &group, head[0] == MLD_REPORT);
	return 0;
}

/* What is for all on a link is for each port: broadcast, and the groups of all hosts, which nobody reports. */
static __always_inline int for_all(const struct pkt *p)
{
	const __u32 *to = words(p->dst.ip);

	if (p->ethertype == ETH_P_IP)
		return (p->dst.ip[12] & 0xf0) != 0xe0 || to[3] == bpf_htonl(0xe0000001);
	return to[0] == bpf_htonl(0xff020000) && !to[1] && !to[2] && to[3] == bpf_htonl(1);
}

/* A verification border. Does a port want a group frame that came from another host? */
__noinline int in_group(struct pkt *p, __u32 port)
{
	struct addr_key key = {.sw = port};
	const __u32 *count;

	if (!p)
		return 0;
	if (for_all(p))
		return 1;
	__builtin_memcpy(key.ip, p->dst.ip, 16);
	if (bpf_map_lookup_elem(&bh_groups_v1, &key))
		return 1;
	count = group_count(&key, port);
	return count && *count & ALL_GROUPS;
}

/* Takes the copies of a frame out of what a port may have copied. */
static __always_inline int may_spread(const struct pkt *p, __u32 hosts)
{
	struct rate_key key = {.port = p->ifindex, .side = GROUP_SIDE};

	return draw(&key, (__u64)p->len * hosts * GROUP_BYTE, GROUP_SECOND);
}

struct spread {
	struct __sk_buff *skb;
	struct pkt *p;
	const struct overlay *o;
	struct member_key key;
};

static long spread_one(__u32 slot, void *ctx)
{
	__u64 how = BPF_F_ZERO_CSUM_TX | BPF_F_DONT_FRAGMENT;
	struct bpf_tunnel_key key = {};
	struct spread *s = ctx;
	const struct flood_host *h;

	s->key.slot = slot;
	h = bpf_map_lookup_elem(&bh_floods_v1, &s->key);
	if (!h)
		return 1;
	key.tunnel_id = h->vni;
	key.ttl = TUNNEL_TTL;
	if (is_mapped(h->host)) {
		key.remote[0] = bpf_ntohl(words(h->host)[3]);
		key.local[0] = bpf_ntohl(words(s->o->from)[3]);
	} else {
		how = BPF_F_TUNINFO_IPV6 | BPF_F_DONT_FRAGMENT;
		__builtin_memcpy(key.remote, h->host, 16);
		__builtin_memcpy(key.local, s->o->from, 16);
	}
	if (bpf_skb_set_tunnel_key(s->skb, &key, sizeof(key), how))
		return 1;
	count_rx(s->o->tunnel, s->p->len);
	bpf_clone_redirect(s->skb, s->o->tunnel, 0);
	return 0;
}

/* A verification border. Copies of what a port sends to a group, for the other hosts of its network. Of what is
 * lost here the ports of this host have theirs. */
__noinline int spread(struct __sk_buff *skb, struct pkt *p)
{
	struct spread s = {};
	const struct flood_host *first;
	const struct overlay *o;

	if (!p || p->kind != PORT_CONTAINER || is_exempt(p))
		return 0;
	o = overlay_of(p->src.sw);
	if (!o || !(o->flags & OVERLAY_MULTICAST) || o->tunnel == NO_TUNNEL)
		return 0;
	s.key.sw = p->src.sw;
	first = bpf_map_lookup_elem(&bh_floods_v1, &s.key);
	if (!first || p->flags & PKT_TEST)
		return 0;
	if (is_mute(o))
		return count_drop(p, DROP_NO_KEY);
	if (!fits(skb, p, o->mtu - WRAPPING - (is_mapped(o->from) ? 0 : sizeof(struct ipv6hdr) - sizeof(struct iphdr))))
		return count_drop(p, DROP_MTU);
	if (!may_spread(p, first->hosts))
		return count_drop(p, DROP_GROUP_RATE);
	s.skb = skb;
	s.p = p;
	s.o = o;
	bpf_loop(MAX_GROUP_HOSTS, spread_one, &s, 0);
	return 0;
}

/* A verification border: does the packet's network carry group frames between hosts? */
__noinline int has_multicast(struct pkt *p)
{
	const struct overlay *o = p ? overlay_of(p->src.sw) : 0;

	return o && o->flags & OVERLAY_MULTICAST;
}

/* A verification border. May another host's group frame go to the ports here? 0, or why not. What keeps a link
 * working is each host's own. */
__noinline int guard_spread(struct pkt *p)
{
	if (!p)
		return DROP_MALFORMED;
	return is_exempt(p) ? DROP_FLOODED : guard_group(p);
}

#endif
