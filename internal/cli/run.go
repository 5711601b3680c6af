package cli

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"

	"github.com/spf13/cobra"

	"github.com/bulkhead-net/bulkhead/api"
	"github.com/bulkhead-net/bulkhead/client"
)

func newRunCmd(a *app) *cobra.Command {
	var f specFlags
	var detach, proxy bool
	var detachKeys string
	cmd := &cobra.Command{
		Use:   "run [flags] IMAGE [ARG…]",
		Short: "Create a container and start it",
		Long: `Creates a container from an image, starts it, and shows what it writes until it
ends; the exit code is the container's. Flags end at IMAGE: what follows it is
the container's command.

Published ports are reachable from this host only, unless --expose or an
address in -p asks for more; what is published wider is said on standard error.`,
		Example: `  bulkhead run -d --name web -p 8080:80 registry.example/web
  bulkhead run -it --rm registry.example/tools sh
  bulkhead run -d -p 53:53/udp --expose lan registry.example/dns
  bulkhead run --network lan:ip=10.0.0.7,alias=db --network nat registry.example/db`,
		Args:              needImage,
		ValidArgsFunction: a.completeFirst(a.completeImages),
		RunE: func(cmd *cobra.Command, args []string) error {
			keys, err := parseDetachKeys(detachKeys)
			if err != nil {
				return err
			}
			c, created, err := a.create(cmd, &f, args, true)
			if err != nil {
				return err
			}
			if detach {
				return a.startDetached(cmd.Context(), c, created, f.spec.AutoRemove)
			}
			s := session{
				app: a, client: c, id: created.ID, tty: f.spec.TTY, stdin: f.spec.OpenStdin,
				keys: keys, proxySignals: proxy, autoRemove: f.spec.AutoRemove, cleanUp: f.spec.AutoRemove,
			}
			return s.run(cmd.Context())
		},
	}
	f.add(a, cmd)
	flags := cmd.Flags()
	flags.BoolVarP(&detach, "detach", "d", false, "start in the background and print the ID")
	flags.BoolVar(&proxy, "sig-proxy", true, "pass signals on to the container")
	addDetachKeys(cmd, &detachKeys)
	return cmd
}

func newCreateCmd(a *app) *cobra.Command {
	var f specFlags
	cmd := &cobra.Command{
		Use:   "create [flags] IMAGE [ARG…]",
		Short: "Create a container without starting it",
		Long: `Creates a container from an image and prints its ID. Its addresses and ports are
reserved from now on. The flags are those of run.`,
		Example: `  bulkhead create --name db --network lan:ip=10.0.0.7 registry.example/db
  bulkhead start db`,
		Args:              needImage,
		ValidArgsFunction: a.completeFirst(a.completeImages),
		RunE: func(cmd *cobra.Command, args []string) error {
			_, created, err := a.create(cmd, &f, args, false)
			if err != nil {
				return err
			}
			_, err = fmt.Fprintln(a.Stdout, created.ID)
			return err
		},
	}
	f.add(a, cmd)
	return cmd
}

func needImage(cmd *cobra.Command, args []string) error {
	if len(args) == 0 {
		return api.Errorf(api.KindInvalid, "the image is missing").Hint("%s IMAGE, or %s --help", cmd.CommandPath(), cmd.CommandPath())
	}
	return nil
}

// create does what run and create have in common. What run is about to do beyond that is of interest to a dry run.
func (a *app) create(cmd *cobra.Command, f *specFlags, args []string, run bool) (*client.Client, api.ContainerCreated, error) {
	var none api.ContainerCreated
	spec, err := f.build(a, cmd, args)
	if err != nil {
		return nil, none, err
	}
	c, err := a.client()
	if err != nil {
		return nil, none, err
	}
	if a.plans != nil {
		ask := c.CreateContainer
		if run {
			ask = c.RunContainer
		}
		_, err := ask(cmd.Context(), spec)
		return nil, none, err
	}
	cid, err := newCIDFile(f.cidFile)
	if err != nil {
		return nil, none, err
	}
	defer cid.close()
	if err := a.ensureImage(cmd.Context(), c, spec.Image, f.pull); err != nil {
		return nil, none, err
	}
	created, err := c.CreateContainer(cmd.Context(), spec)
	if err != nil {
		return nil, none, err
	}
	for _, w := range created.Warnings {
		fmt.Fprintln(a.Stderr, "warning:", cleanLines(w))
	}
	if err := cid.write(created.ID); err != nil {
		return nil, none, err
	}
	_, asked, _ := f.ports.parse()
	announce(a.Stderr, spec.Publish, func(p api.PublishedPort) string { return asked[p] })
	if len(spec.Networks) > 1 {
		a.warnGateways(cmd.Context(), c, created.ID)
	}
	return c, created, nil
}

func (a *app) startDetached(ctx context.Context, c *client.Client, created api.ContainerCreated, cleanUp bool) error {
	if err := c.StartContainer(ctx, created.ID); err != nil {
		return session{client: c, id: created.ID, cleanUp: cleanUp}.failed(ctx, startFailed(err))
	}
	_, err := fmt.Fprintln(a.Stdout, created.ID)
	return err
}

// startFailed gives a command that is missing or cannot be run the exit code
// that a shell would.
func startFailed(err error) error {
	text := strings.ToLower(err.Error())
	switch {
	case strings.Contains(text, "executable file") && strings.Contains(text, "not found"),
		strings.Contains(text, "no such file or directory"):
		return &exitError{exitNotFound, err}
	case strings.Contains(text, "permission denied"), strings.Contains(text, "exec format error"),
		strings.Contains(text, "is a directory"), strings.Contains(text, "open executable"):
		return &exitError{exitCannotRun, err}
	}
	return err
}

// cidFile is the file of --cidfile. It must be new, so that two runs do not take
// each other's container.
type cidFile struct {
	file    *os.File
	written bool
}

func newCIDFile(path string) (*cidFile, error) {
	if path == "" {
		return &cidFile{}, nil
	}
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o644)
	if errors.Is(err, fs.ErrExist) {
		return nil, api.Errorf(api.KindConflict, "write --cidfile: %s is there already", path).
			Hint("remove it if its container is not needed, or name another file")
	}
	if err != nil {
		return nil, fmt.Errorf("write --cidfile: %w", err)
	}
	return &cidFile{file: f}, nil
}

func (c *cidFile) write(id string) error {
	if c.file == nil {
		return nil
	}
	if _, err := c.file.WriteString(id); err != nil {
		return fmt.Errorf("write --cidfile: %w", err)
	}
	c.written = true
	return nil
}

// close removes the file if no container came of it.
func (c *cidFile) close() {
	if c.file == nil {
		return
	}
	c.file.Close()
	if !c.written {
		os.Remove(c.file.Name())
	}
}
