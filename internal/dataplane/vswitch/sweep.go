package vswitch

import (
	"fmt"

	"github.com/cilium/ebpf"
)

// sweep takes the silent flows out of the table and has the kernel go on with it by itself,
// with the program of this version (bpf/lib/sweep.h). Every full sync calls it, so a kernel
// that had no memory for the timer is asked again, and the table is swept until then.
func (a *Applier) sweep() error {
	verdict, err := a.objs.BhSweep.Run(&ebpf.RunOptions{Data: make([]byte, 14)})
	if err != nil {
		return fmt.Errorf("sweep the flow table: %w", err)
	}
	if alone := verdict != 0; alone != a.sweepsAlone {
		a.sweepsAlone = alone
		if alone {
			a.log.Warn("the kernel has no memory for the timer of the flow table; ended connections leave it more slowly until it has")
		}
	}
	return nil
}
