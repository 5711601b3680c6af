package docker

import (
	"bytes"
	"encoding/json"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/bulkhead-net/bulkhead/client"
	"github.com/bulkhead-net/bulkhead/hcn"
)

// alone is a driver whose daemon is away.
func alone(t testing.TB) *Driver {
	t.Helper()
	c, err := client.New("/nonexistent/bulkhead.sock")
	if err != nil {
		t.Fatal(err)
	}
	d, err := New(Options{Daemon: c, State: filepath.Join(t.TempDir(), "docker.json"), Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	return d
}

func ask(d *Driver, path, body string) (int, string) {
	w := httptest.NewRecorder()
	d.Handler().ServeHTTP(w, httptest.NewRequest(http.MethodPost, path, strings.NewReader(body)))
	return w.Code, strings.TrimSpace(w.Body.String())
}

func TestProtocol(t *testing.T) {
	d := alone(t)
	if err := d.networks.set("n1", &network{ID: "A0000000-0000-0000-0000-000000000000"}); err != nil {
		t.Fatal(err)
	}
	for _, tc := range []struct {
		path, body, want string
		fails            bool
	}{
		{path: "/Plugin.Activate", want: `{"Implements":["NetworkDriver","IpamDriver"]}`},
		{path: "/NetworkDriver.GetCapabilities", want: `{"ConnectivityScope":"local","Scope":"local"}`},
		{path: "/NetworkDriver.DiscoverNew", body: `{"DiscoveryType":1,"DiscoveryData":{"Address":"192.0.2.1","Self":true}}`, want: `{}`},
		{path: "/NetworkDriver.AllocateNetwork", body: `{}`, want: "Swarm", fails: true},
		{path: "/NetworkDriver.CreateNetwork", body: `{"NetworkID":"x"}`, want: "connect to the daemon", fails: true},
		{path: "/NetworkDriver.CreateNetwork", body: `{"NetworkID":"x","Options":{"com.docker.network.generic":{"bulkhead.color":"red"}}}`, want: "bulkhead.color", fails: true},
		{path: "/NetworkDriver.CreateNetwork", body: `{"NetworkID":"x","IPv4Data":[{"Pool":"ten"}]}`, want: "pool", fails: true},
		{path: "/NetworkDriver.DeleteNetwork", body: `{"NetworkID":"gone"}`, want: `{}`},
		{path: "/NetworkDriver.CreateEndpoint", body: `{"NetworkID":"gone","EndpointID":"e"}`, want: "create it again", fails: true},
		{path: "/NetworkDriver.CreateEndpoint", body: `{"NetworkID":"n1","EndpointID":"e","Interface":{"Address":"10.0.0.1"}}`, want: "prefix's length", fails: true},
		{path: "/NetworkDriver.CreateEndpoint", body: `{"NetworkID":"n1","EndpointID":"e","Options":{"bulkhead.isolated":"maybe"}}`, want: "neither true nor false", fails: true},
		{path: "/NetworkDriver.Join", body: `{"NetworkID":"n1","EndpointID":"e"}`, want: "SandboxKey", fails: true},
		{path: "/NetworkDriver.Join", body: `{"NetworkID":"n1","EndpointID":"e","SandboxKey":"/run/docker/netns/1"}`, want: "connect to the daemon", fails: true},
		{path: "/NetworkDriver.ProgramExternalConnectivity", body: `{"NetworkID":"n1","EndpointID":"e","Options":{"com.docker.network.portmap":[{"Proto":6,"Port":80,"HostPort":8000,"HostPortEnd":8010}]}}`, want: "range", fails: true},
		{path: "/NetworkDriver.ProgramExternalConnectivity", body: `{"NetworkID":"n1","EndpointID":"e"}`, want: `{}`},
		{path: "/IpamDriver.RequestPool", body: `{"Pool":"10.9.0.7/24"}`, want: `{"Data":{},"Pool":"10.9.0.0/24","PoolID":"bulkhead/10.9.0.0/24"}`},
		{path: "/IpamDriver.RequestPool", body: `{"Pool":"10.9.0.0/24","V6":true}`, want: "of its family", fails: true},
		{path: "/IpamDriver.RequestPool", body: `{"Pool":"10.9.0.0/24","SubPool":"10.9.0.0/25"}`, want: "--ip-range", fails: true},
		{path: "/IpamDriver.ReleasePool", body: `{"PoolID":"other"}`, want: "none of ours", fails: true},
		{path: "/IpamDriver.ReleaseAddress", body: `{"PoolID":"bulkhead/10.9.0.0/24","Address":"10.9.0.5"}`, want: `{}`},
		{path: "/NetworkDriver.Leave", body: `[]`, want: "read the request", fails: true},
		{path: "/NetworkDriver.Leave", body: `{"EndpointID":"` + strings.Repeat("x", maxRequest) + `"}`, want: "too large", fails: true},
	} {
		code, got := ask(d, tc.path, tc.body)
		var failed struct{ Err string }
		if tc.fails {
			if json.Unmarshal([]byte(got), &failed) != nil || code == http.StatusOK || !strings.Contains(failed.Err, tc.want) {
				t.Errorf("%s %.200s: %d %s, want an error with %q", tc.path, tc.body, code, got, tc.want)
			}
		} else if code != http.StatusOK || got != tc.want {
			t.Errorf("%s %.200s: %d %s, want %s", tc.path, tc.body, code, got, tc.want)
		}
	}
}

func TestNetworksAreKept(t *testing.T) {
	d := alone(t)
	if err := d.networks.set("n1", &network{ID: "A0000000-0000-0000-0000-000000000000", Made: true}); err != nil {
		t.Fatal(err)
	}
	again, err := openNetworks(d.State)
	if err != nil {
		t.Fatal(err)
	}
	if got, err := again.find("n1"); err != nil || !got.Made {
		t.Errorf("found %v, %v", got, err)
	}
}

func TestMappings(t *testing.T) {
	got, err := mappings([]byte(`[{"Proto":6,"IP":"","Port":80,"HostIP":"","HostPort":8080,"HostPortEnd":8080},
		{"Proto":17,"Port":53,"HostIP":"0.0.0.0"},{"Proto":6,"Port":80,"HostIP":"::1","HostPort":81}]`))
	if err != nil {
		t.Fatal(err)
	}
	want := []hcn.EndpointPolicy{
		hcn.PortMappingPolicySetting{Protocol: 6, InternalPort: 80, ExternalPort: 8080}.Policy(),
		hcn.PortMappingPolicySetting{Protocol: 17, InternalPort: 53}.Policy(),
		hcn.PortMappingPolicySetting{Protocol: 6, InternalPort: 80, ExternalPort: 81, VIP: "::1"}.Policy(),
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}

func TestFollowing(t *testing.T) {
	for from, want := range map[string]string{"10.144.0.0/24": "10.144.1.0/24", "10.144.255.0/24": "10.145.0.0/24", "fdb0::/64": "fdb0:0:0:1::/64"} {
		if got := following(netip.MustParsePrefix(from)); got != netip.MustParsePrefix(want) {
			t.Errorf("%s: %s, want %s", from, got, want)
		}
	}
}

// FuzzRequests: whatever comes in, an answer goes out, and it is one of the protocol's.
func FuzzRequests(f *testing.F) {
	paths := []string{"CreateNetwork", "CreateEndpoint", "Join", "Leave", "DeleteEndpoint", "ProgramExternalConnectivity", "RequestPool", "RequestAddress", "ReleaseAddress"}
	f.Add(uint8(0), []byte(`{"NetworkID":"n","Options":{"com.docker.network.generic":{"bulkhead.type":"nat"}},"IPv4Data":[{"Pool":"10.0.0.0/8","Gateway":"10.0.0.1/8"}]}`))
	f.Add(uint8(1), []byte(`{"NetworkID":"n1","EndpointID":"e","Interface":{"Address":"10.0.0.2/8","MacAddress":"02:00:00:00:00:01"},"Options":{"bulkhead.policies":"[]"}}`))
	f.Add(uint8(5), []byte(`{"EndpointID":"e","Options":{"com.docker.network.portmap":[{"Proto":6,"Port":80,"HostIP":"10.0.0.1","HostPort":1}]}}`))
	f.Add(uint8(7), []byte(`{"PoolID":"bulkhead/10.0.0.0/8","Options":{"RequestAddressType":"com.docker.network.gateway"}}`))
	d := alone(f)
	if err := d.networks.set("n1", &network{ID: "A0000000-0000-0000-0000-000000000000"}); err != nil {
		f.Fatal(err)
	}
	h := d.Handler()
	f.Fuzz(func(t *testing.T, which uint8, body []byte) {
		driver := "/NetworkDriver."
		i := int(which) % len(paths)
		if i >= 6 {
			driver = "/IpamDriver."
		}
		w := httptest.NewRecorder()
		h.ServeHTTP(w, httptest.NewRequest(http.MethodPost, driver+paths[i], bytes.NewReader(body)))
		var answer map[string]any
		if err := json.Unmarshal(w.Body.Bytes(), &answer); err != nil || w.Code != http.StatusOK && answer["Err"] == nil {
			t.Errorf("%s: %d %s", paths[i], w.Code, w.Body)
		}
	})
}

// TestNetworksThatCannotBeKept: what is not on the disk is not known either.
func TestNetworksThatCannotBeKept(t *testing.T) {
	dir := t.TempDir()
	n, err := openNetworks(filepath.Join(dir, "docker.json"))
	if err != nil {
		t.Fatal(err)
	}
	if err := n.set("one", &network{ID: "1", Made: true}); err != nil {
		t.Fatal(err)
	}
	n.path = filepath.Join(dir, "docker.json", "below", "a", "file")
	if err := n.set("two", &network{ID: "2"}); err == nil {
		t.Error("it was written below a file")
	}
	if err := n.set("one", nil); err == nil {
		t.Error("it was written below a file")
	}
	if _, err := n.find("two"); err == nil {
		t.Error("what could not be kept is known")
	}
	if nw, err := n.find("one"); err != nil || nw.ID != "1" {
		t.Errorf("what could not be forgotten is %v, %v", nw, err)
	}
}
