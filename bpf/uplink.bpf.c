/* The offload: flows that cross the host, carried past its stack once netfilter has accepted
 * them. Four programs:
 *
 *	container ── port program ─┬─ bh_carry_out ──────────────▶ uplink
 *	                           └─▶ host's stack ─ bh_learn_out ─▶ uplink
 *	uplink ─┬─ bh_carry_in ──────────────────────────────────▶ container
 *	        └─▶ host's stack ─ bh_learn_in ─▶ host's vNIC ─ port program ─▶ container
 *
 * None of them drops a frame: what they do not carry goes where it went without them. */
#include "include/helpers.h"
#include "include/net.h"

#include "lib/csum.h"
#include "lib/flow.h"
#include "lib/learn.h"
#include "lib/offload.h"
#include "lib/offload_call.h"
#include "lib/parse.h"
#include "lib/send.h"

/* Called by the port program (lib/offload_call.h). It has counted the frame and found its
 * flow judged under the rules of the switch that hold now. */
SEC("tc")
int bh_carry_out(struct __sk_buff *skb)
{
	__u32 device = skb->cb[OFFLOAD_CB_DEVICE], eligible = skb->cb[OFFLOAD_CB_ELIGIBLE];
	struct scratch *room = scratch();
	struct offload_key key = {};
	const struct offload_config *c = offload_config();
	__u64 now = bpf_ktime_get_coarse_ns();
	struct offload *o;
	struct pkt *p;

	if (!room || !c || now >= c->until)
		return send(skb, device, PORT_HOST);
	p = &room->pkt;
	if (!is_plain(p))
		return send(skb, device, PORT_HOST);
	in_key(&key, p, p->src.sw);
	o = bpf_map_lookup_elem(&bh_offload_v1, &key);
	if (o && is_ending(p)) {
		offload_end(p, key.scope);
		return send(skb, device, PORT_HOST);
	}
	if (o && is_live(skb, o, c, now) && !is_sample(p, o, now)) {
		if (!fits(skb, p, o->mtu) || rewrite(skb, p, o))
			return send(skb, device, PORT_HOST);
		o->carried += p->len;
		offload_count(OFFLOAD_OUT);
		skb->priority = o->priority;
		if (skb->mark)
			skb->mark = 0;
		return bpf_redirect(o->device, 0);
	}
	if (eligible || o)
		skb->tc_index = OFFLOAD_MAGIC;
	return send(skb, device, PORT_HOST);
}

/* The flow on the switch, whose rules must hold now, and which end is outside. */
static __always_inline struct flow *switch_flow(const struct pkt *p, const struct offload *o, int *end)
{
	struct flow_key key = {};
	struct flow *f;

	*end = flow_key(&key, o->peer, p->proto, o->src, o->sport, o->dst, o->dport);
	f = bpf_map_lookup_elem(&bh_flows_v4, &key);
	if (!f || f->generation != generation() || f->end[!(*end & 1)].port != o->device ||
	    f->end[!(*end & 1)].kind != PORT_CONTAINER || f->end[*end & 1].kind != PORT_HOST ||
	    f->end[!(*end & 1)].flags & PORT_RATE_IN || /* the port program has its bucket */
	    f->state & (FLOW_RESET | FLOW_CUT | (*end ? FLOW_STALE_A : FLOW_STALE_B)))
		return 0;
	return f;
}

static __always_inline int carry_in(struct __sk_buff *skb, struct pkt *p, struct offload *o)
{
	struct flow *f;
	int end;

	f = switch_flow(p, o, &end);
	if (!f || !fits(skb, p, o->mtu) || rewrite(skb, p, o))
		return TC_ACT_UNSPEC;
	count_flow(f, p, end);
	p->ifindex = f->end[end & 1].port;
	count_tx(p);
	count_rx(o->device, p->len);
	o->carried += p->len;
	offload_count(OFFLOAD_IN);
	return send(skb, o->device, PORT_CONTAINER);
}

