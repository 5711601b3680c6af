package engine

import (
	"context"
	"maps"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/bulkhead-net/bulkhead/api"
	"github.com/bulkhead-net/bulkhead/hcn"
	"github.com/bulkhead-net/bulkhead/internal/plan"
)

func foreign(container string) api.AttachmentSpec {
	return api.AttachmentSpec{
		Owner: "cni/a", Container: container, Netns: "/run/netns/" + container, Runtime: "containerd", Name: "pod-" + container,
		NetworkAttachment: api.NetworkAttachment{Network: "a", Interface: "eth0"},
	}
}

func (e *env) attachForeign(s api.AttachmentSpec) (api.Attachment, error) {
	return e.e.Attach(context.Background(), s)
}

// withNetns is a daemon with a network a, on a host with the network namespaces of two foreign containers.
func withNetns(t *testing.T, fn func(e *env)) {
	t.Helper()
	run(t, func(e *env) {
		must(e.network(netDoc("a", "NAT", 7)))(e)
		maps.Copy(e.w.netns, map[string]uint64{"/run/netns/c1": 11, "/proc/1/ns/net": 11, "/run/netns/c2": 12})
		fn(e)
	})
}

func TestForeignContainerIsAttachedOnce(t *testing.T) {
	withNetns(t, func(e *env) {
		before := len(e.e.Namespaces(hcn.Filter{}))
		s := foreign("c1")
		s.Publish = []api.PublishedPort{{HostPort: 8080, ContainerPort: 80}}
		s.Labels = map[string]string{"app": "web"}
		a := must(e.attachForeign(s))(e)
		if a.ID != (api.AttachmentKey{Container: "c1", Interface: "eth0"}).ID("cni/a") || a.Namespace == "" || a.HostInterface == "" || a.MTU == 0 ||
			len(a.Endpoint.Addresses) == 0 || len(a.Routes) == 0 || len(a.DNS.ServerList) == 0 || a.Labels["app"] != "web" {
			e.t.Errorf("attached %s", toJSON(a))
		}
		e.w.mu.Lock()
		e.w.compartments[11] = plan.NamespacePath(a.Namespace) // as we hold it now
		e.w.mu.Unlock()
		if again := must(e.attachForeign(s))(e); !cmp.Equal(again, a) {
			e.t.Errorf("again: %s", cmp.Diff(a, again))
		}
		e.restart()
		if again := must(e.attachForeign(s))(e); !cmp.Equal(again, a) {
			e.t.Errorf("after a restart: %s", cmp.Diff(a, again))
		}
		// A second interface in the same namespace, by another of its names.
		two := foreign("c1")
		two.Interface, two.Netns = "eth1", "/proc/1/ns/net"
		if b := must(e.attachForeign(two))(e); b.Namespace != a.Namespace || b.ID == a.ID {
			e.t.Errorf("second interface: %s", toJSON(b))
		}
		if got := e.e.Attachments("cni/a"); len(got) != 2 {
			e.t.Errorf("listed %s", toJSON(got))
		}
		e.ok(e.e.Detach(context.Background(), a.ID))
		e.wantKind(e.e.Detach(context.Background(), a.ID), api.KindNotFound)
		must(e.e.CheckAttachment(api.AttachmentKey{Container: "c1", Interface: "eth1"}.ID("cni/a")))(e)
		gone := must(e.e.CollectAttachments(context.Background(), api.AttachmentGC{Owner: "cni/a"}))(e)
		if len(gone) != 1 || len(e.e.Endpoints(hcn.Filter{})) != 0 || len(e.e.Namespaces(hcn.Filter{})) != before {
			e.t.Errorf("collected %v, left %v and %v", gone, e.e.Endpoints(hcn.Filter{}), e.e.Namespaces(hcn.Filter{}))
		}
	})
}

func TestForeignContainersAreCollectedByOwner(t *testing.T) {
	withNetns(t, func(e *env) {
		one, two := must(e.attachForeign(foreign("c1")))(e), must(e.attachForeign(foreign("c2")))(e)
		if one.Namespace == two.Namespace {
			e.t.Error("two namespaces are taken for one")
		}
		other := foreign("c2")
		other.Owner, other.Interface = "docker", "eth1"
		kept := must(e.attachForeign(other))(e)
		gone := must(e.e.CollectAttachments(context.Background(), api.AttachmentGC{
			Owner: "cni/a", Keep: []api.AttachmentKey{{Container: "c2", Interface: "eth0"}, {Container: "unknown", Interface: "eth0"}},
		}))(e)
		if !slices.Equal(gone, []hcn.GUID{one.ID}) {
			e.t.Errorf("collected %v, want %v", gone, one.ID)
		}
		for _, id := range []hcn.GUID{two.ID, kept.ID} {
			must(e.e.Attachment(id))(e)
		}
		_, err := e.e.CollectAttachments(context.Background(), api.AttachmentGC{})
		e.wantKind(err, api.KindInvalid)
		e.reboot()
		if got := e.e.Attachments(""); len(got) != 0 {
			e.t.Errorf("after a restart of the host: %s", toJSON(got))
		}
	})
}

