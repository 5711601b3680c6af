/* Learning a flow where its packet leaves the host's stack: there it has passed all of
 * netfilter's rules, is translated, routed, and has its MACs. Learning where it comes in
 * would take up flows that are about to be dropped. */
#ifndef BULKHEAD_LEARN_H
#define BULKHEAD_LEARN_H

#include "offload.h"

#define ASK_SPACING 50000000ULL

/* Conntrack remembers the highest acknowledgement that it has seen, and takes a reset from
 * before it for forged, until it is told to forget it. Numbers wrap at 4 GiB: half of that
 * unseen, and every second reset would not count. */
#define SEAL_AFTER (256ULL << 20)

/* What conntrack knows of the packet's connection. */
struct track {
	struct offload_key in; /* as the packet came in, without the scope */
	struct offload_ask ask;
	__u8 liberal; /* it does not judge by sequence numbers */
	__u8 sealed;  /* nor resets */
	__u8 pad[2];
};

static __always_inline void copy_ip(__u8 *to, const __u32 *from, int v6)
{
	if (!v6) {
		map_ip4(to, from[0]);
		return;
	}
	for (int i = 0; i < 4; i++)
		((__u32 *)to)[i] = from[i];
}

/* The tuple must be named by a constant: the verifier follows no variable offset into the
 * kernel's memory. */
#define COPY_TUPLE(to, t, v6)                                                                                        \
	do {                                                                                                         \
		__u32 s_[4] = {(t).src.u3.all[0], (t).src.u3.all[1], (t).src.u3.all[2], (t).src.u3.all[3]};          \
		__u32 d_[4] = {(t).dst.u3.all[0], (t).dst.u3.all[1], (t).dst.u3.all[2], (t).dst.u3.all[3]};          \
		copy_ip((to)->src, s_, v6);                                                                          \
		copy_ip((to)->dst, d_, v6);                                                                          \
		(to)->sport = bpf_ntohs((t).src.u.all);                                                              \
		(to)->dport = bpf_ntohs((t).dst.u.all);                                                              \
	} while (0)

static __always_inline int read_track(const struct nf_conn *ct, const struct pkt *p, int dir, struct track *t)
{
	const unsigned long need = IPS_CONFIRMED | IPS_ASSURED, never = IPS_SEQ_ADJUST | IPS_HELPER | IPS_DYING;
	int v6 = p->ethertype == ETH_P_IPV6;
	__u8 a, b;

	if ((ct->status & (need | never)) != need)
		return -1;
	t->in.proto = p->proto;
	/* The answer's tuple was found; the packet came in as the other one. */
	if (dir)
		COPY_TUPLE(&t->in, ct->tuplehash[0].tuple, v6);
	else
		COPY_TUPLE(&t->in, ct->tuplehash[1].tuple, v6);
	if (p->proto != IPPROTO_TCP) {
		t->liberal = t->sealed = 1;
		return 0;
	}
	if (ct->proto.tcp.state != TCP_CONNTRACK_ESTABLISHED)
		return -1;
	COPY_TUPLE(&t->ask, ct->tuplehash[0].tuple, v6);
	t->ask.v6 = v6;
	a = ct->proto.tcp.seen[0].flags;
	b = ct->proto.tcp.seen[1].flags;
	t->liberal = !!(a & b & IP_CT_TCP_FLAG_BE_LIBERAL);
	t->sealed = !((a | b) & IP_CT_TCP_FLAG_MAXACK_SET);
	return 0;
}

/* A verification border: 0 when the connection of the packet, as it leaves, may be carried. */
__noinline int find_track(struct __sk_buff *skb, struct pkt *p, struct track *t)
{
	struct bpf_ct_opts opts = {.netns_id = BPF_F_CURRENT_NETNS};
	struct bpf_sock_tuple tuple = {};
	struct nf_conn *ct;
	int ret;

	if (!p || !t)
		return -1;
	opts.l4proto = p->proto;
	if (p->ethertype == ETH_P_IP) {
		tuple.ipv4.saddr = words(p->dst.ip)[3];
		tuple.ipv4.daddr = words(p->src.ip)[3];
		tuple.ipv4.sport = bpf_htons(p->dport);
		tuple.ipv4.dport = bpf_htons(p->sport);
		ct = bpf_skb_ct_lookup(skb, &tuple, sizeof(tuple.ipv4), &opts, sizeof(opts));
	} else {
		__builtin_memcpy(tuple.ipv6.saddr, p->dst.ip, 16);
		__builtin_memcpy(tuple.ipv6.daddr, p->src.ip, 16);
		tuple.ipv6.sport = bpf_htons(p->dport);
		tuple.ipv6.dport = bpf_htons(p->sport);
		ct = bpf_skb_ct_lookup(skb, &tuple, sizeof(tuple.ipv6), &opts, sizeof(opts));
	}
	if (!ct)
		return -1;
	ret = read_track(ct, p, opts.dir, t);
	bpf_ct_release(ct);
	return ret;
}

