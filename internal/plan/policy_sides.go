package plan

import (
	"net/netip"
	"slices"

	"github.com/bulkhead-net/bulkhead/hcn"
)

// sides decides which address field of a rule is the endpoint's side.
//
// With plain addresses it is as the names say: LocalAddresses are the endpoint's,
// RemoteAddresses the peer's. Clients that use address sets write the source into
// LocalAddresses and the destination into RemoteAddresses, whatever the direction.
// So a rule that names a set is read by source and destination, unless read that way
// it could never match: then the fields are what their names say, or, on the way out,
// the other way round. "Holds" is: one of the field's sets or prefixes holds an address
// of the endpoint.
//
//	      LocalAddresses      RemoteAddresses     the endpoint's side is
//	In    any entries         empty               Remote: from Local to all of it
//	In    any entries         holds               Remote
//	In    empty, or holds     does not hold       Local
//	In    does not hold       does not hold       Remote; it matches nothing
//	Out   empty, or holds     any entries         Local
//	Out   does not hold       empty, or holds     Remote
//	Out   does not hold       does not hold       Local; it matches nothing
//
// Prefixes count as little as possible: when a field names sets, only they are asked.
// The ports are the endpoint's and the peer's in every case, as those clients write
// them.
type sides struct {
	addrs []netip.Addr // of the endpoint
	sets  map[string]*addressSet
}

func (s sides) of(w *written) (local, remote Addresses) {
	local, remote = Addresses(w.match.Local), Addresses(w.match.Remote)
	if len(local.Sets) == 0 && len(remote.Sets) == 0 {
		return local, remote
	}
	// The field that holds the endpoint when source and destination are meant.
	expected, other := local, remote
	if w.dir == hcn.DirectionTypeIn {
		expected, other = remote, local
	}
	if !s.fits(expected) && s.fits(other) {
		expected, other = other, expected
	}
	return expected, other
}

// fits tells whether the field can be the endpoint's side.
func (s sides) fits(a Addresses) bool {
	if len(a.Sets) > 0 {
		return slices.ContainsFunc(a.Sets, func(id string) bool { return s.sets[id].holds(s.addrs) })
	}
	return a.Any() || slices.ContainsFunc(a.Prefixes, func(p netip.Prefix) bool { return slices.ContainsFunc(s.addrs, p.Contains) })
}
