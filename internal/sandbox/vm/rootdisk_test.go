package vm

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/bulkhead-net/bulkhead/internal/sandbox/vm/proto"
)

func TestChooseServing(t *testing.T) {
	t.Parallel()
	missing := &MissingError{What: "virtiofsd", Package: "virtiofsd"}
	noMkfs := &MissingError{What: "mkfs.ext4", Package: "e2fsprogs"}
	for name, tc := range map[string]struct {
		want         string
		daemon, mkfs error
		disk         bool
		says, err    string
	}{
		"there":                {want: FilesAuto, says: "files by virtiofs"},
		"there, by default":    {says: "files by virtiofs"},
		"missing":              {want: FilesAuto, daemon: missing, disk: true, says: "files on disks (virtiofsd is not installed)"},
		"both missing":         {want: FilesAuto, daemon: missing, mkfs: noMkfs, err: "apt-get install virtiofsd.*apt-get install e2fsprogs"},
		"broken":               {want: FilesAuto, daemon: errors.New("it cannot run"), err: "it cannot run"},
		"demanded":             {want: FilesVirtiofs, says: "files by virtiofs"},
		"demanded and missing": {want: FilesVirtiofs, daemon: missing, err: "apt-get install virtiofsd.*--vm-files auto"},
		"disks":                {want: FilesDisk, disk: true, says: "--vm-files disk"},
		"disks without mkfs":   {want: FilesDisk, mkfs: noMkfs, err: "apt-get install e2fsprogs"},
		"unknown":              {want: "9p", err: "use auto, virtiofs or disk"},
	} {
		s, err := chooseServing(tc.want,
			func() (Virtiofsd, error) { return Virtiofsd{Path: "/v"}, tc.daemon }, func() (string, error) { return "/m", tc.mkfs })
		if tc.err != "" {
			at := 0
			for part := range strings.SplitSeq(tc.err, ".*") {
				if err == nil || !strings.Contains(err.Error()[at:], part) {
					t.Errorf("%s: %v, want one with %q", name, err, tc.err)
					break
				}
				at += strings.Index(err.Error()[at:], part)
			}
			continue
		}
		if err != nil || s.Disk != tc.disk || !strings.Contains(s.String(), tc.says) || !s.Disk && s.Virtiofsd.Path != "/v" {
			t.Errorf("%s: %+v %s, %v", name, s, s, err)
		}
	}
}

// TestOnDisk holds how the paths of a document become those of a guest whose files are on a disk.
func TestOnDisk(t *testing.T) {
	t.Parallel()
	c := Container{Etc: "/run/c/etc", OnDisk: map[string]string{"/lib/c/volumes/ab/_data": "volumes/ab"}, Spec: &specs.Spec{
		Root: &specs.Root{Path: "/run/c/rootfs"},
		Mounts: []specs.Mount{
			{Destination: "/proc", Type: "proc", Source: "proc"},
			{Destination: "/etc/hosts", Type: "bind", Source: "/run/c/etc/hosts", Options: []string{"bind", "ro"}},
			{Destination: "/data", Type: "bind", Source: "/lib/c/volumes/ab/_data", Options: []string{"rbind", "rro", "nodev"}},
		},
	}}
	files, err := c.onDisk("p-1")
	if err != nil || !slices.Equal(files, []string{"hosts"}) {
		t.Errorf("%v, %v", files, err)
	}
	got := []string{c.Spec.Root.Path}
	for _, m := range c.Spec.Mounts {
		got = append(got, m.Source+" "+strings.Join(m.Options, ","))
	}
	if d := cmp.Diff([]string{"/run/roots/p-1/rootfs", "proc ", "/run/handed/p-1/hosts bind,ro", "/run/roots/p-1/volumes/ab rbind,nodev"}, got); d != "" {
		t.Error(d)
	}
	c.Spec.Mounts = []specs.Mount{{Destination: "/x", Type: "bind", Source: "/srv/x"}}
	if _, err := c.onDisk("p-1"); err == nil || !strings.Contains(err.Error(), "/srv/x") {
		t.Errorf("a directory of the host: %v", err)
	}
	for _, place := range []string{"", "..", "a/b"} {
		if proto.CheckName(place) == nil {
			t.Errorf("%q is taken for a place", place)
		}
	}
}

