package cli

import (
	"context"
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"github.com/bulkhead-net/bulkhead/api"
	"github.com/bulkhead-net/bulkhead/client"
)

// statsInterval is long enough for a use of processors that means something.
const statsInterval = time.Second

func newStatsCmd(a *app) *cobra.Command {
	var once, network, rules bool
	cmd := &cobra.Command{
		Use:   "stats [flags] [NAME…]",
		Short: "Show the containers' use of processor, memory and network",
		Long: `Shows what containers use, each second until interrupted, all that run if none is
named. NET I/O is what the container received and sent; DROPPED counts frames that the
switch refused at its ports. With --net it shows each endpoint by itself: packets, bytes
and bits a second both ways, and the drops by reason; also those that are attached without
a container, to the host or to another runtime's compartment. With --rules it shows each
rule of their ports with what it decided about.`,
		Example:           "  bulkhead stats\n  bulkhead stats --no-stream web\n  bulkhead stats --net web\n  bulkhead stats --rules web",
		ValidArgsFunction: a.completeContainers(running),
	}
	cmd.Flags().BoolVar(&once, "no-stream", false, "show it once")
	cmd.Flags().BoolVar(&network, "net", false, "show the network counters of each endpoint")
	cmd.Flags().BoolVar(&rules, "rules", false, "show the counters of each rule")
	a.shows(cmd, func(c *client.Client, form string, args []string) error {
		if network && rules {
			return api.Errorf(api.KindInvalid, "--net and --rules exclude each other").Hint("use one after the other")
		}
		if rules {
			return a.watchRules(cmd.Context(), c, args, form, once)
		}
		return a.watchStats(cmd.Context(), c, args, form, once, network)
	})
	return cmd
}

func (a *app) watchStats(ctx context.Context, c *client.Client, names []string, form string, once, network bool) error {
	before := map[string]api.Stats{}
	return a.eachSecond(ctx, form, once, func(begin func()) (bool, error) {
		read := readStats
		if network {
			read = readNetStats
		}
		now, err := read(ctx, c, names)
		if err != nil {
			return false, err
		}
		defer func() {
			for _, s := range now {
				before[s.ID] = s
			}
		}()
		// The use of processors needs two readings; without a stream the first one is only that.
		if len(before) == 0 && len(now) > 0 && form == outputTable {
			return false, nil
		}
		begin()
		if network {
			return true, show(a, form, netListing(now, before))
		}
		return true, show(a, form, statsListing(now, before))
	})
}

// eachSecond takes readings until ctx ends, or one was shown where that is enough. begin starts a new screen.
func (a *app) eachSecond(ctx context.Context, form string, once bool, read func(begin func()) (shown bool, err error)) error {
	_, onTerminal := terminal(a.Stdout)
	for {
		shown, err := read(func() {
			if onTerminal && !once && form == outputTable {
				fmt.Fprint(a.Stdout, "\x1b[H\x1b[2J")
			}
		})
		if err != nil || shown && once {
			return err
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(statsInterval):
		}
	}
}

func readStats(ctx context.Context, c *client.Client, names []string) ([]api.Stats, error) {
	named := len(names) > 0
	names, err := namedOrRunning(ctx, c, names)
	if err != nil {
		return nil, err
	}
	var out []api.Stats
	for _, name := range names {
		s, err := c.ContainerStats(ctx, name)
		if err != nil && !named && (api.IsKind(err, api.KindNotFound) || api.IsKind(err, api.KindConflict)) {
			continue // it ended in between
		}
		if err != nil {
			return nil, err
		}
		out = append(out, s)
	}
	return out, nil
}

// namedOrRunning is what is named, or else all that run.
func namedOrRunning(ctx context.Context, c *client.Client, names []string) ([]string, error) {
	if len(names) > 0 {
		return names, nil
	}
	list, err := c.Containers(ctx)
	if err != nil {
		return nil, err
	}
	for _, one := range list {
		if running(one) {
			names = append(names, one.ID)
		}
	}
	return names, nil
}

func statsListing(now []api.Stats, before map[string]api.Stats) listing[api.Stats] {
	return listing[api.Stats]{
		items: now,
		name:  func(s api.Stats) string { return s.Name },
		head:  []string{"NAME", "CPU", "MEMORY", "LIMIT", "NET I/O", "DROPPED", "READ", "WRITTEN", "PIDS"},
		row: func(s api.Stats) []any {
			var received, sent, dropped uint64
			for _, n := range s.Networks {
				received += n.BytesReceived
				sent += n.BytesSent
				dropped += n.DroppedIncoming + n.DroppedOutgoing
			}
			limit := "-"
			if s.MemoryLimit > 0 {
				limit = binarySize(s.MemoryLimit)
			}
			return []any{
				s.Name, cpuText(s, before[s.ID]), binarySize(s.MemoryUsage), limit, size(int64(received)) + " / " + size(int64(sent)),
				dropped, size(int64(s.BlockRead)), size(int64(s.BlockWrite)), s.Pids,
			}
		},
	}
}

// cpuText is the use of processors between two readings; 100 % is one processor.
func cpuText(now, before api.Stats) string {
	passed := now.Time.Sub(before.Time)
	if before.ID == "" || passed <= 0 || now.CPUNanos < before.CPUNanos {
		return "-"
	}
	return fmt.Sprintf("%.1f%%", 100*float64(now.CPUNanos-before.CPUNanos)/float64(passed.Nanoseconds()))
}
