package vm

import (
	"bytes"
	"context"
	"debug/elf"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"unicode"

	"github.com/pierrec/lz4/v4"
)

// Kernel is a guest kernel with its modules.
type Kernel struct {
	Root    string // the directory that has boot and lib/modules
	Image   string // vmlinuz, below it
	Modules string // the directory of its version, below it
	Version string
	// Foreign says that it came with an image, and is read as what somebody else wrote: no link in it leads out of its root.
	Foreign bool
}

// The most that is read of a kernel's files: real ones are a tenth of it.
const (
	maxImage   = 128 << 20
	maxModule  = 16 << 20
	maxModules = 32 << 20 // that are needed, together
	maxText    = 4 << 20
)

// files opens the kernel's root.
func (k Kernel) files() (fs.FS, func(), error) {
	if !k.Foreign {
		return os.DirFS(k.Root), func() {}, nil
	}
	root, err := os.OpenRoot(k.Root)
	if err != nil {
		return nil, nil, fmt.Errorf("open the guest kernel: %w", err)
	}
	return root.FS(), func() { _ = root.Close() }, nil
}

// readFile reads a regular file, whole or not at all.
func readFile(files fs.FS, name string, most int64) ([]byte, error) {
	st, err := fs.Stat(files, name) // before it is opened: a pipe would wait for somebody
	if err != nil {
		return nil, err
	}
	if !st.Mode().IsRegular() || st.Size() > most {
		return nil, fmt.Errorf("%s is no regular file of at most %d bytes", name, most)
	}
	f, err := files.Open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, most+1))
	if err == nil && int64(len(data)) > most {
		err = fmt.Errorf("%s has more than %d bytes", name, most)
	}
	return data, err
}

// Config is the file that the kernel was built from; nil where it is not beside it.
func (k Kernel) Config() ([]byte, error) {
	files, done, err := k.files()
	if err != nil {
		return nil, err
	}
	defer done()
	config, err := readFile(files, path.Join("boot", "config-"+k.Version), maxText)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read the configuration of guest kernel %s: %w", k.Version, err)
	}
	return config, nil
}

// KernelOfImage finds the kernel in the one layer of an image. It is the version that its file says, whatever its name: what images
// demand is checked against that.
func KernelOfImage(dir string) (Kernel, error) {
	k := Kernel{Root: dir, Foreign: true}
	files, done, err := k.files()
	if err != nil {
		return k, err
	}
	defer done()
	found, err := fs.Glob(files, "boot/vmlinuz-*")
	if err == nil && len(found) != 1 {
		err = fmt.Errorf("it has %d files boot/vmlinuz-VERSION, and not one", len(found))
	}
	if err != nil {
		return k, fmt.Errorf("find the kernel of an image: %w", err)
	}
	k.Image, k.Version = found[0], strings.TrimPrefix(path.Base(found[0]), "vmlinuz-")
	for _, lib := range []string{"lib", "usr/lib"} {
		modules := path.Join(lib, "modules", k.Version)
		if st, err := fs.Stat(files, path.Join(modules, "kernel")); err == nil && st.IsDir() {
			k.Modules = modules
			break
		}
	}
	if k.Modules == "" {
		return k, fmt.Errorf("find the kernel of an image: it has no modules for %s in lib/modules/%s", k.Image, k.Version)
	}
	image, err := readFile(files, k.Image, maxImage)
	if err != nil {
		return k, fmt.Errorf("find the kernel of an image: %w", err)
	}
	if says := imageVersion(image); says != k.Version {
		return k, fmt.Errorf("find the kernel of an image: %s says that it is version %.100q", k.Image, says)
	}
	return k, nil
}

// imageVersion reads the version in the header of a kernel's image; "" where there is none.
func imageVersion(image []byte) string {
	const (
		setup   = 0x200
		pointer = 0x20e
	)
	if len(image) < 0x260 || string(image[magic:magic+4]) != "HdrS" {
		return ""
	}
	at := int(binary.LittleEndian.Uint16(image[pointer:])) + setup
	if at == setup || at >= len(image) {
		return ""
	}
	text := image[at:min(at+256, len(image))]
	if end := bytes.IndexAny(text, " \x00"); end >= 0 {
		text = text[:end]
	}
	return string(text)
}

// magic is where the header of an image says "HdrS".
const magic = 0x202

// kernelPackage is the one that fits: small, with all the drivers of virtual hardware and no others.
const kernelPackage = "linux-image-cloud-amd64"

