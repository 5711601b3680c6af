// Package wireguard carries what encrypted networks send to other hosts inside WireGuard.
//
// The devices are in a compartment of their own, which has no other way out; only their UDP sockets are in the host's namespace. The VXLAN
// device of encrypted networks has its socket in there too. So what such a network sends finds the way by WireGuard or none, whatever
// becomes of routes, rules and devices of the host; and nothing that came in by a NIC gets to it. docs/adr/0027 tells why.
//
// There is a device for each generation of keys: two while keys are changed, one else. Each is the kernel's where it has WireGuard
// ([ProbeKernel]), and elsewhere wireguard-go, as a library, in a process of its own ([Serve]). Either outlives the daemon that made it.
package wireguard
