package netdev

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"

	"github.com/bulkhead-net/bulkhead/internal/durable"
	"github.com/bulkhead-net/bulkhead/internal/plan"
)

// Forwarding belongs to the whole host, so it is turned on only while a network needs it, and every value that was
// changed for it is written down first and put back later. Two side effects of the kernel are dealt with:
//   - With IPv6 forwarding on, a device with accept_ra=1 ignores router advertisements, and a host that has its default
//     route from one is cut off when the route expires. Such devices get accept_ra=2 beforehand.
//   - Writing the switch for all devices overwrites the one of each device. Those that were on are noted as well.

// record is what has to be put back, kept in the state directory.
type record struct {
	// Sysctls holds the former values of settings.
	Sysctls map[string]string `json:"sysctls,omitempty"`
	// NetnsDir says that the mount at the directory of bound namespaces is our doing.
	NetnsDir bool `json:"netns_dir,omitempty"`
	// NetnsBoot is the boot in which it was made: another boot's is gone with its host, and what is there since is others'.
	NetnsBoot string `json:"netns_boot,omitempty"`
	// NetnsKept says that the directory below that mount was there before.
	NetnsKept bool `json:"netns_kept,omitempty"`
	// Filters holds the MACs that we added to the unicast filters of NICs, by their names.
	Filters map[string][]string `json:"filters,omitempty"`
	// NICs holds what else we changed of NICs, by their names.
	NICs map[string]tuning `json:"nics,omitempty"`
	// Places are the indexes of the NICs that have such notes, by their names.
	Places map[string]nicPlace `json:"places,omitempty"`
}

const (
	forward4 = "net/ipv4/ip_forward"
	forward6 = "net/ipv6/conf/all/forwarding"
)

func (n *Netdev) recordPath() string { return filepath.Join(n.opts.StateDir, "host-settings.json") }

func (n *Netdev) readRecord() (record, error) {
	r := record{Sysctls: map[string]string{}}
	data, err := os.ReadFile(n.recordPath())
	if errors.Is(err, os.ErrNotExist) {
		return r, nil
	}
	if err != nil {
		return r, fmt.Errorf("read the record of host settings: %w", err)
	}
	if err := json.Unmarshal(data, &r); err != nil {
		return r, fmt.Errorf("read the record of host settings in %s: %w", n.recordPath(), err)
	}
	if r.Sysctls == nil {
		r.Sysctls = map[string]string{}
	}
	return r, nil
}

// writeRecord replaces the file in one step; with nothing to remember there is no file.
func (n *Netdev) writeRecord(r record) error {
	if len(r.Sysctls) == 0 && !r.NetnsDir && len(r.Filters) == 0 && len(r.NICs) == 0 {
		if err := os.Remove(n.recordPath()); err != nil && !errors.Is(err, os.ErrNotExist) {
			return fmt.Errorf("remove the record of host settings: %w", err)
		}
		return nil
	}
	if err := n.placeNotes(&r); err != nil {
		return err
	}
	data, err := json.MarshalIndent(r, "", "  ")
	if err != nil {
		return fmt.Errorf("encode the record of host settings: %w", err)
	}
	if err := os.MkdirAll(filepath.Dir(n.recordPath()), 0o700); err != nil {
		return fmt.Errorf("write the record of host settings: %w", err)
	}
	if err := durable.WriteFile(n.recordPath(), append(data, '\n')); err != nil {
		return fmt.Errorf("write the record of host settings: %w", err)
	}
	return nil
}

// updateRecord changes the record.
func (n *Netdev) updateRecord(change func(*record)) error {
	n.settings.Lock()
	defer n.settings.Unlock()
	r, err := n.readRecord()
	if err != nil {
		return err
	}
	change(&r)
	return n.writeRecord(r)
}

// applyHost brings forwarding to what is wanted.
func (ps *pass) applyHost(want plan.Host) error {
	n := ps.n
	n.settings.Lock()
	defer n.settings.Unlock()
	return n.home.do(func() error {
		r, err := n.readRecord()
		if err != nil {
			return err
		}
		var errs []error
		for _, f := range forwardings(want) {
			if f.want {
				errs = append(errs, ps.forwardOn(&r, f.key))
			} else {
				errs = append(errs, ps.forwardOff(&r, f.key))
			}
		}
		return errors.Join(errs...)
	})
}

type forwarding struct {
	key  string
	want bool
}

func forwardings(want plan.Host) [2]forwarding {
	return [...]forwarding{{forward4, want.Forward4}, {forward6, want.Forward6}}
}

