/* How a frame leaves a program: to the port that it is for. */
#ifndef BULKHEAD_SEND_H
#define BULKHEAD_SEND_H

#include "maps.h"

/* To the host's vNIC the frame is handed on its receiving side: redirect_peer refuses
 * when both ends are in one namespace. Into a compartment redirect_peer saves the way
 * through the veth and its queue. */
static __always_inline int send(struct __sk_buff *skb, __u32 device, __u8 kind)
{
	/* The frame was not for the MAC of the device it came in by, so the kernel takes it
	 * for somebody else's; and the host's mark means nothing in a compartment. */
	if (skb->pkt_type != PACKET_HOST)
		bpf_skb_change_type(skb, PACKET_HOST);
	if (skb->mark)
		skb->mark = 0;
	if (kind == PORT_HOST)
		return bpf_redirect(device, BPF_F_INGRESS);
	return bpf_redirect_peer(device, 0);
}

#endif
