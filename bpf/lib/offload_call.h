/* Where the port program hands a container's flow to the outside over to the offload.
 * That is a program of its own (bpf/uplink.bpf.c), because it needs more of the kernel
 * than the switch does: where it cannot be loaded the slot is empty, and the flow goes
 * on to the host's stack as ever. */
#ifndef BULKHEAD_OFFLOAD_CALL_H
#define BULKHEAD_OFFLOAD_CALL_H

#include "../include/helpers.h"
#include "parse.h"
#include "send.h"
#include "structs.h"

/* Packets that a flow must have had. Short connections gain nothing: their packets are
 * those that netfilter has to see. */
#define OFFLOAD_AFTER 16

/* What the port program says in skb->cb, which nobody else uses between the two. The
 * packet as parsed is in the scratch space. */
#define OFFLOAD_CB_DEVICE 0   /* the host's vNIC */
#define OFFLOAD_CB_ELIGIBLE 1 /* worth carrying */

#define OFFLOAD_SLOT 0

struct {
	__uint(type, BPF_MAP_TYPE_PROG_ARRAY);
	__uint(max_entries, 1);
	__uint(pinning, PIN_BY_NAME);
	__uint(key_size, sizeof(__u32));
	__uint(value_size, sizeof(__u32));
} bh_offload_calls_v1 SEC(".maps");

/* What carry() answers instead of sending: the main program calls, for the verifier of some
 * machines lets no other function do so. */
#define CARRY_OFFERED 0x100

/* 1 when the offload wants to see the packet: it has no entry of a flow that it has not
 * been offered, but for one whose count has begun anew, which must learn of its end. */
static __always_inline int offload_offer(struct __sk_buff *skb, const struct flow *f, const struct pkt *p, __u32 device)
{
	int eligible = f->packets[0] + f->packets[1] >= OFFLOAD_AFTER;

	if (!eligible && !(p->tcp & (TCP_FIN | TCP_RST)))
		return 0;
	skb->cb[OFFLOAD_CB_DEVICE] = device;
	skb->cb[OFFLOAD_CB_ELIGIBLE] = eligible;
	return 1;
}

/* Goes on here only when the slot is empty. */
static __always_inline int offload_call(struct __sk_buff *skb)
{
	__u32 device = skb->cb[OFFLOAD_CB_DEVICE];

	bpf_tail_call(skb, &bh_offload_calls_v1, OFFLOAD_SLOT);
	return send(skb, device, PORT_HOST);
}

#endif
