package vswitch

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"
)

// bpffs is where systemd mounts the BPF file system.
const bpffs = "/sys/fs/bpf"

// pins is the directory of our pinned objects: maps/, progs/ and links/ below dir.
type pins struct{ dir string }

func (p pins) maps() string            { return filepath.Join(p.dir, "maps") }
func (p pins) progs() string           { return filepath.Join(p.dir, "progs") }
func (p pins) links() string           { return filepath.Join(p.dir, "links") }
func (p pins) program(n string) string { return filepath.Join(p.progs(), n) }
func (p pins) mapFile(n string) string { return filepath.Join(p.maps(), n) }
func (p pins) link(dev string) string  { return filepath.Join(p.links(), dev) }

// prepare makes the directories, and mounts bpffs in its usual place where nobody did
// (systemd does; containers and bare init systems may not).
func (p pins) prepare() error {
	on, err := onBPFFS(p.dir)
	if err != nil {
		return fmt.Errorf("look at %s: %w", p.dir, err)
	}
	if !on {
		if filepath.Dir(p.dir) != bpffs {
			return fmt.Errorf("pin directory %s is not on a BPF file system: mount one there first (mount -t bpf bpf %s)",
				p.dir, filepath.Dir(p.dir))
		}
		if err := unix.Mount("bpf", bpffs, "bpf", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, "mode=0700"); err != nil {
			return fmt.Errorf("mount the BPF file system on %s: %w", bpffs, err)
		}
	}
	for _, d := range []string{p.maps(), p.progs(), p.links()} {
		if err := os.MkdirAll(d, 0o700); err != nil {
			return fmt.Errorf("make pin directory: %w", err)
		}
	}
	return nil
}

// onBPFFS asks the nearest ancestor that exists.
func onBPFFS(dir string) (bool, error) {
	for {
		var st unix.Statfs_t
		err := unix.Statfs(dir, &st)
		if err == nil {
			return uint32(st.Type) == unix.BPF_FS_MAGIC, nil
		}
		if !errors.Is(err, fs.ErrNotExist) || dir == "/" || dir == "." {
			return false, err
		}
		dir = filepath.Dir(dir)
	}
}

// names lists a pin directory; an absent one is empty.
func names(dir string) ([]string, error) {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("list pins: %w", err)
	}
	out := make([]string, 0, len(entries))
	for _, e := range entries {
		out = append(out, e.Name())
	}
	return out, nil
}

func exists(path string) bool {
	_, err := os.Lstat(path)
	return err == nil
}

// remove deletes a pin; absent is fine.
func remove(path string) error {
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("remove pin: %w", err)
	}
	return nil
}

// load opens the pinned maps, or creates and pins them, and settles which programs run: the pinned ones if they are the same code over
// the same maps, else new ones. Reusing them is what lets a restart leave every attachment alone. A program that nothing has used yet
// is loaded when something does: the verifier takes longer over one than all the rest of a start does. The ports' own is an exception,
// for every network has some.
func (a *Applier) load() error {
	spec, err := a.sized()
	if err != nil {
		return err
	}
	a.whole = true
	for name := range mapsOf(&a.objs) {
		a.whole = a.whole && exists(a.pins.mapFile(name))
	}
	opts := &ebpf.CollectionOptions{Maps: ebpf.MapOptions{PinPath: a.pins.maps()}}
	if a.objs.bpfMaps, a.objs.BhSweep, err = loadMaps(spec, opts); err != nil {
		return explainLoad(err, a.pins.maps())
	}
	var wanted []string
	for name := range programsOf(&a.objs) {
		if name == bpfProgBhFromPort || exists(a.pins.program(name)) {
			wanted = append(wanted, name)
		}
	}
	return a.use(spec, wanted...)
}

// use takes the pinned programs that are those of spec, and loads the others.
func (a *Applier) use(spec *ebpf.CollectionSpec, names ...string) error {
	slots := programsOf(&a.objs)
	var missing []string
	for _, name := range names {
		old, err := a.pinned(name, func(old *ebpf.Program) (bool, error) { return a.isOf(old, spec.Programs[name]) })
		if err != nil {
			return fmt.Errorf("program %s: %w", name, err)
		}
		if old == nil {
			missing = append(missing, name)
		}
		*slots[name] = old
	}
	if err := loadPrograms(spec, &a.objs, missing); err != nil {
		return explainLoad(err, a.pins.maps())
	}
	var errs []error
	for _, name := range missing {
		if err := a.reuse(name, slots[name]); err != nil {
			errs = append(errs, fmt.Errorf("program %s: %w", name, err), (*slots[name]).Close())
			*slots[name] = nil // to be tried again
		}
	}
	for _, name := range names {
		if *slots[name] == nil {
			continue
		}
		info, err := (*slots[name]).Info()
		if err != nil {
			errs = append(errs, fmt.Errorf("ask about program %s: %w", name, err))
			continue
		}
		a.ids[name], _ = info.ID()
	}
	return errors.Join(errs...)
}

