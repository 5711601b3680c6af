/* Internet checksums (RFC 1071). */
#ifndef BULKHEAD_CSUM_H
#define BULKHEAD_CSUM_H

#include "../include/helpers.h"

static __always_inline __u16 csum_fold(__u64 sum)
{
	sum = (sum & 0xffff) + ((sum >> 16) & 0xffff) + (sum >> 32);
	sum = (sum & 0xffff) + (sum >> 16);
	sum = (sum & 0xffff) + (sum >> 16);
	return ~sum;
}

#endif