// debugfs looks into a disk as nobody should but a test, whose files are its own.
func debugfs(t *testing.T, disk, request string) string {
	t.Helper()
	program := "debugfs"
	if _, err := exec.LookPath(program); err != nil {
		program = "/sbin/debugfs"
	}
	out, err := exec.CommandContext(t.Context(), program, "-R", request, disk).Output()
	if err != nil {
		t.Fatal(err)
	}
	return string(out)
}

// TestMakeRootDisk holds what a disk keeps of the files it is made of, and that it is whole or is not there.
func TestMakeRootDisk(t *testing.T) {
	t.Parallel()
	if _, err := FindMkfs(); err != nil {
		t.Skip(err)
	}
	from, disk := t.TempDir(), filepath.Join(t.TempDir(), "c", "root-disk")
	write(t, filepath.Join(from, "rootfs/a"), "text")
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	must(os.Link(filepath.Join(from, "rootfs/a"), filepath.Join(from, "rootfs/b")))
	must(os.Symlink("a", filepath.Join(from, "rootfs/link")))
	must(unix.Mkfifo(filepath.Join(from, "rootfs/pipe"), 0o640))
	must(os.Chmod(filepath.Join(from, "rootfs"), 0o711))
	root := os.Geteuid() == 0
	if root {
		must(os.Chown(filepath.Join(from, "rootfs/a"), 1234, 70_000))
		must(unix.Mknod(filepath.Join(from, "rootfs/null"), unix.S_IFCHR|0o666, int(unix.Mkdev(1, 3))))
		must(unix.Chmod(filepath.Join(from, "rootfs/a"), 0o4755))
	}
	attrs := unix.Setxattr(filepath.Join(from, "rootfs/a"), "user.note", []byte("kept"), 0) == nil
	sparse, err := os.Create(filepath.Join(from, "rootfs/sparse"))
	must(err)
	must(errors.Join(sparse.Truncate(8<<30), sparse.Close()))
	write(t, disk+unmade, "half of one")
	must(os.MkdirAll(filepath.Dir(disk), 0o700))

	cut, cancel := context.WithCancel(t.Context())
	cancel()
	if err := MakeRootDisk(cut, disk, from); !errors.Is(err, context.Canceled) {
		t.Errorf("cut short: %v", err)
	}
	must(MakeRootDisk(t.Context(), disk, from))
	if left, _ := os.ReadDir(filepath.Dir(disk)); len(left) != 1 {
		t.Errorf("%v are left", left)
	}
	var st unix.Stat_t
	must(unix.Stat(disk, &st))
	if st.Size < roomOnDisk || st.Blocks*512 > besideFiles || st.Mode&0o777 != 0o600 {
		t.Errorf("%d bytes, %d of them on the disk, mode %o", st.Size, st.Blocks*512, st.Mode)
	}
	if DiskInUse(disk) {
		t.Error("a disk that no VM got is in use")
	}
	for request, want := range map[string]string{
		"cat /rootfs/b": "text", "stat /rootfs/a": "Links: 2", "stat /rootfs/link": `Fast link dest: "a"`, "stat /rootfs/pipe": "Type: FIFO    Mode:  0640",
		"stat /rootfs": "Mode:  0711", "stat /rootfs/sparse": "Size: 8589934592",
	} {
		if got := debugfs(t, disk, request); !strings.Contains(got, want) {
			t.Errorf("%s: %s", request, got)
		}
	}
	if got := debugfs(t, disk, "stat /rootfs/a"); root && (!strings.Contains(got, "Mode:  04755") || !strings.Contains(got, "User:  1234   Group: 70000")) {
		t.Errorf("its owner and mode: %s", got)
	}
	if got := debugfs(t, disk, "stat /rootfs/null"); root && !strings.Contains(got, "(New-style) 01:03") && !strings.Contains(got, "Device major/minor number: 01:03") {
		t.Errorf("a device node: %s", got)
	}
	if got := debugfs(t, disk, "ea_get /rootfs/a user.note"); attrs && !strings.Contains(got, "kept") {
		t.Errorf("an attribute: %s", got)
	}

	// What a VM has got stays; what none has got is made anew.
	must(DropDisk(disk))
	if _, err := os.Lstat(disk); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a disk that no VM got stays: %v", err)
	}
	must(MakeRootDisk(t.Context(), disk, from))
	f, err := openDisk(disk)
	must(err)
	_ = f.Close()
	must(DropDisk(disk))
	if !DiskInUse(disk) {
		t.Error("a disk that a VM got is not kept")
	}
	for what, path := range map[string]string{"a link": filepath.Join(from, "rootfs/link"), "a pipe": filepath.Join(from, "rootfs/pipe")} {
		if f, err := openDisk(path); err == nil {
			_ = f.Close()
			t.Errorf("%s was taken for a disk", what)
		}
	}
}