// pinned is the pinned program if it is the same as the one to be run; nil otherwise.
func (a *Applier) pinned(name string, same func(old *ebpf.Program) (bool, error)) (*ebpf.Program, error) {
	old, err := ebpf.LoadPinnedProgram(a.pins.program(name), nil)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("open pinned program: %w", err)
	}
	if ok, err := same(old); err != nil || !ok {
		return nil, errors.Join(err, old.Close())
	}
	return old, nil
}

// isOf compares as sameProgram does, with a program that is not loaded: the verifier takes longer over one than all the rest of a
// restart does. A kernel whose tags are made in another way has it loaded and compared.
func (a *Applier) isOf(p *ebpf.Program, spec *ebpf.ProgramSpec) (bool, error) {
	info, err := p.Info()
	if err != nil {
		return false, fmt.Errorf("ask about the pinned program: %w", err)
	}
	// Writing them resolves calls, which the tag covers.
	if err := spec.Instructions.Marshal(io.Discard, spec.ByteOrder); err != nil {
		return false, fmt.Errorf("read the instructions: %w", err)
	}
	if same, err := spec.Instructions.HasTag(info.Tag, spec.ByteOrder); err != nil || !same {
		return false, err
	}
	used := map[string]bool{}
	for _, ins := range spec.Instructions {
		if ins.IsLoadFromMap() {
			used[ins.Reference()] = true
		}
	}
	ours, want := mapsOf(&a.objs), map[ebpf.MapID]bool{}
	for name := range used {
		if ours[name] == nil {
			return false, nil
		}
		info, err := ours[name].Info()
		if err != nil {
			return false, fmt.Errorf("ask about the map %s: %w", name, err)
		}
		id, _ := info.ID()
		want[id] = true
	}
	ids, _ := info.MapIDs()
	return onlyThese(ids, want), nil
}

// loadMaps loads the maps, and the program that is at no device.
func loadMaps(spec *ebpf.CollectionSpec, opts *ebpf.CollectionOptions) (bpfMaps, *ebpf.Program, error) {
	var o struct {
		bpfMaps
		Sweep *ebpf.Program `ebpf:"bh_sweep"`
	}
	err := spec.LoadAndAssign(&o, opts)
	return o.bpfMaps, o.Sweep, err
}

// loadPrograms loads programs over the maps of o.
func loadPrograms(spec *ebpf.CollectionSpec, o *bpfObjects, names []string) error {
	if len(names) == 0 {
		return nil
	}
	only := spec.Copy()
	only.Programs, only.Variables = map[string]*ebpf.ProgramSpec{}, nil
	for _, name := range names {
		only.Programs[name] = spec.Programs[name]
	}
	over := mapsOf(o)
	for name, m := range over {
		only.Maps[name].MaxEntries = m.MaxEntries() // it may have grown
	}
	c, err := ebpf.NewCollectionWithOptions(only, ebpf.CollectionOptions{MapReplacements: over})
	if err != nil {
		return err
	}
	for _, name := range names {
		*programsOf(o)[name] = c.DetachProgram(name)
	}
	c.Close() // of copies of the maps
	return nil
}

// loadFor loads the programs of a port that nothing has used before, and pins them.
func (a *Applier) loadFor(spots []spot) error {
	if a.shadow != nil {
		return nil
	}
	for _, s := range spots {
		if *programsOf(&a.objs)[s.name] != nil {
			continue
		}
		spec, err := loadBpf()
		if err != nil {
			return fmt.Errorf("read the BPF object: %w", err)
		}
		if err := a.use(spec, s.name); err != nil {
			return err
		}
		if _, err := a.pinProgram(s.name); err != nil {
			return fmt.Errorf("pin in %s: %w", a.pins.dir, err)
		}
	}
	return nil
}

// programsOf are the programs that are attached, by their pinned names.
func programsOf(o *bpfObjects) map[string]**ebpf.Program {
	return map[string]**ebpf.Program{
		bpfProgBhFromPort: &o.BhFromPort, bpfProgBhFromWire: &o.BhFromWire, bpfProgBhFromHost: &o.BhFromHost,
		bpfProgBhFromUnderlay: &o.BhFromUnderlay, bpfProgBhFromTunnel: &o.BhFromTunnel,
	}
}

// reuse takes the pinned program in place of a loaded one that is the same.
func (a *Applier) reuse(name string, slot **ebpf.Program) error {
	old, err := a.pinned(name, func(old *ebpf.Program) (bool, error) { return sameProgram(*slot, old) })
	if err != nil || old == nil {
		return err
	}
	err = (*slot).Close()
	*slot = old
	return err
}

