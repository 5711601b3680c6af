// Package hcn is the schema of the Host Compute Network API: the documents that clients send and get (networks, endpoints,
// namespaces, load balancers, routes), what makes them valid, and the errors that say why one is not.
//
// It is written for clients that were made for the Windows Host Networking Service, so names and numbers on the wire are
// those of the HCN schema. Everything here is pure: no system calls, no state, standard library only. A document is decoded
// once at the door with [Decode], checked with its Validate method, and is a plain value from then on.
//
// Rules that hold for all documents (HCN schema, Windows HNS behaviour):
//
//   - member names match in any letter case on input and are exact on output; unknown members are ignored;
//   - GUIDs are accepted with or without braces in any case, and are upper case without braces from then on;
//   - enums are accepted as name (any case) or number and come out as names; flag masks come out as numbers;
//   - addresses, prefixes and MACs stay strings, as the client wrote them; methods parse them.
package hcn
