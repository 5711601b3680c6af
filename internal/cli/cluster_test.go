package cli

import (
	"strings"
	"testing"
	"time"

	"github.com/bulkhead-net/bulkhead/api"
)

func clusterOfTwo() api.Cluster {
	return api.Cluster{
		Joined: true, Connected: true, ID: "11111111-CCCC-4000-8000-000000000001", Host: "22222222-CCCC-4000-8000-000000000001", Name: "web1",
		Addresses: []string{"192.0.2.1", "2001:db8::1"}, Revision: 77, Encryption: "kernel", Prefix: "/bulkhead", OwnEtcd: true, Expires: time.Date(2036, 1, 2, 0, 0, 0, 0, time.UTC),
		Etcd: []api.ClusterMember{
			{Name: "bulkhead-2222", Address: "https://192.0.2.1:2389", Version: "3.4.23", Leader: true, Bytes: 20480},
			{Name: "bulkhead-3333", Address: "https://192.0.2.2:2389", Problem: "nothing listens there"},
		},
		Hosts: []api.ClusterHost{
			{ID: "22222222-CCCC-4000-8000-000000000001", Name: "web1", Addresses: []string{"192.0.2.1", "2001:db8::1"}, Version: "1.0.0", Alive: true, Keys: []uint32{3, 4}, Member: true, Self: true, Endpoints: 3, Blocks: 2},
			{ID: "33333333-CCCC-4000-8000-000000000001", Blocks: 1},
			{ID: "77777777-CCCC-4000-8000-000000000001", Name: "web3", Alive: true, Keys: []uint32{4}, Encrypted: &api.ClusterEncrypted{Handshake: time.Date(2026, 1, 31, 11, 58, 30, 0, time.UTC), Received: 2 << 20, Sent: 1000}},
			{ID: "88888888-CCCC-4000-8000-000000000001", Name: "web4", Alive: true, Keys: []uint32{4}, Encrypted: &api.ClusterEncrypted{}},
		},
		Networks: []api.ClusterNetwork{{ID: "44444444-CCCC-4000-8000-000000000001", Name: "blue", VNI: 4096, Subnets: []string{"10.246.0.0/20"}, Endpoints: 3, Blocks: 3}},
		LoadBalancers: []api.ClusterBalancer{
			{ID: "55555555-CCCC-4000-8000-000000000001", Name: "site", Network: "44444444-CCCC-4000-8000-000000000001", Host: "22222222-CCCC-4000-8000-000000000001", Services: []string{"10.96.0.10:80/tcp", "[fd00:96::10]:80/tcp"}, Endpoints: 2},
			{ID: "66666666-CCCC-4000-8000-000000000001", Network: "44444444-CCCC-4000-8000-000000000001", Host: "33333333-CCCC-4000-8000-000000000001", Services: []string{"10.96.0.11:53/udp"}},
		},
		Problems: []api.ClusterProblem{{Object: "/bulkhead/v1/x", Reason: "no key of ours"}},
	}
}

// TestCluster shows a cluster, and sends what was asked for.
func TestCluster(t *testing.T) {
	d := newDaemon(t)
	_, stderr, code := call(t, d.socket, "cluster", "ls")
	if code != 125 || !strings.Contains(stderr, "this host is in no cluster") || !strings.Contains(stderr, "next: bulkhead cluster init") {
		t.Errorf("in no cluster: %d, %s", code, stderr)
	}
	d.Cluster = clusterOfTwo()
	var b strings.Builder
	for _, args := range [][]string{{"cluster", "ls"}, {"cluster", "ls", "-o", "name"}, {"cluster", "status"}} {
		out, stderr, code := call(t, d.socket, args...)
		if code != 0 || stderr != "" {
			t.Errorf("%v: %d, %s", args, code, stderr)
		}
		b.WriteString("$ bulkhead " + strings.Join(args, " ") + "\n" + out)
	}
	d.Cluster.Connected, d.Cluster.Problem = false, "nothing listens there"
	out, _, code := call(t, d.socket, "cluster", "status")
	if code != 1 {
		t.Errorf("not connected: %d", code)
	}
	b.WriteString("$ bulkhead cluster status\n" + out)
	golden(t, "cluster.txt", b.String())
}

func TestClusterAsks(t *testing.T) {
	for _, tc := range []struct{ args, want string }{
		{"cluster init --name a --address 192.0.2.1 --prefix /x", `POST /v1/cluster/init {"name":"a","addresses":["192.0.2.1"],"prefix":"/x"}`},
		{"join --member tok", `POST /v1/cluster/join {"token":"tok","member":true}`},
		{"join --etcd https://e:1 --cacert /a --cert /b --key /c", `POST /v1/cluster/join {"etcd":{"endpoints":["https://e:1"],"cacert":"/a","cert":"/b","key":"/c"}}`},
		{"cluster token --valid-for 10m", `POST /v1/cluster/tokens {"validFor":"10m0s"}`},
		{"cluster leave --force", `POST /v1/cluster/leave {"force":true}`},
		{"cluster forget web2", "DELETE /v1/cluster/hosts/web2?force=false"},
		{"join", "name a token, or an etcd by --etcd, and not both"},
		{"join tok --etcd https://e:1", "name a token, or an etcd by --etcd, and not both"},
		{"join tok --cert x", "are for an etcd of your own"},
		{"join --etcd https://e:1 --cert x --key y", "--etcd needs --cacert, --cert and --key"},
		{"join --port 3000 tok", "--port is for a member of etcd"},
		{"join --etcd https://e:1 --port 3000", "--port is for the etcd that Bulkhead runs"},
		{"join --member --port 3000 tok", `"port":3000`},
		{"join --etcd https://e:1 --member", "--member is for the etcd that Bulkhead runs"},
	} {
		d := newDaemon(t)
		_, stderr, _ := call(t, d.socket, strings.Fields(tc.args)...)
		d.mu.Lock()
		got := strings.Join(d.requests, "\n") + stderr
		d.mu.Unlock()
		if !strings.Contains(strings.ReplaceAll(got, "\n", " "), tc.want) {
			t.Errorf("%s: %s, want %s", tc.args, got, tc.want)
		}
	}
}
