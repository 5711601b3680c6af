package e2e

import (
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"slices"
	"strings"

	"github.com/bulkhead-net/bulkhead/hcsshim"
)

// hnsName is the program that does with a daemon what programs for version 1 of the Windows client do:
//
//	hns-client CONTAINER
//
// It calls every function of package hcsshim, tells nothing when all is as it should be, and leaves nothing.
const hnsName = "hns-client"

func hnsMain(args []string) error {
	if len(args) != 1 {
		return errors.New("usage: hns-client CONTAINER")
	}
	if g, err := hcsshim.GetHNSGlobals(); err != nil || g.Version.Major < 9 {
		return fmt.Errorf("globals %+v: %w", g, err)
	}
	if f := hcsshim.GetHNSSupportedFeatures(); !f.Acl.AclAddressLists || !f.Acl.AclNoHostRulePriority || !f.Acl.AclPortRanges || !f.Acl.AclRuleId {
		return fmt.Errorf("features %+v", f)
	}
	n, err := hnsNetwork()
	if err != nil {
		return fmt.Errorf("networks: %w", err)
	}
	e, err := hnsEndpoint(n)
	if err != nil {
		return fmt.Errorf("endpoints: %w", err)
	}
	if err := hnsAttach(e, args[0]); err != nil {
		return fmt.Errorf("attach: %w", err)
	}
	if err := hnsLists(e); err != nil {
		return fmt.Errorf("policy lists: %w", err)
	}
	if err := hnsRefused(e); err != nil {
		return fmt.Errorf("what is not there: %w", err)
	}
	if _, err := e.Delete(); err != nil {
		return err
	}
	if _, err := hcsshim.GetHNSEndpointByID(e.Id); !hcsshim.IsNotExist(err) {
		return fmt.Errorf("a deleted endpoint: %w", err)
	}
	if former, err := n.Delete(); err != nil || former.Name != n.Name {
		return fmt.Errorf("delete the network: %+v, %w", former, err)
	}
	return nil
}

const nobody = "12345678-1234-4234-8234-123456789ABC"

func hnsNetwork() (*hcsshim.HNSNetwork, error) {
	want := &hcsshim.HNSNetwork{Name: "version1", Type: "NAT", Subnets: []hcsshim.Subnet{{AddressPrefix: "10.91.0.0/24"}}}
	if _, err := want.Create(); err == nil {
		return nil, errors.New("one without a gateway was made")
	}
	want.Subnets[0].GatewayAddress = "10.91.0.1"
	n, err := want.Create()
	if err != nil {
		return nil, err
	}
	byName, err := hcsshim.GetHNSNetworkByName("version1")
	if err != nil || byName.Id != n.Id {
		return nil, fmt.Errorf("by name: %+v, %w", byName, err)
	}
	byID, err := hcsshim.GetHNSNetworkByID(n.Id)
	if err != nil || byID.Name != "version1" || len(byID.Subnets) != 1 || byID.Subnets[0].GatewayAddress != "10.91.0.1" {
		return nil, fmt.Errorf("by ID: %+v, %w", byID, err)
	}
	all, err := hcsshim.HNSListNetworkRequest("GET", "", "")
	if err != nil || !slices.ContainsFunc(all, func(o hcsshim.HNSNetwork) bool { return o.Id == n.Id }) {
		return nil, fmt.Errorf("all of them: %+v, %w", all, err)
	}
	raw, err := hcsshim.HNSNetworkRequest("POST", "", `{"Name":"raw","Type":"Private","Subnets":[{"AddressPrefix":"10.92.0.0/24","GatewayAddress":"10.92.0.1"}]}`)
	if err != nil {
		return nil, err
	}
	if _, err := hcsshim.HNSNetworkRequest("DELETE", raw.Id, ""); err != nil {
		return nil, err
	}
	if _, err := hcsshim.GetHNSNetworkByName("raw"); !hcsshim.IsNotExist(err) || !isA[hcsshim.NetworkNotFoundError](err) {
		return nil, fmt.Errorf("a deleted one: %w", err)
	}
	if _, err := hcsshim.GetHNSNetworkByID(nobody); !hcsshim.IsNotExist(err) {
		return nil, fmt.Errorf("none: %w", err)
	}
	return n, nil
}

func isA[E error](err error) bool {
	_, ok := errors.AsType[E](err)
	return ok
}

