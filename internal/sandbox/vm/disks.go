package vm

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"sync"
	"time"
)

// diskSlots are how many disks with containers' files can be plugged into a VM: its own container's, and those of members.
const diskSlots = 8

// firstFileSet is the number of the first set of descriptors that QEMU gets for disks. Those that it is started with have smaller ones.
const firstFileSet = 100

// disks are those that are plugged into a VM.
type disks struct {
	qmp   *QMP
	mu    sync.Mutex
	count int // so far
	by    map[string]pluggedDisk
}

type pluggedDisk struct {
	slot, set int
	file      os.FileInfo
}

func newDisks(q *QMP) *disks { return &disks{qmp: q, by: map[string]pluggedDisk{}} }

// plug gives the VM a disk, and tells the serial number by which the guest finds it. A container that is started again at once may have
// to wait until the guest has let go of the disk of its last life.
func (d *disks) plug(ctx context.Context, path string) (serial string, err error) {
	defer func() {
		if err != nil {
			err = fmt.Errorf("plug in the disk with the container's files: %w", err)
		}
	}()
	f, err := openDisk(path)
	if err != nil {
		return "", err
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return "", err
	}
	limited, cancel := context.WithTimeoutCause(ctx, haltWait, errors.New("the guest does not let go of it"))
	defer cancel()
	for d.mu.Lock(); d.has(st); d.mu.Lock() {
		d.mu.Unlock()
		select {
		case <-limited.Done():
			return "", context.Cause(limited)
		case <-time.After(unplugPause):
		}
	}
	defer d.mu.Unlock()
	return d.add(ctx, f, st)
}

// has tells whether a file is plugged in.
func (d *disks) has(file os.FileInfo) bool {
	for _, p := range d.by {
		if os.SameFile(p.file, file) {
			return true
		}
	}
	return false
}

// add gives QEMU a disk. What comes to nothing is undone.
func (d *disks) add(ctx context.Context, f *os.File, file os.FileInfo) (serial string, err error) {
	p := pluggedDisk{set: firstFileSet + d.count, file: file}
	if p.slot, err = d.freeSlot(); err != nil {
		return "", err
	}
	serial = fmt.Sprintf("root%d", d.count)
	d.count++
	if err := d.qmp.AddFile(ctx, p.set, int(f.Fd())); err != nil {
		return "", err
	}
	// What the guest discards, the file gives back.
	below := map[string]any{"driver": "file", "filename": fmt.Sprintf("/dev/fdset/%d", p.set), "discard": "unmap"}
	err = d.qmp.Do(ctx, "blockdev-add", map[string]any{"driver": "raw", "node-name": serial, "discard": "unmap", "file": below}, nil)
	if err != nil {
		return "", errors.Join(err, d.forget(ctx, p))
	}
	err = d.qmp.Do(ctx, "device_add", map[string]any{
		"driver": "virtio-blk-pci", "id": "device-" + serial, "drive": serial, "serial": serial, "bus": fmt.Sprintf("slot%d", slots+p.slot),
	}, nil)
	if err != nil {
		return "", errors.Join(err, d.qmp.Do(ctx, "blockdev-del", map[string]any{"node-name": serial}, nil), d.forget(ctx, p))
	}
	d.by[serial] = p
	return serial, nil
}

func (d *disks) forget(ctx context.Context, p pluggedDisk) error {
	return d.qmp.Do(ctx, "remove-fd", map[string]any{"fdset-id": p.set}, nil)
}

// freeSlot takes turns: a slot is not free at once when its disk is taken out, for the guest has a say in it.
func (d *disks) freeSlot() (int, error) {
	used := map[int]bool{}
	for _, p := range d.by {
		used[p.slot] = true
	}
	for i := range diskSlots {
		if slot := (d.count + i) % diskSlots; !used[slot] {
			return slot, nil
		}
	}
	return 0, fmt.Errorf("a VM without virtiofsd has at most %d containers", diskSlots)
}

// unplug takes a disk out, which the guest has let go of. It is free when the guest has said so to QEMU, too.
func (d *disks) unplug(ctx context.Context, serial string) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	p, ok := d.by[serial]
	if !ok {
		return nil
	}
	err := d.qmp.Do(ctx, "device_del", map[string]any{"id": "device-" + serial}, nil)
	for err == nil {
		if err = d.qmp.Do(ctx, "blockdev-del", map[string]any{"node-name": serial}, nil); err == nil {
			delete(d.by, serial)
			return d.forget(ctx, p)
		}
		select {
		case <-ctx.Done(): // it keeps its slot for as long as the VM lives
		case <-time.After(unplugPause):
			err = nil
		}
	}
	return fmt.Errorf("take the disk of a container out of the VM: %w", err)
}

const unplugPause = 20 * time.Millisecond

// fullWait is how long a VM stands still before it tries again to write to its disk.
const fullWait = time.Second

// goOn lets a VM go on that stands still since the host's disk is full, when it is not any more.
func goOn(ctx context.Context, q *QMP, log io.Writer) {
	for ctx.Err() == nil {
		select {
		case <-ctx.Done():
			return
		case <-q.Full():
		}
		fmt.Fprintln(log, "bulkhead: the disk of the host that the container's files are on is full: its VM stands still until there is room")
		for full := true; full; {
			select {
			case <-ctx.Done():
				return
			case <-time.After(fullWait):
			}
			limited, cancel := within(ctx, answerWait)
			err := q.Do(limited, "cont", nil, nil)
			cancel()
			if err != nil {
				return // QEMU has ended
			}
			select {
			case <-ctx.Done():
				return
			case <-q.Full():
			case <-time.After(fullWait):
				full = false
				fmt.Fprintln(log, "bulkhead: there is room on the host's disk again: its VM goes on")
			}
		}
	}
}
