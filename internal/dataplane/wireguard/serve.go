package wireguard

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log"
	"net"
	"os"
	"path/filepath"
	"sync"

	"golang.org/x/sys/unix"
	"golang.zx2c4.com/wireguard/conn"
	"golang.zx2c4.com/wireguard/device"
	"golang.zx2c4.com/wireguard/tun"
)

// ServeOptions are what the process of a device is started with.
type ServeOptions struct {
	// Device is its name, Namespace the path of the compartment that it is made in, Socket where it is configured: by WireGuard's
	// configuration protocol, so that wg(8) shows it too.
	Device, Namespace, Socket string
	MTU                       int
}

// Serve is wireguard-go with one device, until ctx ends or somebody deletes the device. The device goes with it. It is born without a
// key and without peers, and sends nothing before it has them.
func Serve(ctx context.Context, o ServeOptions) error {
	fd, err := unix.Open(o.Namespace, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("open the compartment %s: %w", o.Namespace, err)
	}
	defer unix.Close(fd)
	ln, err := listen(ctx, o.Socket)
	if err != nil {
		return err
	}
	defer ln.Close()
	var t tun.Device
	if err := inside(fd, func() (err error) { t, err = tun.CreateTUN(o.Device, o.MTU); return err }); err != nil {
		return fmt.Errorf("make the TUN device %s: %w", o.Device, err)
	}
	batch, err := newBatchTun(t)
	if err != nil {
		return errors.Join(err, t.Close())
	}
	bind := &knownBind{Bind: conn.NewStdNetBind(), failed: make(chan error, 1)}
	logger := &device.Logger{Verbosef: device.DiscardLogf, Errorf: log.New(os.Stderr, o.Device+": ", log.LstdFlags).Printf}
	dev := device.NewDevice(&farTun{batch, fd}, bind, logger)
	defer dev.Close()
	var wg sync.WaitGroup
	defer wg.Wait()
	wg.Go(func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			go func() { // ends with its client, or the process
				defer c.Close()
				dev.IpcHandle(c)
			}()
		}
	})
	select {
	case <-ctx.Done():
	case err = <-bind.failed:
	case <-dev.Wait():
		err = fmt.Errorf("somebody deleted the device %s", o.Device)
	}
	ln.Close()
	return err
}

// listen takes the socket over from a process that has ended.
func listen(ctx context.Context, path string) (net.Listener, error) {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return nil, fmt.Errorf("make the directory of sockets: %w", err)
	}
	if c, err := (&net.Dialer{}).DialContext(ctx, "unix", path); err == nil {
		c.Close()
		return nil, fmt.Errorf("another process serves %s", path)
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("remove an old socket: %w", err)
	}
	defer unix.Umask(unix.Umask(0o177)) // it gives out the key
	ln, err := (&net.ListenConfig{}).Listen(ctx, "unix", path)
	if err != nil {
		return nil, fmt.Errorf("listen for the daemon: %w", err)
	}
	return ln, nil
}

// knownBind ends the process that cannot have its sockets: a device without them looks well to everybody.
type knownBind struct {
	conn.Bind
	failed chan error
}

func (b *knownBind) Open(port uint16) ([]conn.ReceiveFunc, uint16, error) {
	fns, got, err := b.Bind.Open(port)
	if err != nil {
		select {
		case b.failed <- fmt.Errorf("open the sockets of UDP port %d: %w", port, err):
		default:
		}
	}
	return fns, got, err
}

// farTun is a TUN device in another namespace: its MTU can be read there only.
type farTun struct {
	tun.Device
	fd int
}

func (t *farTun) MTU() (mtu int, err error) {
	err = inside(t.fd, func() (err error) { mtu, err = t.Device.MTU(); return err })
	return mtu, err
}

// inside runs fn on a thread in a network namespace; the thread ends with it.
func inside(fd int, fn func() error) error {
	return onThread(func() error { return unix.Setns(fd, unix.CLONE_NEWNET) }, fn)
}
