package kube

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	core "k8s.io/api/core/v1"
	discovery "k8s.io/api/discovery/v1"
	meta "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/yaml"
)

// text is a load balancer on a line.
func (b *balancer) text() string {
	s := fmt.Sprintf("%s: %v %s %d→%d to %v", b.name, b.vips, b.protocol, b.port, b.target, b.backends)
	if b.flags != 0 {
		s += " " + b.flags.String()
	}
	if b.affinity {
		s += " affinity"
	}
	return s
}

// read makes what the API server has of documents.
func read(t *testing.T, node, zone, text string) state {
	t.Helper()
	s := state{node: node, zone: zone, slices: map[types.NamespacedName][]*discovery.EndpointSlice{}}
	for i, doc := range strings.Split(text, "\n---\n") {
		var svc core.Service
		var es discovery.EndpointSlice
		if err := yaml.UnmarshalStrict([]byte(doc), &svc); err == nil {
			svc.Namespace = "ns"
			svc.CreationTimestamp = meta.NewTime(time.Unix(int64(100+i), 0))
			s.services = append(s.services, &svc)
			continue
		}
		if err := yaml.UnmarshalStrict([]byte(doc), &es); err != nil {
			t.Fatalf("%v in\n%s", err, doc)
		}
		key := types.NamespacedName{Namespace: "ns", Name: es.Name}
		s.slices[key] = append(s.slices[key], &es)
	}
	return s
}

const slice = "ports: [{name: http, port: 8080}]\naddressType: IPv4\n"

