package cni

import (
	"encoding/json"
	"errors"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/containernetworking/cni/pkg/skel"
	"github.com/containernetworking/cni/pkg/types"
	current "github.com/containernetworking/cni/pkg/types/100"
	"github.com/google/go-cmp/cmp"

	"github.com/bulkhead-net/bulkhead/api"
	"github.com/bulkhead-net/bulkhead/hcn"
)

// daemon is one that keeps attachments and nothing else.
type daemon struct {
	t      *testing.T
	socket string
	spec   api.AttachmentSpec
	kept   map[hcn.GUID]api.Attachment
	gc     api.AttachmentGC
	fail   *api.Error
}

func newDaemon(t *testing.T) *daemon {
	t.Helper()
	dir, err := os.MkdirTemp("", "cni") //nolint:usetesting // t.TempDir is too long for a socket's address
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return &daemon{t: t, socket: filepath.Join(dir, "s"), kept: map[hcn.GUID]api.Attachment{}}
}

// start has it listen.
func (d *daemon) start() {
	d.t.Helper()
	ln, err := net.Listen("unix", d.socket)
	if err != nil {
		d.t.Fatal(err)
	}
	mux := http.NewServeMux()
	mux.HandleFunc("POST /v1/attachments", func(w http.ResponseWriter, r *http.Request) {
		d.spec = api.AttachmentSpec{}
		d.read(r, &d.spec)
		a := api.Attachment{
			ID: api.AttachmentKey{Container: d.spec.Container, Interface: d.spec.Interface}.ID(d.spec.Owner), Netns: d.spec.Netns, MTU: 1450, HostInterface: "bhp1",
			Endpoint: api.ContainerEndpoint{Interface: d.spec.Interface, MAC: "02:00:00:00:00:01", Addresses: []string{"10.1.0.7/24", "fd01::7/64"}, Gateways: []string{"10.1.0.1", "fd01::1"}},
			Routes:   []api.AttachmentRoute{{Destination: "0.0.0.0/0", Gateway: "10.1.0.1"}, {Destination: "10.9.0.0/16"}},
			DNS:      hcn.Dns{ServerList: []string{"10.1.0.1"}, Search: []string{"example"}},
		}
		d.kept[a.ID] = a
		d.answer(w, a)
	})
	mux.HandleFunc("DELETE /v1/attachments/{id}", func(w http.ResponseWriter, r *http.Request) {
		id := hcn.GUID(r.PathValue("id"))
		if _, ok := d.kept[id]; !ok && d.fail == nil {
			d.refuse(w, api.Errorf(api.KindNotFound, "no attachment has the ID %s", id))
			return
		}
		delete(d.kept, id)
		d.answer(w, nil)
	})
	mux.HandleFunc("POST /v1/attachments/{id}/check", func(w http.ResponseWriter, r *http.Request) {
		a, ok := d.kept[hcn.GUID(r.PathValue("id"))]
		if !ok {
			d.refuse(w, api.Errorf(api.KindNotFound, "no attachment"))
			return
		}
		d.answer(w, a)
	})
	mux.HandleFunc("POST /v1/attachments/gc", func(w http.ResponseWriter, r *http.Request) {
		d.read(r, &d.gc)
		d.answer(w, []hcn.GUID{})
	})
	mux.HandleFunc("GET /hcn/v2/networks", func(w http.ResponseWriter, _ *http.Request) {
		d.answer(w, []hcn.GUID{"A0000000-0000-0000-0000-000000000000"})
	})
	mux.HandleFunc("GET /hcn/v2/networks/{id}", func(w http.ResponseWriter, _ *http.Request) {
		d.answer(w, hcn.HostComputeNetwork{ID: "A0000000-0000-0000-0000-000000000000", Name: "pods", SchemaVersion: hcn.V2()})
	})
	srv := &http.Server{Handler: mux, ReadHeaderTimeout: time.Minute}
	go func() { _ = srv.Serve(ln) }()
	d.t.Cleanup(func() { srv.Close() })
}

