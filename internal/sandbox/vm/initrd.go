package vm

import (
	"debug/elf"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"

	"github.com/cavaliergopher/cpio"

	"github.com/bulkhead-net/bulkhead/internal/sandbox/vm/agent"
)

// initrd is what a guest's initial file system is made of.
type initrd struct {
	agent   string // file of the agent
	runtime string // file of the OCI runtime
	modules []Module
}

// write writes it, not packed: to unpack it would take the guest longer than the host to read it.
func (i initrd) write(w io.Writer) error {
	out := &archive{w: cpio.NewWriter(w), dirs: map[string]bool{}}
	for _, dir := range []string{"dev", "proc", "sys", "run", "tmp", "etc", "root"} {
		out.dir(dir)
	}
	out.copy("init", i.agent)
	if err := out.program(agent.RuntimePath, i.runtime); err != nil {
		return err
	}
	var order strings.Builder
	for _, m := range i.modules {
		out.file(path.Join(agent.ModuleDir, m.Name), m.Data, 0o600)
		order.WriteString(m.Name + "\n")
	}
	out.file(path.Join(agent.ModuleDir, "order"), []byte(order.String()), 0o600)
	if out.err == nil {
		out.err = out.w.Close()
	}
	if out.err != nil {
		return fmt.Errorf("write the initial file system of VMs: %w", out.err)
	}
	return nil
}

// archive keeps the first error.
type archive struct {
	w    *cpio.Writer
	dirs map[string]bool
	err  error
}

func (a *archive) dir(name string) {
	name = strings.Trim(name, "/")
	if a.err != nil || name == "" || name == "." || a.dirs[name] {
		return
	}
	a.dir(path.Dir(name))
	a.dirs[name] = true
	if a.err == nil {
		a.err = a.w.WriteHeader(&cpio.Header{Name: name, Mode: cpio.TypeDir | 0o755, Links: 2})
	}
}

func (a *archive) file(name string, data []byte, mode cpio.FileMode) {
	name = strings.Trim(name, "/")
	a.dir(path.Dir(name))
	if a.err != nil || a.dirs[name] {
		return
	}
	a.dirs[name] = true
	if a.err = a.w.WriteHeader(&cpio.Header{Name: name, Mode: cpio.TypeReg | mode, Size: int64(len(data)), Links: 1}); a.err == nil {
		_, a.err = a.w.Write(data)
	}
}

func (a *archive) copy(name, from string) {
	data, err := os.ReadFile(from)
	if err != nil && a.err == nil {
		a.err = err
	}
	a.file(name, data, 0o755)
}

// libraryDirs are where the loader looks on Debian and its like, and on others.
func libraryDirs() []string {
	return []string{"/lib/x86_64-linux-gnu", "/usr/lib/x86_64-linux-gnu", "/lib64", "/usr/lib64", "/lib", "/usr/lib"}
}

// program copies a program with its loader and libraries, found by what the files themselves say.
func (a *archive) program(name, from string) error {
	a.copy(name, from)
	queue := []string{from}
	done := map[string]bool{}
	for len(queue) > 0 && a.err == nil {
		file := queue[0]
		queue = queue[1:]
		needed, loader, err := needs(file)
		if err != nil {
			return fmt.Errorf("look at %s: %w", file, err)
		}
		if loader != "" && !done[loader] {
			done[loader] = true
			a.copy(loader, loader)
		}
		for _, lib := range needed {
			if done[lib] {
				continue
			}
			done[lib] = true
			at := slices.IndexFunc(libraryDirs(), func(d string) bool { _, err := os.Stat(filepath.Join(d, lib)); return err == nil })
			if at < 0 {
				return fmt.Errorf("find library %s of %s: it is in none of %s", lib, file, strings.Join(libraryDirs(), ", "))
			}
			found := filepath.Join(libraryDirs()[at], lib)
			// The loader looks in /lib without any configuration.
			a.copy(path.Join("lib", lib), found)
			queue = append(queue, found)
		}
	}
	return nil
}

func needs(file string) (libraries []string, loader string, err error) {
	f, err := elf.Open(file)
	if err != nil {
		return nil, "", err
	}
	defer f.Close()
	if f.Machine != elf.EM_X86_64 {
		return nil, "", errors.New("it is no program for x86-64")
	}
	for _, p := range f.Progs {
		if p.Type == elf.PT_INTERP {
			text, err := io.ReadAll(p.Open())
			if err != nil {
				return nil, "", err
			}
			loader = strings.TrimRight(string(text), "\x00")
		}
	}
	libraries, err = f.ImportedLibraries()
	return libraries, loader, err
}
