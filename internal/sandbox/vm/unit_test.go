package vm

import (
	"bufio"
	"bytes"
	"context"
	"debug/elf"
	"encoding/binary"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/cavaliergopher/cpio"
	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"
)

var update = flag.Bool("update", false, "write the golden files anew") //nolint:gochecknoglobals // a flag of the tests

func golden(t *testing.T, name, got string) {
	t.Helper()
	path := filepath.Join("testdata", name)
	if *update {
		if err := os.WriteFile(path, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), got); diff != "" {
		t.Errorf("%s (-want +got):\n%s", path, diff)
	}
}

func TestArgs(t *testing.T) {
	t.Parallel()
	for name, h := range map[string]Hardware{
		"tcg": {Accel: AccelTCG, CPUs: 1, Memory: 256 << 20, Kernel: "/vm/kernel", Initrd: "/vm/initrd", Share: true},
		"kvm": {Accel: AccelKVM, CPUs: 4, Memory: 1 << 30, Kernel: "/vm/kernel", Initrd: "/vm/initrd", Disks: true},
	} {
		golden(t, name+".args", strings.Join(h.Args(), "\n")+"\n")
	}
}

func TestChooseAccel(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		name, want string
		facts      accelFacts
		accel, err string
		reason     string
	}{
		{name: "real", want: "auto", facts: accelFacts{modules: []string{"kvm_intel"}}, accel: "kvm"},
		{name: "by default", want: "", facts: accelFacts{modules: []string{"kvm_amd"}}, accel: "kvm"},
		{name: "none", want: "auto", facts: accelFacts{kvm: fs.ErrNotExist}, accel: "tcg", reason: "no /dev/kvm"},
		{name: "no right", want: "auto", facts: accelFacts{kvm: fs.ErrPermission}, accel: "tcg", reason: "permission"},
		{name: "paravirtual", want: "auto", facts: accelFacts{modules: []string{"kvm_pvm"}}, accel: "tcg", reason: "PVM"},
		{name: "both", want: "auto", facts: accelFacts{modules: []string{"kvm_intel", "kvm_pvm"}}, accel: "kvm"},
		{name: "demanded", want: "kvm", facts: accelFacts{modules: []string{"kvm_amd"}}, accel: "kvm"},
		{name: "demanded, paravirtual", want: "kvm", facts: accelFacts{modules: []string{"kvm_pvm"}}, err: "--vm-accel auto"},
		{name: "demanded, none", want: "kvm", facts: accelFacts{kvm: fs.ErrNotExist}, err: "no /dev/kvm"},
		{name: "emulated", want: "tcg", facts: accelFacts{modules: []string{"kvm_amd"}}, accel: "tcg", reason: "asked for"},
		{name: "unknown", want: "xen", err: "use auto, kvm or tcg"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			got, err := chooseAccel(tc.want, tc.facts)
			if got.Name != tc.accel || !strings.Contains(got.Reason, tc.reason) {
				t.Errorf("chose %+v", got)
			}
			if (err != nil) != (tc.err != "") || err != nil && !strings.Contains(err.Error(), tc.err) {
				t.Errorf("error %v, want one with %q", err, tc.err)
			}
		})
	}
}

// TestVirtiofsdRemembered: it is asked once, and again when it is another.
func TestVirtiofsdRemembered(t *testing.T) {
	dir := t.TempDir()
	t.Setenv("PATH", dir+":/usr/bin:/bin")
	path, asked := filepath.Join(dir, "virtiofsd"), filepath.Join(dir, "asked")
	put := func(version string) {
		text := fmt.Sprintf("#!/bin/sh\necho >>%s\necho virtiofsd %s\n", asked, version)
		if err := errors.Join(os.WriteFile(path+".new", []byte(text), 0o755), os.Rename(path+".new", path)); err != nil {
			t.Fatal(err)
		}
	}
	var v virtiofsds
	for i, version := range []string{"version 7.2.22", "1.13.0"} {
		put(version)
		for range 3 {
			got, err := v.find(t.Context())
			if err != nil || got != (Virtiofsd{Path: path, Rust: i == 1}) {
				t.Errorf("%s: %+v, %v", version, got, err)
			}
		}
		if text, err := os.ReadFile(asked); err != nil || len(text) != i+1 {
			t.Errorf("%s: it was asked %d times, %v", version, len(text), err)
		}
	}
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	if got, err := v.find(t.Context()); got.Path == path {
		t.Errorf("it is gone: %+v, %v", got, err)
	}
}

