//go:build long

package e2e

import "testing"

// TestLong runs what takes too long for every change: each has a target of its own in the Makefile.
func TestLong(t *testing.T) { tell(t, "long") }
