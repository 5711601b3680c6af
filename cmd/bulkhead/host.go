package main

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"os"

	"github.com/spf13/cobra"

	"github.com/bulkhead-net/bulkhead/api"
	"github.com/bulkhead-net/bulkhead/client"
	"github.com/bulkhead-net/bulkhead/internal/sandbox/vm/agent"
)

// hostInitVerb is the first process of the images of hosts of containers.
const hostInitVerb = "host-init"

// newHostInitCmd is hidden: it is what an image of a host of containers has for its entrypoint.
func newHostInitCmd() *cobra.Command {
	return &cobra.Command{
		Use:                hostInitVerb + " [DAEMON-FLAG…]",
		Short:              "Be the first process of a host of containers",
		Hidden:             true,
		DisableFlagParsing: true, // they are the daemon's
		RunE: func(cmd *cobra.Command, args []string) error {
			self, err := os.Executable()
			if err != nil {
				return err
			}
			h := agent.ContainerHost{
				Daemon: append([]string{self, "daemon"}, args...), Halt: []string{self, "halt"}, Env: os.Environ(),
				Log: slog.New(slog.NewTextHandler(os.Stderr, nil)),
			}
			return h.Run(cmd.Context())
		},
	}
}

// askHost asks the daemon of a host of containers how it is. It may answer anything, for as long as it likes.
func askHost(ctx context.Context, dial func(context.Context) (net.Conn, error)) (api.Info, error) {
	const most = 64 << 10
	c := client.Over(func(ctx context.Context) (net.Conn, error) {
		conn, err := dial(ctx)
		if err != nil {
			return nil, err
		}
		return &bounded{Conn: conn, left: most}, nil
	}, "the host")
	defer c.Close()
	return c.Info(ctx)
}

// bounded is a connection from which so much is read.
type bounded struct {
	net.Conn
	left int
}

func (b *bounded) Read(p []byte) (int, error) {
	if b.left == 0 {
		return 0, errors.New("it answers more than there is to say")
	}
	n, err := b.Conn.Read(p[:min(len(p), b.left)])
	b.left -= n
	return n, err
}
