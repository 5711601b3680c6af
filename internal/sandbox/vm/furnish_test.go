package vm

import (
	"context"
	"encoding/json"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/bulkhead-net/bulkhead/internal/sandbox/vm/proto"
)

// TestFurnish holds what a host of containers has beside other containers.
func TestFurnish(t *testing.T) {
	t.Parallel()
	c := Container{Disk: "/var/lib/x/disk", Spec: &specs.Spec{
		Process: &specs.Process{}, Linux: &specs.Linux{},
		Mounts: []specs.Mount{{Destination: "/proc", Type: "proc"}, {Destination: "/var/lib/bulkhead", Type: "bind", Source: "/of/the/image"}},
	}}
	c.furnish()
	var got []string
	for _, m := range c.Spec.Mounts {
		got = append(got, m.Destination+" "+m.Type+" "+m.Source)
	}
	want := []string{"/proc proc ", "/run tmpfs run", "/tmp tmpfs tmp", "/var/lib/bulkhead bind /run/disk/bulkhead"}
	if d := cmp.Diff(want, got); d != "" {
		t.Error(d)
	}
	if len(c.Spec.Linux.Devices) != 1 || c.Spec.Linux.Devices[0].Path != "/dev/net/tun" {
		t.Errorf("devices %+v", c.Spec.Linux.Devices)
	}
	h := Hardware{Accel: AccelTCG, CPUs: 1, Memory: 1 << 30, Kernel: "k", Initrd: "i", Disk: true}
	for share, fd := range map[bool]string{false: "fd=7,set=1", true: "fd=8,set=1"} {
		h.Share = share
		if args := strings.Join(h.Args(), " "); !strings.Contains(args, fd) || !strings.Contains(args, "drive=disk,serial="+diskSerial) {
			t.Errorf("share %v: %s", share, args)
		}
	}
}

func TestMakeDisk(t *testing.T) {
	t.Parallel()
	if _, err := FindMkfs(); err != nil {
		t.Skip(err)
	}
	path := filepath.Join(t.TempDir(), "c", "disk")
	const size = 1 << 30
	// What a power cut left is made anew; what is whole stays.
	if err := os.Mkdir(filepath.Dir(path), 0o700); err != nil {
		t.Fatal(err)
	}
	write(t, path+".tmp", "half of it")
	for range 2 {
		if err := MakeDisk(t.Context(), path, size); err != nil {
			t.Fatal(err)
		}
	}
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil || st.Size != size || st.Blocks*512 > size/16 || st.Mode&0o777 != 0o600 {
		t.Errorf("%d bytes, %d of them on the disk, mode %o: %v", st.Size, st.Blocks*512, st.Mode, err)
	}
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	magic := make([]byte, 2)
	if _, err := f.ReadAt(magic, 1080); err != nil || magic[0] != 0x53 || magic[1] != 0xef {
		t.Errorf("it holds no ext4: % x, %v", magic, err)
	}
	if entries, _ := os.ReadDir(filepath.Dir(path)); len(entries) != 1 {
		t.Errorf("%v are left", entries)
	}
}

func TestOptionalModules(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	write(t, filepath.Join(dir, "kernel/tun.ko"), module(""))
	write(t, filepath.Join(dir, "modules.builtin"), "kernel/veth.ko\n")
	got, err := LoadOrder(t.Context(), os.DirFS(dir), []string{"tun?", "wireguard?", "veth?"})
	if err != nil || len(got) != 1 || got[0].Name != "tun.ko" {
		t.Errorf("%+v, %v", got, err)
	}
	if _, err := LoadOrder(t.Context(), os.DirFS(dir), []string{"overlay"}); err == nil {
		t.Error("one that is needed is not missed")
	}
}

// dialGuest is a guest in which one program listens, that repeats what it hears.
type dialGuest struct{ asked chan proto.Dial }

func (g dialGuest) Call(context.Context, string, any, any) error { return nil }

func (g dialGuest) Stream(_ context.Context, op string, in, _ any) (net.Conn, error) {
	d, _ := in.(proto.Dial)
	if op != proto.OpDial || d.Path != "/s" {
		return nil, &proto.Error{Message: "connect to " + d.Path + ": no such file"}
	}
	g.asked <- d
	ours, theirs := net.Pipe()
	go func() { _, _ = io.Copy(theirs, theirs); _ = theirs.Close() }()
	return ours, nil
}

// TestDialByShim holds the daemon's way to a socket in the guest, and that what is in the place of the shim's socket is not followed.
func TestDialByShim(t *testing.T) {
	t.Parallel()
	dir, err := os.MkdirTemp("", "shim") //nolint:usetesting // t.TempDir can be too long for a socket
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	path := filepath.Join(dir, controlFile)
	ln, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	g := dialGuest{asked: make(chan proto.Dial, 1)}
	go func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			go func() { _ = proto.Serve(context.Background(), c, &relay{guest: g, prefix: "1-"}) }()
		}
	}()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	conn, err := Dial(ctx, dir, "/s")
	if err != nil {
		t.Fatal(err)
	}
	if d := <-g.asked; d.Process != mainProcess {
		t.Errorf("the guest was asked for %+v", d)
	}
	got := make([]byte, 5)
	_, err = conn.Write([]byte("hello"))
	if err == nil {
		_, err = io.ReadFull(conn, got)
	}
	if err != nil || string(got) != "hello" {
		t.Errorf("%q came back: %v", got, err)
	}
	_ = conn.Close()
	if _, err := conn.Read(got); err == nil {
		t.Error("a connection goes on after its end")
	}
	if _, err := Dial(ctx, dir, "/none"); err == nil || !strings.Contains(err.Error(), "no such file") {
		t.Errorf("to a socket that is not there: %v", err)
	}
	elsewhere := t.TempDir()
	if err := os.Symlink(path, filepath.Join(elsewhere, controlFile)); err != nil {
		t.Fatal(err)
	}
	if _, err := Dial(ctx, elsewhere, "/s"); err == nil {
		t.Error("a link to another's socket was followed")
	}
	write(t, filepath.Join(t.TempDir(), controlFile), "")
	if _, err := Dial(ctx, t.TempDir(), "/s"); err == nil {
		t.Error("a VM that is not there was reached")
	}
}

// TestRelayRefuses: a client has no more of the guest than the shim gives.
func TestRelayDial(t *testing.T) {
	t.Parallel()
	r := &relay{guest: dialGuest{}, prefix: "1-"}
	body, _ := json.Marshal(proto.Dial{Process: "other", Path: "/x"})
	if _, _, err := r.Handle(t.Context(), proto.OpDial, body); err == nil || !strings.Contains(err.Error(), "/x") {
		t.Errorf("%v", err)
	}
	if _, _, err := r.Handle(t.Context(), proto.OpDial, []byte("no")); err == nil {
		t.Error("what is no request was taken for one")
	}
}