// TestMakeRootDiskFails holds what is said when it cannot be made, and that nothing is left.
func TestMakeRootDiskFails(t *testing.T) {
	t.Parallel()
	if os.Geteuid() != 0 {
		t.Skip("needs root, for a small file system")
	}
	if _, err := FindMkfs(); err != nil {
		t.Skip(err)
	}
	from, small := t.TempDir(), t.TempDir()
	data := make([]byte, 8<<20)
	write(t, filepath.Join(from, "f"), string(data))
	if err := unix.Mount("none", small, "tmpfs", 0, "size=16m"); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = unix.Unmount(small, unix.MNT_DETACH) }()
	disk := filepath.Join(small, "c", "root-disk")
	if err := MakeRootDisk(t.Context(), disk, from); err == nil || !strings.Contains(err.Error(), "MiB left: make room there") {
		t.Errorf("too little room: %v", err)
	}
	// Where it shows only then.
	if err := makeFileSystem(t.Context(), disk, 1<<30, time.Time{}, "-d", writeMuch(t)); err == nil || !strings.Contains(err.Error(), "is full: make room there") {
		t.Errorf("no room: %v", err)
	}
	if left, _ := os.ReadDir(filepath.Dir(disk)); len(left) != 0 {
		t.Errorf("%v are left", left)
	}
}

func writeMuch(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	write(t, filepath.Join(dir, "f"), string(bytes.Repeat([]byte("x"), 24<<20)))
	return dir
}

// blockQEMU is a QEMU that has disks, and says in its order what it is asked.
type blockQEMU struct {
	mu    sync.Mutex
	asked []string
	fail  map[string]int // how often a command fails
}

func (b *blockQEMU) answer(r *bufio.Reader, c *net.UnixConn) {
	for {
		line, err := r.ReadBytes('\n')
		if err != nil {
			return
		}
		var m struct {
			Execute, ID string
			Arguments   map[string]any
		}
		_ = json.Unmarshal(line, &m)
		b.mu.Lock()
		failing := b.fail[m.Execute] > 0
		if failing {
			b.fail[m.Execute]--
		}
		if m.Execute != "qmp_capabilities" {
			b.asked = append(b.asked, fmt.Sprintf("%s %v%v%v %v", m.Execute, or(m.Arguments["id"]), or(m.Arguments["node-name"]), or(m.Arguments["fdset-id"]), or(m.Arguments["bus"])))
		}
		b.mu.Unlock()
		if failing {
			fmt.Fprintf(c, `{"error": {"class": "GenericError", "desc": "no"}, "id": %q}`+"\r\n", m.ID)
			continue
		}
		fmt.Fprintf(c, `{"return": {}, "id": %q}`+"\r\n", m.ID)
	}
}

func or(v any) any {
	if v == nil {
		return ""
	}
	return v
}

func (b *blockQEMU) take() []string {
	b.mu.Lock()
	defer b.mu.Unlock()
	out := b.asked
	b.asked = nil
	return out
}