func TestForeignContainerFailsWhole(t *testing.T) {
	withNetns(t, func(e *env) {
		before := len(e.e.Namespaces(hcn.Filter{}))
		e.failing(0, true)
		_, err := e.attachForeign(foreign("c1"))
		e.failing(-1, false)
		e.wantKind(err, api.KindInternal)
		if eps, ns := e.e.Endpoints(hcn.Filter{}), e.e.Namespaces(hcn.Filter{}); len(eps) != 0 || len(ns) != before {
			e.t.Errorf("left: %v, %v", eps, ns)
		}
		must(e.attachForeign(foreign("c1")))(e)
		must(e.network(netDoc("b", "NAT", 8)))(e)
		ours := must(e.namespace(`{` + v2 + `}`))(e)
		e.w.mu.Lock()
		maps.Copy(e.w.netns, map[string]uint64{"/proc/7/ns/net": 21, "/proc/8/ns/net": 22})
		maps.Copy(e.w.compartments, map[uint64]string{21: plan.NamespacePath(ours.ID), 22: plan.NamespacePath(plan.ResolverNamespace)})
		e.w.mu.Unlock()
		for name, c := range map[string]struct {
			change func(*api.AttachmentSpec)
			kind   string
			text   string
		}{
			"no owner":            {func(s *api.AttachmentSpec) { s.Owner = "" }, api.KindInvalid, "owner: it is missing"},
			"long container":      {func(s *api.AttachmentSpec) { s.Container = strings.Repeat("x", 300) }, api.KindInvalid, "container: "},
			"control character":   {func(s *api.AttachmentSpec) { s.Name = "a\nb" }, api.KindInvalid, "name: "},
			"relative path":       {func(s *api.AttachmentSpec) { s.Netns = "netns/c1" }, api.KindInvalid, "netns: "},
			"no namespace":        {func(s *api.AttachmentSpec) { s.Netns = "/run/netns/x" }, api.KindInvalid, "netns: /run/netns/x does not exist"},
			"ours by its process": {func(s *api.AttachmentSpec) { s.Netns = "/proc/7/ns/net" }, api.KindInvalid, "netns: /proc/7/ns/net is a compartment of ours"},
			"the resolver's":      {func(s *api.AttachmentSpec) { s.Netns = "/proc/8/ns/net" }, api.KindInvalid, "resolver"},
			"no network":          {func(s *api.AttachmentSpec) { s.Network = "x"; s.Container = "c9" }, api.KindNotFound, `network "x"`},
			"interface":           {func(s *api.AttachmentSpec) { s.Interface = "lo" }, api.KindInvalid, "lo"},
			"taken interface":     {func(s *api.AttachmentSpec) { s.Owner = "other" }, api.KindInternal, "eth0"},
			"other network":       {func(s *api.AttachmentSpec) { s.Network = "b" }, api.KindConflict, "is on network"},
			"other namespace":     {func(s *api.AttachmentSpec) { s.Netns = "/run/netns/c2" }, api.KindConflict, "another network namespace"},
			"range outside": {func(s *api.AttachmentSpec) {
				s.Container = "c9"
				s.Ranges = [][]api.AddressRange{{{Subnet: "10.9.9.0/24"}}}
			}, api.KindInvalid, "ranges[0][0]: subnet"},
			"empty ranges": {func(s *api.AttachmentSpec) { s.Container = "c9"; s.Ranges = [][]api.AddressRange{{}} }, api.KindInvalid, "ranges[0]: it is empty"},
			"too many labels": {func(s *api.AttachmentSpec) {
				s.Labels = map[string]string{}
				for i := range 65 {
					s.Labels[itoa(i)] = ""
				}
			}, api.KindInvalid, "labels: "},
		} {
			s := foreign("c1")
			c.change(&s)
			_, err := e.attachForeign(s)
			if !api.IsKind(err, c.kind) || !strings.Contains(err.Error(), c.text) {
				e.t.Errorf("%s: %v, want %s with %q", name, err, c.kind, c.text)
			}
		}
	})
}

