package hcn_test

import (
	"os"
	"strings"
	"testing"

	"github.com/bulkhead-net/bulkhead/hcsshim/hcn"
)

// addPod puts a pod on a network, as plugins for Windows do. docs/hcn-clients.md shows it.
func addPod(networkName, podName string) (namespace, address string, err error) {
	network, err := hcn.GetNetworkByName(networkName)
	if hcn.IsNotFoundError(err) {
		network, err = (&hcn.HostComputeNetwork{
			Name: networkName, Type: hcn.NAT, SchemaVersion: hcn.V2SchemaVersion(),
			Ipams: []hcn.Ipam{{Type: "Static", Subnets: []hcn.Subnet{{
				IpAddressPrefix: "10.9.0.0/24",
				Routes:          []hcn.Route{{NextHop: "10.9.0.1", DestinationPrefix: "0.0.0.0/0"}},
			}}}},
		}).Create()
	}
	if err != nil {
		return "", "", err
	}
	endpoint, err := network.CreateEndpoint(&hcn.HostComputeEndpoint{
		Name: podName, SchemaVersion: hcn.V2SchemaVersion(),
		IpConfigurations: []hcn.IpConfig{{IpAddress: "10.9.0.7", PrefixLength: 24}},
	})
	if err != nil {
		return "", "", err
	}
	ns, err := hcn.NewNamespace(hcn.NamespaceTypeHost).Create()
	if err != nil {
		return "", "", err
	}
	return ns.Id, endpoint.IpConfigurations[0].IpAddress, endpoint.NamespaceAttach(ns.Id)
}

// TestDocumentedExample runs it, and keeps the document true.
func TestDocumentedExample(t *testing.T) {
	serve(t)
	namespace, address, err := addPod("pods", "web")
	if err != nil || address != "10.9.0.7" {
		t.Fatalf("%s: %v", address, err)
	}
	if ids, err := hcn.GetNamespaceEndpointIds(namespace); err != nil || len(ids) != 1 {
		t.Errorf("in the namespace %v: %v", ids, err)
	}
	source, err := os.ReadFile("example_test.go")
	if err != nil {
		t.Fatal(err)
	}
	text := string(source)
	from := strings.Index(text, "func addPod(")
	code := text[from : from+strings.Index(text[from:], "\n}\n")+3]
	doc, err := os.ReadFile("../../docs/hcn-clients.md")
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(string(doc), code) {
		t.Errorf("docs/hcn-clients.md does not show this:\n%s", code)
	}
}
