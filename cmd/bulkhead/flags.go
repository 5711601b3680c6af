package main

import (
	"fmt"
	"net/netip"
	"path/filepath"
	"strings"

	"github.com/bulkhead-net/bulkhead/internal/dataplane/wireguard"
	"github.com/bulkhead-net/bulkhead/internal/image"
	"github.com/bulkhead-net/bulkhead/internal/sandbox/vm"
)

// maxNamespacePool is more compartments than a host attaches in a burst.
const maxNamespacePool = 1024

// maxTemplates: each takes tens of megabytes of the disk.
const maxTemplates = 64

// check refuses settings that would have no effect, or one that shows only later.
func (c *daemonConfig) check() error {
	for _, dir := range []struct{ flag, path string }{
		{"--state-dir", c.stateDir}, {"--run-dir", c.runDir}, {"--bpf-dir", c.bpfDir}, {"--socket", c.socketPath()},
	} {
		if !filepath.IsAbs(dir.path) {
			return fmt.Errorf("%s %q: give an absolute path", dir.flag, dir.path)
		}
	}
	if c.listen != "" && !filepath.IsAbs(c.certs) {
		return fmt.Errorf("--certs %q: give an absolute path", c.certs)
	}
	if c.namespacePool < 0 || c.namespacePool > maxNamespacePool {
		return fmt.Errorf("--namespace-pool %d: give a number from 0 to %d", c.namespacePool, maxNamespacePool)
	}
	for _, f := range []struct{ flag, path string }{{"--vm-kernel", c.vmKernel}, {"--vm-agent", c.vmAgent}} {
		if f.path != "" && !filepath.IsAbs(f.path) {
			return fmt.Errorf("%s %q: give an absolute path", f.flag, f.path)
		}
	}
	if c.isolation != "process" && c.isolation != "vm" {
		return fmt.Errorf("--isolation %q: use process or vm", c.isolation)
	}
	switch c.vmAccel {
	case vm.AccelAuto, vm.AccelKVM, vm.AccelTCG:
	default:
		return fmt.Errorf("--vm-accel %q: use auto, kvm or tcg", c.vmAccel)
	}
	switch c.vmFiles {
	case vm.FilesAuto, vm.FilesVirtiofs, vm.FilesDisk:
	default:
		return fmt.Errorf("--vm-files %q: use auto, virtiofs or disk", c.vmFiles)
	}
	if c.vmTemplates < 0 || c.vmTemplates > maxTemplates {
		return fmt.Errorf("--vm-templates %d: give a number from 0 to %d", c.vmTemplates, maxTemplates)
	}
	if err := wireguard.Mode(c.wireguard).Check(); err != nil {
		return fmt.Errorf("--wireguard %w", err)
	}
	for _, m := range c.mirrors {
		if host, mirror, _ := strings.Cut(m, "="); host == "" || mirror == "" {
			return fmt.Errorf("--registry-mirror %q: write it like docker.io=mirror.example", m)
		}
	}
	_, err := parsePools(c.pools)
	return err
}

func (c *daemonConfig) registries() map[string]image.Registry {
	out := map[string]image.Registry{}
	for _, m := range c.mirrors {
		host, mirror, _ := strings.Cut(m, "=")
		r := out[host]
		r.Mirrors = append(r.Mirrors, mirror)
		out[host] = r
	}
	return out
}

// parsePools reads --pool. A pool that is not private may be wanted, one that no host can have an address of is a slip.
func parsePools(in []string) ([]netip.Prefix, error) {
	var out []netip.Prefix
	for _, s := range in {
		p, err := netip.ParsePrefix(s)
		if err != nil || !p.Addr().Is4() || p.Bits() > 24 {
			return nil, fmt.Errorf("--pool %q: give an IPv4 prefix of at most 24 bits", s)
		}
		p = p.Masked()
		if a := p.Addr(); a.As4()[0] == 0 || a.IsLoopback() || a.As4()[0] >= 224 {
			return nil, fmt.Errorf("--pool %q: its addresses are not for hosts: give a private prefix such as 10.99.0.0/16", s)
		}
		out = append(out, p)
	}
	return out, nil
}
