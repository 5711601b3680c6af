// Package nat applies a plan to the host's netfilter: one nftables table of our own, `inet bulkhead`, the conntrack
// entries of what it no longer says, and the sockets that reserve published ports.
//
// The table is static rules over sets and maps. A network, an endpoint or a port is an element, never a rule, so its
// cost does not grow with their number and a change is one small netlink message. What the rules decide:
//
//		       raw            dstnat          filter               srcnat
//		 in ──▶ guard ──▶ ct ──▶ prerouting ──▶ forward ─────────────▶ postrouting ──▶ out
//		                          │ publish      to_network / from_network
//		 host process ─────────▶ output ──▶ redirects ──────────────▶ postrouting ──▶ out
//
//	  - guard (before conntrack): frames that try to reach loopback, a container or a gateway address from the wrong
//	    side end here, so no later rule or sysctl of anybody can let them in;
//	  - publish: a destination address and port of the host becomes a container's;
//	  - forward: networks are apart from each other and from the outside, except through published ports;
//	  - postrouting: what leaves a NAT network gets the host's address, fully random so that no two flows race for a port.
//
// No chain has a policy but accept, nothing is marked, and an accept here ends only our own chain: a drop in anybody
// else's table stays a drop.
//
// # Loopback
//
// 127.0.0.1:8080 and [::1]:8080 of the host lead into a container without a forwarder process. The output chain
// translates the destination; postrouting the source, which must not stay loopback, to the gateway's address. The
// answer comes in on the host's vNIC addressed to the gateway and conntrack turns that back into 127.0.0.1 or ::1
// after the guard has seen it. The kernel then has to accept a loopback destination on that device:
//
//   - IPv4: net.ipv4.conf.<vNIC>.route_localnet=1;
//   - IPv6 has no such switch. A look-up for ::1 is strict about the interface (rt6_need_strict), so what is needed is a
//     route to it on that device: `ip -6 route add local ::1/128 dev <vNIC> table local metric <2048 + ifindex>` (each
//     needs a metric of its own). The kernel's ::1 on lo has metric 0 and goes on serving everything else. Without the route the answer is counted as
//     Ip6InNoRoutes and the connection hangs in SYN_RECV; verified on 6.18, TCP and UDP.
//
// Both are per device, on our devices only, and belong to the netdev applier. The guard drops what arrives there
// addressed to or from loopback, so that a container cannot use them; IPv6 also refuses such packets before any hook.
package nat
