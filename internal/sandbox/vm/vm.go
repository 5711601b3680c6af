// Package vm gives a container a kernel of its own: a utility VM made by QEMU, with an agent of ours as its first process.
//
// What runs on the host is an ordinary container, too: the OCI runtime starts the shim (Shim) in the compartment, in namespaces and a
// cgroup of its own, and conmon keeps it as it keeps any other. The shim is the container's process as far as the host can see:
// it starts QEMU, carries streams and signals, and ends with the exit code of the process in the guest. So a daemon may come and go,
// a SIGKILL of the shim takes all of the VM with it, since it is the first process of its PID namespace, limits hold for the VM as a
// whole, and who breaks out of QEMU is in a container that has no host in it.
//
// The vNIC stays in the compartment, and everything about it stays true: the switch's port with its policy, the addresses, the
// routes. The shim puts a tap beside it, joins the two in the kernel, and tells the guest what the compartment says (NIC).
package vm

import (
	"errors"
	"fmt"
)

// ErrUnavailable says that something is missing on this host that VMs need.
var ErrUnavailable = errors.New("vm isolation is not available")

// MissingError names what is missing, and the Debian package that has it.
type MissingError struct {
	What    string
	Package string
	Detail  string
}

func (e *MissingError) Error() string {
	s := fmt.Sprintf("%v: %s is not installed: apt-get install %s", ErrUnavailable, e.What, e.Package)
	if e.Detail != "" {
		s += " (" + e.Detail + ")"
	}
	return s
}

// Unwrap makes it an ErrUnavailable.
func (e *MissingError) Unwrap() error { return ErrUnavailable }
