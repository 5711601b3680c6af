package main

import (
	"context"
	"fmt"
	"net"
	"os"
	"strings"
)

// notifyEnv names the socket on which systemd waits for services of Type=notify.
const notifyEnv = "NOTIFY_SOCKET"

// takeNotifySocket reads the environment and takes the variable out of it: an OCI runtime that inherited it would speak
// to systemd on behalf of containers.
func takeNotifySocket() (string, error) {
	path := os.Getenv(notifyEnv)
	if err := os.Unsetenv(notifyEnv); err != nil {
		return "", fmt.Errorf("clear %s: %w", notifyEnv, err)
	}
	return path, nil
}

// notifyReady tells systemd that the API answers and that everything was compared with the kernel, so that whoever started the
// service can go on. Without a socket
// nobody waits.
func notifyReady(ctx context.Context, path string) error {
	if path == "" {
		return nil
	}
	if strings.HasPrefix(path, "@") {
		path = "\x00" + path[1:]
	}
	var d net.Dialer
	conn, err := d.DialContext(ctx, "unixgram", path)
	if err != nil {
		return fmt.Errorf("tell systemd that the daemon is up: %w", err)
	}
	defer conn.Close()
	if _, err := conn.Write([]byte("READY=1")); err != nil {
		return fmt.Errorf("tell systemd that the daemon is up: %w", err)
	}
	return nil
}
