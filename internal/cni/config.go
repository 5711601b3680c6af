package cni

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"strings"

	"github.com/containernetworking/cni/pkg/types"
	current "github.com/containernetworking/cni/pkg/types/100"
	"github.com/containernetworking/cni/pkg/version"

	"github.com/bulkhead-net/bulkhead/api"
	"github.com/bulkhead-net/bulkhead/client"
	"github.com/bulkhead-net/bulkhead/hcn"
)

// maxConfig bounds a network configuration. With ten thousand attachments to keep, one for GC is below it.
const maxConfig = 4 << 20

// config is the network configuration of the plugin.
type config struct {
	types.PluginConf
	// Network on which containers are put, by name or GUID; the configuration's own name if empty.
	Network string `json:"network"`
	// Socket of the daemon.
	Socket string `json:"socket"`
	// Runtime is what people know the runtime by.
	Runtime string `json:"runtime"`
	// RuntimeHoldsPorts says that the runtime binds the published ports on the host itself, as Podman does.
	RuntimeHoldsPorts *bool `json:"runtimeHoldsPorts"`
	// Isolated containers exchange nothing with others of the network.
	Isolated bool `json:"isolated"`
	// GatewayPriority decides which of a pod's networks has its default route.
	GatewayPriority int `json:"gatewayPriority"`
	// Policies of HCN, in the forms that the plugins for Windows take.
	Policies       []policyArgument  `json:"policies"`
	AdditionalArgs []policyArgument  `json:"AdditionalArgs"`
	HcnPolicyArgs  []json.RawMessage `json:"HcnPolicyArgs"`

	RuntimeConfig runtimeConfig `json:"runtimeConfig"`
	Args          struct {
		CNI struct {
			IPs    []string         `json:"ips"`
			MAC    string           `json:"mac"`
			Labels []map[string]any `json:"labels"`
		} `json:"cni"`
	} `json:"args"`
}

// policyArgument is a policy as the plugins for Windows take it: Name is "EndpointPolicy".
type policyArgument struct {
	Name  string          `json:"name"`
	Value json.RawMessage `json:"value"`
}

// runtimeConfig are the capabilities' arguments, as in
// https://github.com/containernetworking/cni/blob/main/CONVENTIONS.md.
type runtimeConfig struct {
	PortMappings []portMapping       `json:"portMappings"`
	IPRanges     [][]ipRange         `json:"ipRanges"`
	IPs          []string            `json:"ips"`
	MAC          string              `json:"mac"`
	Bandwidth    *bandwidth          `json:"bandwidth"`
	DNS          *dnsConfig          `json:"dns"`
	Aliases      map[string][]string `json:"aliases"`
}

type portMapping struct {
	HostPort      int    `json:"hostPort"`
	ContainerPort int    `json:"containerPort"`
	Protocol      string `json:"protocol"`
	HostIP        string `json:"hostIP"`
}

type ipRange struct {
	Subnet     string `json:"subnet"`
	RangeStart string `json:"rangeStart"`
	RangeEnd   string `json:"rangeEnd"`
}

// bandwidth is in bits per second, and bits.
type bandwidth struct {
	IngressRate  uint64 `json:"ingressRate"`
	IngressBurst uint64 `json:"ingressBurst"`
	EgressRate   uint64 `json:"egressRate"`
	EgressBurst  uint64 `json:"egressBurst"`
}

type dnsConfig struct {
	Servers  []string `json:"servers"`
	Searches []string `json:"searches"`
	Options  []string `json:"options"`
}

// podArgs are the CNI_ARGS that Kubernetes' runtimes, and Podman, give.
type podArgs struct {
	types.CommonArgs
	IP                types.UnmarshallableString
	MAC               types.UnmarshallableString
	K8S_POD_NAME      types.UnmarshallableString
	K8S_POD_NAMESPACE types.UnmarshallableString
	K8S_POD_UID       types.UnmarshallableString
}

func readConfig(stdin []byte) (*config, error) {
	if len(stdin) > maxConfig {
		return nil, types.NewError(types.ErrDecodingFailure, fmt.Sprintf("the network configuration has %d bytes: at most %d", len(stdin), maxConfig), "")
	}
	c := &config{}
	if err := json.NewDecoder(bytes.NewReader(stdin)).Decode(c); err != nil {
		return nil, types.NewError(types.ErrDecodingFailure, "the network configuration cannot be read", err.Error())
	}
	if c.Name == "" {
		return nil, invalid("name: it is missing")
	}
	if c.IPAM.Type != "" {
		return nil, invalid("ipam: %q cannot be asked: a network's addresses are the daemon's to give, so that all runtimes can share it; "+
			"remove ipam, and set subnets with `bulkhead network create`", c.IPAM.Type)
	}
	if c.Network == "" {
		c.Network = c.Name
	}
	if c.Socket == "" {
		c.Socket = client.DefaultSocket
	}
	if c.Runtime == "" {
		c.Runtime = caller()
	}
	return c, nil
}

