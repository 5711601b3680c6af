package vm

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"slices"

	"github.com/opencontainers/runtime-spec/specs-go"

	"github.com/bulkhead-net/bulkhead/internal/sandbox/vm/agent"
)

// A VM has the files of its containers in one of two ways. virtiofsd shares directories of this host, which is the better way: what the
// container writes is on the host at once, and volumes are the host's. Where there is no virtiofsd, a container's files are on a disk of
// its own, a file with an ext4 file system that is made of its root file system once; then nothing of the host can be shared.

// The ways that a user can choose among.
const (
	FilesAuto     = "auto" // by virtiofs where there is virtiofsd, else on disks
	FilesVirtiofs = "virtiofs"
	FilesDisk     = "disk"
)

// Serving is how VMs have the files of containers that have none on a disk yet.
type Serving struct {
	Disk      bool
	Virtiofsd Virtiofsd
	// Reason is why they are on disks.
	Reason string
}

// String describes it.
func (s Serving) String() string {
	if s.Disk {
		return "files on disks (" + s.Reason + ")"
	}
	return "files by virtiofs"
}

// Serving chooses it, and tells what is missing for it.
func (h *Host) Serving(ctx context.Context) (Serving, error) {
	return chooseServing(h.opt.Files, func() (Virtiofsd, error) { return h.virtiofsd.find(ctx) }, FindMkfs)
}

func chooseServing(want string, daemon func() (Virtiofsd, error), mkfs func() (string, error)) (Serving, error) {
	onDisks := func(reason string) (Serving, error) {
		_, err := mkfs()
		return Serving{Disk: true, Reason: reason}, err
	}
	switch want {
	case FilesDisk:
		return onDisks("as the daemon was told by --vm-files disk")
	case "", FilesAuto, FilesVirtiofs:
	default:
		return Serving{}, fmt.Errorf("%w: --vm-files %q: use auto, virtiofs or disk", ErrUnavailable, want)
	}
	v, err := daemon()
	if err == nil {
		return Serving{Virtiofsd: v}, nil
	}
	if _, missing := errors.AsType[*MissingError](err); !missing || want == FilesVirtiofs {
		return Serving{}, fmt.Errorf("%w: or allow disks with --vm-files auto", err)
	}
	s, noDisks := onDisks("virtiofsd is not installed")
	if noDisks != nil {
		return Serving{}, fmt.Errorf("%w; nor can files be put on disks: %w", err, noDisks)
	}
	return s, nil
}

// onDisk has the container's document speak of its disk, which is in the guest by the name of a place, and of the daemon's files, which
// are handed over. Nothing else of this host can be there.
func (c *Container) onDisk(place string) (files []string, err error) {
	dir := filepath.Join(agent.RootsDir, place)
	c.Spec.Root.Path = filepath.Join(dir, RootOnDisk)
	for i := range c.Spec.Mounts {
		m := &c.Spec.Mounts[i]
		if m.Type != "bind" {
			continue
		}
		switch name, ok := c.OnDisk[m.Source]; {
		case ok:
			m.Source = filepath.Join(dir, name)
		case filepath.Dir(m.Source) == c.Etc:
			name := filepath.Base(m.Source)
			files = append(files, name)
			m.Source = filepath.Join(agent.HandedDir, place, name)
		default:
			return nil, fmt.Errorf("%s, to be mounted at %s, is not on the container's disk, and a VM without virtiofsd has no directory of the host", m.Source, m.Destination)
		}
		m.Options = slices.DeleteFunc(m.Options, func(o string) bool { return o == "rro" }) // a word of this host's runtime
	}
	return files, nil
}

// handedMount shows a shim the files that are handed over.
func (c *Container) handedMount() specs.Mount {
	return specs.Mount{Destination: HandedDir, Type: "bind", Source: c.Etc, Options: []string{"bind", "rprivate", "ro", "nosuid", "nodev", "noexec"}}
}
