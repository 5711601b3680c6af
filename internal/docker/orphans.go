package docker

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/bulkhead-net/bulkhead/hcn"
)

// When dockerd dies while it makes a network, that is here, and dockerd does not know it after its restart: nobody would ever delete it.
// dockerd begins with Plugin.Activate. What is here at that moment is of the time before, so what dockerd then does not list is nobody's.

const (
	// findOrphans bounds the wait for dockerd's API after its start, and twice is how much later it is asked again.
	findOrphans = 5 * time.Minute
	twice       = 5 * time.Second
)

type peerKey struct{}

// withPeer notes which process a connection is of.
func withPeer(ctx context.Context, c net.Conn) context.Context {
	sc, ok := c.(syscall.Conn)
	if !ok {
		return ctx
	}
	raw, err := sc.SyscallConn()
	if err != nil {
		return ctx
	}
	pid := 0
	_ = raw.Control(func(fd uintptr) {
		if cred, err := unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED); err == nil {
			pid = int(cred.Pid)
		}
	})
	return context.WithValue(ctx, peerKey{}, pid)
}

// orphans are networks made for Docker of which it is not known whether dockerd has them.
type orphans struct {
	mu  sync.Mutex
	all map[hcn.GUID]bool
}

func (o *orphans) set(ids []hcn.GUID) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.all = map[hcn.GUID]bool{}
	for _, id := range ids {
		o.all[id] = true
	}
}

// claim is a call of dockerd's for a network: it is none, whether it is listed yet or not.
func (o *orphans) claim(id hcn.GUID) {
	o.mu.Lock()
	defer o.mu.Unlock()
	delete(o.all, id)
}

// activate answers dockerd's first call.
func (d *Driver) activate(ctx context.Context, _ *none) (any, error) {
	if pid, _ := ctx.Value(peerKey{}).(int); pid != 0 && d.Docker != "" && d.ctx != nil {
		if err := d.suspect(ctx); err != nil {
			d.Log.Warn("look for networks that dockerd does not have any more", "error", err)
		} else {
			d.searches.Go(func() { d.reclaim(pid) })
		}
	}
	return map[string][]string{"Implements": {"NetworkDriver", "IpamDriver"}}, nil
}

// suspect notes the networks that were made for Docker until now.
func (d *Driver) suspect(ctx context.Context) error {
	all, err := d.Daemon.Networks(ctx)
	if err != nil {
		return err
	}
	var ids []hcn.GUID
	for i := range all {
		if all[i].Owner == owner {
			ids = append(ids, all[i].ID)
		}
	}
	d.orphans.set(ids)
	return nil
}

// reclaim deletes those that dockerd, the process with the ID, does not list when it has started.
func (d *Driver) reclaim(pid int) {
	ctx, cancel := context.WithTimeout(d.ctx, findOrphans)
	defer cancel()
	for wait := 100 * time.Millisecond; ; wait = min(2*wait, 5*time.Second) {
		listed, err := d.listed(ctx)
		if err == nil {
			d.keepListed(listed)
			break
		}
		select {
		case <-ctx.Done():
			d.Log.Warn("ask Docker for its networks", "error", err)
			return
		case <-time.After(wait):
		}
	}
	// Another dockerd's list says nothing of this one's networks.
	if !holds(pid, d.Docker) {
		d.Log.Debug("the socket of Docker's API is not the caller's: no network is taken for left behind", "socket", d.Docker, "pid", pid)
		return
	}
	select {
	case <-ctx.Done():
		return
	case <-time.After(d.again):
	}
	listed, err := d.listed(ctx)
	if err != nil {
		d.Log.Warn("ask Docker for its networks", "error", err)
		return
	}
	d.keepListed(listed)
	if err := d.drop(ctx); err != nil {
		d.Log.Warn("delete networks that dockerd does not have any more", "error", err)
	}
}

// listed are dockerd's networks of this driver, as they are called here.
func (d *Driver) listed(ctx context.Context) ([]hcn.GUID, error) {
	var all []struct {
		ID string `json:"Id"`
	}
	if err := d.ask(ctx, "/networks", &all); err != nil {
		return nil, err
	}
	var out []hcn.GUID
	for _, n := range all {
		out = append(out, networkID(n.ID))
	}
	return out, nil
}

func (d *Driver) keepListed(listed []hcn.GUID) {
	for _, id := range listed {
		d.orphans.claim(id)
	}
}

// drop deletes what is left of them. One that somebody has an endpoint on stays, and so does what dockerd asks for in this moment.
func (d *Driver) drop(ctx context.Context) error {
	d.orphans.mu.Lock()
	defer d.orphans.mu.Unlock()
	if len(d.orphans.all) == 0 {
		return nil
	}
	ends, err := d.Daemon.Endpoints(ctx)
	if err != nil {
		return err
	}
	for id := range d.orphans.all {
		delete(d.orphans.all, id)
		if at := slices.IndexFunc(ends, func(e hcn.HostComputeEndpoint) bool { return e.HostComputeNetwork == id }); at >= 0 {
			d.Log.Warn("a network was made for Docker, which does not have it any more, and it has endpoints: delete them, and it",
				"network", id, "endpoint", ends[at].ID)
			continue
		}
		if err := d.Daemon.DeleteNetwork(ctx, id); err != nil && !notFound(err) {
			return fmt.Errorf("delete network %s: %w", id, err)
		}
		d.Log.Info("deleted a network that was made for Docker, which does not have it any more", "network", id)
		if err := d.networks.forget(id); err != nil {
			return err
		}
	}
	return nil
}

// holds tells whether a process has the listening end of a unix socket.
func holds(pid int, socket string) bool {
	table, err := os.ReadFile("/proc/net/unix")
	if err != nil {
		return false
	}
	paths := []string{socket}
	if real, err := filepath.EvalSymlinks(socket); err == nil { // /var/run is /run
		paths = append(paths, real)
	}
	var links []string
	for lines := bufio.NewScanner(bytes.NewReader(table)); lines.Scan(); {
		// Num RefCount Protocol Flags Type St Inode Path
		f := strings.Fields(lines.Text())
		if len(f) != 8 {
			continue
		}
		flags, err := strconv.ParseUint(f[3], 16, 32)
		if err == nil && flags&(1<<16) != 0 && slices.ContainsFunc(paths, func(p string) bool { return filepath.Base(p) == filepath.Base(f[7]) && sameFile(p, f[7]) }) {
			links = append(links, "socket:["+f[6]+"]")
		}
	}
	fds, err := filepath.Glob(filepath.Join("/proc", strconv.Itoa(pid), "fd", "*"))
	if err != nil {
		return false
	}
	return slices.ContainsFunc(fds, func(fd string) bool {
		to, err := os.Readlink(fd)
		return err == nil && slices.Contains(links, to)
	})
}

func sameFile(a, b string) bool {
	x, errX := os.Stat(a)
	y, errY := os.Stat(b)
	return a == b || errX == nil && errY == nil && os.SameFile(x, y)
}
