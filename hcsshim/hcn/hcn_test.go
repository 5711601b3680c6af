package hcn_test

import (
	"encoding/json"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/Microsoft/go-winio/pkg/guid"

	"github.com/bulkhead-net/bulkhead/hcsshim/hcn"
)

// service is one that keeps documents and nothing else.
type service struct {
	docs map[string]map[string]any
	last map[string]any
}

func serve(t *testing.T) *service {
	t.Helper()
	dir, err := os.MkdirTemp("", "hcn") //nolint:usetesting // t.TempDir is too long for a socket's address
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	ln, err := net.Listen("unix", filepath.Join(dir, "s"))
	if err != nil {
		t.Fatal(err)
	}
	t.Setenv("BULKHEAD_HOST", "unix://"+filepath.Join(dir, "s"))
	s := &service{docs: map[string]map[string]any{}}
	answer := func(w http.ResponseWriter, v any) {
		w.Header().Set("Content-Type", "application/json")
		_ = json.NewEncoder(w).Encode(v)
	}
	refuse := func(w http.ResponseWriter, status int, code uint32, text string) {
		w.Header().Set("Content-Type", "application/json")
		w.WriteHeader(status)
		answer(w, map[string]any{"Success": false, "Error": text, "ErrorCode": code})
	}
	m := http.NewServeMux()
	m.HandleFunc("GET /hcn/v2/{kind}", func(w http.ResponseWriter, r *http.Request) {
		var q struct{ Filter string }
		var want map[string]string
		if json.Unmarshal([]byte(r.URL.Query().Get("query")), &q) != nil || q.Filter != "" && json.Unmarshal([]byte(q.Filter), &want) != nil {
			t.Errorf("query %q", r.URL.RawQuery)
		}
		ids := []string{}
		for id, doc := range s.docs {
			fits := doc["kind"] == r.PathValue("kind")
			for k, v := range want {
				fits = fits && doc[k] == v
			}
			if fits {
				ids = append(ids, id)
			}
		}
		answer(w, ids)
	})
	m.HandleFunc("GET /hcn/v2/{kind}/{id}", func(w http.ResponseWriter, r *http.Request) {
		if doc, ok := s.docs[r.PathValue("id")]; ok {
			answer(w, doc)
			return
		}
		refuse(w, http.StatusNotFound, 0x803B0001, "The network was not found. ")
	})
	m.HandleFunc("POST /hcn/v2/{kind}", func(w http.ResponseWriter, r *http.Request) {
		var doc map[string]any
		if err := json.NewDecoder(r.Body).Decode(&doc); err != nil {
			t.Error(err)
		}
		if doc["Name"] == "taken" {
			refuse(w, http.StatusConflict, 0x803B0013, "The specified port already exists. ")
			return
		}
		id := "ID-" + r.PathValue("kind")
		doc["ID"], doc["kind"] = id, r.PathValue("kind")
		s.docs[id], s.last = doc, doc
		answer(w, doc)
	})
	m.HandleFunc("POST /hcn/v2/{kind}/{id}/modify", func(w http.ResponseWriter, r *http.Request) {
		s.last = nil
		if err := json.NewDecoder(r.Body).Decode(&s.last); err != nil {
			t.Error(err)
		}
		if s.last["ResourceType"] == "Endpoint" && s.last["RequestType"] == "Add" {
			s.docs[r.PathValue("id")]["Resources"] = []any{map[string]any{"Type": "Endpoint", "Data": map[string]any{"ID": s.last["Settings"].(map[string]any)["EndpointId"]}}}
		}
		answer(w, nil)
	})
	m.HandleFunc("DELETE /hcn/v2/{kind}/{id}", func(w http.ResponseWriter, r *http.Request) {
		delete(s.docs, r.PathValue("id"))
		answer(w, nil)
	})
	m.HandleFunc("DELETE /hcn/v2/{kind}/nobody", func(w http.ResponseWriter, _ *http.Request) {
		refuse(w, http.StatusNotFound, 0x80070490, "Element not found. nobody has it")
	})
	m.HandleFunc("GET /hns/v1/globals/version", func(w http.ResponseWriter, _ *http.Request) {
		answer(w, map[string]any{"Success": true, "Output": map[string]any{"Major": 9, "Minor": 3, "Features": []string{"ModifyLoadbalancer"}}})
	})
	srv := &http.Server{Handler: m, ReadHeaderTimeout: time.Minute}
	go func() { _ = srv.Serve(ln) }()
	t.Cleanup(func() { srv.Close() })
	return s
}