// Check tells cheaply whether packets are still forwarded as the plan needs it. The kernel has no event for a setting
// that somebody turns off which would not come with every new device too.
func (d *Devices) Check(_ context.Context, p *plan.Plan) (bool, error) {
	fine := true
	err := d.n.home.do(func() error {
		for _, f := range forwardings(p.Host) {
			if !f.want {
				continue
			}
			have, err := d.n.readSysctl(f.key)
			if err != nil && !errors.Is(err, os.ErrNotExist) {
				return err
			}
			fine = fine && (err != nil || have == "1") // a kernel without IPv6 has nothing to check
		}
		for _, port := range p.Ports {
			// The kernel tells nobody when it is turned off. A vNIC that is not there yet has none.
			if port.Kind == plan.PortHost {
				have, err := d.n.readSysctl(routeLocalnet(port.VNIC.Device))
				fine = fine && (err != nil || have == "1")
			}
		}
		return nil
	})
	return fine, err
}

// forwardOn turns a family's forwarding on, unless it is. Where somebody else did so, it is left to them.
func (ps *pass) forwardOn(r *record, key string) error {
	have, err := ps.n.readSysctl(key)
	if err != nil {
		return err
	}
	_, byUs := r.Sysctls[key]
	if have == "1" && !byUs {
		return nil
	}
	former := map[string]string{}
	if !byUs {
		former[key] = have
	}
	ps.n.collect(former, familyDir(key), "forwarding", "1", have != "1" && !byUs)
	var widen []string
	if key == forward6 {
		widen = ps.n.collect(former, familyDir(key), "accept_ra", "1", true)
	}
	if len(former) > 0 {
		for k, v := range former {
			if _, known := r.Sysctls[k]; !known {
				r.Sysctls[k] = v
			}
		}
		if err := ps.writeRecord(*r); err != nil {
			return err
		}
	}
	for _, k := range widen {
		if err := ps.setSysctl("", k, "2"); err != nil && !errors.Is(err, os.ErrNotExist) {
			return err
		}
	}
	if have == "1" {
		return nil
	}
	if byUs {
		ps.found("host", "sysctl "+key, "%s", have)
	}
	return ps.setSysctl("", key, "1")
}

// writeRecord keeps the record, except in a preview.
func (ps *pass) writeRecord(r record) error {
	if ps.dry != nil {
		return nil
	}
	return ps.n.writeRecord(r)
}

// collect notes the devices of the host, ours excepted, whose setting has the given value, and returns their keys.
func (n *Netdev) collect(into map[string]string, dir, setting, value string, wanted bool) []string {
	if !wanted {
		return nil
	}
	entries, err := os.ReadDir("/proc/sys/" + dir)
	if err != nil {
		return nil // no such family in this kernel
	}
	var keys []string
	for _, e := range entries {
		name := e.Name()
		if name == "all" || name == "default" && setting == "accept_ra" || ourName(name) {
			continue
		}
		key := path.Join(dir, name, setting)
		if v, err := n.readSysctl(key); err == nil && v == value {
			into[key] = v
			keys = append(keys, key)
		}
	}
	return keys
}

func familyDir(key string) string {
	if key == forward4 {
		return "net/ipv4/conf"
	}
	return "net/ipv6/conf"
}

// forwardOff puts back what forwardOn changed, except what somebody has changed since.
func (ps *pass) forwardOff(r *record, key string) error {
	former, byUs := r.Sysctls[key]
	if !byUs {
		return nil
	}
	have, err := ps.n.readSysctl(key)
	if err != nil {
		return err
	}
	if have == "1" && former != "1" {
		if err := ps.setSysctl("", key, former); err != nil {
			return err
		}
	}
	dir := familyDir(key) + "/"
	for _, k := range slices.Sorted(maps.Keys(r.Sysctls)) {
		if !strings.HasPrefix(k, dir) || k == key {
			continue
		}
		have, err := ps.n.readSysctl(k)
		if errors.Is(err, os.ErrNotExist) {
			delete(r.Sysctls, k)
			continue
		}
		if err != nil {
			return err
		}
		// "2" is what we made of accept_ra; any other value is somebody's wish by now.
		if have != r.Sysctls[k] && (path.Base(k) != "accept_ra" || have == "2") {
			if err := ps.setSysctl("", k, r.Sysctls[k]); err != nil {
				return err
			}
		}
		delete(r.Sysctls, k)
	}
	delete(r.Sysctls, key)
	return ps.writeRecord(*r)
}
