package hcn

import (
	"bytes"
	"encoding/json"
	"net/netip"
	"strings"
)

// QueryFlags is how much a query wants to know.
type QueryFlags uint32

// QueryDetailed adds Health, Extra and the state of allocators.
const QueryDetailed QueryFlags = 1

var queryFlagNames = flagNames{{1, "Detailed"}}

// UnmarshalJSON reads a number or a name.
func (f *QueryFlags) UnmarshalJSON(b []byte) error {
	return parseFlagsJSON(f, queryFlagNames, "Flags", ErrInvalidJSON, b)
}

// HostComputeQuery selects objects and the shape of the answer. Filter is a JSON object encoded as a string.
type HostComputeQuery struct {
	SchemaVersion SchemaVersion `json:",omitzero"`
	Flags         QueryFlags    `json:",omitempty"`
	Filter        string        `json:",omitempty"`
}

// UnmarshalJSON also takes a filter that is an object and not a string.
func (q *HostComputeQuery) UnmarshalJSON(b []byte) error {
	var w struct {
		SchemaVersion SchemaVersion
		Flags         QueryFlags
		Filter        json.RawMessage
	}
	if err := json.Unmarshal(b, &w); err != nil {
		return err
	}
	*q = HostComputeQuery{SchemaVersion: w.SchemaVersion, Flags: w.Flags}
	switch {
	case len(w.Filter) == 0 || string(w.Filter) == "null":
		return nil
	case w.Filter[0] == '{':
		q.Filter = string(w.Filter)
		return nil
	}
	return json.Unmarshal(w.Filter, &q.Filter)
}

// ParseQuery reads the text of a query; an empty one asks for everything.
func ParseQuery(s string) (HostComputeQuery, error) {
	if strings.TrimSpace(s) == "" {
		return HostComputeQuery{}, nil
	}
	q, err := Decode[HostComputeQuery]([]byte(s))
	if err != nil {
		e := AsError(err)
		return HostComputeQuery{}, Errorf(e.Code, "query: %s", e.Detail)
	}
	return *q, q.SchemaVersion.check()
}

// WantsV1 reports whether the answer is to have the v1 shape.
func (q HostComputeQuery) WantsV1() bool { return q.SchemaVersion.Major == 1 }

// Detailed reports whether Health and the like are wanted.
func (q HostComputeQuery) Detailed() bool { return q.Flags&QueryDetailed != 0 }

// Parse reads the query's filter.
func (q HostComputeQuery) Parse() (Filter, error) { return ParseFilter(q.Filter) }

// Filter is a set of conditions that must all hold. The zero value matches everything.
type Filter struct {
	members map[string]json.RawMessage // names in lower case
}

// maxFilterMembers is more than any kind has members.
const maxFilterMembers = 64

// ParseFilter reads a filter; an empty text matches all.
func ParseFilter(s string) (Filter, error) {
	if strings.TrimSpace(s) == "" {
		return Filter{}, nil
	}
	m, err := Decode[map[string]json.RawMessage]([]byte(s))
	if err != nil {
		return Filter{}, Errorf(ErrInvalidJSON, "Filter: %s: write it like {\"Name\":\"nat\"}, encoded as a string", AsError(err).Detail)
	}
	if len(*m) > maxFilterMembers {
		return Filter{}, invalid(ErrInvalidJSON, "Filter", "there are %d members, %d is the limit", len(*m), maxFilterMembers)
	}
	f := Filter{members: make(map[string]json.RawMessage, len(*m))}
	for name, v := range *m {
		f.members[strings.ToLower(name)] = v
	}
	return f, nil
}

// match asks has for every member. has is false for a member that the kind does not have: nothing matches then.
func (f Filter) match(has func(name string, want condition) bool) bool {
	for name, raw := range f.members {
		if !has(name, condition(bytes.TrimSpace(raw))) {
			return false
		}
	}
	return true
}

// condition is the wanted value of one member. Values of a wrong kind match nothing: an enumeration does not fail.
type condition json.RawMessage

func (c condition) text(v string) bool {
	s, err := scalarText(c)
	return err == nil && s == v
}

func (c condition) guid(v GUID) bool {
	s, err := scalarText(c)
	if err != nil {
		return false
	}
	if s == "" {
		return v.IsZero()
	}
	g, err := ParseGUID(s)
	return err == nil && g == v
}

