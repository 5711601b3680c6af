package main

import (
	"strings"
	"testing"
)

func TestDaemonSettings(t *testing.T) {
	for name, tc := range map[string]struct {
		change func(*daemonConfig)
		want   string // in the error; empty: none
	}{
		"defaults":        {func(*daemonConfig) {}, ""},
		"relative state":  {func(c *daemonConfig) { c.stateDir = "state" }, `--state-dir "state"`},
		"relative run":    {func(c *daemonConfig) { c.runDir = "run" }, `--run-dir "run"`},
		"relative bpf":    {func(c *daemonConfig) { c.bpfDir = "bpf" }, `--bpf-dir "bpf"`},
		"relative socket": {func(c *daemonConfig) { c.socket = "s.sock" }, `--socket "s.sock"`},
		"negative pool":   {func(c *daemonConfig) { c.namespacePool = -1 }, "--namespace-pool -1"},
		"endless pool":    {func(c *daemonConfig) { c.namespacePool = 1_000_000 }, "--namespace-pool 1000000"},
		"no pool":         {func(c *daemonConfig) { c.namespacePool = 0 }, ""},
		"mirror of none":  {func(c *daemonConfig) { c.mirrors = []string{"mirror.example"} }, `--registry-mirror "mirror.example"`},
		"mirror missing":  {func(c *daemonConfig) { c.mirrors = []string{"docker.io="} }, "--registry-mirror"},
		"mirror":          {func(c *daemonConfig) { c.mirrors = []string{"docker.io=mirror.example"} }, ""},
		"pool":            {func(c *daemonConfig) { c.pools = []string{"10.99.0.0/16", "100.64.0.0/24"} }, ""},
		"pool of all":     {func(c *daemonConfig) { c.pools = []string{"0.0.0.0/0"} }, `--pool "0.0.0.0/0"`},
		"multicast pool":  {func(c *daemonConfig) { c.pools = []string{"224.0.0.0/4"} }, "not for hosts"},
		"loopback pool":   {func(c *daemonConfig) { c.pools = []string{"127.0.0.0/16"} }, "not for hosts"},
		"small pool":      {func(c *daemonConfig) { c.pools = []string{"10.99.0.0/25"} }, "at most 24 bits"},
		"IPv6 pool":       {func(c *daemonConfig) { c.pools = []string{"fd00::/8"} }, "IPv4 prefix"},
		"relative kernel": {func(c *daemonConfig) { c.vmKernel = "kernel" }, `--vm-kernel "kernel"`},
		"relative agent":  {func(c *daemonConfig) { c.vmAgent = "agent" }, `--vm-agent "agent"`},
		"VMs by KVM":      {func(c *daemonConfig) { c.vmAccel = "kvm" }, ""},
		"many templates":  {func(c *daemonConfig) { c.vmTemplates = 65 }, `--vm-templates 65`},
		"kernel encrypts": {func(c *daemonConfig) { c.wireguard = "kernel" }, ""},
		"magic encrypts":  {func(c *daemonConfig) { c.wireguard = "magic" }, `--wireguard "magic": use auto, kernel or user-space`},
		"VMs by magic":    {func(c *daemonConfig) { c.vmAccel = "magic" }, `--vm-accel "magic"`},
		"VMs with disks":  {func(c *daemonConfig) { c.vmFiles = "disk" }, ""},
		"VMs by 9p":       {func(c *daemonConfig) { c.vmFiles = "9p" }, `--vm-files "9p": use auto, virtiofs or disk`},
		"VMs for all":     {func(c *daemonConfig) { c.isolation = "vm" }, ""},
		"a jail":          {func(c *daemonConfig) { c.isolation = "jail" }, `--isolation "jail"`},
	} {
		t.Run(name, func(t *testing.T) {
			c := daemonConfig{stateDir: "/var/lib/bulkhead", runDir: "/run/bulkhead", bpfDir: "/sys/fs/bpf/bulkhead", namespacePool: 8, vmAccel: "auto", vmFiles: "auto", isolation: "process", wireguard: "auto"}
			tc.change(&c)
			err := c.check()
			if tc.want == "" {
				if err != nil {
					t.Fatal(err)
				}
				return
			}
			if err == nil || !strings.Contains(err.Error(), tc.want) {
				t.Fatalf("got %v, want an error with %q", err, tc.want)
			}
		})
	}
}