// podman binds the ports of its -p itself, after the plugins were called, and refuses to go on when it cannot.
const podman = "podman"

// caller is what the runtime is called: that of the process which called the plugin where it needs to be known, else "cni".
func caller() string {
	name, err := os.ReadFile(fmt.Sprintf("/proc/%d/comm", os.Getppid()))
	if err == nil && strings.TrimSpace(string(name)) == podman {
		return podman
	}
	return "cni"
}

// portsHeld tells whether the runtime holds the published ports.
func (c *config) portsHeld() bool {
	if c.RuntimeHoldsPorts != nil {
		return *c.RuntimeHoldsPorts
	}
	return c.Runtime == podman
}

// prevResult is what plugins before this one in a list have made; nil if there are none.
func (c *config) prevResult() (*current.Result, error) {
	if c.RawPrevResult == nil {
		return nil, nil //nolint:nilnil // there is none
	}
	if err := version.ParsePrevResult(&c.PluginConf); err != nil {
		return nil, types.NewError(types.ErrDecodingFailure, "prevResult cannot be read", err.Error())
	}
	r, err := current.NewResultFromResult(c.PrevResult)
	if err != nil {
		return nil, types.NewError(types.ErrDecodingFailure, "prevResult cannot be read", err.Error())
	}
	return r, nil
}

func (c *config) owner() string { return "cni/" + c.Name }

// spec is what is asked of the daemon for a container.
func (c *config) spec(container, netns, iface, args string) (api.AttachmentSpec, error) {
	s := api.AttachmentSpec{
		Owner: c.owner(), Container: container, Netns: netns, Runtime: c.Runtime, PortsHeld: c.portsHeld(), Labels: map[string]string{},
		NetworkAttachment: api.NetworkAttachment{
			Network: c.Network, Interface: iface, Isolated: c.Isolated, GatewayPriority: c.GatewayPriority, MAC: c.Args.CNI.MAC,
		},
	}
	ips, err := c.podArgs(&s, args)
	if err != nil {
		return s, err
	}
	if s.Addresses, err = addresses(slices.Concat(c.RuntimeConfig.IPs, c.Args.CNI.IPs, ips)); err != nil {
		return s, err
	}
	if c.RuntimeConfig.MAC != "" {
		s.MAC = c.RuntimeConfig.MAC
	}
	if s.Ranges, err = c.ranges(); err != nil {
		return s, err
	}
	s.Aliases = c.RuntimeConfig.Aliases[c.Name]
	s.DNS = c.dns()
	for i, m := range c.RuntimeConfig.PortMappings {
		p, err := m.publish()
		if err != nil {
			return s, invalid("runtimeConfig.portMappings[%d].%v", i, err)
		}
		if p != nil {
			s.Publish = append(s.Publish, *p)
		}
	}
	s.Policies, err = c.policies()
	return s, err
}

func (c *config) podArgs(s *api.AttachmentSpec, args string) (ips []string, err error) {
	var pod podArgs
	pod.IgnoreUnknown = true
	if err := types.LoadArgs(args, &pod); err != nil {
		return nil, types.NewError(types.ErrInvalidEnvironmentVariables, "CNI_ARGS cannot be read", err.Error())
	}
	s.Name = string(pod.K8S_POD_NAME)
	for k, v := range map[string]types.UnmarshallableString{
		"io.kubernetes.pod.name": pod.K8S_POD_NAME, "io.kubernetes.pod.namespace": pod.K8S_POD_NAMESPACE, "io.kubernetes.pod.uid": pod.K8S_POD_UID,
	} {
		if v != "" {
			s.Labels[k] = string(v)
		}
	}
	for _, l := range c.Args.CNI.Labels {
		k, okKey := l["key"].(string)
		v, okValue := l["value"].(string)
		if !okKey || !okValue {
			return nil, invalid("args.cni.labels: each is an object with the strings key and value")
		}
		s.Labels[k] = v
	}
	if pod.MAC != "" {
		s.MAC = string(pod.MAC)
	}
	if pod.IP != "" {
		ips = strings.Split(string(pod.IP), ",")
	}
	return ips, nil
}

// addresses reads what may carry the length of a prefix, which is the network's to know, and may be said twice.
func addresses(texts []string) (out []string, err error) {
	for _, t := range texts {
		a, err := netip.ParseAddr(t)
		if p, perr := netip.ParsePrefix(t); perr == nil {
			a, err = p.Addr(), nil
		}
		if err != nil {
			return nil, invalid("ips: %.80q is no address", t)
		}
		if text := a.Unmap().String(); !slices.Contains(out, text) {
			out = append(out, text)
		}
	}
	return out, nil
}

