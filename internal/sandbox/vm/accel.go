package vm

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"

	"golang.org/x/sys/unix"
)

// The accelerations, by QEMU's names for them.
const (
	AccelAuto = "auto"
	AccelKVM  = "kvm"
	AccelTCG  = "tcg"
)

// Accel is what runs a VM's instructions, and why.
type Accel struct {
	Name   string `json:"name"`
	Reason string `json:"reason,omitempty"` // why not KVM
}

// accelFacts are what the choice depends on.
type accelFacts struct {
	kvm     error    // why /dev/kvm cannot be used, as far as opening it tells
	modules []string // loaded: kvm_intel, kvm_amd, kvm_pvm
}

// Accelerators says what a VM is to be run with, as the host's settings want.
func Accelerators(_ context.Context, want string) (Accel, error) {
	return chooseAccel(want, readAccelFacts())
}

func readAccelFacts() accelFacts {
	var f accelFacts
	file, err := os.OpenFile("/dev/kvm", os.O_RDWR, 0)
	if err != nil {
		f.kvm = err
	} else {
		const getAPIVersion = 0xae00 // KVM_GET_API_VERSION, which is 12 for ever
		if v, err := unix.IoctlRetInt(int(file.Fd()), getAPIVersion); err != nil || v != 12 {
			f.kvm = fmt.Errorf("/dev/kvm speaks version %d, not 12 (%w)", v, err)
		}
		_ = file.Close()
	}
	for _, m := range []string{"kvm_intel", "kvm_amd", "kvm_pvm"} {
		if _, err := os.Stat("/sys/module/" + m); err == nil {
			f.modules = append(f.modules, m)
		}
	}
	return f
}

// chooseAccel looks further than whether KVM opens: under a paravirtual host (kvm_pvm) it does, makes VMs and starts them, and a
// kernel that knows nothing of that host is then emulated instruction by instruction, more than a hundred times slower than by TCG.
// QEMU's own fallback does not notice.
func chooseAccel(want string, f accelFacts) (Accel, error) {
	useless := f.kvm
	if errors.Is(useless, os.ErrNotExist) {
		useless = errors.New("this host has no /dev/kvm")
	}
	if useless == nil && slices.Contains(f.modules, "kvm_pvm") && !slices.Contains(f.modules, "kvm_intel") && !slices.Contains(f.modules, "kvm_amd") {
		useless = errors.New("this host offers PVM only (kvm_pvm), which the guest kernel does not support")
	}
	switch want {
	case AccelTCG:
		return Accel{Name: AccelTCG, Reason: "emulation was asked for"}, nil
	case AccelKVM:
		if useless != nil {
			return Accel{}, fmt.Errorf("%w: KVM was asked for and cannot be used: %w: allow emulation with --vm-accel auto", ErrUnavailable, useless)
		}
		return Accel{Name: AccelKVM}, nil
	case "", AccelAuto:
		if useless != nil {
			return Accel{Name: AccelTCG, Reason: useless.Error()}, nil
		}
		return Accel{Name: AccelKVM}, nil
	}
	return Accel{}, fmt.Errorf("acceleration %q is not known: use auto, kvm or tcg", want)
}
