package lease

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/bulkhead-net/bulkhead/internal/plan"
)

// What nobody leased is not watched over by a session. So addresses that a user or the daemon has chosen are asked about before they
// are given to anybody, by the NIC: there is no vNIC yet, and nothing of the host has changed.

// probes of an address: as many as RFC 5227 sends.
const probes = 3

// Probe asks who on the LAN of a NIC has one of some addresses, and takes wait for it. Device and MAC of w are the NIC's, VLAN the
// tag of the frames.
func (c *Client) Probe(ctx context.Context, w Want, addrs []netip.Addr, wait time.Duration) (map[netip.Addr]plan.MAC, error) {
	w.NIC, w.IPv4, w.IPv6 = true, false, false // nothing is leased
	used := map[netip.Addr]plan.MAC{}
	for part := range slices.Chunk(addrs, maxClaims) {
		err := c.briefly(ctx, w, func(ctx context.Context, s *session) error {
			var asking sync.WaitGroup
			var mu sync.Mutex
			var errs []error
			for _, a := range part {
				asking.Go(func() {
					user, has, err := s.ask(ctx, a, probes, wait/probes)
					mu.Lock()
					defer mu.Unlock()
					errs = append(errs, err)
					if has {
						used[a] = user
					}
				})
			}
			asking.Wait()
			return errors.Join(errs...)
		})
		if err != nil {
			return used, err
		}
	}
	return used, nil
}

// Announce tells all on the link of a vNIC that addresses are at its MAC: who knew another one would go on with that for a
// while (RFC 5227, section 2.3; RFC 9131).
func (c *Client) Announce(ctx context.Context, w Want, addrs []netip.Addr) error {
	w.IPv4, w.IPv6 = false, false
	return c.briefly(ctx, w, func(_ context.Context, s *session) error {
		for _, a := range addrs {
			s.claim(a)
		}
		return nil
	})
}

// briefly opens a link for something that ends soon.
func (c *Client) briefly(ctx context.Context, w Want, do func(context.Context, *session) error) error {
	s := newSession(c, w)
	link, err := c.cfg.Open(ctx, &w)
	if err != nil {
		return fmt.Errorf("open %s: %w", w.Device, err)
	}
	ctx, cancel := context.WithCancel(ctx)
	s.setLink(link, nil)
	var reading sync.WaitGroup
	reading.Go(func() { _ = s.read(ctx, link) }) // ends with the link
	err = do(ctx, s)
	cancel()
	err = errors.Join(err, link.Close())
	reading.Wait()
	return err
}
