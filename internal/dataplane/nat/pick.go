package nat

import (
	"errors"
	"fmt"
	"os"

	"github.com/bulkhead-net/bulkhead/internal/plan"
)

// HostPick finds a port that is free for all the given forwards together (several protocols, families, addresses),
// whose Port is not looked at, and reserves it for owner.
func (r *Reservations) HostPick(owner string, fs ...plan.Forward) (uint16, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	low, high := r.zone()
	if r.next < low || r.next > high {
		r.next = low
	}
	for range int(high) - int(low) + 1 {
		p := r.next
		if r.next++; r.next > high || r.next < low {
			r.next = low
		}
		err := r.reserveAll(owner, p, fs)
		if err == nil {
			return p, nil
		}
		if _, taken := errors.AsType[*PortConflict](err); !taken {
			return 0, err
		}
	}
	return 0, fmt.Errorf("pick a host port: all of %d to %d are in use", low, high)
}

func (r *Reservations) reserveAll(owner string, p uint16, fs []plan.Forward) error {
	for i, f := range fs {
		f.Port = p
		if _, mine := r.held[keyOf(f)]; mine {
			r.undo(p, fs[:i])
			return &PortConflict{Proto: f.Protocol, Addr: bindAddr(f), Port: p, Owner: owner}
		}
		if err := r.reserve(f, owner, false); err != nil {
			r.undo(p, fs[:i])
			return err
		}
	}
	return nil
}

func (r *Reservations) undo(p uint16, fs []plan.Forward) {
	for _, f := range fs {
		f.Port = p
		r.drop(keyOf(f))
	}
}

// zone is where ports are picked from: above those that the kernel gives to outgoing connections, if there are enough
// of them, so that the two do not compete; else the dynamic range of RFC 6335.
func (r *Reservations) zone() (low, high uint16) {
	low, high = 49153, 65535
	_ = r.inNetns(func() error {
		b, err := os.ReadFile("/proc/sys/net/ipv4/ip_local_port_range")
		var from, to int
		if _, scanErr := fmt.Sscan(string(b), &from, &to); err == nil && scanErr == nil && to >= 32768 && to <= 64511 {
			low = uint16(to + 1)
		}
		return err
	})
	return low, high
}
