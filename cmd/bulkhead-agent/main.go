// Command bulkhead-agent is process 1 of a utility VM.
package main

import (
	"fmt"
	"os"

	"github.com/bulkhead-net/bulkhead/internal/sandbox/vm/agent"
)

func main() {
	if os.Getpid() != 1 {
		fmt.Fprintln(os.Stderr, "bulkhead-agent: it is process 1 of the VMs that `bulkhead run --isolation vm` makes; there is nothing to start by hand")
		os.Exit(2)
	}
	if err := agent.Main(); err != nil {
		fmt.Fprintln(os.Stderr, "bulkhead-agent:", err)
		os.Exit(1)
	}
}
