package cli

import (
	"fmt"
	"net/netip"
	"strconv"
	"strings"

	"github.com/bulkhead-net/bulkhead/api"
	"github.com/bulkhead-net/bulkhead/hcn"
)

// networkFlags are the flags that say how a container is connected.
type networkFlags struct {
	networks []string
	ip, ip6  string
	mac      string
	aliases  []string
}

// parse gives either a mode ("none", "container:NAME", "namespace:NAME") or the networks to join.
// --ip and the like belong to the only network; several have their own options.
func (f networkFlags) parse() (mode string, list []api.NetworkAttachment, err error) {
	for _, s := range f.networks {
		if s == "none" || strings.HasPrefix(s, "container:") || strings.HasPrefix(s, "namespace:") {
			mode = s
			continue
		}
		n, err := parseNetwork(s)
		if err != nil {
			return "", nil, err
		}
		list = append(list, n)
	}
	single := f.ip != "" || f.ip6 != "" || f.mac != "" || len(f.aliases) > 0
	switch {
	case mode != "" && (len(f.networks) > 1 || single):
		return "", nil, api.Errorf(api.KindInvalid, "--network %s goes with no other network and no address", mode).
			Hint("drop the other network flags, or --network %s", mode)
	case mode == "namespace:":
		return "", nil, api.Errorf(api.KindInvalid, "--network namespace: names no namespace").Hint("write --network namespace:NAME")
	case mode == "container:":
		return "", nil, api.Errorf(api.KindInvalid, "--network container: names no container").Hint("write --network container:NAME")
	case single && len(list) > 1:
		return "", nil, api.Errorf(api.KindInvalid, "--ip, --ip6, --mac-address and --network-alias cannot tell which of %d networks is meant", len(list)).
			Hint("write them into the network, like --network %s:ip=ADDRESS", list[0].Network)
	case mode != "" || !single:
		return mode, list, nil
	}
	if len(list) == 0 {
		list = []api.NetworkAttachment{{Network: defaultNetwork}}
	}
	for _, o := range []struct{ key, value string }{{"ip", f.ip}, {"ip6", f.ip6}, {"mac", f.mac}} {
		if o.value == "" {
			continue
		}
		if err := setNetworkOption(&list[0], o.key, o.value); err != nil {
			return "", nil, api.Errorf(api.KindInvalid, "network %s: %w", list[0].Network, err).Hint("drop the flag, or correct it")
		}
	}
	list[0].Aliases = append(list[0].Aliases, f.aliases...)
	return "", list, nil
}

// defaultNetwork exists from the daemon's first start.
const defaultNetwork = "nat"

// parseNetwork reads NAME[:key=value,…].
func parseNetwork(s string) (api.NetworkAttachment, error) {
	name, options, hasOptions := strings.Cut(s, ":")
	n := api.NetworkAttachment{Network: name}
	err := checkNetworkName(name)
	if err == nil && hasOptions {
		err = networkOptions(&n, options)
	}
	if err != nil {
		return api.NetworkAttachment{}, api.Errorf(api.KindInvalid, "network %q: %w", s, err).
			Hint("write it like lan:ip=10.0.0.7,ip6=fd00::7,alias=db,interface=eth1,gw-priority=10")
	}
	return n, nil
}

func checkNetworkName(name string) error {
	switch name {
	case "":
		return fmt.Errorf("the name is missing")
	case "host":
		return fmt.Errorf("a container has a compartment of its own, never the host's: publish ports with -p, and reach the host as host.internal")
	}
	return nil
}

func networkOptions(n *api.NetworkAttachment, options string) error {
	for o := range strings.SplitSeq(options, ",") {
		key, value, ok := strings.Cut(o, "=")
		if !ok || value == "" {
			return fmt.Errorf("the option %q needs a value", key)
		}
		if err := setNetworkOption(n, key, value); err != nil {
			return err
		}
	}
	return nil
}

func setNetworkOption(n *api.NetworkAttachment, key, value string) error {
	switch key {
	case "ip", "ip6":
		a, err := parseFamily(value, key == "ip6")
		if err != nil {
			return err
		}
		for _, old := range n.Addresses {
			if b, err := netip.ParseAddr(old); err == nil && b.Is6() == a.Is6() {
				return fmt.Errorf("%s is given twice", key)
			}
		}
		n.Addresses = append(n.Addresses, a.String())
	case "mac":
		if n.MAC != "" {
			return fmt.Errorf("mac is given twice")
		}
		m, err := hcn.ParseMAC(value)
		if err != nil {
			return err
		}
		n.MAC = string(m)
	case "alias":
		n.Aliases = append(n.Aliases, value)
	case "interface":
		n.Interface = value
	case "gw-priority":
		p, err := strconv.Atoi(value)
		if err != nil {
			return fmt.Errorf("gw-priority %q is not a whole number", value)
		}
		n.GatewayPriority = p
	case "isolated":
		on, err := strconv.ParseBool(value)
		if err != nil {
			return fmt.Errorf("isolated %q is neither true nor false", value)
		}
		n.Isolated = on
	case "dns-first":
		on, err := strconv.ParseBool(value)
		if err != nil {
			return fmt.Errorf("dns-first %q is neither true nor false", value)
		}
		n.DNSFirst = on
	case "rate-out", "rate-in":
		rate, err := parseRate(value)
		if err != nil {
			return err
		}
		if key == "rate-out" {
			n.RateOut = rate
		} else {
			n.RateIn = rate
		}
	default:
		return fmt.Errorf("the option %q is not known: use ip, ip6, mac, alias, interface, gw-priority, isolated, dns-first, rate-out or rate-in", key)
	}
	return nil
}

func parseFamily(s string, want6 bool) (netip.Addr, error) {
	a, err := parseAddress(s)
	if err != nil {
		return a, err
	}
	if a.Is6() != want6 {
		if want6 {
			return a, fmt.Errorf("%s is an IPv4 address: give it as ip", a)
		}
		return a, fmt.Errorf("%s is an IPv6 address: give it as ip6", a)
	}
	return a, nil
}

// isolatedUsage is the help of --isolated.
const isolatedUsage = "exchange nothing with other endpoints of the network; the host and what is behind it stay reachable"

// rateOutUsage and rateInUsage are the help of --rate-out and --rate-in.
const (
	rateOutUsage = "what it may send, like 10mbit; see bulkhead rate"
	rateInUsage  = "what it may receive, likewise"
)

// dnsFirstUsage is the help of --dns-first.
const dnsFirstUsage = "ask this network's name servers before those of the compartment's other networks"
