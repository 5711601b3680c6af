/* The source guard: a port sends as the endpoint behind it and as nobody else.
 * It is always on, so every later step may trust who a packet is from. */
#ifndef BULKHEAD_GUARD_H
#define BULKHEAD_GUARD_H

#include "owner.h"
#include "parse.h"
#include "route.h"

#define DHCP_FLAGS 18 /* of a message (RFC 2131, section 2), from the UDP header on */
#define DHCP_CHADDR 36
#define DHCP_BROADCAST 0x8000
#define UDP_CHECK 6
#define ICMP_REDIRECT 5
#define ICMP_ROUTER_ADVERT 9
#define MLD_QUERY 130
#define MLD_DONE 132
#define ND_ROUTER_SOLICIT 133
#define ND_ROUTER_ADVERT 134
#define ND_SOLICIT 135
#define ND_ADVERT 136
#define ND_REDIRECT 137
#define MLD2_REPORT 143

static __always_inline int is_icmp6(const struct pkt *p, __u8 type)
{
	return p->ethertype == ETH_P_IPV6 && p->proto == IPPROTO_ICMPV6 && !(p->flags & PKT_NO_L4) && p->type == type;
}

static __always_inline int is_membership(const struct pkt *p)
{
	if (p->ethertype == ETH_P_IP)
		return p->proto == IPPROTO_IGMP;
	if (p->ethertype != ETH_P_IPV6 || p->proto != IPPROTO_ICMPV6 || p->flags & PKT_NO_L4)
		return 0;
	return (p->type >= MLD_QUERY && p->type <= MLD_DONE) || p->type == MLD2_REPORT;
}

/* Addresses that have no business on a wire, whoever sends them. An IPv6 header with
 * a mapped address would otherwise be taken for IPv4 in our tables. */
static __always_inline int is_martian(const struct pkt *p, const __u8 *ip)
{
	const __u32 *w = words(ip);

	if (p->ethertype == ETH_P_IP)
		return ip[12] == 127 || ip[12] == 0;
	return is_mapped(ip) || (w[0] == 0 && w[1] == 0 && w[2] == 0 && w[3] == bpf_htonl(1));
}

static __always_inline int is_group_ip(const struct pkt *p, const __u8 *ip)
{
	return p->ethertype == ETH_P_IP ? ip[12] >= 224 : ip[0] == 0xff;
}

/* A DHCP client asks before it has an address. */
static __always_inline int is_dhcp_client(const struct pkt *p)
{
	return p->ethertype == ETH_P_IP && p->proto == IPPROTO_UDP && !(p->flags & PKT_FRAGMENT) && p->sport == 68 &&
	       p->dport == 67 && words(p->dst.ip)[3] == 0xffffffff;
}

/* Whatever server it asks, and of a fragment the first one. */
static __always_inline int asks_dhcp(const struct pkt *p)
{
	return p->ethertype == ETH_P_IP && p->proto == IPPROTO_UDP && !(p->flags & PKT_NO_L4) && p->dport == 67;
}

/* A verification border. A server gives an address to the MAC that a question says: one port could take all that a LAN has. No
 * client's question comes in fragments. One that is too short to say a MAC is none. */
__noinline int guard_dhcp(struct __sk_buff *skb, struct pkt *p)
{
	__u8 mac[ETH_ALEN];

	if (!p || !p->lan || p->kind != PORT_CONTAINER || !asks_dhcp(p))
		return DROP_NONE;
	if (p->flags & PKT_FRAGMENT)
		return DROP_SOURCE_MAC;
	if (bpf_skb_load_bytes(skb, p->l4 + DHCP_CHADDR, mac, sizeof(mac)) || same_mac(mac, p->port_mac))
		return DROP_NONE;
	return DROP_SOURCE_MAC;
}

static __always_inline int unspecified_ok(const struct pkt *p)
{
	/* Duplicate address detection and MLD (RFC 4862, RFC 3810) have no source yet. */
	return is_icmp6(p, ND_SOLICIT) || is_icmp6(p, MLD2_REPORT) || is_icmp6(p, 131) || is_dhcp_client(p);
}

