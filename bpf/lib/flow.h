/* The flow table: what was decided for a connection's first packet, for both directions.
 * The daemon has no part in it: entries come with packets and go with a sweep (sweep.h). */
#ifndef BULKHEAD_FLOW_H
#define BULKHEAD_FLOW_H

#include "choice.h"
#include "drop.h"
#include "maps.h"
#include "parse.h"

#define SECOND 1000000000ULL

/* How long a flow may be silent. Established TCP has a day, as long as anybody keeps a
 * session open without a word; what is closed only waits for stragglers. */
#define IDLE_TCP (24 * 3600 * SECOND)
#define IDLE_TCP_OPENING (60 * SECOND)
#define IDLE_CLOSED (2 * SECOND)
#define IDLE_REPLIED (180 * SECOND)
#define IDLE_ONE_WAY (30 * SECOND)
/* A connection that the rules have cut: as long as its ends go on trying. */
#define IDLE_CUT (900 * SECOND)
/* The same when one of them has tried to end it. Nobody lets more than two minutes pass between two
 * tries: after that it has given up, or is gone. */
#define IDLE_CUT_ENDING (180 * SECOND)

#define RING_NO_WAKEUP 1

/* Only these have a flow: unicast with ports, echoes by their identifier, and other
 * protocols by their addresses. ICMP's messages stand each for itself. An IPv6 header with
 * mapped addresses, which the source guard drops, would be taken for a packet of an IPv4 flow. */
static __always_inline int has_flow(const struct pkt *p)
{
	if (p->flags & (PKT_GROUP | PKT_NO_L4) || (p->ethertype != ETH_P_IP && p->ethertype != ETH_P_IPV6))
		return 0;
	if (p->ethertype == ETH_P_IPV6 && is_mapped(p->src.ip))
		return 0;
	if (p->proto == IPPROTO_ICMP || p->proto == IPPROTO_ICMPV6)
		return p->flags & PKT_ECHO;
	return 1;
}

static __always_inline int lower(const __u8 *a, __u16 aport, const __u8 *b, __u16 bport)
{
	const __u32 *x = words(a), *y = words(b);

	if (x[3] != y[3])
		return x[3] < y[3];
	if (x[2] != y[2])
		return x[2] < y[2];
	if (x[1] != y[1])
		return x[1] < y[1];
	if (x[0] != y[0])
		return x[0] < y[0];
	return aport <= bport;
}

/* Fills the key and returns which end the source is. */
static __always_inline int flow_key(struct flow_key *k, __u32 sw, __u8 proto, const __u8 *src, __u16 sport,
				    const __u8 *dst, __u16 dport)
{
	int end = !lower(src, sport, dst, dport);

	k->sw = sw;
	k->proto = proto;
	if (end) {
		__builtin_memcpy(k->a, dst, 16);
		__builtin_memcpy(k->b, src, 16);
		k->aport = dport;
		k->bport = sport;
	} else {
		__builtin_memcpy(k->a, src, 16);
		__builtin_memcpy(k->b, dst, 16);
		k->aport = sport;
		k->bport = dport;
	}
	return end;
}

/* A frame from one port of a tunnel to another passes twice, and each time it is of the flow
 * of the port at hand. end is the one that the source is. */
static __always_inline __u32 half(const struct pkt *p, int end)
{
	return p->lan & LAN_TUNNEL && (p->kind == PORT_CONTAINER) == (end & 1) ? HALF : 0;
}

static __always_inline __u32 generation(void)
{
	__u32 zero = 0;
	const struct config *c = bpf_map_lookup_elem(&bh_config_v1, &zero);

	return c ? c->generation : 0;
}

/* Is the packet of this flow, from this end? An address may have moved to another port
 * since, and a MAC to another vNIC. */
static __always_inline int same_ends(const struct flow *f, const struct pkt *p, int end)
{
	const struct flow_end *me = &f->end[end & 1], *you = &f->end[!(end & 1)];

	if (me->port != p->ifindex || !same_mac(you->mac, p->dmac))
		return 0;
	/* With one MAC on the wire, what a port sends to the host for somebody there is answered
	 * from there. */
	return (me->kind == PORT_UPLINK) == (p->kind == PORT_UPLINK) || p->lan & LAN_ONE_MAC;
}

static __always_inline int is_closed(const struct flow *f)
{
	return f->state & FLOW_RESET || (f->state & (FLOW_FIN_A | FLOW_FIN_B)) == (FLOW_FIN_A | FLOW_FIN_B);
}

