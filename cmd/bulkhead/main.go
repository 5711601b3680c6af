// Command bulkhead is the daemon and its command line in one binary.
package main

import (
	"context"
	"os"

	"github.com/spf13/cobra"

	"github.com/bulkhead-net/bulkhead/internal/cli"
)

// Set by the linker.
var version, commit = "dev", ""

func main() {
	if do := insideVMs(os.Args); do != nil {
		os.Exit(do(context.Background()))
	}
	os.Exit(cli.Main(context.Background(), deps(), os.Args[1:]))
}

// deps are what the command line takes from the process around it.
func deps() cli.Deps {
	return cli.Deps{
		Stdin: os.Stdin, Stdout: os.Stdout, Stderr: os.Stderr, Env: os.LookupEnv,
		Version: version, Commit: commit,
		Extra: []*cobra.Command{newDaemonCmd(), newResetCmd(), newHaltCmd(), newWireGuardCmd(), newHostInitCmd()},
	}
}
