/* The long way of a packet: what the rules of both ports say, and the flow that comes of it. */
#ifndef BULKHEAD_JUDGE_H
#define BULKHEAD_JUDGE_H

#include "flow.h"
#include "guard.h"
#include "owner.h"
#include "policy.h"
#include "related.h"
#include "steer.h"

/* DHCP on a LAN: what clients ask of all servers, and what a server answers, which is on
 * the wire or the host. A container is none (guard_role). */
static __always_inline int is_dhcp_lan(const struct pkt *p)
{
	const __u32 *to = words(p->dst.ip);
	int outside = p->kind != PORT_CONTAINER;

	if (!p->lan || p->proto != IPPROTO_UDP || p->flags & PKT_FRAGMENT)
		return 0;
	if (p->ethertype == ETH_P_IP)
		return outside && p->sport == 67 && p->dport == 68;
	if (p->ethertype != ETH_P_IPV6)
		return 0;
	if (p->sport == 546 && p->dport == 547)
		return to[0] == bpf_htonl(0xff020000) && !to[1] && !to[2] && to[3] == bpf_htonl(0x00010002);
	return outside && p->sport == 547 && p->dport == 546;
}

/* A client on a LAN asks the one server that it has its lease from. */
static __always_inline int is_renewal(const struct pkt *p, const struct port *to)
{
	return p->lan && p->kind == PORT_CONTAINER && to->kind != PORT_CONTAINER && p->ethertype == ETH_P_IP &&
	       p->proto == IPPROTO_UDP && !(p->flags & PKT_FRAGMENT) && p->sport == 68 && p->dport == 67;
}

/* ARP, neighbour discovery and a DHCP client's questions and answers are no business of IP
 * rules (HCN: "ACL semantics"): they keep the link working. */
static __always_inline int is_exempt(const struct pkt *p)
{
	if (p->ethertype == ETH_P_ARP)
		return 1;
	if (p->flags & PKT_NO_L4)
		return 0;
	return is_dhcp_client(p) || is_dhcp_lan(p) || (p->ethertype == ETH_P_IPV6 && p->proto == IPPROTO_ICMPV6 &&
				     p->type >= ND_ROUTER_SOLICIT && p->type <= ND_REDIRECT);
}

/* A question about the packet as it is, from the sender's or the receiver's port. */
static __always_inline void ask_out(struct question *q, const struct pkt *p, __u32 policy)
{
	q->policy = policy;
	q->sw = SWITCH_OF(p->src.sw);
	q->proto = p->proto;
	__builtin_memcpy(q->local, p->src.ip, 16);
	__builtin_memcpy(q->remote, p->dst.ip, 16);
	q->lport = p->sport;
	q->rport = p->dport;
}

static __always_inline void ask_in(struct question *q, const struct pkt *p, __u32 policy)
{
	q->policy = policy;
	q->sw = SWITCH_OF(p->src.sw);
	q->proto = p->proto;
	__builtin_memcpy(q->local, p->dst.ip, 16);
	__builtin_memcpy(q->remote, p->src.ip, 16);
	q->lport = p->dport;
	q->rport = p->sport;
}

/* The rules of both ports over a packet: 0, or whose say no. What they were goes into
 * p->rule_out and p->rule. What a back end sends to itself is as little their business as its loopback. */
static __always_inline int rules(struct pkt *p, struct question *q, __u32 out, __u32 in)
{
	p->rule = 0;
	p->rule_out = 0;
	if (p->turned & TURNED_SELF)
		return DROP_NONE;
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
	if (p->turned & TURNED_SELF)
		return DROP_NONE;
	if (out) {
		ask_in(q, p, out); /* the receiver of the answer is local, as it was when it asked */
		if (classify(q) != ACTION_ALLOW) {
			p->rule = q->rule;
			return DROP_POLICY_OUT;
		}
		p->rule_out = q->rule;
	}
	if (in) {
		ask_out(q, p, in);
		if (classify(q) != ACTION_ALLOW) {
			p->rule = q->rule;
			return DROP_POLICY_IN;
		}
		p->rule = q->rule;
	}
	return DROP_NONE;
}

