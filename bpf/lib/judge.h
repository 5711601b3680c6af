/* The long way of a packet: what the rules of both ports say, and the flow that comes of it. */
#ifndef BULKHEAD_JUDGE_H
#define BULKHEAD_JUDGE_H

#include "flow.h"
#include "guard.h"
#include "owner.h"
#include "policy.h"
#include "related.h"

/* How late the rest of a fragmented packet may come (RFC 791, RFC 8200). */
#define FRAGMENT_PATIENCE (60 * SECOND)

/* ARP, neighbour discovery and a DHCP client's questions are no business of IP rules
 * (HCN: "ACL semantics"): they keep the link working. */
static __always_inline int is_exempt(const struct pkt *p)
{
	if (p->ethertype == ETH_P_ARP)
		return 1;
	if (p->flags & PKT_NO_L4)
		return 0;
	return is_dhcp_client(p) || (p->ethertype == ETH_P_IPV6 && p->proto == IPPROTO_ICMPV6 &&
				     p->type >= ND_ROUTER_SOLICIT && p->type <= ND_REDIRECT);
}

/* A question about the packet as it is, from the sender's or the receiver's port. */
static __always_inline void ask_out(struct question *q, const struct pkt *p, __u32 policy)
{
	q->policy = policy;
	q->sw = p->src.sw;
	q->proto = p->proto;
	__builtin_memcpy(q->local, p->src.ip, 16);
	__builtin_memcpy(q->remote, p->dst.ip, 16);
	q->lport = p->sport;
	q->rport = p->dport;
}

static __always_inline void ask_in(struct question *q, const struct pkt *p, __u32 policy)
{
	q->policy = policy;
	q->sw = p->src.sw;
	q->proto = p->proto;
	__builtin_memcpy(q->local, p->dst.ip, 16);
	__builtin_memcpy(q->remote, p->src.ip, 16);
	q->lport = p->dport;
	q->rport = p->sport;
}

/* The rules of both ports over a packet: 0, or whose say no. What they were goes into
 * p->rule_out and p->rule. */
static __always_inline int rules(struct pkt *p, struct question *q, __u32 out, __u32 in)
{
	p->rule = 0;
	p->rule_out = 0;
	if (out) {
		ask_out(q, p, out);
		if (classify(q) != ACTION_ALLOW) {
			p->rule = q->rule;
			return DROP_POLICY_OUT;
		}
		p->rule_out = q->rule;
	}
	if (in) {
		ask_in(q, p, in);
		if (classify(q) != ACTION_ALLOW) {
			p->rule = q->rule;
			return DROP_POLICY_IN;
		}
		p->rule = q->rule;
	}
	return DROP_NONE;
}

/* The same over an answer, seen from the one who opened: the ends change places. */
static __always_inline int rules_back(struct pkt *p, struct question *q, __u32 out, __u32 in)
{
	p->rule = 0;
	p->rule_out = 0;
	if (out) {
		ask_in(q, p, out); /* the receiver of the answer is local, as it was when it asked */
		if (classify(q) != ACTION_ALLOW)
			return DROP_POLICY_OUT;
		p->rule_out = q->rule;
	}
	if (in) {
		ask_out(q, p, in);
		if (classify(q) != ACTION_ALLOW)
			return DROP_POLICY_IN;
		p->rule = q->rule;
	}
	return DROP_NONE;
}

static __always_inline void fragment_key(struct fragment_key *k, const struct pkt *p)
{
	k->sw = p->src.sw;
	k->id = p->frag;
	k->proto = p->proto;
	__builtin_memcpy(k->src, p->src.ip, 16);
	__builtin_memcpy(k->dst, p->dst.ip, 16);
}

/* A verification border. The rest of a fragmented packet passes when its first part has,
 * for that had the ports. */
__noinline int judge_rest(struct pkt *p)
{
	struct fragment_key key = {};
	const struct fragment *f;

	if (!p)
		return DROP_MALFORMED;
	fragment_key(&key, p);
	f = bpf_map_lookup_elem(&bh_fragments_v1, &key);
	if (!f || f->generation != generation() || bpf_ktime_get_ns() - f->time > FRAGMENT_PATIENCE)
		return DROP_FRAGMENT;
	return DROP_NONE;
}

/* A verification border. */
__noinline int note_fragment(struct pkt *p, __u32 gen)
{
	struct fragment f = {.time = bpf_ktime_get_ns(), .generation = gen};
	struct fragment_key key = {};

	if (!p)
		return 0;
	fragment_key(&key, p);
	return bpf_map_update_elem(&bh_fragments_v1, &key, &f, 0);
}

/* How a frame gets back to its sender. The resolver shares the host's MAC, under which
 * only the host is found. */
