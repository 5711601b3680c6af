package testhost

import (
	"testing"
	"time"
)

// Eventually waits until cond returns nil, asking at once and then after pauses that grow to a tenth of a second. When the time is over it
// fails the test with cond's last error.
func Eventually(t testing.TB, timeout time.Duration, cond func() error) {
	t.Helper()
	deadline := time.Now().Add(timeout)
	for pause := 5 * time.Millisecond; ; pause = min(2*pause, 100*time.Millisecond) {
		err := cond()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("not within %s: %v", timeout, err)
		}
		<-time.After(pause)
	}
}