func TestFindKernel(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	_, err := FindKernel(dir)
	if !errors.Is(err, ErrUnavailable) || !strings.Contains(err.Error(), "linux-image-cloud-amd64") || !strings.Contains(err.Error(), "--vm-kernel") {
		t.Errorf("with none: %v", err)
	}
	make := func(version string, modules bool) {
		write(t, filepath.Join(dir, "boot/vmlinuz-"+version), "x")
		if modules {
			write(t, filepath.Join(dir, "lib/modules", version, "kernel/x.ko"), "x")
		}
	}
	make("6.1.0-9-cloud-amd64", true)
	make("6.1.0-57-cloud-amd64", true)
	make("6.12.1-cloud-amd64", false) // its modules are not there
	make("6.99.0-amd64", true)        // made for real hardware
	k, err := FindKernel(t.TempDir(), dir)
	if err != nil || k.Version != "6.1.0-57-cloud-amd64" || k.Root != dir || k.Modules != "lib/modules/6.1.0-57-cloud-amd64" {
		t.Errorf("found %+v, %v", k, err)
	}
}

func write(t *testing.T, path, text string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
}

// TestUnpackRefuses holds that what is no image that we know stays as it is.
func TestUnpackRefuses(t *testing.T) {
	t.Parallel()
	image := make([]byte, 4096)
	copy(image[0x202:], "HdrS")
	for name, change := range map[string]func([]byte){
		"no header":          func(b []byte) { b[0x202] = 0 },
		"no payload":         func([]byte) {},
		"payload beyond":     func(b []byte) { binary.LittleEndian.PutUint32(b[0x24c:], 1<<30) },
		"payload far beyond": func(b []byte) { binary.LittleEndian.PutUint32(b[0x248:], 1<<32-1) },
		"not LZ4":            func(b []byte) { binary.LittleEndian.PutUint32(b[0x24c:], 100) },
		"a broken block": func(b []byte) {
			binary.LittleEndian.PutUint32(b[0x24c:], 64)
			copy(b[5*512:], []byte{0x02, 0x21, 0x4c, 0x18, 0xff, 0xff, 0xff, 0xff})
		},
	} {
		b := bytes.Clone(image)
		change(b)
		if got := Unpack(b); !bytes.Equal(got, b) {
			t.Errorf("%s: made %d bytes of it", name, len(got))
		}
	}
	if got := Unpack([]byte("short")); string(got) != "short" {
		t.Error("made something of a short file")
	}
}

// module is the smallest file that says what a module needs.
func module(depends string) string {
	info := "license=GPL\x00depends=" + depends + "\x00"
	names := "\x00.modinfo\x00.shstrtab\x00"
	var b bytes.Buffer
	const head, section = 64, 64
	h := elf.Header64{
		Type: uint16(elf.ET_REL), Machine: uint16(elf.EM_X86_64), Version: 1, Shoff: uint64(head + len(info) + len(names)),
		Ehsize: head, Shentsize: section, Shnum: 3, Shstrndx: 2,
	}
	copy(h.Ident[:], []byte{0x7f, 'E', 'L', 'F', byte(elf.ELFCLASS64), byte(elf.ELFDATA2LSB), 1})
	for _, part := range []any{
		h, []byte(info), []byte(names),
		elf.Section64{},
		elf.Section64{Name: 1, Type: uint32(elf.SHT_PROGBITS), Off: head, Size: uint64(len(info))},
		elf.Section64{Name: 10, Type: uint32(elf.SHT_STRTAB), Off: uint64(head + len(info)), Size: uint64(len(names))},
	} {
		_ = binary.Write(&b, binary.LittleEndian, part) // to memory
	}
	return b.String()
}