func hnsEndpoint(n *hcsshim.HNSNetwork) (*hcsshim.HNSEndpoint, error) {
	doc := n.NewEndpoint(net.IPv4(10, 91, 0, 7), net.HardwareAddr{2, 0, 0x5e, 0x10, 0x91, 7})
	doc.Name = "one"
	e, err := n.CreateEndpoint(doc)
	if err != nil {
		return nil, err
	}
	if e.IPAddress.String() != "10.91.0.7" || e.MacAddress != "02-00-5E-10-91-07" || e.VirtualNetworkName != "version1" || e.State != hcsshim.Created {
		return nil, fmt.Errorf("it is %+v in state %s", e, e.State)
	}
	far, err := n.CreateRemoteEndpoint(&hcsshim.HNSEndpoint{Name: "far", IPAddress: net.IPv4(203, 0, 113, 91)})
	if err != nil || !far.IsRemoteEndpoint {
		return nil, fmt.Errorf("one elsewhere: %+v, %w", far, err)
	}
	if _, err := hcsshim.HNSEndpointRequest("DELETE", far.Id, ""); err != nil {
		return nil, err
	}
	all, err := hcsshim.HNSListEndpointRequest()
	if err != nil || !slices.ContainsFunc(all, func(o hcsshim.HNSEndpoint) bool { return o.Id == e.Id }) {
		return nil, fmt.Errorf("all of them: %+v, %w", all, err)
	}
	if byName, err := hcsshim.GetHNSEndpointByName("one"); err != nil || byName.Id != e.Id {
		return nil, fmt.Errorf("by name: %+v, %w", byName, err)
	}
	if _, err := hcsshim.GetHNSEndpointByName("two"); !hcsshim.IsNotExist(err) || !isA[hcsshim.EndpointNotFoundError](err) {
		return nil, fmt.Errorf("none: %w", err)
	}
	rule := &hcsshim.ACLPolicy{Type: hcsshim.ACL, Id: "v1", Protocol: 6, Action: hcsshim.Block, Direction: hcsshim.In, LocalPorts: "23", RuleType: hcsshim.Switch, Priority: 100}
	if err := e.ApplyACLPolicy(rule, nil); err != nil {
		return nil, err
	}
	if err := e.ApplyProxyPolicy(&hcsshim.ProxyPolicy{Type: hcsshim.Proxy, IP: "10.91.0.1", Port: "3128", Destination: "198.51.100.0/24"}); err != nil {
		return nil, err
	}
	now, err := hcsshim.GetHNSEndpointByID(e.Id)
	if err != nil {
		return nil, err
	}
	var types []string
	for _, raw := range now.Policies {
		var p hcsshim.Policy
		if err := json.Unmarshal(raw, &p); err != nil {
			return nil, err
		}
		types = append(types, string(p.Type))
	}
	slices.Sort(types)
	if !slices.Equal(types, []string{"ACL", "PROXY"}) {
		return nil, fmt.Errorf("its policies are %v", types)
	}
	if s, err := hcsshim.GetHNSEndpointStats(e.Id); err != nil || s.EndpointID != e.Id {
		return nil, fmt.Errorf("its counters: %+v, %w", s, err)
	}
	return e, nil
}

func hnsAttach(e *hcsshim.HNSEndpoint, container string) error {
	is := func(want bool) error {
		if got, err := e.IsAttached(container); err != nil || got != want {
			return fmt.Errorf("attached: %v, want %v: %w", got, want, err)
		}
		return nil
	}
	for _, step := range []func() error{
		func() error { return is(false) },
		func() error { return hcsshim.HotAttachEndpoint(container, e.Id) },
		func() error { return is(true) },
		func() error { return hcsshim.HotAttachEndpoint(container, e.Id) },
		func() error { return hcsshim.HotDetachEndpoint(container, e.Id) },
		func() error { return is(false) },
		func() error { return hcsshim.HotDetachEndpoint(container, e.Id) },
		func() error { return e.ContainerAttach(container, 0) },
		func() error { return is(true) },
		func() error { return e.ContainerDetach(container) },
	} {
		if err := step(); err != nil {
			return err
		}
	}
	if err := hcsshim.HotAttachEndpoint("nobody", e.Id); !hcsshim.IsNotExist(err) {
		return fmt.Errorf("to no container: %w", err)
	}
	own, err := hcsshim.HNSEndpointRequest("POST", "", `{"Name":"hosts","VirtualNetwork":"`+e.VirtualNetwork+`"}`)
	if err != nil {
		return err
	}
	if err := own.HostAttach(0); err != nil {
		return fmt.Errorf("to the host: %w", err)
	}
	if own, err = hcsshim.GetHNSEndpointByID(own.Id); err != nil || own.State != hcsshim.Attached && own.State != hcsshim.AttachedSharing {
		return fmt.Errorf("at the host: %+v, %w", own, err)
	}
	if err := own.HostDetach(); err != nil {
		return fmt.Errorf("from the host: %w", err)
	}
	_, err = own.Delete()
	return err
}