// TestPodNetwork is what a CNI plugin for Windows does for a pod, in the words of that API.
func TestPodNetwork(t *testing.T) {
	s := serve(t)
	if _, err := hcn.GetNetworkByName("pods"); !hcn.IsNotFoundError(err) || err.Error() != `Network name "pods" not found` {
		t.Fatalf("no network: %v", err)
	}
	if err := hcn.HostRouteSupported(); err != nil {
		t.Error(err)
	}
	if f := hcn.GetSupportedFeatures(); !f.Api.V2 || !f.DSR || f.SetPolicy || !f.Slash32EndpointPrefixes || !f.ModifyLoadbalancer || f.Accelnet {
		t.Errorf("features of 9.3: %+v", f)
	}
	network, err := (&hcn.HostComputeNetwork{
		Name: "pods", Type: hcn.NAT, SchemaVersion: hcn.V2SchemaVersion(),
		Ipams: []hcn.Ipam{{Type: "Static", Subnets: []hcn.Subnet{{IpAddressPrefix: "10.9.0.0/24", Routes: []hcn.Route{{NextHop: "10.9.0.1", DestinationPrefix: "0.0.0.0/0"}}}}}},
	}).Create()
	if err != nil {
		t.Fatal(err)
	}
	if _, has := s.last["Dns"]; has || s.last["SchemaVersion"] == nil {
		t.Errorf("sent %v", s.last)
	}
	settings, err := json.Marshal(hcn.PortMappingPolicySetting{Protocol: 6, InternalPort: 80, ExternalPort: 8080})
	if err != nil {
		t.Fatal(err)
	}
	endpoint, err := network.CreateEndpoint(&hcn.HostComputeEndpoint{Name: "pod", SchemaVersion: hcn.V2SchemaVersion(), Policies: []hcn.EndpointPolicy{{Type: hcn.PortMapping, Settings: settings}}})
	if err != nil || endpoint.HostComputeNetwork != network.Id {
		t.Fatalf("endpoint %+v: %v", endpoint, err)
	}
	namespace, err := hcn.NewNamespace(hcn.NamespaceTypeHost).Create()
	if err != nil {
		t.Fatal(err)
	}
	if err := endpoint.NamespaceAttach(namespace.Id); err != nil {
		t.Fatal(err)
	}
	if ids, err := hcn.GetNamespaceEndpointIds(namespace.Id); err != nil || len(ids) != 1 || ids[0] != endpoint.Id {
		t.Errorf("endpoints %v: %v", ids, err)
	}
	if all, err := hcn.ListEndpointsOfNetwork(network.Id); err != nil || len(all) != 1 {
		t.Errorf("endpoints of the network %v: %v", all, err)
	}
	if err := endpoint.ApplyPolicy(hcn.RequestTypeUpdate, hcn.PolicyEndpointRequest{Policies: endpoint.Policies}); err != nil || s.last["RequestType"] != "Update" {
		t.Errorf("sent %v: %v", s.last, err)
	}
	if _, err := network.CreateEndpoint(&hcn.HostComputeEndpoint{Name: "taken"}); !hcn.IsPortAlreadyExistsError(err) || hcn.IsNotFoundError(err) ||
		err.Error() != "hcnCreateEndpoint failed in Win32: The specified port already exists. (0x803b0013)" {
		t.Errorf("a port that is taken: %v", err)
	}
	if err := endpoint.Delete(); err != nil {
		t.Fatal(err)
	}
	if _, err := hcn.GetEndpointByID(endpoint.Id); !hcn.IsNotFoundError(err) {
		t.Errorf("after the end: %v", err)
	}
	if err := network.Delete(); err != nil {
		t.Fatal(err)
	}
}

// TestNoDaemon: what cannot be reached is an error, and has no features.
func TestNoDaemon(t *testing.T) {
	t.Setenv("BULKHEAD_HOST", "unix:///nonexistent/s")
	if _, err := hcn.ListNetworks(); err == nil || hcn.IsNotFoundError(err) || !strings.Contains(err.Error(), "hcnEnumerateNetworks failed in Win32: The interface is unknown. (0x6b5) ") {
		t.Errorf("no daemon: %v", err)
	}
	if f := hcn.GetSupportedFeatures(); f.Api.V2 {
		t.Errorf("features of nobody: %+v", f)
	}
}