func TestLoadOrder(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	for path, depends := range map[string]string{
		"kernel/a/virtio.ko": "virtio_ring", "kernel/a/virtio_ring.ko": "", "kernel/b/virtio-net.ko": "virtio,net-failover",
		"kernel/c/net_failover.ko": "built_in", "kernel/c/broken.ko": "gone",
	} {
		write(t, filepath.Join(dir, path), module(depends))
	}
	write(t, filepath.Join(dir, "modules.builtin"), "kernel/x/built-in.ko\n")
	got, err := LoadOrder(t.Context(), os.DirFS(dir), []string{"virtio_net", "virtio", "built_in"})
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, m := range got {
		names = append(names, m.Name)
	}
	if diff := cmp.Diff([]string{"virtio_ring.ko", "virtio.ko", "net_failover.ko", "virtio_net.ko"}, names); diff != "" {
		t.Error(diff)
	}
	if _, err := LoadOrder(t.Context(), os.DirFS(dir), []string{"broken"}); err == nil || !strings.Contains(err.Error(), "no module gone, which broken needs") {
		t.Errorf("a module that is not there: %v", err)
	}
}

func TestInitrd(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	self, err := os.Executable() // static, so without libraries
	if err != nil {
		t.Fatal(err)
	}
	write(t, filepath.Join(dir, "agent"), "the agent")
	var b bytes.Buffer
	i := initrd{agent: filepath.Join(dir, "agent"), runtime: self, modules: []Module{{"b.ko", []byte("b")}, {"a.ko", []byte("a")}}}
	if err := i.write(&b); err != nil {
		t.Fatal(err)
	}
	var list strings.Builder
	for r := cpio.NewReader(&b); ; {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		text, err := io.ReadAll(r)
		if err != nil {
			t.Fatal(err)
		}
		if h.Name == "bin/container" {
			text = []byte("(a program)")
		}
		fmt.Fprintf(&list, "%o %s %q\n", h.Mode, h.Name, text)
	}
	golden(t, "initrd.list", list.String())
	i.agent = filepath.Join(dir, "none")
	if err := i.write(io.Discard); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("without an agent: %v", err)
	}
}

func TestVirtiofsd(t *testing.T) {
	t.Parallel()
	c := Virtiofsd{Path: "/usr/lib/qemu/virtiofsd", Rust: isRust("virtiofsd version 7.2.22 (Debian 1:7.2+dfsg-7+deb12u18+b3)\nCopyright")}
	rust := Virtiofsd{Path: "/usr/libexec/virtiofsd", Rust: isRust("virtiofsd 1.13.0\n")}
	golden(t, "virtiofsd.args", strings.Join(c.Args(3, "/share"), " ")+"\n"+strings.Join(rust.Args(3, "/share"), " ")+"\n")
}

// fakeQEMU is the other end of a QMP connection.
func fakeQEMU(t *testing.T, do func(r *bufio.Reader, c *net.UnixConn)) *QMP {
	t.Helper()
	ours, theirs, err := socketPairs(1)
	if err != nil {
		t.Fatal(err)
	}
	conn, err := net.FileConn(theirs[0])
	if err != nil {
		t.Fatal(err)
	}
	closeFiles(theirs)
	q := NewQMP(ours[0])
	t.Cleanup(func() { _ = q.Close(); _ = conn.Close() })
	u := conn.(*net.UnixConn)
	go do(bufio.NewReader(u), u)
	return q
}