func (d *daemon) read(r *http.Request, v any) {
	if err := json.NewDecoder(r.Body).Decode(v); err != nil {
		d.t.Error(err)
	}
}

func (d *daemon) answer(w http.ResponseWriter, v any) {
	if d.fail != nil {
		d.refuse(w, d.fail)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(v)
}

func (d *daemon) refuse(w http.ResponseWriter, e *api.Error) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(e.HTTPStatus())
	_ = json.NewEncoder(w).Encode(e)
}

// call is a runtime's call with members added to the configuration.
func (d *daemon) call(members, args string) *skel.CmdArgs {
	if members != "" {
		members = "," + members
	}
	return &skel.CmdArgs{
		ContainerID: "c1", Netns: "/run/netns/c1", IfName: "eth0", Args: args,
		StdinData: []byte(`{"cniVersion":"1.1.0","name":"pods","type":"bulkhead-cni","socket":"` + d.socket + `"` + members + `}`),
	}
}

// printed gives what a call prints.
func printed(t *testing.T, fn func() error) (string, error) {
	t.Helper()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	stdout := os.Stdout
	os.Stdout = w // the library prints there
	err = fn()
	os.Stdout = stdout
	w.Close()
	out, readErr := io.ReadAll(r)
	if readErr != nil {
		t.Fatal(readErr)
	}
	return string(out), err
}

func code(err error) uint {
	if e, ok := errors.AsType[*types.Error](err); ok {
		return e.Code
	}
	return 0
}

func TestAdd(t *testing.T) {
	d := newDaemon(t)
	d.start()
	out, err := printed(t, func() error {
		return add(d.call(`"network":"blue","runtime":"containerd","isolated":true,"runtimeConfig":{
			"portMappings":[{"hostPort":8080,"containerPort":80,"protocol":"TCP"},{"containerPort":81},{"hostPort":53,"containerPort":53,"protocol":"udp","hostIP":"127.0.0.1"}],
			"ips":["10.1.0.7/24","fd01::7"],"mac":"02:00:00:00:00:01","bandwidth":{"ingressRate":8000,"egressRate":16000},
			"dns":{"servers":["192.0.2.53"],"searches":["a.example"]},"aliases":{"pods":["www"],"other":["no"]},
			"ipRanges":[[{"subnet":"10.1.0.9/24","rangeStart":"10.1.0.10","rangeEnd":"10.1.0.20"}]]},
			"policies":[{"name":"EndpointPolicy","value":{"Type":"QOS","Settings":{"MaximumOutgoingBandwidthInBytes":5}}}],
			"AdditionalArgs":[{"Name":"EndpointPolicy","Value":{"Type":"OutBoundNAT","ExceptionList":["10.0.0.0/8"]}}],
			"HcnPolicyArgs":[{"Type":"PortName","Settings":{"Name":"p"}}]`,
			"IgnoreUnknown=1;K8S_POD_NAMESPACE=shop;K8S_POD_NAME=web-0;K8S_POD_UID=u1;OTHER=x"))
	})
	if err != nil {
		t.Fatal(err)
	}
	want := api.AttachmentSpec{
		Owner: "cni/pods", Container: "c1", Netns: "/run/netns/c1", Runtime: "containerd", Name: "web-0",
		Labels: map[string]string{"io.kubernetes.pod.name": "web-0", "io.kubernetes.pod.namespace": "shop", "io.kubernetes.pod.uid": "u1"},
		NetworkAttachment: api.NetworkAttachment{
			Network: "blue", Interface: "eth0", Isolated: true, MAC: "02:00:00:00:00:01", Addresses: []string{"10.1.0.7", "fd01::7"}, Aliases: []string{"www"},
		},
		Ranges: [][]api.AddressRange{{{Subnet: "10.1.0.0/24", First: "10.1.0.10", Last: "10.1.0.20"}}},
		Publish: []api.PublishedPort{
			{Protocol: "tcp", Expose: "all", HostPort: 8080, ContainerPort: 80}, {Protocol: "udp", Expose: "127.0.0.1", HostPort: 53, ContainerPort: 53},
		},
		DNS: hcn.Dns{ServerList: []string{"192.0.2.53"}, Search: []string{"a.example"}},
	}
	got := d.spec
	got.Policies = nil
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("asked for (-want +got):\n%s", diff)
	}
	var policies []string
	for _, p := range d.spec.Policies {
		policies = append(policies, string(p.Type)+" "+string(p.Settings))
	}
	if diff := cmp.Diff([]string{
		`QOS {"MaximumOutgoingBandwidthInBytes":2000}`, `Bulkhead.IncomingQOS {"MaximumIncomingBandwidthInBytes":1000}`,
		`QOS {"MaximumOutgoingBandwidthInBytes":5}`, `OutBoundNAT {"Exceptions":["10.0.0.0/8"]}`, `PortName {"Name":"p"}`,
	}, policies); diff != "" {
		t.Errorf("policies (-want +got):\n%s", diff)
	}
	for _, text := range []string{
		`"cniVersion": "1.1.0"`, `"name": "eth0"`, `"mac": "02:00:00:00:00:01"`, `"mtu": 1450`, `"sandbox": "/run/netns/c1"`, `"address": "10.1.0.7/24"`,
		`"gateway": "10.1.0.1"`, `"address": "fd01::7/64"`, `"gateway": "fd01::1"`, `"dst": "0.0.0.0/0"`, `"dst": "10.9.0.0/16"`, `"nameservers": [`, `"example"`,
	} {
		if !strings.Contains(out, text) {
			t.Errorf("the result lacks %s:\n%s", text, out)
		}
	}
}