/* Conntrack will not see each segment of a connection that is carried, so it must not
 * judge the ones that it sees by sequence numbers. That can only be said from outside. */
static __always_inline void ask(const struct track *t)
{
	struct offload_ask *a = bpf_ringbuf_reserve(&bh_offload_asks_v1, sizeof(*a), 0);

	if (!a)
		return;
	__builtin_memcpy(a, &t->ask, sizeof(*a));
	bpf_ringbuf_submit(a, 0);
	offload_count(OFFLOAD_ASKED);
}

static __always_inline int same_form(const struct offload *a, const struct offload *b)
{
	const __u32 *x = (const __u32 *)a->src, *y = (const __u32 *)b->src;
	__u32 differ = 0;

	/* src, dst, ports, MACs: 48 bytes in one piece. */
	for (int i = 0; i < 12; i++)
		differ |= x[i] ^ y[i];
	return !differ && a->device == b->device && a->peer == b->peer && a->tos == b->tos && a->priority == b->priority &&
	       a->mtu == b->mtu;
}

/* A verification border. Stores one direction; both are live once both are stored under
 * the same rules. What is carried already is only renewed: its entry stays in place. */
__noinline int remember(struct track *t, struct offload *form)
{
	struct offload_key peer = {}, key;
	struct offload *mine, *other;

	if (!t || !form)
		return -1;
	key = t->in;
	peer_key(&peer, form, key.proto);
	mine = bpf_map_lookup_elem(&bh_offload_v1, &key);
	other = bpf_map_lookup_elem(&bh_offload_v1, &peer);
	form->state = OFFLOAD_LEARNT;
	if (mine) {
		form->asked = mine->asked;
		form->carried = mine->carried;
	}
	if ((!t->liberal || (!t->sealed && (!form->carried || form->carried > SEAL_AFTER))) &&
	    form->until - form->asked > OFFLOAD_LEASE + ASK_SPACING) {
		form->asked = form->until - OFFLOAD_LEASE;
		form->carried = t->liberal;
		ask(t);
	}
	if (!t->liberal)
		form->generation = 0; /* not yet */
	else if (other && other->state >= OFFLOAD_LEARNT && other->generation == form->generation &&
		 other->stamp == form->stamp && other->peer == key.scope) {
		other->state = OFFLOAD_LIVE;
		form->state = OFFLOAD_LIVE;
	}
	if (mine && mine->state >= OFFLOAD_LEARNT && same_form(mine, form)) {
		mine->asked = form->asked;
		mine->carried = form->carried;
		mine->generation = form->generation;
		mine->stamp = form->stamp;
		mine->state = form->state;
		mine->until = form->until;
	} else if (bpf_map_update_elem(&bh_offload_v1, &key, form, 0)) {
		return -1;
	}
	if (!other) {
		/* The packets of the other direction are marked from here on, and learnt. */
		struct offload stub = {.state = OFFLOAD_WANTED};

		bpf_map_update_elem(&bh_offload_v1, &peer, &stub, BPF_NOEXIST);
	}
	offload_count(OFFLOAD_RENEWED);
	return 0;
}

/* The form in which a packet leaves. */
static __always_inline int read_form(struct __sk_buff *skb, const struct pkt *p, struct offload *o,
				     const struct offload_config *c)
{
	__u8 head[2];

	if (bpf_skb_load_bytes(skb, ETH_HLEN, head, sizeof(head)))
		return -1;
	o->tos = p->ethertype == ETH_P_IP ? head[1] : (__u8)(head[0] << 4 | head[1] >> 4);
	o->stamp = nft_stamp(skb);
	o->until = bpf_ktime_get_coarse_ns() + OFFLOAD_LEASE;
	o->generation = c->generation;
	o->priority = skb->priority;
	__builtin_memcpy(o->src, p->src.ip, 16);
	__builtin_memcpy(o->dst, p->dst.ip, 16);
	o->sport = p->sport;
	o->dport = p->dport;
	__builtin_memcpy(o->smac, p->smac, ETH_ALEN);
	__builtin_memcpy(o->dmac, p->dmac, ETH_ALEN);
	return 0;
}

#endif