func TestQMP(t *testing.T) {
	t.Parallel()
	q := fakeQEMU(t, func(r *bufio.Reader, c *net.UnixConn) {
		_, _ = io.WriteString(c, `{"QMP": {"version": {}, "capabilities": []}}`+"\r\n")
		for {
			line, err := r.ReadBytes('\n')
			if err != nil {
				return
			}
			var m struct{ Execute, ID string }
			_ = json.Unmarshal(line, &m)
			_, _ = io.WriteString(c, `{"event": "RESUME", "timestamp": {}}`+"\r\n"+`{"return": {}, "id": "someone else's"}`+"\r\n")
			switch m.Execute {
			case "query-status":
				fmt.Fprintf(c, `{"return": {"status": "running"}, "id": %q}`+"\r\n", m.ID)
			case "qmp_capabilities":
				fmt.Fprintf(c, `{"return": {}, "id": %q}`+"\r\n", m.ID)
			default:
				fmt.Fprintf(c, `{"error": {"class": "CommandNotFound", "desc": "no such command"}, "id": %q}`+"\r\n", m.ID)
			}
		}
	})
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	var st struct{ Status string }
	if err := q.Do(ctx, "query-status", nil, &st); err != nil || st.Status != "running" {
		t.Errorf("%+v, %v", st, err)
	}
	if err := q.Do(ctx, "fly", nil, nil); err == nil || !strings.Contains(err.Error(), "fly: no such command") {
		t.Errorf("an error came as %v", err)
	}
}

// TestHostileQMP holds that a QEMU that a guest has taken cannot have us wait, or fill our memory.
func TestHostileQMP(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct {
		do   func(*bufio.Reader, *net.UnixConn)
		want string
	}{
		"silent": {func(r *bufio.Reader, _ *net.UnixConn) { _, _ = io.Copy(io.Discard, r) }, "deadline"},
		"a line without end": {func(_ *bufio.Reader, c *net.UnixConn) {
			for part := bytes.Repeat([]byte("x"), 64<<10); ; {
				if _, err := c.Write(part); err != nil {
					return
				}
			}
		}, "without end"},
		"no JSON": {func(_ *bufio.Reader, c *net.UnixConn) { _, _ = io.WriteString(c, "hello\n") }, "no JSON"},
		"ended":   {func(_ *bufio.Reader, c *net.UnixConn) { _ = c.CloseWrite() }, "has ended"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			q := fakeQEMU(t, tc.do)
			wait := 20 * time.Second
			if name == "silent" {
				wait = 50 * time.Millisecond
			}
			ctx, cancel := context.WithTimeout(t.Context(), wait)
			defer cancel()
			if err := q.Do(ctx, "query-status", nil, nil); err == nil || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("got %v, want something about %q", err, tc.want)
			}
		})
	}
}

// TestSendFile holds that a descriptor arrives with its command.
func TestSendFile(t *testing.T) {
	t.Parallel()
	got := make(chan string, 1)
	q := fakeQEMU(t, func(_ *bufio.Reader, c *net.UnixConn) {
		for {
			buf, oob := make([]byte, 4096), make([]byte, unix.CmsgSpace(4))
			n, on, _, _, err := c.ReadMsgUnix(buf, oob)
			if err != nil {
				return
			}
			var m struct{ Execute, ID string }
			_ = json.Unmarshal(buf[:n], &m)
			if msgs, err := unix.ParseSocketControlMessage(oob[:on]); err == nil && len(msgs) == 1 {
				fds, err := unix.ParseUnixRights(&msgs[0])
				if err == nil {
					f := os.NewFile(uintptr(fds[0]), "received")
					text, _ := io.ReadAll(f)
					_ = f.Close()
					got <- m.Execute + " " + string(text)
				}
			}
			fmt.Fprintf(c, `{"return": {}, "id": %q}`+"\r\n", m.ID)
		}
	})
	path := filepath.Join(t.TempDir(), "f")
	write(t, path, "content")
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	if err := q.SendFile(ctx, "tap0", int(f.Fd())); err != nil {
		t.Fatal(err)
	}
	if s := <-got; s != "getfd content" {
		t.Errorf("QEMU got %q", s)
	}
}

func TestTail(t *testing.T) {
	t.Parallel()
	var l tail
	for i := range 10_000 {
		fmt.Fprintf(&l, "line %d\x1b[2J\r\n\n", i)
	}
	if got := l.lines(2); got != "line 9998[2J | line 9999[2J" {
		t.Errorf("kept %q", got)
	}
	if len(l.buf) > tailSize {
		t.Errorf("kept %d bytes", len(l.buf))
	}
}

