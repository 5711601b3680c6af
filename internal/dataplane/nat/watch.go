package nat

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// commits knows which generations of the ruleset are ours, of those that were not written by our batcher, whose address
// says so. Each commit raises the generation by one, so a generation that appeared while we committed, and only one did,
// is ours. The process ID that the kernel reports with it does not serve: it is that of a thread, and that of nft when
// the whole table is written.
type commits struct {
	mu   sync.Mutex
	ours map[uint32]bool
	c    *netlink.Conn // to ask for the generation, kept open
	// others are the programs that changed the ruleset since it was last compared, the first of them.
	others []string
}

// maxOthers bounds whom a repair is said to be needed by.
const maxOthers = 3

// note remembers who changed the ruleset.
func (c *commits) note(who string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.others) < maxOthers && !slices.Contains(c.others, who) {
		c.others = append(c.others, who)
	}
}

// blame is who changed the ruleset since the last call: one of them is to thank for what is found now. Empty when nobody
// was heard, as before the watch began.
func (c *commits) blame() string {
	c.mu.Lock()
	defer c.mu.Unlock()
	who := strings.Join(c.others, ", ")
	c.others = nil
	return who
}

// commit runs a function that makes one commit, and remembers its generation. The watch waits meanwhile, so it cannot
// see a generation before it is known as ours.
func (a *Applier) commit(write func() error) error {
	a.commits.mu.Lock()
	defer a.commits.mu.Unlock()
	if a.commits.c == nil {
		c, err := a.k.dial()
		if err != nil {
			return err
		}
		a.commits.c = c
	}
	before, err := generation(a.commits.c)
	if err != nil {
		return errors.Join(err, a.commits.close())
	}
	if err := write(); err != nil {
		return err
	}
	after, err := generation(a.commits.c)
	if err != nil {
		return errors.Join(err, a.commits.close())
	}
	if after == before+1 {
		a.commits.remember(after)
	}
	return nil
}

func (c *commits) close() error {
	if c.c == nil {
		return nil
	}
	err := c.c.Close()
	c.c = nil
	return err
}

func (c *commits) remember(gen uint32) {
	if c.ours == nil || len(c.ours) > 4096 { // forgetting costs one needless listing
		c.ours = map[uint32]bool{}
	}
	c.ours[gen] = true
}

// forget tells whether a generation is ours, once.
func (c *commits) forget(gen uint32) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	ours := c.ours[gen]
	delete(c.ours, gen)
	return ours
}

// Watch calls wake whenever somebody else commits a change to the ruleset, or when it may have missed that. It returns
// when ctx ends. The cause names the program that did it.
func (a *Applier) Watch(ctx context.Context, wake func(cause string)) error {
	c, err := netlink.Dial(unix.NETLINK_NETFILTER, &netlink.Config{NetNS: a.k.netns, Groups: 1 << (unix.NFNLGRP_NFTABLES - 1)})
	if err != nil {
		return fmt.Errorf("watch the ruleset: %w", err)
	}
	defer c.Close()
	// A flush of a large ruleset is many messages; only the last of them matters.
	if err := c.SetReadBuffer(4 << 20); err != nil {
		a.log.Debug("enlarge buffer of the ruleset watch", "err", err)
	}
	stop := context.AfterFunc(ctx, func() { _ = c.SetReadDeadline(time.Unix(1, 0)) })
	defer stop()
	for {
		msgs, err := c.Receive()
		switch {
		case ctx.Err() != nil:
			return nil
		case errors.Is(err, unix.ENOBUFS):
			wake("nftables: notifications were lost")
			continue
		case errors.Is(err, os.ErrDeadlineExceeded):
			continue
		case err != nil:
			return fmt.Errorf("watch the ruleset: %w", err)
		}
		for _, m := range msgs {
			if cause, ok := a.foreignCommit(m); ok {
				wake(cause)
			}
		}
	}
}

// foreignCommit tells whether a message announces a generation that is not ours.
func (a *Applier) foreignCommit(m netlink.Message) (string, bool) {
	if m.Header.Type != unix.NFNL_SUBSYS_NFTABLES<<8|unix.NFT_MSG_NEWGEN || m.Header.PID == a.k.batch.port.Load() {
		return "", false
	}
	g, err := parseGeneration(m.Data)
	if err != nil || a.commits.forget(g.id) {
		return "", false
	}
	who := fmt.Sprintf("%s (pid %d)", g.name, g.pid)
	a.commits.note(who)
	return "nftables: changed by " + who, true
}
