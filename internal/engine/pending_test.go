package engine

import (
	"testing"
	"testing/synctest"
	"time"
)

// TestResyncStorm: whole comparisons leave room for everything else, however
// often they are asked for; the first is made at once, and the last is not lost.
func TestResyncStorm(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPending(1)
		time.Sleep(time.Second)
		made, busy := 0, time.Duration(0)
		begin := time.Now()
		for time.Since(begin) < 10*time.Second {
			p.resync("storm")
			if p.due(time.Now()) != "" {
				made++
				busy += 100 * time.Millisecond
				time.Sleep(100 * time.Millisecond)
				p.synced(time.Now(), 100*time.Millisecond, false)
				if made == 1 && time.Since(begin) > 100*time.Millisecond {
					t.Error("the first one waited")
				}
			}
			time.Sleep(time.Millisecond)
		}
		if made < 20 || busy > 4*time.Second {
			t.Errorf("%d comparisons took %v of 10 s", made, busy)
		}
		p.synced(time.Now(), 100*time.Millisecond, false)
		p.resync("after it")
		if p.due(time.Now()) != "" {
			t.Error("one right after another")
		}
		time.Sleep(time.Second)
		if p.due(time.Now()) == "" {
			t.Error("the last one was lost")
		}
	})
}

// TestRetriesSlowDown, and start anew after a success.
func TestRetriesSlowDown(t *testing.T) {
	p := newPending(1)
	now := time.Now()
	var waits []time.Duration
	for range 10 {
		p.synced(now, 0, true)
		waits = append(waits, p.retryDue.Sub(now))
	}
	if waits[0] != retryFirst || waits[1] != 2*retryFirst || waits[9] != retryMost {
		t.Errorf("waits %v", waits)
	}
	p.synced(now, 0, false)
	if p.failed(now); p.retryDue.Sub(now) != retryFirst {
		t.Errorf("after a success: %v", p.retryDue.Sub(now))
	}
}