func TestDisks(t *testing.T) {
	t.Parallel()
	b := &blockQEMU{fail: map[string]int{}}
	d := newDisks(fakeQEMU(t, b.answer))
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	dir := t.TempDir()
	another := func(i int) string {
		path := filepath.Join(dir, fmt.Sprint(i))
		write(t, path, "")
		return path
	}
	path := another(99)
	serial, err := d.plug(ctx, path)
	if err != nil || serial != "root0" {
		t.Errorf("%s, %v", serial, err)
	}
	if diff := cmp.Diff([]string{"add-fd 100 ", "blockdev-add root0 ", "device_add device-root0 slot8"}, b.take()); diff != "" {
		t.Error(diff)
	}
	// The guest takes its time, and then it is free.
	b.fail["blockdev-del"] = 2
	if err := d.unplug(ctx, serial); err != nil {
		t.Error(err)
	}
	if diff := cmp.Diff([]string{"device_del device-root0 ", "blockdev-del root0 ", "blockdev-del root0 ", "blockdev-del root0 ", "remove-fd 100 "}, b.take()); diff != "" {
		t.Error(diff)
	}
	if err := d.unplug(ctx, serial); err != nil || len(b.take()) != 0 {
		t.Errorf("once more: %v", err)
	}
	// What fails is undone.
	b.fail["device_add"] = 1
	if _, err := d.plug(ctx, path); err == nil {
		t.Error("a disk was plugged in that QEMU refused")
	}
	if diff := cmp.Diff([]string{"add-fd 101 ", "blockdev-add root1 ", "device_add device-root1 slot9", "blockdev-del root1 ", "remove-fd 101 "}, b.take()); diff != "" {
		t.Error(diff)
	}
	var all []string
	for i := range diskSlots {
		s, err := d.plug(ctx, another(i))
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, s)
	}
	if _, err := d.plug(ctx, another(diskSlots)); err == nil || !strings.Contains(err.Error(), "at most 8") {
		t.Errorf("one more: %v", err)
	}
	// A guest that keeps one has it, and its slot, for as long as it lives.
	b.mu.Lock()
	b.fail["blockdev-del"] = 1 << 20
	b.mu.Unlock()
	short, stop := context.WithTimeout(ctx, 50*time.Millisecond)
	defer stop()
	if err := d.unplug(short, all[0]); err == nil || len(d.by) != diskSlots {
		t.Errorf("%v, %d", err, len(d.by))
	}
	// Nobody gets it a second time until then.
	again := make(chan error, 1)
	go func() { _, err := d.plug(ctx, another(0)); again <- err }()
	b.mu.Lock()
	b.fail["blockdev-del"] = 2
	b.mu.Unlock()
	select {
	case err := <-again:
		t.Errorf("a disk is plugged in twice: %v", err)
	case <-time.After(3 * unplugPause):
	}
	if err := errors.Join(d.unplug(ctx, all[0]), <-again); err != nil {
		t.Error(err)
	}
	if _, err := d.plug(ctx, filepath.Join(t.TempDir(), "none")); err == nil {
		t.Error("a disk was plugged in that is not there")
	}
}

// TestRelayRoot holds that a member gets the disk of its place and no other, and that it is taken out when the member has ended.
func TestRelayRoot(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	b := &blockQEMU{fail: map[string]int{}}
	g := &fakeGuest{hold: make(chan struct{})}
	close(g.hold)
	ask := func(r *relay, place string) error {
		body := marshal(t, proto.Run{Process: "main", Place: place, Root: "root77", Spec: json.RawMessage("{}")})
		_, _, err := r.Handle(ctx, proto.OpRun, body)
		return err
	}
	r := &relay{guest: g, disks: newDisks(fakeQEMU(t, b.answer)), prefix: "1-"}
	for _, place := range []string{"..", "a/b"} {
		if err := ask(r, place); err == nil || !strings.Contains(err.Error(), "no name of a file") {
			t.Errorf("%q: %v", place, err)
		}
	}
	if err := ask(r, "none"); err == nil || !strings.Contains(err.Error(), membersRoot) {
		t.Errorf("a disk that is not there: %v", err)
	}
	if err := ask(&relay{guest: g, prefix: "1-"}, "x"); err == nil {
		t.Error("a shim without a VM gave a disk")
	}
	if len(g.asked) != 0 || len(b.take()) != 0 {
		t.Errorf("the guest was asked %q", g.asked)
	}
	// Without a place it has no disk, whatever it says.
	if err := ask(r, ""); err != nil || !strings.Contains(g.asked[0], "run ") || strings.Contains(g.asked[0], "root77") {
		t.Errorf("%v, %q", err, g.asked)
	}
	file := filepath.Join(t.TempDir(), "disk")
	write(t, file, "")
	serial, err := r.disks.plug(ctx, file)
	if err != nil {
		t.Fatal(err)
	}
	r.roots = append(r.roots, serial)
	b.take()
	r.end()
	if got := b.take(); len(got) != 3 || got[0] != "device_del device-root0 " {
		t.Errorf("at its end QEMU was asked %q", got)
	}
}

