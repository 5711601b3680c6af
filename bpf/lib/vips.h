/* The addresses of services (balance.h). */
#ifndef BULKHEAD_VIPS_H
#define BULKHEAD_VIPS_H

#include "maps.h"

#define MAX_VIPS (1 << 16)

TABLE(bh_vips_v2, HASH, MAX_VIPS, struct vip_key, struct vip);

#endif