func TestCompile(t *testing.T) {
	const web = "metadata: {name: web}\nspec:\n  clusterIP: 10.96.0.1\n  ports: [{name: http, port: 80, nodePort: 30080}]\n"
	const ends = "metadata: {name: web}\n" + slice + `endpoints:
- {addresses: [10.1.0.1], nodeName: here, zone: a}
- {addresses: [10.2.0.1], nodeName: there, zone: b}
`
	for name, tc := range map[string]struct {
		docs, want, problems string
		checks               string // ports with what is here
	}{
		"nobody": {web, `
ns.web:http: [10.96.0.1] TCP 80→80 to []
ns.web:http NodePort: [] TCP 30080→80 to [] LocalRoutedVip|VipExternalIp`, "", ""},
		"cluster": {web + "---\n" + ends, `
ns.web:http: [10.96.0.1] TCP 80→8080 to [10.1.0.1 10.2.0.1]
ns.web:http NodePort: [] TCP 30080→8080 to [10.1.0.1 10.2.0.1] LocalRoutedVip|VipExternalIp`, "", ""},
		"inside, local": {web + "  internalTrafficPolicy: Local\n---\n" + ends, `
ns.web:http: [10.96.0.1] TCP 80→8080 to [10.1.0.1]
ns.web:http NodePort: [] TCP 30080→8080 to [10.1.0.1 10.2.0.1] LocalRoutedVip|VipExternalIp`, "", ""},
		"from outside": {web + `  type: LoadBalancer
  externalTrafficPolicy: Local
  healthCheckNodePort: 32000
  sessionAffinity: ClientIP
  externalIPs: [192.0.2.1, "2001:db8::1", 10.96.0.1]
status: {loadBalancer: {ingress: [{ip: 192.0.2.2, ipMode: VIP}, {ip: 192.0.2.3, ipMode: Proxy}, {hostname: x}]}}
---
metadata: {name: web}
` + slice + `endpoints:
- {addresses: [10.1.0.1], nodeName: here, conditions: {ready: false, serving: true, terminating: true}}
- {addresses: [10.1.0.2], nodeName: here, conditions: {ready: false, serving: false, terminating: true}}
- {addresses: [10.2.0.1], nodeName: there}
`, `
ns.web:http: [10.96.0.1] TCP 80→8080 to [10.2.0.1] affinity
ns.web:http NodePort: [] TCP 30080→8080 to [10.1.0.1 10.2.0.1] LocalRoutedVip|VipExternalIp affinity
ns.web:http external: [192.0.2.1 192.0.2.2] TCP 80→8080 to [10.1.0.1 10.2.0.1] VipExternalIp affinity`, "", "32000:0"},
		"all are ending": {web + "---\nmetadata: {name: web}\n" + slice + `endpoints:
- {addresses: [10.1.0.1], conditions: {ready: false, serving: true, terminating: true}}
- {addresses: [10.1.0.2], conditions: {ready: false, serving: true}}
`, `
ns.web:http: [10.96.0.1] TCP 80→8080 to [10.1.0.1]
ns.web:http NodePort: [] TCP 30080→8080 to [10.1.0.1] LocalRoutedVip|VipExternalIp`, "", ""},
		"both families, two slices": {`metadata: {name: dns}
spec:
  clusterIP: "fd00::1"
  clusterIPs: ["fd00::1", 10.96.0.9]
  ipFamilies: [IPv6, IPv4]
  ports: [{port: 53, protocol: UDP}]
---
metadata: {name: dns}
addressType: IPv6
ports: [{port: 53, protocol: UDP}, {port: 53, protocol: TCP}]
endpoints: [{addresses: ["fd01::1"]}]
---
metadata: {name: dns}
addressType: IPv4
ports: [{port: 53, protocol: UDP}]
endpoints: [{addresses: [10.1.0.1]}]
---
metadata: {name: dns}
addressType: IPv4
ports: [{port: 53, protocol: UDP}]
endpoints: [{addresses: [10.1.0.1], conditions: {ready: false}}, {addresses: [10.1.0.2]}]`, `
ns.dns:53 IPv6: [fd00::1] UDP 53→53 to [fd01::1]
ns.dns:53: [10.96.0.9] UDP 53→53 to [10.1.0.1 10.1.0.2]`, "", ""},
		"near": {"metadata: {name: p}\nspec: {clusterIP: 10.96.0.1, ports: [{name: http, port: 80}]}\n---\nmetadata: {name: p}\n" + slice + `endpoints:
- {addresses: [10.1.0.1], hints: {forZones: [{name: a}]}}
- {addresses: [10.1.0.2], hints: {forZones: [{name: b}]}}
---
metadata: {name: m}
spec: {clusterIP: 10.96.0.2, ports: [{name: http, port: 80}]}
---
metadata: {name: m}
` + slice + `endpoints:
- {addresses: [10.1.0.1], hints: {forZones: [{name: a}]}}
- {addresses: [10.1.0.2]}
---
metadata: {name: o}
spec: {clusterIP: 10.96.0.3, ports: [{name: http, port: 80}]}
---
metadata: {name: o}
` + slice + `endpoints:
- {addresses: [10.1.0.1], hints: {forZones: [{name: a}], forNodes: [{name: there}]}}
- {addresses: [10.1.0.2], hints: {forZones: [{name: a}], forNodes: [{name: here}]}}
`, `
ns.p:http: [10.96.0.1] TCP 80→8080 to [10.1.0.1]
ns.m:http: [10.96.0.2] TCP 80→8080 to [10.1.0.1 10.1.0.2]
ns.o:http: [10.96.0.3] TCP 80→8080 to [10.1.0.2]`, "", ""},
		"not ours, or not possible": {`metadata: {name: a, labels: {service.kubernetes.io/service-proxy-name: other}}
spec: {clusterIP: 10.96.0.1, ports: [{port: 80}]}
---
metadata: {name: b}
spec: {clusterIP: None, ports: [{port: 80}]}
---
metadata: {name: c}
spec: {type: ExternalName, externalName: x}
---
metadata: {name: d}
spec: {clusterIP: 10.96.0.4, ports: [{name: s, port: 80, protocol: SCTP}]}
---
metadata: {name: e}
spec: {clusterIP: 10.96.0.5, ports: [{name: http, port: 80}], externalIPs: [192.0.2.1]}
---
metadata: {name: f}
spec: {clusterIP: 10.96.0.6, ports: [{name: http, port: 80}], externalIPs: [192.0.2.1]}
---
metadata: {name: g}
spec: {type: LoadBalancer, clusterIP: 10.96.0.7, loadBalancerSourceRanges: [10.0.0.0/8], ports: [{name: http, port: 80}]}
status: {loadBalancer: {ingress: [{ip: 192.0.2.2}]}}
---
metadata: {name: f}
addressType: IPv4
ports: [{name: http, port: 8080}]
endpoints: [{addresses: [10.1.0.1]}, {addresses: [10.1.0.2]}]
---
metadata: {name: f}
addressType: IPv4
ports: [{name: http, port: 8081}]
endpoints: [{addresses: [10.1.0.3]}]
`, `
ns.e:http: [10.96.0.5] TCP 80→80 to []
ns.e:http external: [192.0.2.1] TCP 80→80 to [] VipExternalIp
ns.f:http: [10.96.0.6] TCP 80→8080 to [10.1.0.1 10.1.0.2]
ns.g:http: [10.96.0.7] TCP 80→80 to []`, "SCTP listen-on-different-ports 192.0.2.1:80-is-that-of-ns.e:http loadBalancerSourceRanges", ""},
	} {
		t.Run(name, func(t *testing.T) {
			w := compile(read(t, "here", "a", tc.docs))
			var got []string
			for i := range w.balancers {
				got = append(got, w.balancers[i].text())
			}
			if d := cmp.Diff(strings.Split(strings.TrimSpace(tc.want), "\n"), got); d != "" {
				t.Error(d)
			}
			all := strings.Join(w.problems, "\n")
			for p := range strings.FieldsSeq(tc.problems) {
				if !strings.Contains(all, strings.ReplaceAll(p, "-", " ")) {
					t.Errorf("no %q among the problems\n%s", p, all)
				}
			}
			if len(w.problems) != len(strings.Fields(tc.problems)) {
				t.Errorf("problems: %s", all)
			}
			checks := ""
			for port, c := range w.checks {
				checks += fmt.Sprintf("%d:%d", port, c.local)
			}
			if checks != tc.checks {
				t.Errorf("health checks %q, want %q", checks, tc.checks)
			}
		})
	}
}

// TestCompileIsTheSame: the order in which the API server tells of things changes nothing.
func TestCompileIsTheSame(t *testing.T) {
	s := read(t, "here", "", "metadata: {name: a}\nspec: {clusterIP: 10.96.0.1, externalIPs: [192.0.2.1], ports: [{name: http, port: 80}, {name: x, port: 81}]}\n---\nmetadata: {name: b}\nspec: {clusterIP: 10.96.0.2, externalIPs: [192.0.2.1], ports: [{name: http, port: 80}]}")
	once := compile(s)
	slices.Reverse(s.services)
	again := compile(s)
	if d := cmp.Diff(once.problems, again.problems); d != "" || len(once.problems) != 1 {
		t.Error(once.problems, d)
	}
	for i := range once.balancers {
		if once.balancers[i].text() != again.balancers[i].text() {
			t.Errorf("%s, then %s", once.balancers[i].text(), again.balancers[i].text())
		}
	}
}