static __always_inline __u64 patience(const struct flow *f, __u8 proto)
{
	if (proto == IPPROTO_TCP) {
		if (f->state & FLOW_CUT)
			return f->state & (FLOW_RESET | FLOW_FIN_A | FLOW_FIN_B) ? IDLE_CUT_ENDING : IDLE_CUT;
		if (is_closed(f))
			return IDLE_CLOSED;
		if (f->state & FLOW_MIDWAY) /* its packets pass without it, too */
			return IDLE_REPLIED;
		return f->state & FLOW_REPLIED ? IDLE_TCP : IDLE_TCP_OPENING;
	}
	return f->state & FLOW_REPLIED ? IDLE_REPLIED : IDLE_ONE_WAY;
}

/* A client may have a connection to a service, one to another service and one past both between the same ports
 * of the same two: the newest one counts. */
static __always_inline int turned_otherwise(const struct flow *f, const struct pkt *p)
{
	if (!(f->state & FLOW_TURNED) != !(p->turned & TURNED) || !(f->state & FLOW_SOURCED) != !(p->turned & TURNED_SOURCED))
		return 1;
	return p->turned & TURNED && (f->aport != p->aport || !same_ip(f->alias, p->alias));
}

/* An answer of a back end: its source is to be what the receiver has asked. */
static __always_inline void to_answer(const struct flow *f, struct pkt *p)
{
	p->turned = TURNED_ANSWER | (f->state & FLOW_SELF ? TURNED_SELF : 0) | (f->state & FLOW_SOURCED ? TURNED_SOURCED : 0);
	p->aport = f->aport;
	__builtin_memcpy(p->alias, f->alias, 16);
}

/* What a flow says about its packet. Others of the opener's have been turned before it was found. */
static __always_inline void recall(const struct flow *f, struct pkt *p, int end)
{
	if (f->opener != end && f->state & FLOW_TURNED) {
		to_answer(f, p);
	} else if (f->opener == end && f->state & FLOW_KEPT) {
		p->turned = TURNED_KEPT;
		__builtin_memcpy(p->alias, f->alias, 16);
	}
}

/* A verification border, to keep its variables off the callers' stacks. */
__noinline int rule_add(__u32 port, __u32 rule, __u64 matches, __u64 packets, __u64 bytes)
{
	struct rule_stat_key key = {.port = port, .rule = rule};
	struct rule_stats *s;

	if (!rule)
		return 0;
	s = bpf_map_lookup_elem(&bh_rulestats_v1, &key);
	if (!s) {
		struct rule_stats first = {.matches = matches, .packets = packets, .bytes = bytes};

		if (!bpf_map_update_elem(&bh_rulestats_v1, &key, &first, BPF_NOEXIST))
			return 0;
		/* Another CPU was faster, and has made room for this one, too; or the table is full. */
		s = bpf_map_lookup_elem(&bh_rulestats_v1, &key);
		if (!s)
			return 0;
	}
	s->matches += matches;
	s->packets += packets;
	s->bytes += bytes;
	return 0;
}

/* Hands a flow's packets over to the rules that let it pass. */
static __always_inline void flow_settle(const struct flow *f)
{
	__u64 packets = f->packets[0] + f->packets[1], bytes = f->bytes[0] + f->bytes[1];

	rule_add(f->end[f->opener & 1].port, f->rule_out, 0, packets, bytes);
	rule_add(f->end[!(f->opener & 1)].port, f->rule_in, 0, packets, bytes);
}

/* A flow for which the log had no room. */
static __always_inline void log_lost(void)
{
	__u32 zero = 0;
	__u64 *n = bpf_map_lookup_elem(&bh_lost_v1, &zero);

	if (n)
		(*n)++;
}

static __always_inline void flow_log(const struct flow_key *k, const struct flow *f)
{
	struct flow_record *r = bpf_ringbuf_reserve(&bh_flowlog_v1, sizeof(*r), 0);

	if (!r) {
		log_lost();
		return;
	}
	__builtin_memcpy(&r->key, k, sizeof(*k));
	r->rule_out = f->rule_out;
	r->rule_in = f->rule_in;
	r->opened = f->opened;
	r->seen = f->seen;
	r->packets[0] = f->packets[0];
	r->packets[1] = f->packets[1];
	r->bytes[0] = f->bytes[0];
	r->bytes[1] = f->bytes[1];
	r->port[0] = f->end[0].port;
	r->port[1] = f->end[1].port;
	r->opener = f->opener;
	r->state = f->state;
	r->pad = 0;
	bpf_ringbuf_submit(r, RING_NO_WAKEUP);
}