static __always_inline void own_end(struct flow_end *me, const struct pkt *p)
{
	struct mac_key key = {.sw = p->src.sw};
	const struct dest *d;

	me->port = p->ifindex;
	me->device = p->ifindex;
	me->kind = p->kind;
	__builtin_memcpy(me->mac, p->smac, ETH_ALEN);
	if (p->kind == PORT_RESOLVER)
		return;
	__builtin_memcpy(key.mac, p->port_mac, ETH_ALEN);
	d = bpf_map_lookup_elem(&bh_macs_v1, &key);
	if (!d || d->port != p->ifindex)
		return;
	me->device = d->device;
	me->kind = d->kind;
}

/* A verification border: a new flow, 0 or why not. A container's share pays for it,
 * whoever opened it: a flood from outside uses up the share of the one that it is for. */
__noinline int take_up(struct pkt *p, struct dest *to, __u32 gen)
{
	__u32 zero = 0, limit = MAX_FLOWS;
	const struct config *c = bpf_map_lookup_elem(&bh_config_v1, &zero);
	struct scratch *room = scratch();
	struct flow_end *me, *you;
	struct flow_key *key;
	struct flow *f;
	int end;

	if (!p || !to || !room)
		return DROP_FLOW_TABLE;
	key = &room->key;
	*key = (struct flow_key){};
	room->flow = (struct flow_image){};
	f = (struct flow *)&room->flow;
	end = flow_key(key, p->src.sw, p->proto, p->src.ip, p->sport, p->dst.ip, p->dport);
	me = &f->end[end & 1];
	you = &f->end[!(end & 1)];
	if (c && c->flows_per_port)
		limit = c->flows_per_port;
	f->opened = bpf_ktime_get_ns();
	f->seen = f->opened;
	f->packets[0] = 1;
	f->bytes[0] = p->len;
	f->generation = gen;
	f->rule_out = p->rule_out;
	f->rule_in = p->rule;
	f->opener = end;
	own_end(me, p);
	you->port = to->port;
	you->device = to->device;
	you->kind = to->kind;
	__builtin_memcpy(you->mac, p->dmac, ETH_ALEN);
	if (p->stale)
		f->state = end ? FLOW_STALE_A : FLOW_STALE_B;
	f->charged = p->kind == PORT_CONTAINER ? p->ifindex : to->port;
	return flow_open(key, f, limit);
}

/* May answers come from where the packet goes to? A flow spares its packets the source
 * guard, so a container has none under an address that is not its own. */
static __always_inline int may_answer(const struct pkt *p, const struct port *to, const struct dest *d)
{
	const struct owner *o;

	if (to->kind != PORT_CONTAINER)
		return 1;
	o = owner_of(&p->dst);
	return o && o->port == d->port;
}

/* A flow that is there, under rules that may be others by now: 1 when it goes on, 0 when
 * the packet has to be judged as the first of a new one. */
static __always_inline int judge_again(struct pkt *p, struct question *q, struct flow_key *key, int end,
				       const struct port *from, const struct port *to, const struct dest *d,
				       __u32 gen)
{
	struct flow *f = bpf_map_lookup_elem(&bh_flows_v1, key);
	int step;

	if (!f)
		return 0;
	if (f->end[end & 1].port != p->ifindex || f->end[!(end & 1)].port != d->port || (p->flags & PKT_OPENER && f->opener != end) || !may_answer(p, to, d)) {
		flow_end(key, f);
		return 0;
	}
	if (f->opener == end)
		step = rules(p, q, from->out, to->in);
	else
		step = rules_back(p, q, to->out, from->in);
	if (step) {
		flow_end(key, f);
		return 0;
	}
	if (p->rule_out != f->rule_out || p->rule != f->rule_in) {
		flow_settle(f);
		f->packets[0] = 0;
		f->packets[1] = 0;
		f->bytes[0] = 0;
		f->bytes[1] = 0;
		f->rule_out = p->rule_out;
		f->rule_in = p->rule;
	}
	/* A connection between the same ports after the last one was closed. */
	if (p->flags & PKT_OPENER)
		f->state = 0;
	/* The sender may have learnt another MAC since. */
	__builtin_memcpy(f->end[!(end & 1)].mac, p->dmac, ETH_ALEN);
	if (p->stale)
		f->state |= end ? FLOW_STALE_A : FLOW_STALE_B;
	else
		f->state &= ~(end ? FLOW_STALE_A : FLOW_STALE_B);
	f->generation = gen;
	count_flow(f, p, end);
	return 1;
}

static __always_inline void count_match(const struct pkt *p, __u32 to, int step)
{
	__u64 alone = step || !has_flow(p); /* else the flow counts its packets */

	if (p->flags & PKT_TEST)
		return;
	if (step == DROP_POLICY_OUT) {
		rule_add(p->ifindex, p->rule, 1, 1, p->len);
		return;
	}
	rule_add(p->ifindex, p->rule_out, 1, alone, alone * p->len);
	rule_add(to, p->rule, 1, alone, alone * p->len);
}

