package vm

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/signal"
	"path/filepath"
	"sync"

	"github.com/opencontainers/runtime-spec/specs-go"

	"github.com/bulkhead-net/bulkhead/internal/sandbox/vm/agent"
	"github.com/bulkhead-net/bulkhead/internal/sandbox/vm/proto"
)

// A member is a container in the VM of another, whose compartment it shares: with it, a pod. What runs of it on the host has no VM,
// but the socket of the shim that has. Its files are put below that VM's share, which is the only thing of the host that a VM sees.

// MembersDir is where the files of members are, below a VM's share. A shim whose VM has no share finds the disks of members there.
const MembersDir = "members"

const (
	membersRoot = "/share/" + MembersDir
	memberDisk  = "disk"
)

// PeerSocket is where a member finds the socket of the shim that has the VM.
const PeerSocket = "/peer"

// errVMEnded says why a member ended before its first process.
var errVMEnded = errors.New("the VM that it is in has ended")

// Member is the process on the host of a container that is in another's VM. It returns the exit code to end with.
func Member(ctx context.Context, dir string) int {
	s := &shim{dir: dir, stdin: os.Stdin, stdout: os.Stdout, stderr: os.Stderr}
	code, err := s.join(ctx, PeerSocket)
	if err != nil {
		fmt.Fprintln(os.Stderr, "bulkhead:", err)
		return 125
	}
	return code
}

// join has the guest of another shim run the container, and is its process until it ends.
func (s *shim) join(ctx context.Context, peer string) (code int, err error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	signals := make(chan os.Signal, 64)
	signal.Notify(signals)
	cfg, err := s.read()
	if err != nil {
		return 0, s.failed(err)
	}
	var d net.Dialer
	conn, err := d.DialContext(ctx, "unix", peer)
	if err != nil {
		return 0, s.failed(fmt.Errorf("reach the VM that it is to be in: %w", err))
	}
	g, err := proto.NewClient(conn)
	if err != nil {
		return 0, s.failed(err)
	}
	defer g.Close()
	run := cfg.Run
	run.Process = mainProcess
	if run.TTY {
		run.Size = sizeOf(s.stdin)
	}
	if run.Files, err = readHanded(HandedDir, cfg.Handed); err != nil {
		return 0, s.failed(err)
	}
	limited, done := within(ctx, startWait)
	err = g.Call(limited, proto.OpRun, run, nil)
	done()
	if err != nil {
		return 0, s.failed(err)
	}
	control, err := net.Listen("unix", filepath.Join(s.dir, controlFile)) //nolint:noctx // nothing to wait for
	if err != nil {
		return 0, s.failed(err)
	}
	defer control.Close()
	var served sync.WaitGroup
	defer served.Wait()
	defer cancel()
	defer control.Close()
	served.Go(func() { serveClients(ctx, control, g, nil, nil) })
	served.Go(func() { handOver(ctx, g, HandedDir, cfg.Handed, run.Files, s.stderr) })
	served.Go(func() { forwardSignals(ctx, g, mainProcess, signals, run.TTY, s.stdin) })
	if err := s.report(Status{}); err != nil {
		return 0, err
	}
	exit, err := carryProcess(ctx, g, mainProcess, run.TTY, run.Stdin, s.stdin, s.stdout, s.stderr)
	if err != nil {
		return lostCode, replaceFile(filepath.Join(s.dir, reasonFile), []byte(errVMEnded.Error()))
	}
	return exit.Code, s.ended(exit)
}

// MemberMounts are what is to be mounted in the mount namespace of the shim that has the VM, for a container that is to be in it. The
// document gets the guest's paths. Each start has a name of its own: the guest may still know what was mounted for one before.
func (c *Container) MemberMounts(start string) []specs.Mount {
	if c.RootDisk != "" {
		return []specs.Mount{{Destination: filepath.Join(membersRoot, start, memberDisk), Type: "bind", Source: c.RootDisk}}
	}
	return c.shareAt(filepath.Join(MembersDir, start))
}

// PrepareMember writes what the shim of a member starts, and gives its OCI document; peer is the directory of the shim that has the VM, and
// start the name that MemberMounts got.
func (h *Host) PrepareMember(c Container, peer, start string) (*specs.Spec, error) {
	begin := Start{Run: proto.Run{Share: shareTag, Member: true, TTY: c.TTY, Stdin: c.Stdin || c.TTY}}
	if c.RootDisk != "" {
		var err error
		if begin.Handed, err = c.onDisk(start); err != nil {
			return nil, err
		}
		begin.Run.Share, begin.Run.Place = "", start
	}
	if err := c.begin(begin); err != nil {
		return nil, err
	}
	for _, d := range []string{"vm", "tmp", "proc", "dev", "handed"} {
		if err := os.MkdirAll(filepath.Join(c.Root, d), 0o755); err != nil {
			return nil, err
		}
	}
	rules := standardDevices()
	// There is one program of ours, which carries streams.
	memory, threads := int64(overhead), int64(256)
	s := h.baseSpec(c, h.opt.MemberVerb, nil)
	s.Mounts = append(s.Mounts, specs.Mount{
		Destination: PeerSocket, Type: "bind", Source: filepath.Join(peer, controlFile), Options: []string{"bind", "rprivate", "nosuid", "nodev", "noexec"},
	})
	if c.RootDisk != "" {
		s.Mounts = append(s.Mounts, c.handedMount())
	}
	s.Linux.Resources = &specs.LinuxResources{
		Devices: append([]specs.LinuxDeviceCgroup{{Allow: false, Access: "rwm"}}, rules...),
		Memory:  &specs.LinuxMemory{Limit: &memory}, Pids: &specs.LinuxPids{Limit: &threads},
	}
	return s, confine(s)
}

// CgroupOf is the control group, in the guest, of a container that is in another's VM.
func CgroupOf(id string) string { return agent.CgroupPath + "-" + id[:min(len(id), 12)] }
