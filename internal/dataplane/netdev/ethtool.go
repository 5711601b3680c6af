package netdev

import (
	"encoding/binary"
	"errors"
	"fmt"
	"unsafe"

	"golang.org/x/sys/unix"
)

// offload is a feature of a NIC's, as ethtool -k shows it. A driver may keep one on that is not wanted.
type offload struct{ on, wanted, fixed bool }

// stubborn tells that it was asked to be off, and is not.
func (o offload) stubborn() bool { return o.on && !o.wanted }

// Commands and the string set of features (linux/ethtool.h).
const (
	ethtoolStringSetInfo = 0x37
	ethtoolStrings       = 0x1b
	ethtoolFeatures      = 0x3a
	ethtoolSetFeatures   = 0x3b

	featureStrings = 4
	stringLen      = 32
)

// offloads lists the features of a NIC by name. One whose driver has none to tell of has none.
func (n *Netdev) offloads(nic string) (out map[string]offload, err error) {
	err = n.ethtool(nic, func(e *ethtool) error {
		names, err := e.features()
		if err != nil {
			return err
		}
		// Of each block of 32: available, requested, active, never changed.
		b, err := e.ask(ethtoolFeatures, blocks(names), 16)
		if err != nil {
			return err
		}
		out = map[string]offload{}
		for i, name := range names {
			at, bit := 8+i/32*16, uint32(1)<<(i%32)
			word := func(k int) uint32 { return binary.NativeEndian.Uint32(b[at+4*k:]) }
			out[name] = offload{on: word(2)&bit != 0, wanted: word(1)&bit != 0, fixed: word(0)&bit == 0 || word(3)&bit != 0}
		}
		return nil
	})
	if errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.ENODEV) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("list the offloads of %s: %w", nic, err)
	}
	return out, nil
}

// setOffloads turns features on or off.
func (n *Netdev) setOffloads(nic string, which []string, on bool) error {
	err := n.ethtool(nic, func(e *ethtool) error {
		names, err := e.features()
		if err != nil {
			return err
		}
		// Of each block of 32: those that are meant, and those of them that are on.
		b := make([]byte, 8+8*blocks(names))
		binary.NativeEndian.PutUint32(b, ethtoolSetFeatures)
		binary.NativeEndian.PutUint32(b[4:], uint32(blocks(names)))
		for i, name := range names {
			for _, w := range which {
				if w != name {
					continue
				}
				at, bit := 8+i/32*8, uint32(1)<<(i%32)
				binary.NativeEndian.PutUint32(b[at:], binary.NativeEndian.Uint32(b[at:])|bit)
				if on {
					binary.NativeEndian.PutUint32(b[at+4:], binary.NativeEndian.Uint32(b[at+4:])|bit)
				}
			}
		}
		n.writes.Add(1)
		return e.call(b)
	})
	if errors.Is(err, unix.ENODEV) {
		return nil
	}
	return err
}

func blocks(names []string) int { return (len(names) + 31) / 32 }

// ethtool speaks with the driver of a NIC.
type ethtool struct {
	fd  int
	nic [unix.IFNAMSIZ]byte
}

func (n *Netdev) ethtool(nic string, do func(*ethtool) error) error {
	return n.home.do(func() error {
		fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return err
		}
		defer unix.Close(fd)
		e := &ethtool{fd: fd}
		copy(e.nic[:unix.IFNAMSIZ-1], nic)
		return do(e)
	})
}

// call hands the driver a command, which it may answer in place. The request is an ifreq: name, pointer, and room to its end.
func (e *ethtool) call(b []byte) error {
	req := struct {
		name [unix.IFNAMSIZ]byte
		data unsafe.Pointer
		_    [16]byte
	}{name: e.nic, data: unsafe.Pointer(unsafe.SliceData(b))}
	_, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(e.fd), unix.SIOCETHTOOL, uintptr(unsafe.Pointer(&req)))
	if errno != 0 {
		return errno
	}
	return nil
}

// ask is a call with room for count blocks of an answer.
func (e *ethtool) ask(cmd uint32, count, size int) ([]byte, error) {
	b := make([]byte, 8+count*size)
	binary.NativeEndian.PutUint32(b, cmd)
	binary.NativeEndian.PutUint32(b[4:], uint32(count))
	return b, e.call(b)
}

// features lists the names of features in the order of their bits.
func (e *ethtool) features() ([]string, error) {
	info := make([]byte, 16+4)
	binary.NativeEndian.PutUint32(info, ethtoolStringSetInfo)
	binary.NativeEndian.PutUint64(info[8:], 1<<featureStrings)
	if err := e.call(info); err != nil {
		return nil, err
	}
	count := min(int(binary.NativeEndian.Uint32(info[16:])), 1024)
	b := make([]byte, 12+count*stringLen)
	binary.NativeEndian.PutUint32(b, ethtoolStrings)
	binary.NativeEndian.PutUint32(b[4:], featureStrings)
	binary.NativeEndian.PutUint32(b[8:], uint32(count))
	if err := e.call(b); err != nil {
		return nil, err
	}
	names := make([]string, count)
	for i := range names {
		names[i] = unix.ByteSliceToString(b[12+i*stringLen : 12+(i+1)*stringLen])
	}
	return names, nil
}
