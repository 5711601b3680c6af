package engine

import (
	"net/netip"
	"strings"

	"github.com/bulkhead-net/bulkhead/api"
	"github.com/bulkhead-net/bulkhead/hcn"
)

// checkSpec refuses a document of a container that contradicts itself, or asks for what there is not.
func checkSpec(s *api.ContainerSpec) error {
	if s.Name != "" && !api.IsName(s.Name) {
		return api.Errorf(api.KindInvalid, "name: %.80q is not a container name: use letters, digits, '_', '.' and '-', starting with a letter or digit", s.Name)
	}
	if s.Image == "" {
		return api.Errorf(api.KindInvalid, "image: it is missing").Hint("bulkhead image ls")
	}
	if s.Host != nil {
		if err := checkHost(s); err != nil {
			return err
		}
	}
	switch s.Isolation {
	case "", isolationProcess:
		s.Isolation = isolationProcess
	case isolationVM:
	default:
		return api.Errorf(api.KindUnsupported, "isolation: %.40q is not known: use process or vm", s.Isolation)
	}
	if s.GuestKernel != "" && s.Isolation != isolationVM {
		return api.Errorf(api.KindInvalid, "guestKernel: a container with process isolation has the host's kernel: use isolation vm, or leave it out")
	}
	switch s.Restart.Name {
	case "", "no", "on-failure", "always", "unless-stopped":
	default:
		return api.Errorf(api.KindInvalid, "restart.name: %.40q is not known: use no, on-failure, always or unless-stopped", s.Restart.Name)
	}
	if s.AutoRemove && s.Restart.Name != "" && s.Restart.Name != "no" {
		return api.Errorf(api.KindInvalid, "autoRemove: it contradicts the restart policy %s: choose one", s.Restart.Name)
	}
	share, in := strings.HasPrefix(s.NetworkMode, "container:"), strings.HasPrefix(s.NetworkMode, "namespace:")
	if s.NetworkMode != "" && s.NetworkMode != "none" && !share && !in {
		return api.Errorf(api.KindInvalid, "networkMode: %.80q is not known: use none, container:NAME or namespace:NAME, or name networks", s.NetworkMode)
	}
	if in && s.Isolation != isolationVM {
		return api.Errorf(api.KindConflict, "isolation: a namespace that a container is put into is the compartment of a VM: use isolation vm, or leave it out")
	}
	if s.NetworkMode != "" && (len(s.Networks) > 0 || len(s.Publish) > 0) {
		return api.Errorf(api.KindInvalid, "networkMode: %s has no networks and publishes no ports of its own: drop one or the other", s.NetworkMode)
	}
	if len(s.Networks) > 32 || len(s.Publish) > 1024 {
		return api.Errorf(api.KindInvalid, "networks, publish: at most 32 networks and 1024 published ports to a container")
	}
	if share && len(s.DNS.ServerList) > 0 {
		return api.Errorf(api.KindInvalid, "dns.ServerList: the resolver is that of the compartment: name servers for the container whose compartment it is")
	}
	if err := checkDNS(&s.DNS); err != nil {
		return err
	}
	for i, h := range s.ExtraHosts {
		if _, err := netip.ParseAddr(h.Address); err != nil && h.Address != "host-gateway" {
			return api.Errorf(api.KindInvalid, "extraHosts[%d].address: %.80q is no address: give one, or host-gateway", i, h.Address)
		}
		for _, n := range h.Names {
			if n == "" || strings.ContainsAny(n, " \t\n\r#") {
				return api.Errorf(api.KindInvalid, "extraHosts[%d].names: %.80q is no host name", i, n)
			}
		}
	}
	return nil
}

// checkDNS refuses what cannot stand in a resolv.conf.
func checkDNS(d *hcn.Dns) error {
	for i, a := range d.ServerList {
		if _, err := netip.ParseAddr(a); err != nil {
			return api.Errorf(api.KindInvalid, "dns.ServerList[%d]: %.80q is no address", i, a)
		}
	}
	for _, words := range [][]string{d.Search, d.Options, {d.Domain}} {
		for _, w := range words {
			if strings.ContainsAny(w, " \t\n\r") {
				return api.Errorf(api.KindInvalid, "dns: %.80q is neither a domain nor an option: it has blanks", w)
			}
		}
	}
	return nil
}
