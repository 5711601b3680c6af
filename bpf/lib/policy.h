/* The rules of a port. They are not walked: every field of a packet is looked up once,
 * each look-up gives a vector of the rules that the field matches, and the first bit that
 * is set in all of them is the first rule that matches. (Lakshman and Stiliadis,
 * "High-Speed Policy-based Packet Forwarding", SIGCOMM 1998.) So a thousand rules cost
 * what ten do, but for the length of the vectors. */
#ifndef BULKHEAD_POLICY_H
#define BULKHEAD_POLICY_H

#include "maps.h"
#include "parse.h"

/* Steps of the search: one for each piece of the vectors and each Pass. The loader
 * refuses a list that could need more. */
#define MAX_STEPS 256

static __always_inline const struct vector *vector(__u32 number, __u32 piece, const struct vector *blank)
{
	struct vector_key key = {.vector = number, .piece = piece};
	const struct vector *v = number ? bpf_map_lookup_elem(&bh_vectors_v1, &key) : 0;

	return v ? v : blank;
}

/* The index of the lowest bit of a word that is not zero: the count of the bits below it.
 * No branches, for the verifier follows each one. */
static __always_inline __u32 lowest(__u64 x)
{
	x = (x & -x) - 1;
	x -= (x >> 1) & 0x5555555555555555ULL;
	x = (x & 0x3333333333333333ULL) + ((x >> 2) & 0x3333333333333333ULL);
	x = (x + (x >> 4)) & 0x0f0f0f0f0f0f0f0fULL;
	return (x * 0x0101010101010101ULL) >> 56;
}

/* The pieces of one search, never null, and for each look-up all bits if every rule
 * matches there. */
struct pieces {
	const struct vector *local, *local_set, *remote, *remote_set, *service, *remote_ports;
	__u64 any_local, any_remote, any_service, any_remote_ports;
};

#define MEET(v, field)                                                              \
	(((v)->local->field | (v)->local_set->field | (v)->any_local) &             \
	 ((v)->remote->field | (v)->remote_set->field | (v)->any_remote) &          \
	 ((v)->service->field | (v)->any_service) & ((v)->remote_ports->field | (v)->any_remote_ports))

/* The first bit at or after `first` that all vectors have in this piece, or VECTOR_BITS. */
static __always_inline __u32 meet(const struct pieces *v, __u32 first)
{
	__u64 some = MEET(v, some), hit;

	some &= ~0ULL << (first / 64);
	for (int i = 0; i < VECTOR_WORDS; i++) {
		__u32 word;

		if (!some)
			break;
		word = lowest(some) & (VECTOR_WORDS - 1);
		some &= some - 1;
		hit = MEET(v, words[word]);
		if (word == first / 64)
			hit &= ~0ULL << (first % 64);
		if (hit)
			return word * 64 + lowest(hit);
	}
	return VECTOR_BITS;
}

/* One piece of the vectors; 1 ends the search. */
static long search_piece(__u32 turn, void *ctx)
{
	const struct vector *blank = 0;
	struct scratch *room = scratch();
	struct vector_key none = {};
	struct rule_key key = {};
	const struct rule *rule;
	struct search *s;
	struct pieces v;
	__u32 piece, bit;

	if (!room)
		return 1;
	s = &room->search;
	blank = bpf_map_lookup_elem(&bh_vectors_v1, &none);
	key.policy = s->policy;
	piece = s->at / VECTOR_BITS;
	if (s->at >= s->rules)
		return 1;
	if (!blank) { /* never: the daemon writes it before anything else */
		s->action = ACTION_BLOCK;
		return 1;
	}
	v.local = vector(s->local, piece, blank);
	v.local_set = vector(s->local_set, piece, blank);
	v.remote = vector(s->remote, piece, blank);
	v.remote_set = vector(s->remote_set, piece, blank);
	v.service = vector(s->service, piece, blank);
	v.remote_ports = vector(s->remote_ports, piece, blank);
	/* All bits where the flag is not set: one less than the flag's bit, with no branch. */
	v.any_local = (((__u64)s->flags | s->flags >> 2) & 1) - 1;
	v.any_remote = (((__u64)s->flags | s->flags >> 2) >> 1 & 1) - 1;
	v.any_service = ((__u64)s->flags >> 4 & 1) - 1;
	v.any_remote_ports = ((__u64)s->flags >> 5 & 1) - 1;
	bit = meet(&v, s->at % VECTOR_BITS);
	if (bit >= VECTOR_BITS) {
		s->at = (piece + 1) * VECTOR_BITS;
		return 0;
	}
	key.index = piece * VECTOR_BITS + bit;
	if (key.index >= s->rules) { /* where every rule matches, so do bits behind the last */
		s->at = s->rules;
		return 1;
	}
	rule = bpf_map_lookup_elem(&bh_rules_v1, &key);
	if (!rule) { /* never: rules are written before their policy */
		s->action = ACTION_BLOCK;
		return 1;
	}
	if (rule->action == ACTION_PASS) {
		s->at = rule->next;
		return 0;
	}
	s->found = rule->number;
	s->action = rule->action;
	return 1;
}

