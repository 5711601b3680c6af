package nat

import (
	"errors"
	"os"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"golang.org/x/sys/unix"
)

// dropFilter is a socket filter that takes no byte of any packet. It is loaded once and shared by all sockets: giving
// each a filter of its own has the kernel translate and seal a program every time, which was a tenth of an attach.
type dropFilter struct {
	prog *ebpf.Program
}

// dropAll is the same as a classic program, for where no program may be loaded.
var dropAll = []unix.SockFilter{{Code: unix.BPF_RET | unix.BPF_K, K: 0}}

func (f *dropFilter) attach(fd int) error {
	if f.prog == nil {
		prog, err := ebpf.NewProgram(&ebpf.ProgramSpec{
			Name: "bulkhead_hold", Type: ebpf.SocketFilter, License: "Apache-2.0",
			Instructions: asm.Instructions{asm.Mov.Imm(asm.R0, 0), asm.Return()},
		})
		if errors.Is(err, unix.EPERM) {
			own := unix.SockFprog{Len: uint16(len(dropAll)), Filter: &dropAll[0]}
			return os.NewSyscallError("attach filter", unix.SetsockoptSockFprog(fd, unix.SOL_SOCKET, unix.SO_ATTACH_FILTER, &own))
		}
		if err != nil {
			return err
		}
		f.prog = prog
	}
	return os.NewSyscallError("attach filter", unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_ATTACH_BPF, f.prog.FD()))
}

func (f *dropFilter) close() error {
	if f.prog == nil {
		return nil
	}
	err := f.prog.Close()
	f.prog = nil
	return err
}
