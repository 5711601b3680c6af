package hcn

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"
)

// L4ProxyPolicySetting sends matching flows of an endpoint to a proxy. It is enforced outside of the compartment, where nothing
// inside can reach it.
type L4ProxyPolicySetting struct {
	IP            string   `json:",omitempty"`
	Port          string   `json:",omitempty"` // "": the port that the flow is for
	Protocol      Protocol `json:",omitempty"` // 0: TCP
	ExceptionList []string `json:",omitempty"`
	Destination   string   `json:",omitempty"` // "": all of the family of IP
	OutboundNat   bool     `json:",omitempty"`
}

// UnmarshalJSON also takes Exceptions, the name that clients send, and a port that is a number.
func (s *L4ProxyPolicySetting) UnmarshalJSON(b []byte) error {
	type plain L4ProxyPolicySetting
	w := struct {
		plain
		Exceptions []string
		Port       proxyText
	}{}
	if err := json.Unmarshal(b, &w); err != nil {
		return err
	}
	*s = L4ProxyPolicySetting(w.plain)
	s.ExceptionList = append(s.ExceptionList, w.Exceptions...)
	s.Port = string(w.Port)
	return nil
}

func (s L4ProxyPolicySetting) validate(path string) error {
	ip, err := parseAddr(s.IP)
	if err != nil {
		return invalid(ErrInvalidPolicy, path+".IP", "where is the proxy? %w", err)
	}
	if ip.IsUnspecified() || ip.IsMulticast() || ip.IsLoopback() || ip.IsLinkLocalUnicast() {
		return invalid(ErrInvalidPolicy, path+".IP", "flows cannot be sent to %s: name an address that the host can route to; the host itself is the network's gateway", ip)
	}
	if err := checkPort(path+".Port", s.Port); err != nil {
		return err
	}
	if s.Protocol != 0 && s.Protocol != ProtocolTCP && s.Protocol != ProtocolUDP {
		return invalid(ErrInvalidPolicy, path+".Protocol", "%s cannot be sent to a proxy: use 6 for TCP or 17 for UDP", s.Protocol)
	}
	for _, l := range []struct {
		name string
		list []string
	}{{"ExceptionList", s.ExceptionList}, {"Destination", commaList(s.Destination)}} {
		if err := addrsOrPrefixes(path+"."+l.name, l.list); err != nil {
			return err
		}
		for i, text := range l.list {
			if p, err := parseAddrOrPrefix(text); err == nil && p.Addr().Is4() != ip.Is4() {
				return invalid(ErrInvalidPolicy, fmt.Sprintf("%s.%s[%d]", path, l.name, i),
					"%s is not of the family of the proxy's address %s: write a policy for each family", p, ip)
			}
		}
	}
	return nil
}

// Proxy is where the flows go. Port 0 stands for the one that a flow is for.
func (s L4ProxyPolicySetting) Proxy() netip.AddrPort {
	ip, _ := parseAddr(s.IP) // Validate has refused what is none
	return netip.AddrPortFrom(ip, portOf(s.Port))
}

// Transport is the protocol of the flows.
func (s L4ProxyPolicySetting) Transport() uint8 {
	if s.Protocol == 0 {
		return uint8(ProtocolTCP)
	}
	return uint8(s.Protocol)
}

// Destinations are those whose flows go to the proxy; none stands for all.
func (s L4ProxyPolicySetting) Destinations() []netip.Prefix {
	return prefixesOf(commaList(s.Destination))
}

// Exceptions are destinations whose flows do not.
func (s L4ProxyPolicySetting) Exceptions() []netip.Prefix { return prefixesOf(s.ExceptionList) }

// validateOn refuses a proxy that a network cannot lead to.
func (s L4ProxyPolicySetting) validateOn(n *HostComputeNetwork, path string) error {
	ip := s.Proxy().Addr()
	if n.Type != Internal || len(n.AllSubnets()) == 0 || n.SubnetOf(ip) != nil {
		return nil
	}
	return invalid(ErrInvalidPolicy, path+".Settings.IP", "%s is not on network %s, which is Internal and leads nowhere else: "+
		"use the gateway, for a proxy on the host, or the address of an endpoint of this network", ip, n.label())
}

// L4WfpProxyPolicySetting redirects flows inside the compartment to a side-car, whose own user is exempt.
type L4WfpProxyPolicySetting struct {
	InboundProxyPort   string               `json:",omitempty"`
	OutboundProxyPort  string               `json:",omitempty"`
	FilterTuple        FiveTuple            `json:",omitzero"`
	UserSID            string               `json:",omitempty"`
	InboundExceptions  L4WfpProxyExceptions `json:",omitzero"`
	OutboundExceptions L4WfpProxyExceptions `json:",omitzero"`
}

// FiveTuple selects flows: Local is the endpoint's side, Remote the peer's.
type FiveTuple struct {
	Protocols       string `json:",omitempty"`
	LocalAddresses  string `json:",omitempty"`
	RemoteAddresses string `json:",omitempty"`
	LocalPorts      string `json:",omitempty"`
	RemotePorts     string `json:",omitempty"`
	Priority        uint16 `json:",omitempty"`
}