/* Roles that only the host may play. */
static __always_inline int guard_role(const struct pkt *p)
{
	if (p->flags & PKT_NO_L4)
		return DROP_NONE;
	/* Clients go by the port that an answer is for, not by the one it comes from (RFC 7610). */
	if (p->proto == IPPROTO_UDP && p->ethertype == ETH_P_IP && (p->sport == 67 || p->dport == 68))
		return DROP_DHCP_SERVER;
	if (p->proto == IPPROTO_UDP && p->ethertype == ETH_P_IPV6 && (p->sport == 547 || p->dport == 546))
		return DROP_DHCP_SERVER;
	if (p->ethertype == ETH_P_IP && p->proto == IPPROTO_ICMP) {
		if (p->type == ICMP_REDIRECT)
			return DROP_REDIRECT;
		if (p->type == ICMP_ROUTER_ADVERT)
			return DROP_ROUTER_ADVERT;
	}
	if (is_icmp6(p, ND_ROUTER_ADVERT))
		return DROP_ROUTER_ADVERT;
	if (is_icmp6(p, ND_REDIRECT))
		return DROP_REDIRECT;
	return DROP_NONE;
}

/* The resolver shares MAC and addresses with the host's vNIC, so its port must not be
 * a second voice of the gateway: answers from port 53, and neighbour solicitations to
 * find who asked. No ports in a later fragment; its first one had them. */
static __always_inline int guard_resolver(const struct pkt *p, const struct owner *o)
{
	if (!o || !(o->flags & OWNER_GATEWAY))
		return DROP_SOURCE_ADDRESS;
	if (is_icmp6(p, ND_SOLICIT))
		return DROP_NONE;
	if (p->flags & PKT_GROUP)
		return DROP_RESOLVER;
	if (p->proto != IPPROTO_TCP && p->proto != IPPROTO_UDP)
		return DROP_RESOLVER;
	if (!(o->flags & OWNER_RESOLVER) || (!(p->flags & PKT_NO_L4) && p->sport != 53))
		return DROP_RESOLVER;
	return DROP_NONE;
}

static __always_inline int guard_address(struct pkt *p)
{
	const struct owner *o;

	if (is_unspecified(p->src.ip) && unspecified_ok(p) && (p->kind != PORT_RESOLVER || is_icmp6(p, ND_SOLICIT)))
		return DROP_NONE;
	if (is_martian(p, p->src.ip) || is_group_ip(p, p->src.ip))
		return DROP_MARTIAN;
	o = owner_of(&p->src);
	if (p->kind == PORT_RESOLVER)
		return guard_resolver(p, o);
	return (o && o->port == p->ifindex) || (!o && speaks(p)) ? DROP_NONE : DROP_SOURCE_ADDRESS;
}

/* A unicast packet in a group frame would reach every stack and step around the
 * rules of the one it is for. A subnet's broadcast address belongs to nobody, so it
 * passes. */
static __always_inline int guard_group(const struct pkt *p)
{
	if (!(p->flags & PKT_GROUP) || is_group_ip(p, p->dst.ip))
		return DROP_NONE;
	if (p->ethertype == ETH_P_IPV6)
		return DROP_GROUP_UNICAST;
	return owner_of(&p->dst) ? DROP_GROUP_UNICAST : DROP_NONE;
}

/* What every stack sends by itself, and nobody here needs. */
static __always_inline int guard_quiet(const struct pkt *p)
{
	if (is_membership(p))
		return DROP_MEMBERSHIP;
	return is_icmp6(p, ND_ROUTER_SOLICIT) ? DROP_ROUTER_SOLICIT : DROP_NONE;
}

/* A verification border. ARP and ND say more about their sender than their headers:
 * arp.h and nd.h check the rest. */
__noinline int guard(struct pkt *p)
{
	int reason;

	if (!p)
		return DROP_MALFORMED;
	if (p->smac[0] & 1)
		return DROP_MARTIAN;
	if (p->kind != PORT_HOST && !same_mac(p->smac, p->port_mac))
		return DROP_SOURCE_MAC;
	if (p->ethertype == ETH_P_ARP)
		return DROP_NONE;
	if (is_martian(p, p->dst.ip) || is_unspecified(p->dst.ip))
		return DROP_MARTIAN;
	/* The host is trusted with sources: it routes. Its loopback still stays home. */
	if (p->kind == PORT_HOST) {
		if (!is_unspecified(p->src.ip) && is_martian(p, p->src.ip))
			return DROP_MARTIAN;
	} else {
		/* The resolver's stack is a stack, too, however little may pass its port. */
		reason = p->kind == PORT_RESOLVER ? guard_quiet(p) : DROP_NONE;
		if (reason)
			return reason;
		reason = guard_address(p);
		if (reason)
			return reason;
		reason = guard_role(p);
		if (reason)
			return reason;
	}
	/* On a LAN, routers answer solicitations and switches listen for memberships. */
	reason = p->lan ? DROP_NONE : guard_quiet(p);
	return reason ? reason : guard_group(p);
}

#endif