func marshal(t *testing.T, v any) json.RawMessage {
	t.Helper()
	b, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// kernelImage is the smallest file that says which version it is.
func kernelImage(version string) string {
	b := make([]byte, 4096)
	copy(b[0x202:], "HdrS")
	binary.LittleEndian.PutUint16(b[0x20e:], 0x100)
	copy(b[0x300:], version+" (somebody@somewhere) #1 SMP\x00")
	return string(b)
}

func TestKernelOfImage(t *testing.T) {
	t.Parallel()
	secret := filepath.Join(t.TempDir(), "secret")
	write(t, secret, kernelImage("6.1.0-x"))
	for _, tc := range []struct {
		name, err string
		change    func(t *testing.T, dir string)
	}{
		{"whole", "", nil},
		{"modules in usr", "", func(t *testing.T, dir string) {
			t.Helper()
			if err := errors.Join(os.Mkdir(filepath.Join(dir, "usr"), 0o755), os.Rename(filepath.Join(dir, "lib"), filepath.Join(dir, "usr/lib"))); err != nil {
				t.Fatal(err)
			}
		}},
		{"of another version", `says that it is version "6.9.9"`, func(t *testing.T, dir string) {
			t.Helper()
			write(t, filepath.Join(dir, "boot/vmlinuz-6.1.0-x"), kernelImage("6.9.9"))
		}},
		{"no kernel", "says that it is version", func(t *testing.T, dir string) {
			t.Helper()
			write(t, filepath.Join(dir, "boot/vmlinuz-6.1.0-x"), "MZ")
		}},
		{"a version beyond its end", "says that it is version", func(t *testing.T, dir string) {
			t.Helper()
			b := []byte(kernelImage("6.1.0-x"))
			binary.LittleEndian.PutUint16(b[0x20e:], 0xffff)
			write(t, filepath.Join(dir, "boot/vmlinuz-6.1.0-x"), string(b))
		}},
		{"two", "it has 2 files", func(t *testing.T, dir string) {
			t.Helper()
			write(t, filepath.Join(dir, "boot/vmlinuz-6.1.0-y"), kernelImage("6.1.0-y"))
		}},
		{"none", "it has 0 files", func(t *testing.T, dir string) {
			t.Helper()
			if err := os.RemoveAll(filepath.Join(dir, "boot")); err != nil {
				t.Fatal(err)
			}
		}},
		{"without modules", "no modules", func(t *testing.T, dir string) {
			t.Helper()
			if err := os.RemoveAll(filepath.Join(dir, "lib")); err != nil {
				t.Fatal(err)
			}
		}},
		{"a link to the host's files", "escapes", func(t *testing.T, dir string) {
			t.Helper()
			file := filepath.Join(dir, "boot/vmlinuz-6.1.0-x")
			if err := errors.Join(os.Remove(file), os.Symlink(secret, file)); err != nil {
				t.Fatal(err)
			}
		}},
		{"a pipe", "no regular file", func(t *testing.T, dir string) {
			t.Helper()
			file := filepath.Join(dir, "boot/vmlinuz-6.1.0-x")
			if err := errors.Join(os.Remove(file), unix.Mkfifo(file, 0o600)); err != nil {
				t.Fatal(err)
			}
		}},
		{"huge", "no regular file of at most", func(t *testing.T, dir string) {
			t.Helper()
			if err := os.Truncate(filepath.Join(dir, "boot/vmlinuz-6.1.0-x"), maxImage+1); err != nil {
				t.Fatal(err)
			}
		}},
		{"modules elsewhere", "no modules", func(t *testing.T, dir string) {
			t.Helper()
			lib := filepath.Join(dir, "lib")
			if err := errors.Join(os.RemoveAll(lib), os.Symlink("/lib", lib)); err != nil {
				t.Fatal(err)
			}
		}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			dir := t.TempDir()
			write(t, filepath.Join(dir, "boot/vmlinuz-6.1.0-x"), kernelImage("6.1.0-x"))
			write(t, filepath.Join(dir, "boot/config-6.1.0-x"), "CONFIG_TUN=m\n")
			write(t, filepath.Join(dir, "lib/modules/6.1.0-x/kernel/x.ko"), module(""))
			if tc.change != nil {
				tc.change(t, dir)
			}
			k, err := KernelOfImage(dir)
			if tc.err != "" {
				if err == nil || !strings.Contains(err.Error(), tc.err) {
					t.Errorf("%v, want %q", err, tc.err)
				}
				return
			}
			if err != nil || k.Version != "6.1.0-x" {
				t.Fatalf("%+v, %v", k, err)
			}
			if config, err := k.Config(); err != nil || string(config) != "CONFIG_TUN=m\n" {
				t.Errorf("configuration %q, %v", config, err)
			}
		})
	}
}