// FindKernel finds the newest of Debian's cloud kernels below one of the directories, laid out as the package has it: the image in
// boot, the modules in lib/modules. The package may be installed or only unpacked there.
func FindKernel(roots ...string) (Kernel, error) {
	for _, root := range roots {
		images, err := filepath.Glob(filepath.Join(root, "boot", "vmlinuz-*cloud-amd64"))
		if err != nil {
			return Kernel{}, fmt.Errorf("find the guest kernel: %w", err)
		}
		slices.SortFunc(images, func(a, b string) int { return -compareVersions(a, b) })
		for _, image := range images {
			version := strings.TrimPrefix(filepath.Base(image), "vmlinuz-")
			for _, lib := range []string{"lib", "usr/lib"} {
				modules := path.Join(lib, "modules", version)
				if st, err := os.Stat(filepath.Join(root, modules, "kernel")); err == nil && st.IsDir() {
					return Kernel{Root: root, Image: path.Join("boot", filepath.Base(image)), Modules: modules, Version: version}, nil
				}
			}
		}
	}
	return Kernel{}, &MissingError{
		What: "a guest kernel", Package: kernelPackage,
		Detail: "looked for boot/vmlinuz-*-cloud-amd64 with its lib/modules below " + strings.Join(roots, ", ") + "; a daemon may be told another place: --vm-kernel DIR, and an image of a kernel may be pulled",
	}
}

// Newer compares versions.
func (k Kernel) Newer(than Kernel) bool { return compareVersions(k.Version, than.Version) > 0 }

// compareVersions orders names with numbers in them as people do: 6.1.0-9 before 6.1.0-57.
func compareVersions(a, b string) int {
	for a != "" && b != "" {
		na, nb := digits(a), digits(b)
		if na != "" && nb != "" {
			x, y := strings.TrimLeft(na, "0"), strings.TrimLeft(nb, "0")
			if len(x) != len(y) {
				return len(x) - len(y)
			}
			if c := strings.Compare(x, y); c != 0 {
				return c
			}
			a, b = a[len(na):], b[len(nb):]
			continue
		}
		if a[0] != b[0] {
			return int(a[0]) - int(b[0])
		}
		a, b = a[1:], b[1:]
	}
	return len(a) - len(b)
}

func digits(s string) string {
	return s[:len(s)-len(strings.TrimLeftFunc(s, unicode.IsDigit))]
}

// Unpack gives what QEMU can boot at once (PVH), where we can unpack the image ourselves: faster than the kernel does it emulated.
// Any other image is booted as it is.
func Unpack(image []byte) []byte {
	const (
		setupSects    = 0x1f1
		payloadOffset = 0x248
		payloadLength = 0x24c
	)
	if len(image) < 0x260 || string(image[magic:magic+4]) != "HdrS" {
		return image
	}
	sects := int(image[setupSects])
	if sects == 0 {
		sects = 4
	}
	from := (sects+1)*512 + int(binary.LittleEndian.Uint32(image[payloadOffset:]))
	to := from + int(binary.LittleEndian.Uint32(image[payloadLength:]))
	if from < 0 || from >= to || to > len(image) {
		return image
	}
	out, err := unpackLegacyLZ4(image[from:to])
	if err != nil || !bytes.HasPrefix(out, []byte(elf.ELFMAG)) {
		return image
	}
	return out
}

// unpackLegacyLZ4 reads what the kernel's build makes: blocks of at most 8 MiB behind their lengths, and at the end the whole length.
func unpackLegacyLZ4(p []byte) ([]byte, error) {
	const (
		legacy   = 0x184c2102
		maxBlock = 8 << 20
		maxAll   = 512 << 20
	)
	if len(p) < 8 || binary.LittleEndian.Uint32(p) != legacy {
		return nil, errors.New("not LZ4")
	}
	total := int(binary.LittleEndian.Uint32(p[len(p)-4:]))
	if total > maxAll {
		return nil, fmt.Errorf("%d bytes are no kernel", total)
	}
	p = p[4 : len(p)-4]
	out := make([]byte, 0, total)
	block := make([]byte, maxBlock)
	for len(p) >= 4 {
		n := int(binary.LittleEndian.Uint32(p))
		if n <= 0 || n > len(p)-4 {
			return nil, errors.New("a block is cut short")
		}
		k, err := lz4.UncompressBlock(p[4:4+n], block)
		if err != nil {
			return nil, fmt.Errorf("unpack the kernel: %w", err)
		}
		out = append(out, block[:k]...)
		if p = p[4+n:]; len(out) > total {
			break
		}
	}
	if len(out) != total {
		return nil, fmt.Errorf("unpacked %d bytes of %d", len(out), total)
	}
	return out, nil
}

