package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"time"

	"golang.org/x/sys/unix"
)

// claimName is a socket without a file, of which each network namespace has its own: a daemon that was killed leaves
// nothing of it.
const claimName = "@bulkhead-daemon"

// claimPatience is how long one that was just killed may take to be gone.
const claimPatience = time.Second

// claimHost makes this process the only one that writes to the host's kernel, until the answer is closed. The lock of the
// state file does not do that: with another state directory, a second daemon would take the compartments and devices of
// the first for leftovers and remove them.
//
// Anybody on the host may take the name, so only a process of root's is believed. What another holds leaves a daemon
// unclaimed: a nil listener.
func claimHost(ctx context.Context, log *slog.Logger) (*net.UnixListener, error) {
	addr := &net.UnixAddr{Name: claimName, Net: "unix"}
	deadline := time.Now().Add(claimPatience)
	for {
		l, err := net.ListenUnix("unix", addr)
		if err == nil {
			return l, nil
		}
		if !errors.Is(err, unix.EADDRINUSE) {
			return nil, fmt.Errorf("claim the host: %w", err)
		}
		if time.Now().Before(deadline) && ctx.Err() == nil {
			select {
			case <-ctx.Done():
			case <-time.After(20 * time.Millisecond):
			}
			continue
		}
		holder, err := holderOf(addr)
		if err != nil || holder.Uid != 0 {
			log.Warn("a process that is not root's has the daemon's name; a second daemon would not be noticed", "name", claimName)
			return nil, nil
		}
		return nil, fmt.Errorf("a daemon runs on this host, as process %d: stop the daemon first", holder.Pid)
	}
}

// holderOf says which process listens on a socket.
func holderOf(addr *net.UnixAddr) (*unix.Ucred, error) {
	c, err := net.DialUnix("unix", nil, addr)
	if err != nil {
		return nil, err
	}
	defer c.Close()
	raw, err := c.SyscallConn()
	if err != nil {
		return nil, err
	}
	var holder *unix.Ucred
	var credErr error
	if err := raw.Control(func(fd uintptr) { holder, credErr = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED) }); err != nil {
		return nil, err
	}
	return holder, credErr
}