// TestHostileModules: what an image's modules lead to is not read, and there is an end to them.
func TestHostileModules(t *testing.T) {
	t.Parallel()
	root := t.TempDir()
	dir := filepath.Join(root, "lib/modules/1")
	write(t, filepath.Join(dir, "modules.builtin"), "")
	write(t, filepath.Join(dir, "kernel/big.ko"), "")
	write(t, filepath.Join(root, "real.ko"), module(""))
	if err := errors.Join(os.Truncate(filepath.Join(dir, "kernel/big.ko"), maxModule+1), os.Symlink(filepath.Join(root, "real.ko"), filepath.Join(dir, "kernel/link.ko")),
		unix.Mkfifo(filepath.Join(dir, "kernel/pipe.ko"), 0o600)); err != nil {
		t.Fatal(err)
	}
	for i := range 3 {
		depends := fmt.Sprintf("m%d", i+1)
		if i == 2 {
			depends = ""
		}
		file := filepath.Join(dir, fmt.Sprintf("kernel/m%d.ko", i))
		write(t, file, module(depends))
		if err := os.Truncate(file, maxModule); err != nil {
			t.Fatal(err)
		}
	}
	for wanted, want := range map[string]string{"big": "no regular file", "link": "no module link", "pipe": "no module pipe", "m0": "have more than"} {
		if _, err := LoadOrder(t.Context(), os.DirFS(dir), []string{wanted}); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %q", wanted, err, want)
		}
	}
}

// TestStoreKeepsWhatIsInUse: files of other kernels go when nobody has had them for a day, but for those of VMs that run.
func TestStoreKeepsWhatIsInUse(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	self := filepath.Join(dir, "program")
	write(t, self, module("")) // as far as anybody looks
	s := NewStore(filepath.Join(dir, "vm"))
	get := func(version string, inUse ...string) string {
		root := filepath.Join(dir, version)
		write(t, filepath.Join(root, "boot/vmlinuz-"+version), kernelImage(version))
		write(t, filepath.Join(root, "lib/modules", version, "modules.builtin"), "virtio_pci.ko\nvirtio_console.ko\nvirtio_net.ko\nvirtiofs.ko\n")
		f, err := s.Get(t.Context(), Sources{
			Kernel: Kernel{Root: root, Image: "boot/vmlinuz-" + version, Modules: "lib/modules/" + version, Version: version},
			Agent:  self, Runtime: self, InUse: func() []string { return inUse },
		})
		if err != nil {
			t.Fatal(err)
		}
		return filepath.Dir(f.Kernel)
	}
	age := func(dirs ...string) {
		long := time.Now().Add(-2 * unusedFor)
		for _, d := range dirs {
			if err := os.Chtimes(d, long, long); err != nil {
				t.Fatal(err)
			}
		}
	}
	there := func(dir string) bool { _, err := os.Stat(filepath.Join(dir, "kernel")); return err == nil }
	first, second := get("6.1.0-1"), get("6.1.0-2")
	third := get("6.1.0-3")
	if !there(first) || !there(second) {
		t.Error("what was used just now is gone")
	}
	age(first, second, third)
	write(t, filepath.Join(dir, "6.1.0-2/lib/modules/6.1.0-2/touched"), "")
	if err := os.Chtimes(filepath.Join(dir, "6.1.0-3/lib/modules/6.1.0-3"), time.Time{}, time.Now()); err != nil { // the directory is part of what they are made of
		t.Fatal(err)
	}
	_ = get("6.1.0-4", first)
	if !there(first) || there(second) || there(third) {
		t.Errorf("in use %v, others %v and %v", there(first), there(second), there(third))
	}
	if again := get("6.1.0-2"); !there(again) {
		t.Error("a kernel that is used again is not made again")
	}
}

