package main

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"

	"github.com/bulkhead-net/bulkhead/api"
	"github.com/bulkhead-net/bulkhead/internal/sandbox/vm"
)

// The verbs by which this program is called in the containers of VMs. They are no commands: what they are given is written by the
// daemon, and they end with the exit codes of processes in the guest.
const (
	vmShimVerb   = "vm-shim"
	vmExecVerb   = "vm-exec"
	vmMemberVerb = "vm-member"
)

// insideVMs is what this process is to be if it was called by one of these verbs.
func insideVMs(args []string) func(context.Context) int {
	switch {
	case len(args) == 3 && args[1] == vmShimVerb:
		return func(ctx context.Context) int { return vm.Shim(ctx, args[2]) }
	case len(args) == 3 && args[1] == vmMemberVerb:
		return func(ctx context.Context) int { return vm.Member(ctx, args[2]) }
	case len(args) == 4 && args[1] == vmExecVerb:
		return func(ctx context.Context) int { return vm.Exec(ctx, args[2], args[3]) }
	}
	return nil
}

// newVMs makes what makes VMs.
func (c *daemonConfig) newVMs(log *slog.Logger) (*vm.Host, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, fmt.Errorf("find this program: %w", err)
	}
	roots := []string{"/"}
	if c.vmKernel != "" {
		roots = []string{c.vmKernel}
	}
	return vm.NewHost(vm.Options{
		Self: self, ShimVerb: vmShimVerb, ExecVerb: vmExecVerb, MemberVerb: vmMemberVerb, Dir: filepath.Join(c.stateDir, "vm"),
		KernelRoots: roots, Agent: c.vmAgent, Accel: c.vmAccel, Files: c.vmFiles, Templates: c.vmTemplates, Logger: log,
	}), nil
}

// vmCheck says whether containers can have a kernel of their own here. That they cannot is no fault of a host that does without.
func vmCheck(ctx context.Context, vms *vm.Host) api.Check {
	c := api.Check{Name: "vm isolation", Status: "ok"}
	description, warning, err := vms.Check(ctx, "")
	var files vm.Serving
	if err == nil {
		files, err = vms.Serving(ctx)
		description += ", " + files.String()
	}
	switch {
	case err != nil:
		c.Detail, c.Next = "not set up: "+err.Error(), "docs/isolation.md, if containers are to have a kernel of their own"
	case warning != "":
		c.Detail = description + "; " + warning
	default:
		c.Detail = description
	}
	return c
}