// TestHandOver holds that the guest gets what has changed of the daemon's files.
func TestHandOver(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	write(t, filepath.Join(dir, "hosts"), "one")
	write(t, filepath.Join(dir, "resolv.conf"), "same")
	names := []string{"hosts", "resolv.conf"}
	told, err := readHanded(dir, names)
	if err != nil || len(told) != 2 || string(told[0].Text) != "one" {
		t.Fatalf("%v, %v", told, err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	g := &fakeGuest{}
	over := make(chan struct{})
	write(t, filepath.Join(dir, "hosts"), "two") // before it is watched
	go func() { defer close(over); handOver(ctx, g, dir, names, told, io.Discard) }()
	asked := func(want string) {
		t.Helper()
		for deadline := time.Now().Add(20 * time.Second); time.Now().Before(deadline); <-time.After(time.Millisecond) {
			g.mu.Lock()
			all := strings.Join(g.asked, "\n")
			g.mu.Unlock()
			if strings.Contains(all, want) {
				return
			}
		}
		t.Fatalf("the guest is not told %s: %q", want, g.asked)
	}
	asked(`files {"process":"main","files":[{"name":"hosts","text":"dHdv"}`) // two
	f, err := os.OpenFile(filepath.Join(dir, "hosts"), os.O_RDWR, 0)         // in place, as the daemon does
	if err != nil {
		t.Fatal(err)
	}
	_, _ = f.WriteAt([]byte("three"), 0)
	_ = f.Close()
	asked(`"dGhyZWU="`) // three
	cancel()
	<-over
	if len(g.asked) > 3 {
		t.Errorf("it was asked %q", g.asked)
	}
	write(t, filepath.Join(dir, "hosts"), strings.Repeat("x", maxHanded+1))
	if _, err := readHanded(dir, names); err == nil || !strings.Contains(err.Error(), "hosts") {
		t.Errorf("a huge file: %v", err)
	}
}

// TestGoOn holds that a VM which stands still since the host's disk is full goes on, and that it is said.
func TestGoOn(t *testing.T) {
	t.Parallel()
	continued := make(chan struct{}, 1)
	q := fakeQEMU(t, func(r *bufio.Reader, c *net.UnixConn) {
		for _, action := range []string{"report", "stop"} {
			fmt.Fprintf(c, `{"event": "BLOCK_IO_ERROR", "data": {"device": "", "action": %q, "nospace": true}}`+"\r\n", action)
		}
		for {
			line, err := r.ReadBytes('\n')
			if err != nil {
				return
			}
			var m struct{ Execute, ID string }
			_ = json.Unmarshal(line, &m)
			fmt.Fprintf(c, `{"return": {}, "id": %q}`+"\r\n", m.ID)
			if m.Execute == "cont" {
				continued <- struct{}{}
			}
		}
	})
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	log := &tail{}
	over := make(chan struct{})
	go func() { defer close(over); goOn(ctx, q, log) }()
	select {
	case <-continued:
	case <-ctx.Done():
		t.Fatal("it stands still")
	}
	if said := log.lines(3); !strings.Contains(said, "is full") {
		t.Errorf("it is said: %s", said)
	}
	cancel()
	<-over
}

// TestReadFile holds what is asked of a shim for a file in the container, and what comes back.
func TestReadFile(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	l, err := net.Listen("unix", filepath.Join(dir, controlFile)) //nolint:noctx // nothing to wait for
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	go serveClients(t.Context(), l, readGuest{}, nil, nil)
	text, err := ReadFile(t.Context(), dir, "/etc/passwd", 100)
	if err != nil || string(text) != "main /etc/passwd" {
		t.Errorf("%q, %v", text, err)
	}
	if _, err := ReadFile(t.Context(), dir, "/etc/passwd", 3); err == nil || !strings.Contains(err.Error(), "larger than 3 bytes") {
		t.Errorf("too large: %v", err)
	}
	if _, err := ReadFile(t.Context(), dir, "/none", 100); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("one that is not there: %v", err)
	}
	if _, err := ReadFile(t.Context(), t.TempDir(), "/etc/passwd", 3); err == nil {
		t.Error("a VM that is not there was reached")
	}
}

// readGuest has any file but one.
type readGuest struct{}

func (readGuest) Call(context.Context, string, any, any) error { return nil }

func (readGuest) Stream(_ context.Context, _ string, in, out any) (net.Conn, error) {
	d, _ := in.(proto.Dial)
	answer := "{}"
	if d.Path == "/none" {
		answer = `{"missing":true}`
	}
	if err := json.Unmarshal([]byte(answer), out); err != nil {
		return nil, err
	}
	a, b := net.Pipe()
	go func() { _, _ = io.WriteString(b, d.Process+" "+d.Path); _ = b.Close() }()
	return a, nil
}
