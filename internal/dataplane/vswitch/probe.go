package vswitch

import (
	"errors"
	"fmt"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/features"
)

// Feature is something of the kernel that the switch uses.
type Feature struct {
	Name string
	OK   bool
	// Needed: without it there is no switch. Others have another way, named in Detail.
	Needed bool
	// Since is the kernel version that brought it.
	Since  string
	Detail string
}

// requirement is a feature and how to ask for it.
type requirement struct {
	name, since, detail string
	needed              bool
	ask                 func() error
}

func requirements() []requirement {
	helper := func(fn asm.BuiltinFunc) func() error {
		return func() error { return features.HaveProgramHelper(ebpf.SchedCLS, fn) }
	}
	mapType := func(t ebpf.MapType) func() error {
		return func() error { return features.HaveMapType(t) }
	}
	const must = true
	return []requirement{
		{"tc programs", "4.1", "CONFIG_NET_CLS_BPF", must, func() error { return features.HaveProgramType(ebpf.SchedCLS) }},
		{"per-CPU hash maps", "4.6", "counters", must, mapType(ebpf.PerCPUHash)},
		{"instruction set v3", "5.1", "", must, features.HaveV3ISA},
		{"bounded loops", "5.3", "IPv6 extension headers", must, features.HaveBoundedLoops},
		{"ring buffer", "5.8", "drop events", must, mapType(ebpf.RingBuf)},
		{"bpf_redirect_peer", "5.10", "delivery into a compartment", must, helper(asm.FnRedirectPeer)},
		{"bpf_for_each_map_elem", "5.13", "ended flows leave their table", must, helper(asm.FnForEachMapElem)},
		{"BPF timers", "5.15", "the same, while the daemon is away", must, helper(asm.FnTimerInit)},
		{"bpf_loop", "5.17", "broadcast", must, helper(asm.FnLoop)},
		{"TCX", "6.6", "without it programs are attached by a clsact filter", false, haveTCX},
	}
}

// Probe asks the kernel for each feature, by trying it.
func Probe() []Feature {
	var out []Feature
	for _, r := range requirements() {
		err := r.ask()
		f := Feature{Name: r.name, OK: err == nil, Needed: r.needed, Since: r.since, Detail: r.detail}
		if err != nil {
			f.Detail = err.Error()
			if r.detail != "" {
				f.Detail = r.detail + ": " + f.Detail
			}
		}
		out = append(out, f)
	}
	return out
}

// require refuses a kernel that lacks something, naming all of it.
func require(reqs []requirement) error {
	var errs []error
	for _, r := range reqs {
		if !r.needed {
			continue
		}
		err := r.ask()
		if errors.Is(err, ebpf.ErrNotSupported) {
			errs = append(errs, fmt.Errorf("this kernel lacks %s, which came with Linux %s (Bulkhead needs 6.1)", r.name, r.since))
		} else if err != nil {
			errs = append(errs, fmt.Errorf("probe for %s: %w", r.name, err))
		}
	}
	return errors.Join(errs...)
}
