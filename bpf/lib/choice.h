/* Which back end a connection has (balance.h): noted with its flow, and forgotten with it. */
#ifndef BULKHEAD_CHOICE_H
#define BULKHEAD_CHOICE_H

#include "maps.h"
#include "parse.h"

/* What balance() decides that is no drop reason. */
#define BALANCED -1

TABLE(bh_choices_v1, HASH, MAX_FLOWS, struct choice_key, struct choice);
TABLE(bh_clients_v1, HASH, MAX_FLOWS, struct flow_key, struct client);

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

/* Takes the client of a flow with FLOW_SOURCED out, into the scratch space. It goes before the flow: whoever has the
 * flow's place next has a client of its own. */
static __always_inline void client_end(const struct flow_key *k, const struct flow *f)
{
	struct scratch *room = scratch();
	const struct client *c;

	if (!room || !(f->state & FLOW_SOURCED))
		return;
	room->client = (struct client){};
	c = bpf_map_lookup_elem(&bh_clients_v1, k);
	if (!c)
		return;
	room->client = *c;
	bpf_map_delete_elem(&bh_clients_v1, k);
}

/* A function of its own, for its key. The client is the one who opened the flow; who meets itself has the
 * other end's address. A client that goes on with another back end has a flow with that one, and the choice is
 * that flow's by now. */
static __noinline int choice_end(const struct flow_key *k, const struct flow *f)
{
	struct choice_key key = {};
	const struct scratch *room = scratch();
	int opener = f->opener & 1;
	const struct choice *c;

	key.sw = k->sw;
	key.proto = k->proto;
	key.sport = opener ? k->bport : k->aport;
	__builtin_memcpy(key.src, opener ^ !!(f->state & FLOW_SELF) ? k->b : k->a, 16);
	if (room && f->state & FLOW_SOURCED) {
		key.sport = room->client.port;
		__builtin_memcpy(key.src, room->client.ip, 16);
	}
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
