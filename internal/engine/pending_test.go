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

// TestRepairsAreSoon: a few comparisons in a row do not wait for each other, and one that has to wait is due in time.
func TestRepairsAreSoon(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPending(1)
		if _, asked := p.next(time.Now()); asked {
			t.Error("one is due that nobody asked for")
		}
		for i := range 3 {
			p.resync("broken")
			if after, asked := p.next(time.Now()); !asked || after > 0 || p.due(time.Now()) == "" {
				t.Errorf("comparison %d waits %v", i, after)
			}
			time.Sleep(100 * time.Millisecond)
			p.synced(time.Now(), 100*time.Millisecond, false)
		}
		p.synced(time.Now(), time.Second, false)
		p.resync("broken again")
		after, asked := p.next(time.Now())
		if !asked || after <= 0 {
			t.Errorf("after a long one: in %v", after)
		}
		time.Sleep(after)
		if p.due(time.Now()) == "" {
			t.Error("not due when it was said to be")
		}
		p.synced(time.Now(), 0, true)
		if after, asked := p.next(time.Now()); !asked || after < retryFirst {
			t.Errorf("a retry in %v", after)
		}
	})
}