// wantedModules are the drivers that the agent loads, in this order but for what they need, which comes first. Those with a question
// mark are left out where a kernel has them not. There is no modprobe in a VM that the kernel could call.
func wantedModules(host, disks bool) []string {
	wanted := []string{"virtio_pci", "virtio_console", "virtio_net"}
	if disks {
		wanted = append(wanted, "virtio_blk", "crc32c_generic?", "ext4")
	} else {
		wanted = append(wanted, "virtiofs")
	}
	if !host {
		return wanted
	}
	return append(wanted,
		"virtio_blk", "overlay", "veth", "sch_ingress", "cls_bpf", "vxlan", "tun?", "macvlan?", "wireguard?", "sch_fq?",
		"nf_tables", "nfnetlink", "nf_conntrack_netlink", "nft_chain_nat", "nft_nat", "nft_masq", "nft_redir", "nft_ct",
		"nft_fib_inet", "nft_reject_inet", "nft_objref", "nft_quota?", "nft_connlimit?", "nft_log?", "nft_limit?", "nft_hash?", "nft_numgen?", "nf_log_syslog?")
}

// Module is a driver's file as the guest loads it.
type Module struct {
	Name string
	Data []byte
}

// LoadOrder reads modules and all that they need from a directory of modules. What a kernel has built in is in none of its files.
func LoadOrder(ctx context.Context, dir fs.FS, wanted []string) ([]Module, error) {
	files := map[string]string{}
	err := fs.WalkDir(dir, ".", func(path string, e fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if name, _, ok := strings.Cut(e.Name(), ".ko"); ok && e.Type().IsRegular() {
			files[plainName(name)] = path
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("find guest modules: %w", err)
	}
	builtin, err := readFile(dir, "modules.builtin", maxText)
	if err != nil {
		return nil, fmt.Errorf("find guest modules: %w", err)
	}
	var order []Module
	var total int
	seen := map[string]bool{}
	var need func(name, by string) error
	need = func(name, by string) error {
		if seen[name] {
			return nil
		}
		seen[name] = true
		path, ok := files[name]
		if !ok {
			for line := range strings.Lines(string(builtin)) {
				if plainName(strings.TrimSuffix(filepath.Base(strings.TrimSpace(line)), ".ko")) == name {
					return nil
				}
			}
			return fmt.Errorf("find guest modules: the kernel has no module %s, which %s needs", name, by)
		}
		data, err := readModule(ctx, dir, path)
		if err != nil {
			return err
		}
		if total += len(data); total > maxModules {
			return fmt.Errorf("find guest modules: those that are needed have more than %d bytes", maxModules)
		}
		depends, err := moduleDepends(data)
		if err != nil {
			return fmt.Errorf("read guest module %s: %w", path, err)
		}
		for _, d := range depends {
			if err := need(d, name); err != nil {
				return err
			}
		}
		order = append(order, Module{Name: name + ".ko", Data: data})
		return nil
	}
	for _, name := range wanted {
		name, optional := strings.CutSuffix(name, "?")
		if optional && files[name] == "" {
			continue
		}
		if err := need(name, "a VM"); err != nil {
			return nil, err
		}
	}
	return order, nil
}

func plainName(s string) string { return strings.ReplaceAll(s, "-", "_") }

func readModule(ctx context.Context, dir fs.FS, name string) ([]byte, error) {
	data, err := readFile(dir, name, maxModule)
	if err != nil {
		return nil, fmt.Errorf("read guest module: %w", err)
	}
	switch path.Ext(name) {
	case ".ko":
		return data, nil
	case ".xz":
		plain, err := unxz(ctx, data)
		if err != nil {
			return nil, fmt.Errorf("unpack guest module %s: %w", name, err)
		}
		return plain, nil
	}
	return nil, fmt.Errorf("read guest module %s: it is packed in a way that is not known here: use Debian's %s", name, kernelPackage)
}

// unxz unpacks a module, up to the size that one may have.
func unxz(ctx context.Context, data []byte) ([]byte, error) {
	if _, err := exec.LookPath("xz"); err != nil {
		return nil, &MissingError{What: "xz, which guest modules are packed with,", Package: "xz-utils"}
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	cmd := exec.CommandContext(ctx, "xz", "--decompress", "--stdout", "--memlimit-decompress=256MiB")
	cmd.Stdin = bytes.NewReader(data)
	out, err := cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	plain, err := io.ReadAll(io.LimitReader(out, maxModule+1))
	if len(plain) > maxModule {
		cancel()
		_ = cmd.Wait()
		return nil, fmt.Errorf("it has more than %d bytes", maxModule)
	}
	return plain, errors.Join(err, cmd.Wait())
}

// moduleDepends reads "depends=a,b" of a module's own description.
func moduleDepends(data []byte) ([]string, error) {
	f, err := elf.NewFile(bytes.NewReader(data))
	if err != nil {
		return nil, err
	}
	s := f.Section(".modinfo")
	if s == nil {
		return nil, errors.New("it is no module: it has no .modinfo")
	}
	info, err := s.Data()
	if err != nil {
		return nil, err
	}
	for field := range bytes.SplitSeq(info, []byte{0}) {
		if list, ok := strings.CutPrefix(string(field), "depends="); ok && list != "" {
			names := strings.Split(list, ",")
			for i := range names {
				names[i] = plainName(names[i])
			}
			return names, nil
		}
	}
	return nil, nil
}
