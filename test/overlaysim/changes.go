package main

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"sync"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/bulkhead-net/bulkhead/internal/overlay"
)

// change has hosts change an endpoint each, at a steady rate; it gives when each was made, by its number.
func change(ctx context.Context, hosts []*host, o options) map[int]time.Time {
	made := map[int]time.Time{}
	tick := time.NewTicker(time.Duration(float64(time.Second) / o.rate))
	defer tick.Stop()
	for seq := range o.changes {
		select {
		case <-tick.C:
		case <-ctx.Done():
			return made
		}
		// One after the other: two changes of one endpoint could melt into one.
		h := hosts[seq%len(hosts)]
		h.eps = slices.Clone(h.eps)
		ep := &h.eps[seq/len(hosts)%len(h.eps)]
		ep.Name = fmt.Sprintf("change-%d", seq)
		made[seq] = time.Now()
		h.agent.Publish(h.eps)
	}
	return made
}

// changes knows the revisions of changes.
type changes struct {
	mu   sync.Mutex
	revs map[int]int64
}

// followChanges watches for the names that change gives.
func followChanges(ctx context.Context, etcd overlay.Etcd) (*changes, error) {
	cli, err := overlay.Dial(etcd)
	if err != nil {
		return nil, err
	}
	c := &changes{revs: map[int]int64{}}
	go func() {
		defer cli.Close()
		for res := range cli.Watch(ctx, etcd.Prefix+"/v1/endpoints/", clientv3.WithPrefix()) {
			for _, ev := range res.Events {
				var ep struct{ Name string }
				var seq int
				if json.Unmarshal(ev.Kv.Value, &ep) != nil {
					continue
				}
				if _, err := fmt.Sscanf(ep.Name, "change-%d", &seq); err == nil {
					c.mu.Lock()
					if c.revs[seq] == 0 {
						c.revs[seq] = ev.Kv.ModRevision
					}
					c.mu.Unlock()
				}
			}
		}
	}()
	return c, nil
}

// collect waits until all hosts have seen all changes, and gives how long each took for each host.
func collect(ctx context.Context, hosts []*host, whole *host, made map[int]time.Time, c *changes) (times, wholes []time.Duration, last time.Time, err error) {
	for seq, at := range made {
		var rev int64
		for until := time.Now().Add(time.Minute); rev == 0; pause(ctx, 5*time.Millisecond) {
			c.mu.Lock()
			rev = c.revs[seq]
			c.mu.Unlock()
			if time.Now().After(until) || ctx.Err() != nil {
				return nil, nil, last, fmt.Errorf("change %d was not written", seq)
			}
		}
		for _, h := range append(slices.Clip(hosts), whole) {
			var t time.Time
			for until := time.Now().Add(time.Minute); t.IsZero(); {
				if t = h.when(rev); !t.IsZero() {
					break
				}
				if time.Now().After(until) {
					return nil, nil, last, fmt.Errorf("change %d was not seen by a host", seq)
				}
				pause(ctx, 5*time.Millisecond)
			}
			if t.After(last) {
				last = t
			}
			if h == whole {
				wholes = append(wholes, t.Sub(at))
			} else {
				times = append(times, t.Sub(at))
			}
		}
	}
	return times, wholes, last, nil
}
