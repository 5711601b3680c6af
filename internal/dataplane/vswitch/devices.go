package vswitch

import (
	"fmt"

	"golang.org/x/sys/unix"
)

// devices tell the index of a device.
type devices interface {
	index(name string) (uint32, error)
	close() error
}

// deviceIndex turns interface names into indexes in the namespace it was made in. One
// ioctl each: a netlink look-up parses everything about the device, and there are a
// thousand of them.
type deviceIndex struct{ fd int }

func newDeviceIndex() (*deviceIndex, error) {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("open a socket for device look-ups: %w", err)
	}
	return &deviceIndex{fd: fd}, nil
}

func (d *deviceIndex) index(name string) (uint32, error) {
	req, err := unix.NewIfreq(name)
	if err != nil {
		return 0, fmt.Errorf("device name %q: %w", name, err)
	}
	if err := unix.IoctlIfreq(d.fd, unix.SIOCGIFINDEX, req); err != nil {
		return 0, fmt.Errorf("find device %s: %w", name, err)
	}
	return req.Uint32(), nil
}

func (d *deviceIndex) close() error { return unix.Close(d.fd) }