func (c condition) enum(n names, v int) bool {
	s, err := scalarText(c)
	if err != nil {
		return false
	}
	want, ok := n.parse(s)
	return ok && want == v
}

func (c condition) mask(f flagNames, v uint32) bool {
	s, err := scalarText(c)
	if err != nil {
		return false
	}
	want, err := f.parse(s)
	return err == nil && want == v
}

func (c condition) mac(v MAC) bool {
	s, err := scalarText(c)
	return err == nil && s != "" && MAC(s).Equal(v)
}

func (c condition) addr(list []IpConfig) bool {
	s, err := scalarText(c)
	if err != nil {
		return false
	}
	want, err := netip.ParseAddr(s)
	if err != nil {
		return false
	}
	for _, i := range list {
		if a, err := netip.ParseAddr(i.IpAddress); err == nil && a == want.Unmap() {
			return true
		}
	}
	return false
}

// MatchNetwork reports whether the filter selects the network.
func (f Filter) MatchNetwork(n *HostComputeNetwork) bool {
	return f.match(func(name string, want condition) bool {
		switch name {
		case "id":
			return want.guid(n.ID)
		case "name":
			return want.text(n.Name)
		case "owner":
			return want.text(n.Owner)
		case "type":
			return want.enum(networkTypeNames, int(n.Type))
		case "flags":
			return want.mask(networkFlagNames, uint32(n.Flags))
		}
		return false
	})
}

// MatchEndpoint reports whether the filter selects the endpoint. VirtualNetwork is the v1 word for HostComputeNetwork, and
// still the one that clients send.
func (f Filter) MatchEndpoint(e *HostComputeEndpoint) bool {
	return f.match(func(name string, want condition) bool {
		switch name {
		case "id":
			return want.guid(e.ID)
		case "name":
			return want.text(e.Name)
		case "owner":
			return want.text(e.Owner)
		case "virtualnetwork", "hostcomputenetwork":
			return want.guid(e.HostComputeNetwork)
		case "hostcomputenamespace":
			return want.guid(e.HostComputeNamespace)
		case "macaddress":
			return want.mac(e.MacAddress)
		case "ipaddress":
			return want.addr(e.IpConfigurations)
		case "flags":
			return want.mask(endpointFlagNames, uint32(e.Flags))
		case "state":
			return want.enum(endpointStateNames, int(e.State))
		}
		return false
	})
}

// MatchNamespace reports whether the filter selects the namespace.
func (f Filter) MatchNamespace(n *HostComputeNamespace) bool {
	return f.match(func(name string, want condition) bool {
		switch name {
		case "id":
			return want.guid(n.ID)
		case "name":
			return want.text(n.Name)
		case "owner":
			return want.text(n.Owner)
		case "namespaceguid":
			return want.guid(n.NamespaceGuid)
		case "type":
			return want.enum(namespaceTypeNames, int(n.Type))
		}
		return false
	})
}

// MatchLoadBalancer reports whether the filter selects the load balancer.
func (f Filter) MatchLoadBalancer(l *HostComputeLoadBalancer) bool {
	return f.matchBase(l.ID, l.Name, l.Owner, l.HostComputeNetwork, loadBalancerFlagNames, uint32(l.Flags))
}

// MatchRoute reports whether the filter selects the route.
func (f Filter) MatchRoute(r *HostComputeRoute) bool {
	return f.matchBase(r.ID, r.Name, r.Owner, r.HostComputeNetwork, nil, 0)
}

// MatchGuestNetworkService reports whether the filter selects the service.
func (f Filter) MatchGuestNetworkService(g *GuestNetworkService) bool {
	return f.match(func(member string, want condition) bool {
		switch member {
		case "id":
			return want.guid(g.ID)
		case "name":
			return want.text(g.Name)
		case "owner":
			return want.text(g.Owner)
		case "virtualmachineid":
			return want.guid(g.VirtualMachineId)
		}
		return false
	})
}

func (f Filter) matchBase(id GUID, name, owner string, network GUID, flags flagNames, v uint32) bool {
	return f.match(func(member string, want condition) bool {
		switch member {
		case "id":
			return want.guid(id)
		case "name":
			return want.text(name)
		case "owner":
			return want.text(owner)
		case "virtualnetwork", "hostcomputenetwork":
			return want.guid(network)
		case "flags":
			return flags != nil && want.mask(flags, v)
		}
		return false
	})
}
