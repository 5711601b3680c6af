package main

import (
	"context"
	"log/slog"
	"path/filepath"

	"github.com/bulkhead-net/bulkhead/client"
	"github.com/bulkhead-net/bulkhead/internal/docker"
	"github.com/bulkhead-net/bulkhead/internal/server"
)

// dockerDoor is where dockerd asks for networks. What comes in there goes on by the daemon's own API, as from any client.
type dockerDoor struct {
	driver   *docker.Driver
	listener *server.Listener
	daemon   *client.Client
}

func (c *daemonConfig) newDockerDoor(log *slog.Logger) (*dockerDoor, error) {
	daemon, err := client.New(c.socketPath())
	if err != nil {
		return nil, err
	}
	d, err := docker.New(docker.Options{Daemon: daemon, State: filepath.Join(c.stateDir, "docker.json"), Docker: c.dockerAPI, Log: log})
	if err != nil {
		return nil, err
	}
	// Of root alone: dockerd is root's, and what it asks for is done without a further look.
	ln, err := server.Listen(c.dockerPlugin, "root")
	if err != nil {
		return nil, err
	}
	return &dockerDoor{driver: d, listener: ln, daemon: daemon}, nil
}

func (d *dockerDoor) serve(ctx context.Context, ready <-chan struct{}) error {
	defer d.daemon.Close()
	defer d.listener.Close()
	select {
	case <-ctx.Done():
		return nil
	case <-ready:
	}
	return d.driver.Serve(ctx, d.listener)
}