static __always_inline void share_add(__u32 port, __s64 n)
{
	struct share *s = bpf_map_lookup_elem(&bh_shares_v4, &port);

	if (s)
		__sync_fetch_and_add(&s->flows, n);
}

/* Whoever takes it out settles it, where two do at once. The entry stays readable until the
 * program has ended. */
static __always_inline void flow_end(const struct flow_key *k, struct flow *f)
{
	__u32 charged = f->charged;

	client_end(k, f);
	if (bpf_map_delete_elem(&bh_flows_v4, k))
		return;
	if (f->state & (FLOW_TURNED | FLOW_KEPT))
		choice_end(k, f);
	flow_settle(f);
	flow_log(k, f);
	share_add(charged, -1);
}

static __always_inline void count_flow(struct flow *f, const struct pkt *p, int end)
{
	int back = end != f->opener;
	__u64 now = bpf_ktime_get_coarse_ns();

	if (f->seen != now)
		f->seen = now;
	f->packets[back & 1]++;
	f->bytes[back & 1] += p->len;
	if (back && !(f->state & FLOW_REPLIED))
		__sync_fetch_and_or(&f->state, FLOW_REPLIED);
}

/* What TCP's flags say about the end of a connection. A blind reset with a wrong sequence
 * number is ignored by the stacks: so one counts only until both ends have sent something. One
 * end alone proves nothing, for two CPUs may bring its last packets in another order. */
static __always_inline void flow_tcp(struct flow *f, const struct pkt *p, int end)
{
	__u32 mine = end ? FLOW_SINCE_B : FLOW_SINCE_A, both = FLOW_SINCE_A | FLOW_SINCE_B;

	if (p->tcp & TCP_RST) {
		__sync_fetch_and_and(&f->state, ~both);
		__sync_fetch_and_or(&f->state, FLOW_RESET);
		return;
	}
	if (f->state & FLOW_RESET && f->state & both & ~mine)
		__sync_fetch_and_and(&f->state, ~(FLOW_RESET | both));
	else if (f->state & FLOW_RESET && !(f->state & mine))
		__sync_fetch_and_or(&f->state, mine);
	if (!(p->tcp & TCP_FIN))
		return;
	__sync_fetch_and_or(&f->state, end ? FLOW_FIN_B : FLOW_FIN_A);
}

/* Where a port has more than this part of its share, a connection takes its flow along when
 * it ends. That keeps room, and the table in the CPU's caches: of thousands that have ended
 * each entry would be fetched from memory to be made, and again to be swept out. */
#define MANY_FLOWS 64

/* A verification border. What follows both ends' FIN is the last of a connection. Where flows
 * are many it takes its flow along; else that waits for stragglers. */
__noinline int flow_last(const struct flow_key *k)
{
	struct scratch *room = scratch();
	const struct config *c;
	const struct share *s;
	__u32 at = 0;
	struct flow *f;

	if (!k || !room)
		return 0;
	room->key = *k; /* 6.1 takes no key from where a caller has it */
	f = bpf_map_lookup_elem(&bh_flows_v4, &room->key);
	c = bpf_map_lookup_elem(&bh_config_v1, &at);
	if (!f || !c)
		return 0;
	at = f->charged;
	s = bpf_map_lookup_elem(&bh_shares_v4, &at);
	if (s && (__s64)s->flows > c->flows_per_port / MANY_FLOWS)
		flow_end(&room->key, f);
	return 0;
}

/* What flow_open() says that is no drop reason. */
#define FLOW_THERE -1

/* Takes up a flow: 0, or why not. The caller counts the packet. */
static __always_inline int flow_open(struct flow_key *k, const struct flow *first, __u32 limit)
{
	struct share *s = bpf_map_lookup_elem(&bh_shares_v4, &first->charged);

	if (s) {
		/* Below zero where the count began after its flows. */
		if ((__s64)s->flows >= (__s64)limit)
			return DROP_FLOW_TABLE;
		__sync_fetch_and_add(&s->flows, 1);
	}
	if (bpf_map_update_elem(&bh_flows_v4, k, first, BPF_NOEXIST)) {
		if (s)
			__sync_fetch_and_add(&s->flows, -1);
		/* Another CPU was faster with a packet of the same flow; or the table is full. */
		return bpf_map_lookup_elem(&bh_flows_v4, k) ? FLOW_THERE : DROP_FLOW_TABLE;
	}
	return DROP_NONE;
}

#endif