// TestAddToAList: what plugins before this one made stays.
func TestAddToAList(t *testing.T) {
	d := newDaemon(t)
	d.start()
	out, err := printed(t, func() error {
		return add(d.call(`"prevResult":{"cniVersion":"1.1.0","interfaces":[{"name":"net0","sandbox":"/run/netns/c1"}],"ips":[{"address":"10.5.0.2/24","interface":0}],"dns":{"nameservers":["10.5.0.1"]}}`, ""))
	})
	if err != nil {
		t.Fatal(err)
	}
	var r current.Result
	if err := json.Unmarshal([]byte(out), &r); err != nil {
		t.Fatal(err)
	}
	if len(r.Interfaces) != 3 || r.Interfaces[0].Name != "net0" || len(r.IPs) != 3 || *r.IPs[0].Interface != 0 || *r.IPs[1].Interface != 1 ||
		r.DNS.Nameservers[0] != "10.5.0.1" {
		t.Errorf("result %s", out)
	}
}

// TestOldVersions: the result has the form that was asked for.
func TestOldVersions(t *testing.T) {
	d := newDaemon(t)
	d.start()
	for _, v := range []string{"0.3.1", "0.4.0", "1.0.0"} {
		c := d.call("", "")
		c.StdinData = []byte(strings.Replace(string(c.StdinData), "1.1.0", v, 1))
		out, err := printed(t, func() error { return add(c) })
		if err != nil || !strings.Contains(out, `"cniVersion": "`+v+`"`) {
			t.Errorf("%s: %v\n%s", v, err, out)
		}
		if hasVersion := strings.Contains(out, `"version": "4"`); hasVersion != strings.HasPrefix(v, "0.") {
			t.Errorf("%s: the family of addresses is named: %v", v, hasVersion)
		}
	}
}