// L4WfpProxyExceptions are flows left alone: by the peer's address, or by the port that they are for.
type L4WfpProxyExceptions struct {
	IpAddressExceptions []string `json:",omitempty"`
	PortExceptions      []string `json:",omitempty"`
}

// proxyText is text that clients also send as a number.
type proxyText string

// UnmarshalJSON reads a text or a number.
func (t *proxyText) UnmarshalJSON(b []byte) error {
	if string(b) == "null" {
		return nil
	}
	s, err := scalarText(b)
	*t = proxyText(s)
	return err
}

// proxyList is a list that clients also send as one text with commas, and whose entries may be numbers.
type proxyList []string

// UnmarshalJSON reads a list or a text.
func (l *proxyList) UnmarshalJSON(b []byte) error {
	if len(b) == 0 || b[0] != '[' {
		var t proxyText
		err := t.UnmarshalJSON(b)
		*l = commaList(string(t))
		return err
	}
	var list []proxyText
	err := json.Unmarshal(b, &list)
	for _, e := range list {
		*l = append(*l, string(e))
	}
	return err
}

// UnmarshalJSON also takes ports that are numbers, and Port, which older clients send for OutboundProxyPort.
func (s *L4WfpProxyPolicySetting) UnmarshalJSON(b []byte) error {
	type plain L4WfpProxyPolicySetting
	w := struct {
		plain
		InboundProxyPort, OutboundProxyPort, UserSID, Port proxyText
	}{}
	if err := json.Unmarshal(b, &w); err != nil {
		return err
	}
	*s = L4WfpProxyPolicySetting(w.plain)
	s.InboundProxyPort, s.OutboundProxyPort, s.UserSID = string(w.InboundProxyPort), string(w.OutboundProxyPort), string(w.UserSID)
	if s.OutboundProxyPort == "" {
		s.OutboundProxyPort = string(w.Port)
	}
	return nil
}

// UnmarshalJSON also takes a single protocol or port that is a number.
func (f *FiveTuple) UnmarshalJSON(b []byte) error {
	type plain FiveTuple
	w := struct {
		plain
		Protocols, LocalPorts, RemotePorts proxyText
	}{}
	if err := json.Unmarshal(b, &w); err != nil {
		return err
	}
	*f = FiveTuple(w.plain)
	f.Protocols, f.LocalPorts, f.RemotePorts = string(w.Protocols), string(w.LocalPorts), string(w.RemotePorts)
	return nil
}

// UnmarshalJSON also takes lists that are one text with commas.
func (e *L4WfpProxyExceptions) UnmarshalJSON(b []byte) error {
	w := struct{ IpAddressExceptions, PortExceptions proxyList }{}
	if err := json.Unmarshal(b, &w); err != nil {
		return err
	}
	*e = L4WfpProxyExceptions{IpAddressExceptions: w.IpAddressExceptions, PortExceptions: w.PortExceptions}
	return nil
}

func (s L4WfpProxyPolicySetting) validate(path string) error {
	if s.InboundProxyPort == "" && s.OutboundProxyPort == "" {
		return invalid(ErrInvalidPolicy, path+".OutboundProxyPort", "there is no proxy: set it, InboundProxyPort or both to the port that the side-car listens on")
	}
	if err := checkPort(path+".InboundProxyPort", s.InboundProxyPort); err != nil {
		return err
	}
	if err := checkPort(path+".OutboundProxyPort", s.OutboundProxyPort); err != nil {
		return err
	}
	if _, _, err := parseProxyUser(s.UserSID); err != nil {
		return invalid(ErrInvalidPolicy, path+".UserSID", "%w", err)
	}
	if err := s.FilterTuple.validate(path + ".FilterTuple"); err != nil {
		return err
	}
	if err := s.InboundExceptions.validate(path + ".InboundExceptions"); err != nil {
		return err
	}
	return s.OutboundExceptions.validate(path + ".OutboundExceptions")
}

// validate knows that redirected flows have ports, so these need no protocol beside them.
func (f FiveTuple) validate(path string) error {
	protocols, err := parseProtocols(f.Protocols)
	if err != nil {
		return invalid(ErrInvalidPolicy, path+".Protocols", "%w", err)
	}
	for _, p := range protocols {
		if Protocol(p) != ProtocolTCP && Protocol(p) != ProtocolUDP {
			return invalid(ErrInvalidPolicy, path+".Protocols", "%s cannot be redirected to a port: use 6 for TCP, 17 for UDP or both", Protocol(p))
		}
	}
	for _, l := range []struct{ name, list string }{{"LocalPorts", f.LocalPorts}, {"RemotePorts", f.RemotePorts}} {
		if err := checkPortList(path+"."+l.name, l.list); err != nil {
			return err
		}
	}
	for _, l := range []struct{ name, list string }{{"LocalAddresses", f.LocalAddresses}, {"RemoteAddresses", f.RemoteAddresses}} {
		if err := addrsOrPrefixes(path+"."+l.name, commaList(l.list)); err != nil {
			return err
		}
	}
	return nil
}