// TestGuest is how an endpoint comes into a VM: its port there, and a namespace that the VM is to look at.
func TestGuest(t *testing.T) {
	s := serve(t)
	endpoint, err := (&hcn.HostComputeEndpoint{Name: "pod", SchemaVersion: hcn.V2SchemaVersion()}).Create()
	if err != nil {
		t.Fatal(err)
	}
	machine, err := guid.FromString("11111111-2222-8333-8444-555555555555")
	if err != nil {
		t.Fatal(err)
	}
	settings, err := json.Marshal(hcn.VmEndpointRequest{VirtualNicName: "n", VirtualMachineId: machine})
	if err != nil {
		t.Fatal(err)
	}
	err = hcn.ModifyEndpointSettings(endpoint.Id, &hcn.ModifyEndpointSettingRequest{ResourceType: hcn.EndpointResourceTypePort, RequestType: hcn.RequestTypeAdd, Settings: settings})
	sent, _ := json.Marshal(s.last["Settings"])
	if want := `{"VirtualMachineId":"11111111-2222-8333-8444-555555555555","VirtualNicName":"n"}`; err != nil || string(sent) != want {
		t.Errorf("sent %s, %v: want %s", sent, err, want)
	}
	for kind, want := range map[hcn.NamespaceType]any{hcn.NamespaceTypeGuest: "Refresh", hcn.NamespaceTypeHost: nil} {
		ns, err := hcn.NewNamespace(kind).Create()
		if err != nil {
			t.Fatal(err)
		}
		s.last = nil
		if err := ns.Sync(); err != nil || s.last["RequestType"] != want {
			t.Errorf("%s: sent %v, %v", kind, s.last, err)
		}
	}
}

func TestAddRoute(t *testing.T) {
	s := serve(t)
	r, err := hcn.AddRoute([]hcn.HostComputeEndpoint{{Id: "A"}, {Id: "B"}}, "10.9.0.0/16", "10.8.0.1", true)
	if err != nil {
		t.Fatal(err)
	}
	if r.ID != "ID-routes" || len(r.HostComputeEndpoints) != 2 || r.HostComputeEndpoints[1] != "B" {
		t.Errorf("route %+v", r)
	}
	setting, _ := json.Marshal(s.last["Setting"])
	if want := `[{"DestinationPrefix":"10.9.0.0/16","NeedEncap":true,"NextHop":"10.8.0.1"}]`; string(setting) != want {
		t.Errorf("it says %s, want %s", setting, want)
	}
	if r, err = r.AddEndpoint(&hcn.HostComputeEndpoint{Id: "C"}); err != nil || len(r.HostComputeEndpoints) != 3 {
		t.Fatalf("with one more: %+v, %v", r, err)
	}
	if r, err = r.RemoveEndpoint(&hcn.HostComputeEndpoint{Id: "A"}); err != nil || len(r.HostComputeEndpoints) != 2 || r.HostComputeEndpoints[0] != "B" {
		t.Errorf("with one less: %+v, %v", r, err)
	}
}

// TestUpdateLoadBalancer: a document for an ID goes in one call, so that connections to back ends that stay go on.
func TestUpdateLoadBalancer(t *testing.T) {
	s := serve(t)
	lb, err := hcn.AddLoadBalancer([]hcn.HostComputeEndpoint{{Id: "A"}}, hcn.LoadBalancerFlagsDSR, hcn.LoadBalancerPortMappingFlagsNone, "", []string{"10.96.0.1"}, 6, 8080, 80)
	if err != nil {
		t.Fatal(err)
	}
	next := *lb
	next.Id, next.HostComputeEndpoints = "", []string{"A", "B"}
	got, err := next.Update(lb.Id)
	if err != nil || got.Id != lb.Id {
		t.Fatalf("%+v: %v", got, err)
	}
	if ends, ok := s.last["HostComputeEndpoints"].([]any); !ok || len(ends) != 2 || s.last["ID"] != lb.Id {
		t.Errorf("sent %v", s.last)
	}
}

// TestWin32Code: what comes from Windows itself has its number alone, as clients compare it.
func TestWin32Code(t *testing.T) {
	serve(t)
	err := (&hcn.HostComputeNamespace{Id: "nobody"}).Delete()
	if !hcn.IsElementNotFoundError(err) || !hcn.CheckErrorWithCode(err, 0x490) || !hcn.IsNotFoundError(err) || err.Error() != "hcnDeleteNamespace failed in Win32: Element not found. (0x490) nobody has it" {
		t.Errorf("%v", err)
	}
}