func (c *config) ranges() (out [][]api.AddressRange, err error) {
	for i, set := range c.RuntimeConfig.IPRanges {
		var ranges []api.AddressRange
		for j, r := range set {
			p, err := netip.ParsePrefix(r.Subnet)
			if err != nil {
				return nil, invalid("runtimeConfig.ipRanges[%d][%d].subnet: %.80q is no prefix", i, j, r.Subnet)
			}
			ranges = append(ranges, api.AddressRange{Subnet: p.Masked().String(), First: r.RangeStart, Last: r.RangeEnd})
		}
		out = append(out, ranges)
	}
	return out, nil
}

func (c *config) dns() hcn.Dns {
	d := hcn.Dns{Domain: c.DNS.Domain, ServerList: c.DNS.Nameservers, Search: c.DNS.Search, Options: c.DNS.Options}
	if r := c.RuntimeConfig.DNS; r != nil {
		if len(r.Servers) > 0 {
			d.ServerList = r.Servers
		}
		if len(r.Searches) > 0 {
			d.Search = r.Searches
		}
		if len(r.Options) > 0 {
			d.Options = r.Options
		}
	}
	return d
}

// publish is a port mapping as the daemon takes it. One without a port of the host asks for nothing.
func (m portMapping) publish() (*api.PublishedPort, error) {
	switch {
	case m.HostPort == 0:
		return nil, nil //nolint:nilnil // runtimes pass on ports that are only declared
	case m.HostPort < 0 || m.HostPort > 65535:
		return nil, fmt.Errorf("hostPort: %d is no port", m.HostPort)
	case m.ContainerPort <= 0 || m.ContainerPort > 65535:
		return nil, fmt.Errorf("containerPort: %d is no port", m.ContainerPort)
	}
	p := &api.PublishedPort{Protocol: strings.ToLower(m.Protocol), Expose: "all", HostPort: uint16(m.HostPort), ContainerPort: uint16(m.ContainerPort)}
	if p.Protocol != "" && p.Protocol != "tcp" && p.Protocol != "udp" {
		return nil, fmt.Errorf("protocol: %.20q is not tcp or udp", m.Protocol)
	}
	if m.HostIP != "" {
		a, err := netip.ParseAddr(m.HostIP)
		if err != nil {
			return nil, fmt.Errorf("hostIP: %.80q is no address", m.HostIP)
		}
		p.Expose = a.Unmap().String()
	}
	return p, nil
}

// bitsPerByte of the rates that CNI counts in bits and HCN in bytes.
const bitsPerByte = 8

func (c *config) policies() (out []hcn.EndpointPolicy, err error) {
	if b := c.RuntimeConfig.Bandwidth; b != nil {
		if b.EgressRate > 0 {
			out = append(out, hcn.NewEndpointPolicy(hcn.QOS, hcn.QosPolicySetting{MaximumOutgoingBandwidthInBytes: max(b.EgressRate/bitsPerByte, 1)}))
		}
		if b.IngressRate > 0 {
			out = append(out, hcn.NewEndpointPolicy(hcn.IncomingQOS, hcn.IncomingQosSetting{MaximumIncomingBandwidthInBytes: max(b.IngressRate/bitsPerByte, 1)}))
		}
	}
	var raw []json.RawMessage
	for _, p := range slices.Concat(c.Policies, c.AdditionalArgs) {
		if !strings.EqualFold(p.Name, "EndpointPolicy") {
			return nil, invalid("policies: %.40q is not known: the plugin takes those named EndpointPolicy", p.Name)
		}
		raw = append(raw, p.Value)
	}
	for i, r := range slices.Concat(raw, c.HcnPolicyArgs) {
		p, err := policy(r)
		if err != nil {
			return nil, invalid("policies[%d]: %v", i, err)
		}
		out = append(out, p)
	}
	return out, nil
}

// policy reads one in the form of HCN version 2, which has its settings apart, or in that of version 1.
func policy(raw json.RawMessage) (hcn.EndpointPolicy, error) {
	var v2 struct{ Settings json.RawMessage }
	if err := json.Unmarshal(raw, &v2); err == nil && v2.Settings == nil {
		return hcn.EndpointPolicyFromV1(raw)
	}
	var p hcn.EndpointPolicy
	err := json.Unmarshal(raw, &p)
	return p, err
}

func invalid(format string, args ...any) error {
	return types.NewError(types.ErrInvalidNetworkConfig, fmt.Sprintf(format, args...), "")
}
