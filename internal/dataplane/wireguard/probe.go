package wireguard

import (
	"fmt"
	"sync"
)

// Mode says what encrypts on this host.
type Mode string

// Auto takes the kernel's WireGuard where it has one, and a process of our own elsewhere.
const (
	Auto      Mode = "auto"
	Kernel    Mode = "kernel"
	UserSpace Mode = "user-space"
)

// Check refuses what is none of them.
func (m Mode) Check() error {
	switch m {
	case Auto, Kernel, UserSpace:
		return nil
	}
	return fmt.Errorf("%q: use %s, %s or %s", string(m), Auto, Kernel, UserSpace)
}

// choice is which of the two it is. It is made once: a module that is loaded later counts from the daemon's next start on.
type choice struct {
	mode  Mode
	probe func() error
}

func newChoice(m Mode, probe func() error) choice {
	return choice{m, sync.OnceValue(probe)}
}

// kernel tells that the kernel's is used. With an error, none may be.
func (c choice) kernel() (bool, error) {
	switch c.mode {
	case UserSpace:
		return false, nil
	case Kernel:
		if err := c.probe(); err != nil {
			return true, fmt.Errorf("the kernel's WireGuard is demanded (--wireguard=kernel): %w: load the module (modprobe wireguard) and restart the daemon, or choose --wireguard=auto", err)
		}
		return true, nil
	default:
		return c.probe() == nil, nil
	}
}

// Implementation says what encrypts on this host, and why not the kernel. With an error, nothing can.
func (a *Applier) Implementation() (string, error) {
	const process = "WireGuard outside the kernel (wireguard-go), in a process of its own"
	inKernel, err := a.kernel()
	switch {
	case err != nil:
		return "", err
	case inKernel:
		return "WireGuard of the kernel", nil
	case a.mode == UserSpace:
		return process + ", as --wireguard says", nil
	}
	return process + ": " + a.probe().Error(), nil
}