static __always_inline __u32 prefix_vector(const struct question *q, __u8 side, const __u8 *ip)
{
	struct prefix_key key = {.bits = 64 + 128, .policy = q->policy, .side = side};
	const __u32 *v;

	__builtin_memcpy(key.ip, ip, 16);
	v = bpf_map_lookup_elem(&bh_prefixes_v1, &key);
	return v ? *v : 0;
}

static __always_inline __u32 set_vector(const struct question *q, __u8 side, const __u8 *ip)
{
	struct class_key class = {.policy = q->policy, .side = side};
	struct set_key key = {.bits = 32 + 128, .sw = q->sw};
	const __u32 *v;

	__builtin_memcpy(key.ip, ip, 16);
	v = bpf_map_lookup_elem(&bh_sets_v1, &key);
	if (!v)
		return 0;
	class.class = *v;
	v = bpf_map_lookup_elem(&bh_classes_v1, &class);
	return v ? *v : 0;
}

static __always_inline __u32 service_vector(const struct question *q, __u8 side, __u16 port)
{
	struct service_key key = {.bits = 64, .policy = q->policy, .side = side, .port = bpf_htons(port)};
	const __u32 *v;

	key.proto = side == SIDE_LOCAL ? q->proto : 0;
	v = bpf_map_lookup_elem(&bh_services_v1, &key);
	return v ? *v : 0;
}

/* A verification border: what a list of rules says. A policy that is missing blocks. */
__noinline int classify(struct question *q)
{
	const struct policy *pol;
	struct scratch *room = scratch();
	struct search *s;
	__u32 policy;
	int ported;

	if (!q || !room)
		return ACTION_BLOCK;
	s = &room->search;
	*s = (struct search){};
	q->rule = 0;
	policy = q->policy;
	s->policy = policy;
	pol = bpf_map_lookup_elem(&bh_policies_v1, &policy);
	if (!pol)
		return ACTION_BLOCK;
	s->rules = pol->rules;
	s->flags = pol->flags;
	s->action = pol->fallback;
	if (s->flags & POLICY_LOCAL)
		s->local = prefix_vector(q, SIDE_LOCAL, q->local);
	if (s->flags & POLICY_REMOTE)
		s->remote = prefix_vector(q, SIDE_REMOTE, q->remote);
	if (s->flags & POLICY_LOCAL_SETS)
		s->local_set = set_vector(q, SIDE_LOCAL, q->local);
	if (s->flags & POLICY_REMOTE_SETS)
		s->remote_set = set_vector(q, SIDE_REMOTE, q->remote);
	ported = q->proto == IPPROTO_TCP || q->proto == IPPROTO_UDP;
	if (s->flags & POLICY_SERVICE)
		s->service = service_vector(q, SIDE_LOCAL, ported ? q->lport : 0);
	if (s->flags & POLICY_REMOTE_PORTS)
		s->remote_ports = service_vector(q, SIDE_REMOTE, ported ? q->rport : 0);
	bpf_loop(MAX_STEPS, search_piece, 0, 0);
	q->rule = s->found;
	return s->action;
}

#endif