/* tc ingress of an uplink. */
SEC("tc")
int bh_carry_in(struct __sk_buff *skb)
{
	const struct offload_config *c = offload_config();
	__u64 now = bpf_ktime_get_coarse_ns();
	struct offload_key key = {};
	struct pkt frame = {}, *p = &frame; /* on the stack, which is in the CPU's caches: most frames are of no flow here */
	struct offload *o;

	if (!c || skb->pkt_type != PACKET_HOST || now >= c->until)
		return TC_ACT_UNSPEC;
	p->ifindex = skb->ifindex;
	p->len = skb->len;
	if (parse(skb, p) || !is_plain(p))
		return TC_ACT_UNSPEC;
	in_key(&key, p, SCOPE_NIC | skb->ifindex);
	o = bpf_map_lookup_elem(&bh_offload_v1, &key);
	if (!o)
		return TC_ACT_UNSPEC;
	if (is_ending(p)) {
		offload_end(p, key.scope);
		return TC_ACT_UNSPEC;
	}
	if (is_live(skb, o, c, now) && !is_sample(p, o, now))
		return carry_in(skb, p, o);
	skb->tc_index = OFFLOAD_MAGIC;
	return TC_ACT_UNSPEC;
}

/* Is there something to learn from a frame that leaves the stack? It must have come in
 * where it was marked, and nobody may have marked it for a purpose of theirs. */
static __always_inline const struct offload_link *marked(struct __sk_buff *skb, __u32 role)
{
	const struct offload_link *from;
	__u32 index = skb->ingress_ifindex;

	if (skb->tc_index != OFFLOAD_MAGIC || !index)
		return 0;
	skb->tc_index = 0;
	if (skb->mark)
		return 0;
	from = bpf_map_lookup_elem(&bh_offload_links_v1, &index);
	return from && from->role == role ? from : 0;
}

static __always_inline int learnable(struct __sk_buff *skb, struct pkt *p)
{
	*p = (struct pkt){};
	p->ifindex = skb->ifindex;
	p->len = skb->len;
	return !parse(skb, p) && is_plain(p) && !is_ending(p);
}

/* tc egress of an uplink. */
SEC("tc")
int bh_learn_out(struct __sk_buff *skb)
{
	const struct offload_link *from = marked(skb, OFFLOAD_HOST), *to;
	const struct offload_config *c = offload_config();
	struct scratch *room = scratch();
	struct offload form = {};
	struct track t = {};
	__u32 index = skb->ifindex;

	if (!from || !c || !room)
		return TC_ACT_UNSPEC;
	to = bpf_map_lookup_elem(&bh_offload_links_v1, &index);
	if (!to || to->role != OFFLOAD_UPLINK || !learnable(skb, &room->pkt) || read_form(skb, &room->pkt, &form, c) ||
	    find_track(skb, &room->pkt, &t))
		return TC_ACT_UNSPEC;
	t.in.scope = from->sw;
	form.device = index;
	form.peer = SCOPE_NIC | index;
	form.mtu = to->mtu;
	remember(&t, &form);
	return TC_ACT_UNSPEC;
}

/* tc egress of the host's vNIC on a switch. */
SEC("tc")
int bh_learn_in(struct __sk_buff *skb)
{
	const struct offload_link *from = marked(skb, OFFLOAD_UPLINK), *to;
	const struct offload_config *c = offload_config();
	struct scratch *room = scratch();
	struct mac_key mac = {};
	struct offload form = {};
	const struct dest *d;
	struct track t = {};
	__u32 index = skb->ifindex;

	if (!from || !c || !room)
		return TC_ACT_UNSPEC;
	to = bpf_map_lookup_elem(&bh_offload_links_v1, &index);
	if (!to || to->role != OFFLOAD_HOST || !learnable(skb, &room->pkt) || read_form(skb, &room->pkt, &form, c) ||
	    find_track(skb, &room->pkt, &t))
		return TC_ACT_UNSPEC;
	mac.sw = to->sw;
	__builtin_memcpy(mac.mac, form.dmac, ETH_ALEN);
	d = bpf_map_lookup_elem(&bh_macs_v1, &mac);
	if (!d || d->kind != PORT_CONTAINER || d->port != d->device)
		return TC_ACT_UNSPEC;
	t.in.scope = SCOPE_NIC | skb->ingress_ifindex;
	form.device = d->device;
	form.peer = to->sw;
	form.mtu = to->mtu;
	remember(&t, &form);
	return TC_ACT_UNSPEC;
}

enum offload_role *unused_role __attribute__((unused));
enum offload_stat *unused_stat __attribute__((unused));
struct offload_ask *unused_ask __attribute__((unused));

char bh_license[] SEC("license") = "Dual MIT/GPL";
