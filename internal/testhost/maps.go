package testhost

import (
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"testing"

	"github.com/cilium/ebpf"
)

// MapEntries counts the entries of the BPF maps pinned below /sys/fs/bpf, by the maps' names. Those whose number of entries
// is fixed, arrays and rings, are left out.
func (h *Host) MapEntries(t testing.TB) map[string]int {
	t.Helper()
	out := map[string]int{}
	var err error
	h.DoMount(func() {
		err = filepath.WalkDir("/sys/fs/bpf", func(path string, e fs.DirEntry, err error) error {
			if err != nil || e.IsDir() {
				return err
			}
			m, err := ebpf.LoadPinnedMap(path, &ebpf.LoadPinOptions{ReadOnly: true})
			if err != nil {
				return nil //nolint:nilerr // a program or a link
			}
			defer m.Close()
			switch m.Type() {
			case ebpf.Hash, ebpf.PerCPUHash, ebpf.LRUHash, ebpf.LPMTrie:
			default:
				return nil
			}
			out[e.Name()], err = entries(m)
			if err != nil {
				return fmt.Errorf("count the entries of %s: %w", path, err)
			}
			return nil
		})
	})
	if err != nil {
		t.Fatalf("%s: %v", h.name, err)
	}
	return out
}

func entries(m *ebpf.Map) (int, error) {
	key := make([]byte, m.KeySize())
	err := m.NextKey(nil, &key)
	n := 0
	for ; err == nil; n++ {
		err = m.NextKey(key, &key)
	}
	if errors.Is(err, ebpf.ErrKeyNotExist) {
		return n, nil
	}
	return n, err
}
