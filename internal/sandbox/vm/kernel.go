package vm

import (
	"bytes"
	"context"
	"debug/elf"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"unicode"

	"github.com/pierrec/lz4/v4"
)

// Kernel is a guest kernel with its modules.
type Kernel struct {
	Image   string // vmlinuz
	Modules string // the directory of its version
	Version string
}

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
				modules := filepath.Join(root, lib, "modules", version)
				if st, err := os.Stat(filepath.Join(modules, "kernel")); err == nil && st.IsDir() {
					return Kernel{Image: image, Modules: modules, Version: version}, nil
				}
			}
		}
	}
	return Kernel{}, &MissingError{
		What: "a guest kernel", Package: kernelPackage,
		Detail: "looked for boot/vmlinuz-*-cloud-amd64 with its lib/modules below " + strings.Join(roots, ", ") + "; a daemon may be told another place: --vm-kernel DIR",
	}
}

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
		magic         = 0x202 // "HdrS"
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
		p = p[4+n:]
	}
	if len(out) != total {
		return nil, fmt.Errorf("unpacked %d bytes of %d", len(out), total)
	}
	return out, nil
}

// wantedModules are the drivers that the agent loads, in this order but for what they need, which comes first.
func wantedModules() []string {
	return []string{"virtio_pci", "virtio_console", "virtio_net", "virtiofs"}
}

// Module is a driver's file as the guest loads it.
type Module struct {
	Name string
	Data []byte
}

// LoadOrder reads modules and all that they need from a directory of modules. What a kernel has built in is in none of its files.
func LoadOrder(ctx context.Context, dir string, wanted []string) ([]Module, error) {
	files := map[string]string{}
	err := filepath.WalkDir(dir, func(path string, e fs.DirEntry, err error) error {
		if name, _, ok := strings.Cut(e.Name(), ".ko"); err == nil && ok && !e.IsDir() {
			files[plainName(name)] = path
		}
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("find guest modules: %w", err)
	}
	builtin, err := os.ReadFile(filepath.Join(dir, "modules.builtin"))
	if err != nil {
		return nil, fmt.Errorf("find guest modules: %w", err)
	}
	var order []Module
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
			return fmt.Errorf("find guest modules: the kernel in %s has no module %s, which %s needs", dir, name, by)
		}
		data, err := readModule(ctx, path)
		if err != nil {
			return err
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
		if err := need(name, "a VM"); err != nil {
			return nil, err
		}
	}
	return order, nil
}

func plainName(s string) string { return strings.ReplaceAll(s, "-", "_") }

func readModule(ctx context.Context, path string) ([]byte, error) {
	switch filepath.Ext(path) {
	case ".ko":
		data, err := os.ReadFile(path)
		if err != nil {
			return nil, fmt.Errorf("read guest module: %w", err)
		}
		return data, nil
	case ".xz":
		if _, err := exec.LookPath("xz"); err != nil {
			return nil, &MissingError{What: "xz, which guest modules are packed with,", Package: "xz-utils"}
		}
		data, err := exec.CommandContext(ctx, "xz", "--decompress", "--stdout", path).Output()
		if err != nil {
			return nil, fmt.Errorf("unpack guest module %s: %w", path, err)
		}
		return data, nil
	}
	return nil, fmt.Errorf("read guest module %s: it is packed in a way that is not known here: use Debian's %s", path, kernelPackage)
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
