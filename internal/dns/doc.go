// Package dns is the resolver of every network: it answers the names of the
// network's endpoints from the plan and forwards the rest.
//
// A resolver listens on port 53 of its network's gateway addresses, inside a
// compartment of its own, so the host's port 53 stays free for whoever wants it
// and no packet to it crosses NAT. It forwards from ordinary sockets of the
// daemon. This package neither enters namespaces nor reads files: who builds a
// [Resolver] hands it functions that open sockets and name the host's resolvers.
//
// # What is answered here
//
// In this order, the first that applies:
//
//   - host.internal, host.docker.internal, host.containers.internal: the host's
//     addresses; gateway.internal, gateway.docker.internal: the gateways. No
//     container can take these names over.
//   - localhost and everything below it: loopback. invalid, onion and
//     resolver.arpa do not exist.
//   - A name or alias of an endpoint on the network, bare, below the network's
//     domain or below "internal". Several endpoints with one name: all their
//     addresses, rotated. An alias "*.app" answers for everything below app that
//     has no entry of its own; the longest wildcard wins.
//   - The same names of the other networks that the asking compartment is on. A
//     container on two networks therefore finds the names of both, whichever
//     resolver it asks; nobody else does.
//   - Addresses in the prefixes of any of our networks, asked in reverse. They
//     are never forwarded. Only the network's own (and the asker's other
//     networks') are answered.
//   - An unknown name of a single label does not exist: it would tell an outside
//     server our containers' names, make every typing error and every container
//     that is not up yet slow, and let a stranger answer for it. Questions that
//     only make sense for a top-level domain (NS, SOA, DS, DNSKEY) go out.
//     Config.ForwardSingleLabel (the daemon's --dns-forward-single-label) sends all
//     of them out, for LANs with such names.
//   - An unknown name below the network's domain does not exist either, if the
//     domain is ours alone: it has one label, or ends in a suffix that is private
//     by definition, and the network names no servers of its own. Below any other
//     domain it is forwarded, because it may be the company's real one.
//
// An endpoint may have servers of its own (`run --dns`, Dns.ServerList of the
// document). They take the place of the network's for what it asks: our names are
// answered as ever, and the rest goes to those servers and nowhere else.
//
// A name that exists without the asked type gets an empty answer, so that no
// client concludes from a missing AAAA that there is no A. Names below
// "internal" that are not ours are forwarded: clouds keep their metadata there.
//
// Answers live 5 seconds in a client's cache, negative ones 1 second, so that a
// client that waits for its database finds it as soon as it is up.
//
// # What is forwarded, and how
//
// The first upstream gets a head start, the next is asked when that has passed
// or at once when one fails, SERVFAIL and REFUSED included. All waits end before
// a stub resolver's five seconds do. Answers are cached; when no upstream
// answers, expired ones are used (RFC 8767). A network that is closed (Internal,
// Private) never uses the host's resolvers, because that would be a way out; it
// forwards only to servers that the network itself or the asking endpoint names,
// and refuses else.
package dns