func TestDel(t *testing.T) {
	d := newDaemon(t)
	c := d.call("", "")
	id := api.AttachmentKey{Container: "c1", Interface: "eth0"}.ID("cni/pods")
	note := filepath.Join(filepath.Dir(d.socket), "detach", string(id))
	if err := del(c); err != nil {
		t.Errorf("without a daemon: %v", err)
	}
	if _, err := os.Stat(note); err != nil {
		t.Errorf("it is not noted: %v", err)
	}
	if _, err := printed(t, func() error { return add(c) }); code(err) != types.ErrTryAgainLater {
		t.Errorf("ADD without a daemon: %v", err)
	}
	d.start()
	if _, err := printed(t, func() error { return add(c) }); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(note); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the note outlives the next ADD: %v", err)
	}
	for range 2 {
		if err := del(c); err != nil {
			t.Error(err)
		}
	}
	if len(d.kept) != 0 {
		t.Errorf("kept %v", d.kept)
	}
	d.fail = api.Errorf(api.KindInternal, "broken")
	if err := del(c); code(err) != types.ErrInternal {
		t.Errorf("a daemon that fails: %v", err)
	}
}

func TestCheck(t *testing.T) {
	d := newDaemon(t)
	d.start()
	out, err := printed(t, func() error { return add(d.call("", "")) })
	if err != nil {
		t.Fatal(err)
	}
	if err := check(d.call(`"prevResult":`+out, "")); err != nil {
		t.Error(err)
	}
	for name, c := range map[string]struct {
		prev string
		code uint
	}{
		"no result":   {``, types.ErrInvalidNetworkConfig},
		"address":     {`"prevResult":` + strings.Replace(out, "10.1.0.7/24", "10.1.0.8/24", 1), codeConflict},
		"MAC":         {`"prevResult":` + strings.Replace(out, "02:00:00:00:00:01", "02:00:00:00:00:02", 1), codeConflict},
		"interface":   {`"prevResult":` + strings.Replace(out, `"eth0"`, `"eth9"`, 1), codeConflict},
		"nonsense":    {`"prevResult":{"cniVersion":"1.1.0","ips":7}`, types.ErrDecodingFailure},
		"old version": {`"prevResult":{"cniVersion":"9.9.9"}`, types.ErrDecodingFailure},
	} {
		if err := check(d.call(c.prev, "")); code(err) != c.code {
			t.Errorf("%s: %v, want code %d", name, err, c.code)
		}
	}
	clear(d.kept)
	if err := check(d.call(`"prevResult":`+out, "")); code(err) != types.ErrUnknownContainer {
		t.Errorf("one that is not attached: %v", err)
	}
}

func TestGCAndStatus(t *testing.T) {
	d := newDaemon(t)
	if err := status(d.call("", "")); code(err) != notAvailable {
		t.Errorf("without a daemon: %v", err)
	}
	d.start()
	if err := gc(d.call(`"cni.dev/valid-attachments":[{"containerID":"c1","ifname":"eth0"}]`, "")); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(api.AttachmentGC{Owner: "cni/pods", Keep: []api.AttachmentKey{{Container: "c1", Interface: "eth0"}}}, d.gc); diff != "" {
		t.Errorf("collected (-want +got):\n%s", diff)
	}
	if err := status(d.call("", "")); err != nil {
		t.Error(err)
	}
	if err := status(d.call(`"network":"other"`, "")); code(err) != notAvailable || !strings.Contains(err.Error(), "bulkhead network create other") {
		t.Errorf("without the network: %v", err)
	}
}