/* Judges a packet as the first of its flow. */
static __always_inline int judge_first(struct __sk_buff *skb, struct pkt *p, struct question *q, const struct port *from,
				       const struct port *to, struct dest *d, __u32 gen)
{
	int step = rules(p, q, from->out, to->in), flows = has_flow(p);

	if (step && is_icmp_error(p) && !(p->flags & PKT_TEST) && related(skb, p, d->port)) {
		p->rule = 0;
		return DROP_NONE;
	}
	count_match(p, d->port, step);
	if (step == DROP_POLICY_IN)
		p->at = d->port;
	if (step || !flows || p->flags & PKT_TEST || !may_answer(p, to, d))
		return step;
	step = take_up(p, d, gen);
	/* No place in the table. Without rules that make the answers depend on the flow it is
	 * only slower; with such it may not begin, for its answers would be dropped. */
	if (step && (to->out || from->in)) {
		__u32 rule = p->rule, rule_out = p->rule_out;

		step = DROP_NONE;
		if (to->out) {
			ask_in(q, p, to->out);
			if (classify(q) != ACTION_ALLOW)
				step = DROP_FLOW_TABLE;
		}
		if (from->in && !step) {
			ask_out(q, p, from->in);
			if (classify(q) != ACTION_ALLOW)
				step = DROP_FLOW_TABLE;
		}
		p->rule = rule;
		p->rule_out = rule_out;
		return step;
	}
	return DROP_NONE;
}

/* May the packet go to that port? 0, or the reason why not. */
static __always_inline int judge(struct __sk_buff *skb, struct pkt *p, struct dest *d)
{
	struct scratch *room = scratch();
	const struct port *from, *to;
	struct flow_key *key;
	struct question *q;
	__u32 gen, port;
	int end, step;

	if (!p || !d || !room)
		return DROP_MALFORMED;
	q = &room->question;
	key = &room->key;
	*key = (struct flow_key){};
	/* Before the rules are looked at: a change of them in between makes the flow stale. */
	gen = generation();
	port = p->ifindex;
	from = bpf_map_lookup_elem(&bh_ports_v2, &port);
	port = d->port;
	to = bpf_map_lookup_elem(&bh_ports_v2, &port);
	if (!from || !to)
		return DROP_UNKNOWN_PORT;
	if (is_exempt(p))
		return DROP_NONE;
	if ((from->flags | to->flags) & PORT_ISOLATED && from->kind == PORT_CONTAINER && to->kind == PORT_CONTAINER)
		return DROP_ISOLATED;
	if (p->flags & PKT_NO_L4)
		return from->out || to->in ? judge_rest(p) : DROP_NONE;
	end = flow_key(key, p->src.sw, p->proto, p->src.ip, p->sport, p->dst.ip, p->dport);
	if (has_flow(p) && !(p->flags & PKT_TEST) && judge_again(p, q, key, end, from, to, d, gen))
		step = DROP_NONE;
	else
		step = judge_first(skb, p, q, from, to, d, gen);
	if (!step && p->flags & PKT_FRAGMENT && !(p->flags & PKT_TEST) && (from->out || to->in))
		note_fragment(p, gen);
	return step;
}

/* A verification border: may a group frame leave its port? */
__noinline int judge_group(struct pkt *p, __u32 *isolated)
{
	const struct port *from;
	struct question q = {};
	__u32 port;

	if (!p || !isolated)
		return DROP_MALFORMED;
	port = p->ifindex;
	from = bpf_map_lookup_elem(&bh_ports_v2, &port);
	if (!from)
		return DROP_UNKNOWN_PORT;
	*isolated = from->flags & PORT_ISOLATED;
	if (is_exempt(p) || !from->out)
		return DROP_NONE;
	if (p->flags & PKT_NO_L4)
		return DROP_FRAGMENT; /* no flow remembers the first one's ports */
	ask_out(&q, p, from->out);
	if (classify(&q) != ACTION_ALLOW) {
		p->rule = q.rule;
		count_match(p, 0, DROP_POLICY_OUT);
		return DROP_POLICY_OUT;
	}
	p->rule_out = q.rule;
	count_match(p, 0, DROP_NONE);
	return DROP_NONE;
}

/* A verification border: may this port have a copy? */
__noinline int judge_copy(struct pkt *p, __u32 port, __u32 isolated)
{
	const struct port *to = bpf_map_lookup_elem(&bh_ports_v2, &port);
	struct question q = {};

	if (!p || !to)
		return DROP_UNKNOWN_PORT;
	if (is_exempt(p))
		return DROP_NONE;
	if ((isolated || to->flags & PORT_ISOLATED) && p->kind == PORT_CONTAINER && to->kind == PORT_CONTAINER)
		return DROP_ISOLATED;
	if (!to->in)
		return DROP_NONE;
	if (p->flags & PKT_NO_L4)
		return DROP_FRAGMENT;
	ask_in(&q, p, to->in);
	if (classify(&q) == ACTION_ALLOW)
		return DROP_NONE;
	p->rule = q.rule;
	if (!(p->flags & PKT_TEST))
		rule_add(port, q.rule, 1, 1, p->len);
	return DROP_POLICY_IN;
}

#endif