func TestForeignContainerInRanges(t *testing.T) {
	withNetns(t, func(e *env) {
		s := foreign("c1")
		s.Ranges = [][]api.AddressRange{{{Subnet: "10.7.0.0/24", First: "10.7.0.99", Last: "10.7.0.99"}}}
		a := must(e.attachForeign(s))(e)
		if !slices.Contains(a.Endpoint.Addresses, "10.7.0.99/24") {
			e.t.Errorf("addresses %v", a.Endpoint.Addresses)
		}
		s.Container, s.Netns = "c2", "/run/netns/c2"
		_, err := e.attachForeign(s)
		if err == nil || !strings.Contains(err.Error(), "ranges[0]") {
			e.t.Errorf("a range that is used up: %v", err)
		}
	})
}

func TestForeignNamespaceVanishes(t *testing.T) {
	withNetns(t, func(e *env) {
		before := len(e.e.Namespaces(hcn.Filter{}))
		a := must(e.attachForeign(foreign("c1")))(e)
		e.w.mu.Lock()
		delete(e.w.netns, "/run/netns/c1")
		delete(e.w.kernel[0], namespaceObject(a.Namespace))
		e.w.mu.Unlock()
		e.e.Wake("test")
		e.settle()
		got := must(e.e.Attachment(a.ID))(e)
		if got.Namespace != "" || !slices.Equal(got.Endpoint.Addresses, a.Endpoint.Addresses) || len(e.e.Namespaces(hcn.Filter{})) != before {
			e.t.Errorf("after it vanished: %s", toJSON(got))
		}
		_, err := e.e.CheckAttachment(a.ID)
		e.wantKind(err, api.KindConflict)
		// The runtime begins anew, with another namespace of that name: the address is the same.
		e.w.netns["/run/netns/c1"] = 21
		again := must(e.attachForeign(foreign("c1")))(e)
		if again.Namespace == "" || !slices.Equal(again.Endpoint.Addresses, a.Endpoint.Addresses) {
			e.t.Errorf("attached again: %s", toJSON(again))
		}
		if p := e.e.view.port(plan.EndpointPortID(a.ID)); p == nil || !p.VNIC.Adopted {
			e.t.Error("its port does not know that the namespace is another runtime's")
		}
		e.ok(e.e.Detach(context.Background(), a.ID))
	})
}

// TestForeignContainerTakesEachOnce: neither two sets of ranges nor a fixed address and a set give the same one.
func TestForeignContainerTakesEachOnce(t *testing.T) {
	withNetns(t, func(e *env) {
		s := foreign("c1")
		s.Addresses = []string{"10.7.0.99"}
		s.Ranges = [][]api.AddressRange{{{Subnet: "10.7.0.0/24", First: "10.7.0.99", Last: "10.7.0.99"}}}
		if _, err := e.attachForeign(s); err == nil || !strings.Contains(err.Error(), "ranges[0]") {
			e.t.Errorf("a set whose only address is the container's own: %v", err)
		}
		for name, change := range map[string]func(*api.AttachmentSpec){
			"sets":   func(s *api.AttachmentSpec) { s.Ranges = make([][]api.AddressRange, maxSets+1) },
			"ranges": func(s *api.AttachmentSpec) { s.Ranges = [][]api.AddressRange{make([]api.AddressRange, maxRanges+1)} },
			"dns":    func(s *api.AttachmentSpec) { s.DNS.Search = make([]string, maxDNS+1) },
		} {
			s := foreign("c1")
			change(&s)
			_, err := e.attachForeign(s)
			e.wantKind(err, api.KindInvalid)
			if !strings.Contains(err.Error(), "at most") {
				e.t.Errorf("%s: %v", name, err)
			}
		}
	})
}

func TestForeignContainerKeepsItsDNS(t *testing.T) {
	withNetns(t, func(e *env) {
		s := foreign("c1")
		s.DNS = hcn.Dns{Domain: "d.example", Search: []string{"s.example"}, Options: []string{"ndots:5"}}
		a := must(e.attachForeign(s))(e)
		if a.DNS.Domain != "d.example" || !slices.Equal(a.DNS.Search, s.DNS.Search) || !slices.Equal(a.DNS.Options, s.DNS.Options) || len(a.DNS.ServerList) == 0 {
			e.t.Errorf("resolves by %s", toJSON(a.DNS))
		}
	})
}

// TestForeignIDOfAnother: an endpoint that happens to have the ID is not taken over.
func TestForeignIDOfAnother(t *testing.T) {
	withNetns(t, func(e *env) {
		n := must(e.network(netDoc("b", "NAT", 8)))(e)
		doc := decode[hcn.HostComputeEndpoint](e, epDoc(n.ID, ""))
		must(e.e.CreateEndpoint(context.Background(), api.AttachmentKey{Container: "c1", Interface: "eth0"}.ID("cni/a"), "", doc))(e)
		_, err := e.attachForeign(foreign("c1"))
		e.wantKind(err, api.KindConflict)
	})
}