func (e L4WfpProxyExceptions) validate(path string) error {
	if err := addrsOrPrefixes(path+".IpAddressExceptions", e.IpAddressExceptions); err != nil {
		return err
	}
	return checkPortList(path+".PortExceptions", strings.Join(e.PortExceptions, ","))
}

// InboundPort and OutboundPort are where the side-car listens for flows of each direction; 0 leaves a direction alone.
func (s L4WfpProxyPolicySetting) InboundPort() uint16 { return portOf(s.InboundProxyPort) }

// OutboundPort is the same for flows that the compartment opens.
func (s L4WfpProxyPolicySetting) OutboundPort() uint16 { return portOf(s.OutboundProxyPort) }

// ProxyUser is a user or a group by number, as the compartment's processes have it.
type ProxyUser struct {
	ID    uint32
	Group bool
}

// User is the side-car's own; ok is false when none is named.
func (s L4WfpProxyPolicySetting) User() (u ProxyUser, ok bool) {
	u, ok, _ = parseProxyUser(s.UserSID) // Validate has refused what is none
	return u, ok
}

// The SIDs that have a meaning here: LocalSystem is the system's own user, and the others are what Samba calls Unix users and
// groups by number.
const (
	sidLocalSystem = "S-1-5-18"
	sidUnixUser    = "S-1-22-1-"
	sidUnixGroup   = "S-1-22-2-"
)

func parseProxyUser(s string) (u ProxyUser, ok bool, err error) {
	if s == "" {
		return u, false, nil
	}
	if strings.EqualFold(s, sidLocalSystem) {
		return u, true, nil
	}
	number := s
	for _, f := range []struct {
		prefix string
		group  bool
	}{{"uid:", false}, {"gid:", true}, {sidUnixUser, false}, {sidUnixGroup, true}} {
		if len(s) > len(f.prefix) && strings.EqualFold(s[:len(f.prefix)], f.prefix) {
			number, u.Group = s[len(f.prefix):], f.group
		}
	}
	id, err := strconv.ParseUint(number, 10, 32)
	switch {
	case err == nil && id < 1<<32-1:
		u.ID = uint32(id)
		return u, true, nil
	case strings.HasPrefix(strings.ToUpper(s), "S-1-"):
		return u, false, fmt.Errorf("%s is a SID that no user here has: use %s for root, %sN for the user N, %sN for the group N", quote(s), sidLocalSystem, sidUnixUser, sidUnixGroup)
	}
	return u, false, fmt.Errorf("%s is no user by number: write 1337, uid:1337 or gid:1337; the number of a name is `id -u NAME` in the container, where names are known", quote(s))
}

// Selection is the FilterTuple, parsed. Empty fields select everything.
type Selection struct {
	Protocols               []uint8 // never empty
	Local, Remote           []netip.Prefix
	LocalPorts, RemotePorts []PortRange
}

// Selection parses the FilterTuple. Without Protocols it is TCP: a side-car takes connections, and a datagram does not tell it
// where it was to go.
func (f FiveTuple) Selection() (Selection, error) {
	m, err := aclMatch{f.Protocols, f.LocalAddresses, f.RemoteAddresses, f.LocalPorts, f.RemotePorts}.parse()
	s := Selection{Protocols: m.Protocols, Local: m.Local.Prefixes, Remote: m.Remote.Prefixes, LocalPorts: m.LocalPorts, RemotePorts: m.RemotePorts}
	if len(s.Protocols) == 0 {
		s.Protocols = []uint8{uint8(ProtocolTCP)}
	}
	slices.Sort(s.Protocols)
	s.Protocols = slices.Compact(s.Protocols)
	return s, err
}

// Parse gives the peers' addresses and the ports that flows are for.
func (e L4WfpProxyExceptions) Parse() ([]netip.Prefix, []PortRange, error) {
	ports, err := parsePorts(strings.Join(e.PortExceptions, ","))
	return prefixesOf(e.IpAddressExceptions), ports, err
}

// prefixesOf parses a list that was validated.
func prefixesOf(list []string) []netip.Prefix {
	var out []netip.Prefix
	for _, s := range list {
		if p, err := parseAddrOrPrefix(s); err == nil {
			out = append(out, p.Masked())
		}
	}
	return out
}

func checkPort(path, s string) error {
	if s == "" {
		return nil
	}
	if portOf(s) == 0 {
		return invalid(ErrInvalidPolicy, path, "%s is not a port: use 1 to 65535", quote(s))
	}
	return nil
}

// portOf is 0 for what is no port.
func portOf(s string) uint16 {
	n, err := strconv.ParseUint(s, 10, 16)
	if err != nil {
		return 0
	}
	return uint16(n)
}
