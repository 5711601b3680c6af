package cli

import (
	"fmt"
	"io"
	"net/netip"
	"strconv"
	"strings"

	"github.com/bulkhead-net/bulkhead/api"
)

// The scopes of a published port that are not an address.
const (
	exposeLoopback = "loopback"
	exposeLAN      = "lan"
	exposeAll      = "all"
)

// parseExpose reads --expose.
func parseExpose(s string) (string, error) {
	switch s {
	case "", exposeLoopback:
		return exposeLoopback, nil
	case exposeLAN, exposeAll:
		return s, nil
	}
	a, err := parseAddress(s)
	if err != nil {
		return "", api.Errorf(api.KindInvalid, "--expose %q is not a scope: %w", s, err).
			Hint("use loopback, lan, all, or an address of this host")
	}
	return a.String(), nil
}

// parseAddress takes an address that one can listen on.
func parseAddress(s string) (netip.Addr, error) {
	a, err := netip.ParseAddr(strings.TrimSuffix(strings.TrimPrefix(s, "["), "]"))
	switch {
	case err != nil:
		return netip.Addr{}, fmt.Errorf("%q is not an IP address", s)
	case a.Zone() != "":
		return netip.Addr{}, fmt.Errorf("%s has a zone: leave out what follows %%", s)
	case a.Is4In6():
		return netip.Addr{}, fmt.Errorf("%s is an IPv4 address in IPv6 form: write %s", s, a.Unmap())
	case a.IsUnspecified():
		return netip.Addr{}, fmt.Errorf("%s stands for every address: say --expose all if that is meant", s)
	case a.IsMulticast():
		return netip.Addr{}, fmt.Errorf("%s is a multicast address", s)
	}
	return a, nil
}

// portRange is first to last, both included. The zero value is "none given".
type portRange struct{ first, last uint16 }

func (r portRange) count() int { return int(r.last) - int(r.first) + 1 }

func parsePortRange(s string) (portRange, error) {
	from, to, isRange := strings.Cut(s, "-")
	if !isRange {
		to = from
	}
	a, errA := parsePort(from)
	b, errB := parsePort(to)
	switch {
	case errA != nil:
		return portRange{}, errA
	case errB != nil:
		return portRange{}, errB
	case b < a:
		return portRange{}, fmt.Errorf("the range %q ends before it begins", s)
	}
	return portRange{a, b}, nil
}

func parsePort(s string) (uint16, error) {
	n, err := strconv.ParseUint(s, 10, 16)
	if err != nil || n == 0 || s[0] == '+' {
		return 0, fmt.Errorf("%q is not a port: use 1 to 65535", s)
	}
	return uint16(n), nil
}

// parsePublish reads -p [ADDRESS:]HOST[-LAST]:CONTAINER[-LAST][/PROTOCOL]. Where
// the host's port is left out the daemon picks one. An address says by itself
// who can reach the port; expose is for the ports without one.
func parsePublish(s, expose string) ([]api.PublishedPort, error) {
	ports, err := publish(s, expose)
	if err != nil {
		return nil, api.Errorf(api.KindInvalid, "publish %q: %w", s, err).
			Hint("write it like 8080:80, 127.0.0.1:8080:80, 8000-8010:8000-8010/udp, or [::1]:8080:80")
	}
	return ports, nil
}

func publish(s, expose string) ([]api.PublishedPort, error) {
	rest, protocol, hasProtocol := strings.Cut(s, "/")
	if !hasProtocol {
		protocol = "tcp"
	}
	protocol = strings.ToLower(protocol)
	if protocol != "tcp" && protocol != "udp" {
		return nil, fmt.Errorf("protocol %q cannot be published: use tcp or udp", protocol)
	}
	address, hostText, containerText, err := splitPublish(rest)
	if err != nil {
		return nil, err
	}
	switch address {
	case "":
	case "localhost":
		expose = exposeLoopback
	default:
		a, err := parseAddress(address)
		if err != nil {
			return nil, err
		}
		expose = a.String()
	}
	container, err := parsePortRange(containerText)
	if err != nil {
		return nil, err
	}
	if hostText == "" { // each is picked for itself: the ports need not be neighbours
		var ports []api.PublishedPort
		for n := range container.count() {
			ports = append(ports, api.PublishedPort{Protocol: protocol, Expose: expose, ContainerPort: container.first + uint16(n)})
		}
		return ports, nil
	}
	host, err := parsePortRange(hostText)
	if err != nil {
		return nil, err
	}
	if host.count() != container.count() {
		return nil, fmt.Errorf("%s of the host cannot go to %s of the container: both sides need the same number",
			plural(host.count(), "port"), plural(container.count(), "port"))
	}
	p := api.PublishedPort{Protocol: protocol, Expose: expose, HostPort: host.first, ContainerPort: container.first}
	if host.count() > 1 {
		p.Count = uint16(min(host.count(), 65535))
	}
	return []api.PublishedPort{p}, nil
}