// explainLoad adds the next step to what commonly goes wrong.
func explainLoad(err error, dir string) error {
	var ve *ebpf.VerifierError
	switch {
	case errors.Is(err, ebpf.ErrMapIncompatible):
		return fmt.Errorf("a map in %s has another layout than this version's of the same name; "+
			"`bulkhead reset` removes it, and the next start fills a new one: %w", dir, err)
	case errors.As(err, &ve):
		return fmt.Errorf("the kernel's verifier refuses the switch program; "+
			"`bulkhead doctor` lists what it needs: %w", ve)
	case errors.Is(err, unix.EPERM):
		return fmt.Errorf("load the switch program (needs root, or CAP_BPF and CAP_NET_ADMIN): %w", err)
	}
	return fmt.Errorf("load the switch program: %w", err)
}

// sameProgram compares code (the kernel's tag is a hash of the instructions, map
// numbers left out) and then the maps themselves: a pin that somebody removed has been
// created anew, while the old program still looks into the old map.
func sameProgram(a, b *ebpf.Program) (bool, error) {
	x, err := a.Info()
	if err != nil {
		return false, fmt.Errorf("ask about the loaded program: %w", err)
	}
	y, err := b.Info()
	if err != nil {
		return false, fmt.Errorf("ask about the pinned program: %w", err)
	}
	if x.Tag != y.Tag {
		return false, nil
	}
	have := map[ebpf.MapID]bool{}
	ids, _ := y.MapIDs()
	for _, id := range ids {
		have[id] = true
	}
	ids, _ = x.MapIDs()
	return onlyThese(ids, have), nil
}

func onlyThese(ids []ebpf.MapID, these map[ebpf.MapID]bool) bool {
	return len(ids) == len(these) && !slices.ContainsFunc(ids, func(id ebpf.MapID) bool { return !these[id] })
}

// pinsExist tells whether maps and programs are pinned.
func (a *Applier) pinsExist() bool {
	for name := range mapsOf(&a.objs) {
		if !exists(a.pins.mapFile(name)) {
			return false
		}
	}
	for name, slot := range programsOf(&a.objs) {
		if *slot != nil && !exists(a.pins.program(name)) {
			return false
		}
	}
	return true
}

// ensurePins puts back the pins of the maps and the programs, and says which were gone.
// The kernel objects live on while we hold them.
func (a *Applier) ensurePins() (missing []string, err error) {
	if err := a.pins.prepare(); err != nil {
		return nil, err
	}
	var errs []error
	for name, m := range mapsOf(&a.objs) {
		if exists(a.pins.mapFile(name)) {
			continue
		}
		missing = append(missing, name)
		// The library believes that it is pinned, until told otherwise.
		errs = append(errs, m.Unpin(), m.Pin(a.pins.mapFile(name)))
		a.writes++
	}
	for name := range programsOf(&a.objs) {
		gone, err := a.pinProgram(name)
		if gone {
			missing = append(missing, name)
		}
		errs = append(errs, err)
	}
	if err := errors.Join(errs...); err != nil {
		return missing, fmt.Errorf("pin in %s: %w", a.pins.dir, err)
	}
	return missing, nil
}

// pinProgram pins the program in use, if there is one, and tells whether its pin was gone.
func (a *Applier) pinProgram(name string) (gone bool, err error) {
	prog := *programsOf(&a.objs)[name]
	if prog == nil {
		return false, nil
	}
	pinned, err := a.programPinned(name)
	if pinned {
		return false, err
	}
	gone = prog.IsPinned()
	a.writes++
	return gone, errors.Join(err, remove(a.pins.program(name)), prog.Unpin(), prog.Pin(a.pins.program(name)))
}

// programPinned tells whether the pinned program is the one in use.
func (a *Applier) programPinned(name string) (bool, error) {
	p, err := ebpf.LoadPinnedProgram(a.pins.program(name), nil)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	defer p.Close()
	x, err := p.Info()
	if err != nil {
		return false, err
	}
	id, _ := x.ID()
	return id == a.ids[name], nil
}

// pruneOldPins removes pins of objects that this version does not have, left by another
// version. Only called when every attachment runs this version's program.
func (a *Applier) pruneOldPins() error {
	maps, err := names(a.pins.maps())
	if err != nil {
		return err
	}
	progs, err := names(a.pins.progs())
	if err != nil {
		return err
	}
	var errs []error
	known := mapsOf(&a.objs)
	for _, n := range maps {
		if _, ok := known[n]; !ok {
			errs = append(errs, remove(a.pins.mapFile(n)))
			a.writes++
		}
	}
	ours := programsOf(&a.objs)
	for _, n := range progs {
		if ours[n] == nil {
			errs = append(errs, remove(filepath.Join(a.pins.progs(), n)))
			a.writes++
		}
	}
	return errors.Join(errs...)
}