// TestTemplates holds when a template is used, made, given up and taken away.
func TestTemplates(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	files := Files{Kernel: filepath.Join(dir, "key", "kernel"), Initrd: filepath.Join(dir, "key", "initrd")}
	other := filepath.Join(dir, "old", templatePrefix+"unused")
	for _, d := range []string{filepath.Dir(files.Kernel), other} {
		if err := os.MkdirAll(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	long := time.Now().Add(-time.Hour)
	if err := os.Chtimes(other, long, long); err != nil {
		t.Fatal(err)
	}
	h := NewHost(Options{Dir: dir, Templates: 1})
	defer h.Close()
	h.templates.wait = 0
	cfg := Config{QEMU: "/bin/false", Hardware: Hardware{Accel: AccelTCG, CPUs: 1, Memory: 128 << 20, Share: true}}
	name, err := templateName(cfg)
	if err != nil {
		t.Fatal(err)
	}
	bigger := cfg
	bigger.Hardware.Memory <<= 1
	if again, err := templateName(bigger); err != nil || again == name {
		t.Errorf("VMs of two sizes share the template %s (%v)", name, err)
	}
	// There is no kernel, so all attempts are in vain, and end.
	for range 5 {
		if got := h.templates.of(cfg, files); got != "" {
			t.Fatalf("it is there: %s", got)
		}
		h.templates.wg.Wait()
	}
	path := filepath.Join(dir, "key", name)
	if n := h.templates.failed[path]; n != enough {
		t.Errorf("it was tried %d times", n)
	}
	if err := os.Mkdir(path, 0o700); err != nil {
		t.Fatal(err)
	}
	if got := h.templates.of(cfg, files); got != name {
		t.Errorf("what is there is not used: %q", got)
	}
	h.templates.prune(path)
	if _, err := os.Stat(other); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("more are kept than was asked for: %v", err)
	}
	for _, bad := range []string{"../" + name, "kernel", "", "/etc"} {
		h.Spoiled(filepath.Dir(path), bad, "")
	}
	if _, err := os.Stat(path); err != nil {
		t.Errorf("it is gone: %v", err)
	}
	h.Spoiled(filepath.Dir(path), name, "a test")
	if _, err := os.Stat(path); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("it is still there: %v", err)
	}
	if got := NewHost(Options{}).templates.of(cfg, files); got != "" {
		t.Errorf("one is used that nobody wants: %s", got)
	}
}

// TestCopies holds that what a guest's memory has is copied, and nothing else.
func TestCopies(t *testing.T) {
	t.Parallel()
	const size = 8 << 20
	memory, err := newMemory(size)
	if err != nil {
		t.Fatal(err)
	}
	defer memory.Close()
	want := make([]byte, size)
	for _, at := range []int{0, 3<<20 + 17, 5 << 20, size - 1} {
		want[at] = 7
		if _, err := memory.WriteAt(want[at:at+1], int64(at)); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := memory.WriteAt(make([]byte, 2<<20), 1<<20); err != nil { // in use, but nothing in it
		t.Fatal(err)
	}
	saved, err := os.Create(filepath.Join(t.TempDir(), "memory"))
	if err != nil {
		t.Fatal(err)
	}
	defer saved.Close()
	if err := copyPages(saved, memory); err != nil {
		t.Fatal(err)
	}
	again, err := newMemory(size)
	if err != nil {
		t.Fatal(err)
	}
	defer again.Close()
	if err := copyData(again, saved); err != nil {
		t.Fatal(err)
	}
	got := make([]byte, size)
	if _, err := again.ReadAt(got, 0); err != nil || !bytes.Equal(got, want) {
		t.Errorf("the memory is another (%v)", err)
	}
	for _, f := range []*os.File{saved, again} {
		st, err := f.Stat()
		if err != nil {
			t.Fatal(err)
		}
		if used := st.Sys().(*syscall.Stat_t).Blocks * 512; used > 1<<20 {
			t.Errorf("%s takes %d bytes", f.Name(), used)
		}
	}
}
