package agent

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"runtime"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"github.com/bulkhead-net/bulkhead/internal/sandbox/vm/proto"
)

// connectNetworks are those of which the host has sockets made.
var connectNetworks = []string{"tcp", "udp", "ip4:icmp", "ip6:ipv6-icmp"} //nolint:gochecknoglobals // a constant

// connect makes a socket in the compartment. The names of the networks and addresses are those of the net package.
func connect(ctx context.Context, netns int, d proto.Dial) (proto.Dialled, func(net.Conn), error) {
	if !slices.Contains(connectNetworks, d.Network) {
		return proto.Dialled{}, nil, fmt.Errorf("connect: network %q is none of %q", d.Network, connectNetworks)
	}
	_, err := netip.ParseAddr(d.Address)
	if d.Network == "tcp" || d.Network == "udp" {
		_, err = netip.ParseAddrPort(d.Address)
	}
	if err != nil {
		return proto.Dialled{}, nil, fmt.Errorf("connect: %w", err) // a name would be asked for, outside
	}
	dialer := net.Dialer{Timeout: time.Duration(d.Wait)}
	if d.From != 0 {
		dialer.LocalAddr = &net.TCPAddr{Port: int(d.From)}
	}
	var c net.Conn
	done := make(chan error)
	go func() {
		runtime.LockOSThread() // it ends with the thread
		if err := unix.Setns(netns, unix.CLONE_NEWNET); err != nil {
			done <- err
			return
		}
		var err error
		c, err = dialer.DialContext(ctx, d.Network, d.Address)
		done <- err
	}()
	if err := <-done; err != nil {
		return proto.Dialled{Errno: int(proto.Errno(err))}, nil, nil
	}
	local := c.LocalAddr().String()
	return proto.Dialled{Local: local}, func(stream net.Conn) { proto.NewPackets(stream, local).Join(c) }, nil
}