// splitPublish takes [ADDRESS:][HOST:]CONTAINER apart; an IPv6 address is in brackets.
func splitPublish(s string) (address, host, container string, err error) {
	if strings.HasPrefix(s, "[") {
		a, rest, ok := strings.Cut(s[1:], "]:")
		if !ok || a == "" {
			return "", "", "", fmt.Errorf("the address in brackets needs its ] and ports after it")
		}
		address, s = a, rest
		if !strings.Contains(s, ":") {
			return "", "", "", fmt.Errorf("ports are missing after the address: write [%s]:8080:80", a)
		}
	}
	parts := strings.Split(s, ":")
	switch {
	case len(parts) == 1:
		return address, "", parts[0], nil
	case len(parts) == 2 && parts[0] == "" && address == "":
		return "", "", "", fmt.Errorf("the host's port is missing before the colon")
	case len(parts) == 2:
		return address, parts[0], parts[1], nil
	case len(parts) == 3 && address == "" && parts[0] != "":
		return parts[0], parts[1], parts[2], nil
	case len(parts) > 3 && address == "":
		return "", "", "", fmt.Errorf("there are too many colons: put an IPv6 address in brackets")
	}
	return "", "", "", fmt.Errorf("the parts between the colons do not fit")
}

// announce says which ports more than this host can reach, and why: nobody should
// learn that from a scanner.
func announce(w io.Writer, ports []api.PublishedPort, asked func(api.PublishedPort) string) {
	for _, p := range ports {
		var where string
		switch p.Expose {
		case exposeLAN:
			where = "every LAN address"
		case exposeAll:
			where = "every address"
		default:
			a, err := netip.ParseAddr(p.Expose)
			if err != nil || a.IsLoopback() {
				continue
			}
			where = a.String()
		}
		fmt.Fprintf(w, "published %s on %s (asked by %s)\n", portText(p), where, asked(p))
	}
}

func portText(p api.PublishedPort) string {
	switch {
	case p.HostPort == 0:
		return fmt.Sprintf("a free port for %d/%s", p.ContainerPort, p.Protocol)
	case p.Count > 1:
		return fmt.Sprintf("%d-%d/%s", p.HostPort, int(p.HostPort)+int(p.Count)-1, p.Protocol)
	}
	return fmt.Sprintf("%d/%s", p.HostPort, p.Protocol)
}

// publishFlags are -p and --expose together.
type publishFlags struct {
	publish []string
	expose  string
}

// parse gives the ports, and for each the flag that asked for its scope.
func (f publishFlags) parse() ([]api.PublishedPort, map[api.PublishedPort]string, error) {
	expose, err := parseExpose(f.expose)
	if err != nil {
		return nil, nil, err
	}
	var ports []api.PublishedPort
	asked := map[api.PublishedPort]string{}
	exposeUsed := f.expose == ""
	for _, s := range f.publish {
		own, err := parsePublish(s, expose)
		if err != nil {
			return nil, nil, err
		}
		address, _, _, _ := splitPublish(s)
		why := "--expose " + f.expose
		if address != "" {
			why = "-p " + s
		} else {
			exposeUsed = true
		}
		for _, p := range own {
			asked[p] = why
		}
		ports = append(ports, own...)
	}
	if !exposeUsed {
		return nil, nil, api.Errorf(api.KindInvalid, "--expose %s changes nothing: no -p is without an address", f.expose).
			Hint("add -p HOST:CONTAINER, or drop --expose")
	}
	return ports, asked, nil
}