func TestBadConfigurations(t *testing.T) {
	d := newDaemon(t)
	d.start()
	for members, want := range map[string]string{
		`"ipam":{"type":"host-local"}`: "ipam: ", `"socket":"relative"`: "socket: ", `"runtimeConfig":{"ips":["x"]}`: "ips: ",
		`"runtimeConfig":{"portMappings":[{"hostPort":1,"containerPort":1,"protocol":"sctp"}]}`:    "portMappings[0].protocol",
		`"runtimeConfig":{"portMappings":[{"hostPort":70000,"containerPort":1}]}`:                  "portMappings[0].hostPort",
		`"runtimeConfig":{"portMappings":[{"hostPort":1}]}`:                                        "portMappings[0].containerPort",
		`"runtimeConfig":{"portMappings":[{"hostPort":1,"containerPort":1,"hostIP":"localhost"}]}`: "portMappings[0].hostIP",
		`"runtimeConfig":{"ipRanges":[[{"subnet":"10.0.0.0"}]]}`:                                   "ipRanges[0][0].subnet",
		`"policies":[{"name":"Other","value":{}}]`:                                                 "policies: ",
		`"policies":[{"name":"EndpointPolicy","value":7}]`:                                         "policies[0]",
		`"args":{"cni":{"labels":[{"key":1}]}}`:                                                    "args.cni.labels",
		`"network":7`:                                                                              "cannot be read", `"prevResult":7`: "cannot be read",
	} {
		_, err := printed(t, func() error { return add(d.call(members, "")) })
		if err == nil || !strings.Contains(err.Error(), want) || code(err) != types.ErrInvalidNetworkConfig && code(err) != types.ErrDecodingFailure {
			t.Errorf("%s: %v, want %q", members, err, want)
		}
	}
	if _, err := printed(t, func() error { return add(d.call("", "K8S_POD_NAME")) }); code(err) != types.ErrInvalidEnvironmentVariables {
		t.Errorf("CNI_ARGS without a value: %v", err)
	}
	for kind, want := range map[string]uint{
		api.KindConflict: codeConflict, api.KindUnsupported: codeUnsupported, api.KindUnavailable: types.ErrTryAgainLater, api.KindNotFound: types.ErrInvalidNetworkConfig,
	} {
		d.fail = api.Errorf(kind, "no").Hint("do this")
		_, err := printed(t, func() error { return add(d.call("", "")) })
		if e, ok := errors.AsType[*types.Error](err); !ok || e.Code != want || e.Details != "do this" {
			t.Errorf("%s: %v, want code %d", kind, err, want)
		}
	}
}

// FuzzConfig: no configuration takes the plugin down, and what it asks for is what the daemon can read.
func FuzzConfig(f *testing.F) {
	f.Add([]byte(`{"cniVersion":"1.1.0","name":"a","runtimeConfig":{"portMappings":[{"hostPort":1,"containerPort":1}],"ipRanges":[[{"subnet":"10.0.0.0/8"}]]}}`), "K8S_POD_NAME=a")
	f.Add([]byte(`{"name":"a","policies":[{"name":"EndpointPolicy","value":{"Type":"ACL","Value":{"Action":"Block"}}}],"args":{"cni":{"labels":[{"key":"a","value":"b"}]}}}`), "")
	f.Fuzz(func(t *testing.T, conf []byte, args string) {
		c, err := readConfig(conf)
		if err != nil {
			return
		}
		if _, err := c.prevResult(); err != nil && code(err) == 0 {
			t.Errorf("an error without a code: %v", err)
		}
		s, err := c.spec("c", "/run/netns/c", "eth0", args)
		if err != nil {
			if code(err) == 0 {
				t.Errorf("an error without a code: %v", err)
			}
			return
		}
		b, err := json.Marshal(s)
		if err != nil {
			t.Fatalf("the request cannot be written: %v", err)
		}
		if err := json.Unmarshal(b, new(api.AttachmentSpec)); err != nil {
			t.Errorf("the request cannot be read: %v\n%s", err, b)
		}
	})
}

// TestPodmanHoldsPorts: Podman binds the ports that it publishes itself; others do not, unless they say so.
func TestPodmanHoldsPorts(t *testing.T) {
	for members, want := range map[string]bool{
		``: false, `,"runtime":"podman"`: true, `,"runtime":"containerd"`: false,
		`,"runtime":"podman","runtimeHoldsPorts":false`: false, `,"runtime":"own","runtimeHoldsPorts":true`: true,
	} {
		c, err := readConfig([]byte(`{"cniVersion":"1.1.0","name":"pods","type":"bulkhead-cni"` + members + `}`))
		if err != nil {
			t.Fatal(err)
		}
		s, err := c.spec("c1", "/run/netns/c1", "eth0", "")
		if err != nil || s.PortsHeld != want {
			t.Errorf("%s: held by the runtime: %v (%v)", members, s.PortsHeld, err)
		}
	}
}