func hnsLists(e *hcsshim.HNSEndpoint) error {
	list, err := hcsshim.AddLoadBalancer([]hcsshim.HNSEndpoint{*e}, true, "", "10.96.91.1", 6, 8080, 80)
	if err != nil {
		return err
	}
	var elb hcsshim.ELBPolicy
	got, err := hcsshim.GetPolicyListByID(list.ID)
	if err != nil || len(got.Policies) != 1 || json.Unmarshal(got.Policies[0], &elb) != nil {
		return fmt.Errorf("by ID: %+v, %w", got, err)
	}
	if elb.Type != hcsshim.ExternalLoadBalancer || elb.InternalPort != 8080 || elb.ExternalPort != 80 || !elb.ILB || !slices.Equal(elb.VIPs, []string{"10.96.91.1"}) {
		return fmt.Errorf("it says %+v", elb)
	}
	if got, err = got.RemoveEndpoint(e); err == nil && len(got.EndpointReferences) != 0 {
		err = fmt.Errorf("it still refers to %v", got.EndpointReferences)
	}
	// The network is that of the endpoints: a list without any cannot be made in version 1.
	if err == nil || hcsshim.IsNotExist(err) {
		return fmt.Errorf("without endpoints: %w", err)
	}
	route, err := hcsshim.AddRoute([]hcsshim.HNSEndpoint{*e}, "10.93.0.0/16", "10.91.0.1", false)
	if err != nil && !hcsshim.IsNotSupported(err) {
		return fmt.Errorf("a route: %w", err)
	}
	if err == nil {
		if _, err := route.Delete(); err != nil {
			return err
		}
	}
	list, err = hcsshim.AddLoadBalancer([]hcsshim.HNSEndpoint{*e}, true, "", "10.96.91.1", 6, 8080, 80)
	if err != nil {
		return err
	}
	if list, err = list.AddEndpoint(e); err != nil || len(list.EndpointReferences) != 1 {
		return fmt.Errorf("the same endpoint again: %+v, %w", list, err)
	}
	all, err := hcsshim.HNSListPolicyListRequest()
	if err != nil || !slices.ContainsFunc(all, func(o hcsshim.PolicyList) bool { return o.ID == list.ID }) {
		return fmt.Errorf("all of them: %+v, %w", all, err)
	}
	if _, err := hcsshim.HNSPolicyListRequest("GET", list.ID, ""); err != nil {
		return err
	}
	_, err = list.Delete()
	return err
}

func hnsRefused(e *hcsshim.HNSEndpoint) error {
	if err := e.VirtualMachineNICAttach("nic"); err == nil || !strings.Contains(err.Error(), "the ID of a VM") {
		return fmt.Errorf("a NIC of no VM: %w", err)
	}
	if err := e.VirtualMachineNICAttach("11111111-2222-8333-8444-555555555555--nic"); err == nil || !strings.Contains(err.Error(), "no container has the VM") {
		return fmt.Errorf("a NIC of a VM that is not there: %w", err)
	}
	if err := e.VirtualMachineNICDetach(); err == nil {
		return errors.New("detached from no VM")
	}
	if _, err := hcsshim.SetNnvManagementMacAddresses(nil); !errors.Is(err, hcsshim.ErrorEmptyMacAddressList) {
		return fmt.Errorf("no MACs: %w", err)
	}
	for _, call := range []func() (*hcsshim.HNSNnvManagementMacList, error){
		func() (*hcsshim.HNSNnvManagementMacList, error) {
			return hcsshim.SetNnvManagementMacAddresses([]string{"02-00-00-00-00-01"})
		},
		hcsshim.GetNnvManagementMacAddresses, hcsshim.DeleteNnvManagementMacAddresses,
	} {
		if _, err := call(); !hcsshim.IsNotSupported(err) {
			return fmt.Errorf("accelerated networking: %w", err)
		}
	}
	if _, err := hcsshim.HNSNetworkRequest("POST", "", "{"); !hcsshim.IsNotSupported(err) {
		return fmt.Errorf("no JSON: %w", err)
	}
	return nil
}
