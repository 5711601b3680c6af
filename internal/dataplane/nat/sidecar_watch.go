package nat

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// sideCarCalm is the least time between two looks at the tables: a container that may change its own rules could otherwise keep
// the daemon busy.
const sideCarCalm = 500 * time.Millisecond

// Watch calls wake when somebody has changed the redirects of a compartment, until ctx ends. One socket hears of all of them: the
// kernel delivers the events of every namespace that the host's has a number for, and it gives one to each that the far end of a
// veth pair is in. ready, unless nil, is closed once events are caught.
func (s *SideCars) Watch(ctx context.Context, host int, wake func(cause string), ready chan<- struct{}) error {
	c, err := netlink.Dial(unix.NETLINK_NETFILTER, &netlink.Config{NetNS: host, Groups: 1 << (unix.NFNLGRP_NFTABLES - 1)})
	if err != nil {
		return fmt.Errorf("watch the redirects of compartments: %w", err)
	}
	defer c.Close()
	if err := c.SetOption(netlink.ListenAllNSID, true); err != nil {
		return fmt.Errorf("listen to compartments: %w", err)
	}
	if ready != nil {
		close(ready)
	}
	stop := context.AfterFunc(ctx, func() { _ = c.SetReadDeadline(time.Unix(1, 0)) })
	defer stop()
	for ctx.Err() == nil {
		changed, err := committed(c)
		switch {
		case ctx.Err() != nil:
			return nil
		case err != nil:
			return fmt.Errorf("watch the redirects of compartments: %w", err)
		case !changed || s.none():
			continue
		}
		drainEvents(c) // one look serves for all of it
		if !s.intact() {
			wake("nftables: the redirects of a compartment were changed")
		}
		select {
		case <-ctx.Done():
		case <-time.After(sideCarCalm):
		}
	}
	return nil
}

// drainEvents reads what waits on the socket. The deadline that the end of the context has set may be lost: ask the context after.
func drainEvents(c *netlink.Conn) {
	_ = c.SetReadDeadline(time.Unix(1, 0)) // without one, messages are read one by one
	for {
		if _, err := c.Receive(); err != nil && !errors.Is(err, unix.ENOBUFS) {
			break
		}
	}
	_ = c.SetReadDeadline(time.Time{})
}

// committed waits for messages and tells whether they announce a change of any ruleset.
func committed(c *netlink.Conn) (bool, error) {
	msgs, err := c.Receive()
	switch {
	case errors.Is(err, unix.ENOBUFS):
		return true, nil
	case errors.Is(err, os.ErrDeadlineExceeded):
		return false, nil
	case err != nil:
		return false, err
	}
	for _, m := range msgs {
		if m.Header.Type == unix.NFNL_SUBSYS_NFTABLES<<8|unix.NFT_MSG_NEWGEN {
			return true, nil
		}
	}
	return false, nil
}

func (s *SideCars) none() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.held) == 0
}