/* Do the rules let answers pass that come as packets of their own, without a flow? */
static __always_inline int answers_pass(const struct pkt *p, struct question *q, __u32 out, __u32 in)
{
	if (p->turned & TURNED_SELF)
		return 1;
	if (out) {
		ask_in(q, p, out);
		if (classify(q) != ACTION_ALLOW)
			return 0;
	}
	if (in) {
		ask_out(q, p, in);
		if (classify(q) != ACTION_ALLOW)
			return 0;
	}
	return 1;
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
__noinline int note_fragment(struct pkt *p, __u32 gen, __u32 to)
{
	struct fragment f = {.time = bpf_ktime_get_ns(), .generation = gen, .to = to};
	struct fragment_key key = {};

	if (!p)
		return 0;
	fragment_key(&key, p);
	return bpf_map_update_elem(&bh_fragments_v1, &key, &f, 0);
}

static __always_inline __u8 end_flags(const struct pkt *p, __u8 limit)
{
	return p->limits & limit ? PORT_RATE_IN : 0;
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
	me->flags = end_flags(p, LIMIT_BACK);
	__builtin_memcpy(me->mac, p->smac, ETH_ALEN);
	if (p->kind == PORT_RESOLVER || p->kind == PORT_REMOTE)
		return;
	__builtin_memcpy(key.mac, p->port_mac, ETH_ALEN);
	d = bpf_map_lookup_elem(&bh_macs_v1, &key);
	if (!d || d->port != p->ifindex)
		return;
	me->device = d->device;
	me->kind = d->kind;
}

/* A segment of a connection that nobody saw begin. It gives its receiver no right to
 * answer: else an ACK from outside would open a way for what its receiver may not send. */
static __always_inline int is_midway(const struct pkt *p)
{
	return p->proto == IPPROTO_TCP && !(p->flags & PKT_OPENER);
}

/* A flow of a service's client. Who meets itself answers by the MAC that it asked by. */
static __always_inline void note_service(struct flow *f, struct flow_end *me, const struct pkt *p)
{
	f->state |= p->turned & TURNED ? FLOW_TURNED : FLOW_KEPT;
	if (p->turned & TURNED_SOURCED)
		f->state |= FLOW_SOURCED;
	__builtin_memcpy(f->alias, p->alias, 16);
	f->aport = p->aport;
	if (p->turned & TURNED_SELF) {
		f->state |= FLOW_SELF;
		__builtin_memcpy(me->mac, p->dmac, ETH_ALEN);
	}
}

/* Notes who opens the flow of the key at hand, under a source of ours: 0, or that another client has it, which chose the
 * same port on another CPU at the same time. */
static __always_inline int take_client(struct scratch *room)
{
	const struct client *c;

	room->client = (struct client){};
	room->client.port = room->choice_key.sport;
	__builtin_memcpy(room->client.ip, room->choice_key.src, 16);
	if (!bpf_map_update_elem(&bh_clients_v1, &room->key, &room->client, BPF_NOEXIST))
		return DROP_NONE;
	c = bpf_map_lookup_elem(&bh_clients_v1, &room->key);
	return c && c->port == room->client.port && same_ip(c->ip, room->client.ip) ? DROP_NONE : DROP_FLOW_TABLE;
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
	int end, step;

	if (!p || !to || !room)
		return DROP_FLOW_TABLE;
	key = &room->key;
	*key = (struct flow_key){};
	room->flow = (struct flow){};
	f = &room->flow;
	end = flow_key(key, p->src.sw, p->proto, p->src.ip, p->sport, p->dst.ip, p->dport);
	key->sw |= half(p, end);
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
	f->state = is_midway(p) ? FLOW_MIDWAY : 0;
	own_end(me, p);
	you->port = to->port;
	you->device = to->device;
	you->kind = to->kind;
	you->flags = end_flags(p, LIMIT_IN);
	__builtin_memcpy(you->mac, p->dmac, ETH_ALEN);
	if (p->stale)
		f->state |= end ? FLOW_STALE_A : FLOW_STALE_B;
	f->charged = p->kind == PORT_CONTAINER ? p->ifindex : to->port;
	if (p->turned & (TURNED | TURNED_KEPT))
		note_service(f, me, p);
	if (p->turned & TURNED_SOURCED && take_client(room))
		return DROP_FLOW_TABLE;
	step = flow_open(key, f, limit);
	if (p->turned & TURNED_SOURCED && step > 0)
		bpf_map_delete_elem(&bh_clients_v1, key);
	/* The choice comes after the flow, with which it goes: without one nothing would ever forget it. */
	if (!step && p->turned & (TURNED | TURNED_KEPT))
		bpf_map_update_elem(&bh_choices_v1, &room->choice_key, &room->choice, 0);
	return step == FLOW_THERE ? DROP_NONE : step;
}

/* May answers come from where the packet goes to? A flow spares its packets the source
 * guard, so a container has none under an address that is not its own. */
static __always_inline int may_answer(const struct pkt *p, const struct port *to, const struct dest *d)
{
	const struct owner *o;

	if (to->kind != PORT_CONTAINER || p->turned & (TURNED_SELF | TURNED_KEPT))
		return 1;
	o = owner_of(&p->dst);
	return o && o->port == d->port;
}

/* A verification border: ends the flow of the key at hand. */
__noinline int end_flow(void)
{
	struct scratch *room = scratch();
	struct flow *f;

	if (!room)
		return 0;
	f = bpf_map_lookup_elem(&bh_flows_v4, &room->key);
	if (f)
		flow_end(&room->key, f);
	return 0;
}

/* Verdicts that are no drop reason. */
#define JUDGE_FIRST -1	/* there is no flow: as the first packet of a new one */
#define JUDGE_BESIDE -2 /* as the same, though the flow of the other end stays */

/* Does the flow that is there say anything about the packet? */
static __always_inline int weigh(const struct flow *f, const struct pkt *p, int end, const struct port *to,
				 const struct dest *d)
{
	if (f->end[end & 1].port != p->ifindex || f->end[!(end & 1)].port != d->port || f->state & FLOW_MIDWAY ||
	    !may_answer(p, to, d) || (f->opener == end && turned_otherwise(f, p)))
		return JUDGE_FIRST;
	if (!(p->flags & PKT_OPENER))
		return DROP_NONE;
	/* A connection on the ports of one that is closed. */
	if (is_closed(f))
		return JUDGE_FIRST;
	return f->opener == end ? DROP_NONE : JUDGE_BESIDE;
}

/* The rules have cut a connection: its packets are dropped, in both directions, and its
 * flow stays for the case that they let it go on. Whose rules: an answer is judged by
 * those that its question was. What its ends try is seen all the same: there is nothing to
 * wait for when they have ended it. */
static __always_inline int cut(struct flow *f, struct pkt *p, const struct dest *d, int end, int step)
{
	__u32 whose = (step == DROP_POLICY_IN) != (f->opener != end) ? d->port : p->ifindex;

	if (!(f->state & FLOW_CUT) && !is_closed(f))
		__sync_fetch_and_or(&f->state, FLOW_CUT);
	if (f->state & FLOW_CUT) {
		f->seen = bpf_ktime_get_coarse_ns();
		if (p->tcp & (TCP_FIN | TCP_RST) || f->state & FLOW_RESET)
			flow_tcp(f, p, end);
	}
	rule_add(whose, p->rule, 1, 1, p->len);
	if (whose != p->ifindex)
		p->at = whose;
	return step;
}

/* Packets from now on are other rules' packets. */
static __always_inline void change_rules(struct flow *f, const struct pkt *p)
{
	flow_settle(f);
	f->packets[0] = 0;
	f->packets[1] = 0;
	f->bytes[0] = 0;
	f->bytes[1] = 0;
	f->rule_out = p->rule_out;
	f->rule_in = p->rule;
}

/* A flow that is there, under rules that may be others by now: 0 or the reason against it,
 * or how else to judge the packet. */
static __always_inline int judge_again(struct pkt *p, struct question *q, struct flow_key *key, int end,
				       const struct port *from, const struct port *to, const struct dest *d,
				       __u32 gen)
{
	struct flow *f = bpf_map_lookup_elem(&bh_flows_v4, key);
	__u32 stale = end ? FLOW_STALE_A : FLOW_STALE_B;
	int step;

	if (!f)
		return JUDGE_FIRST;
	step = weigh(f, p, end, to, d);
	if (step == JUDGE_FIRST)
		end_flow();
	if (step)
		return step;
	if (f->opener == end)
		step = rules(p, q, from->out, to->in);
	else
		step = rules_back(p, q, to->out, from->in);
	if (step)
		return cut(f, p, d, end, step);
	if (p->rule_out != f->rule_out || p->rule != f->rule_in)
		change_rules(f, p);
	if (f->state & FLOW_CUT)
		__sync_fetch_and_and(&f->state, ~FLOW_CUT);
	if (p->tcp & (TCP_FIN | TCP_RST) || f->state & FLOW_RESET)
		flow_tcp(f, p, end);
	/* The sender may have learnt another MAC since. */
	__builtin_memcpy(f->end[!(end & 1)].mac, p->dmac, ETH_ALEN);
	/* An address may move between the host and the wire, which are behind one port. */
	f->end[!(end & 1)].device = d->device;
	f->end[!(end & 1)].kind = d->kind;
	if (p->stale)
		__sync_fetch_and_or(&f->state, stale);
	else if (f->state & stale)
		__sync_fetch_and_and(&f->state, ~stale);
	f->end[end & 1].flags = end_flags(p, LIMIT_BACK);
	f->end[!(end & 1)].flags = end_flags(p, LIMIT_IN);
	f->generation = gen;
	if (f->opener != end && f->state & FLOW_TURNED)
		to_answer(f, p);
	count_flow(f, p, end);
	return DROP_NONE;
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

/* Judges a packet as the first of its flow. Beside one that is there it gets none of its
 * own where that one is a live TCP connection: it would end it. */
static __always_inline int judge_first(struct __sk_buff *skb, struct pkt *p, struct question *q, const struct port *from,
				       const struct port *to, struct dest *d, __u32 gen, int beside)
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
	if (beside) {
		if (p->proto == IPPROTO_TCP)
			return DROP_NONE;
		end_flow();
	}
	if (!is_midway(p) && !take_up(p, d, gen))
		return DROP_NONE;
	/* No place in the table, or the middle of a connection. Without rules that make the
	 * answers depend on the flow it is only slower; with such it may not begin, for its
	 * answers would be dropped, and to a service not either, for theirs would be nobody's. */
	if ((!is_midway(p) && p->turned & (TURNED | TURNED_KEPT)) || !answers_pass(p, q, to->out, from->in)) {
		if (is_midway(p))
			return DROP_NONE;
		if (p->kind != PORT_CONTAINER) /* the share that is used up is the receiver's */
			p->at = d->port;
		return DROP_FLOW_TABLE;
	}
	if (is_midway(p) && !(p->tcp & (TCP_FIN | TCP_RST)))
		take_up(p, d, gen);
	return DROP_NONE;
}

/* Is an endpoint there, of this host or of another? Isolated ones exchange nothing with it. */
static __always_inline int is_peer(__u8 kind)
{
	return kind == PORT_CONTAINER || kind == PORT_REMOTE;
}

/* A verification border. Is an address that of an endpoint here? */
__noinline int is_endpoint(struct addr_key *addr)
{
	const struct owner *o;
	const struct port *at;
	__u32 port;

	if (!addr)
		return 0;
	o = owner_of(addr);
	if (!o || o->flags & (OWNER_GATEWAY | OWNER_GUEST))
		return 0;
	port = o->port;
	at = bpf_map_lookup_elem(&bh_ports_v3, &port);
	return at && at->kind == PORT_CONTAINER;
}

/* Isolated ports exchange nothing with other endpoints, neither on the switch nor by a router, which the host is for everybody
 * and others are on a LAN. */
static __always_inline int is_apart(struct pkt *p, const struct port *from, const struct port *to)
{
	if (p->turned & TURNED_SELF)
		return 0;
	if (is_peer(from->kind))
		return is_peer(to->kind) || (from->flags & PORT_ISOLATED && is_endpoint(&p->dst));
	return to->flags & PORT_ISOLATED && is_peer(to->kind) && is_endpoint(&p->src);
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
	from = bpf_map_lookup_elem(&bh_ports_v3, &port);
	port = d->port;
	to = bpf_map_lookup_elem(&bh_ports_v3, &port);
	if (!from || !to)
		return DROP_UNKNOWN_PORT;
	if (to->flags & PORT_RATE_IN)
		p->limits |= LIMIT_IN;
	if ((from->flags | to->flags) & PORT_ISOLATED && is_apart(p, from, to)) {
		if (!(from->flags & PORT_ISOLATED))
			p->at = d->port;
		return DROP_ISOLATED;
	}
	if (is_exempt(p) || is_renewal(p, to))
		return DROP_NONE;
	if (p->flags & PKT_NO_L4) {
		if (!from->out && !to->in)
			return DROP_NONE;
		step = judge_rest(p);
		if (step && !from->out) /* only the receiver's rules want to see the ports */
			p->at = d->port;
		return step;
	}
	end = flow_key(key, p->src.sw, p->proto, p->src.ip, p->sport, p->dst.ip, p->dport);
	key->sw |= half(p, end);
	step = JUDGE_FIRST;
	if (has_flow(p) && !(p->flags & PKT_TEST))
		step = judge_again(p, q, key, end, from, to, d, gen);
	if (step < 0 && p->turned & TURNED_ANSWER) /* its flow is gone, and with it what it would answer */
		return DROP_NO_BACKEND;
	if (step < 0)
		step = judge_first(skb, p, q, from, to, d, gen, step == JUDGE_BESIDE);
	if (!step && p->flags & PKT_FRAGMENT && !(p->flags & PKT_TEST) && (from->out || to->in || from->flags & PORT_STEERED))
		note_fragment(p, gen, d->port);
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
	from = bpf_map_lookup_elem(&bh_ports_v3, &port);
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

/* What a link lives by is not for isolated ports to say to each other: the switch answers for them. Not worth a drop. */
#define NO_COPY -1

/* A verification border: may this port have a copy? */
__noinline int judge_copy(struct pkt *p, __u32 port, __u32 isolated)
{
	const struct port *to = bpf_map_lookup_elem(&bh_ports_v3, &port);
	struct question q = {};

	if (!p || !to)
		return DROP_UNKNOWN_PORT;
	p->limits = to->flags & PORT_RATE_IN ? LIMIT_IN : 0;
	if ((isolated || to->flags & PORT_ISOLATED) && is_peer(p->kind) && is_peer(to->kind))
		return is_exempt(p) ? NO_COPY : DROP_ISOLATED;
	if (is_exempt(p) || !to->in)
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
