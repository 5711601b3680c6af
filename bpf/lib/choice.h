/* Which back end a connection has (balance.h): noted with its flow, and forgotten with it. */
#ifndef BULKHEAD_CHOICE_H
#define BULKHEAD_CHOICE_H

#include "maps.h"
#include "parse.h"

/* What balance() decides that is no drop reason. */
#define BALANCED -1

TABLE(bh_choices_v1, HASH, MAX_FLOWS, struct choice_key, struct choice);

static __always_inline void choice_key(struct choice_key *k, const struct pkt *p)
{
	*k = (struct choice_key){};
	k->sw = p->src.sw;
	k->proto = p->proto;
	k->sport = p->sport;
	k->dport = p->dport;
	__builtin_memcpy(k->src, p->src.ip, 16);
	__builtin_memcpy(k->dst, p->dst.ip, 16);
}

/* A function of its own, for its key. The client is the one who opened the flow; who meets itself has the
 * other end's address. A client that goes on with another back end has a flow with that one, and the choice is
 * that flow's by now. */
static __noinline int choice_end(const struct flow_key *k, const struct flow *f)
{
	struct choice_key key = {};
	int opener = f->opener & 1;
	const struct choice *c;

	key.sw = k->sw;
	key.proto = k->proto;
	key.sport = opener ? k->bport : k->aport;
	__builtin_memcpy(key.src, opener ^ !!(f->state & FLOW_SELF) ? k->b : k->a, 16);
	if (f->state & FLOW_TURNED) {
		key.dport = f->aport;
		__builtin_memcpy(key.dst, f->alias, 16);
	} else {
		key.dport = opener ? k->aport : k->bport;
		__builtin_memcpy(key.dst, opener ? k->a : k->b, 16);
	}
	c = bpf_map_lookup_elem(&bh_choices_v1, &key);
	if (!c)
		return 0;
	if (f->state & FLOW_KEPT ? !same_ip(c->ip, f->alias)
				 : !same_ip(c->ip, opener ? k->a : k->b) || c->port != (opener ? k->aport : k->bport))
		return 0;
	return bpf_map_delete_elem(&bh_choices_v1, &key);
}

#endif
