package docker

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/bulkhead-net/bulkhead/api"
)

const (
	// findName bounds the search for a container's name, and askDocker one question of it: dockerd answers some when a start is over.
	findName  = 2 * time.Minute
	askDocker = 10 * time.Second
	// maxAnswer of dockerd's is read.
	maxAnswer = 8 << 20
)

// name finds out, while dockerd goes on with the start, what the container of an endpoint is called.
func (d *Driver) name(s api.AttachmentSpec, network string) {
	if d.Docker == "" || d.ctx == nil {
		return
	}
	d.searches.Go(func() {
		ctx, cancel := context.WithTimeout(d.ctx, findName)
		defer cancel()
		wait := 50 * time.Millisecond
		for {
			err := d.nameOnce(ctx, s, network)
			if err == nil || notFound(err) {
				return
			}
			select {
			case <-ctx.Done():
				d.Log.Warn("ask Docker for the name of a container", "endpoint", s.Container, "error", err)
				return
			case <-time.After(wait):
			}
			wait = min(2*wait, 5*time.Second)
		}
	})
}

// nameAgain looks for the names that the last run of the daemon did not learn.
func (d *Driver) nameAgain() {
	if d.Docker == "" {
		return
	}
	d.searches.Go(func() {
		ctx, cancel := context.WithTimeout(d.ctx, findName)
		defer cancel()
		all, err := d.Daemon.Attachments(ctx, owner)
		if err != nil {
			d.Log.Warn("look for containers of Docker's without a name", "error", err)
			return
		}
		for i := range all {
			a := &all[i]
			if a.Name != "" || a.Netns == "" {
				continue
			}
			s := api.AttachmentSpec{Owner: owner, Container: a.Container, Runtime: runtime, Handover: true, Netns: a.Netns}
			s.Network = a.Endpoint.Network
			d.name(s, d.networks.of(ctx, d, a.Endpoint.Network))
		}
	})
}

// of gives Docker's ID of a network that is known by its name here.
func (n *networks) of(ctx context.Context, d *Driver, name string) string {
	nw, err := d.named(ctx, name)
	if err != nil || nw == nil {
		return ""
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	for id, known := range n.byID {
		if known.ID == nw.ID {
			return id
		}
	}
	return ""
}

// dockerContainer is what is read of a container.
type dockerContainer struct {
	Name   string
	Config struct {
		Labels map[string]string
	}
	NetworkSettings struct {
		Networks map[string]struct {
			EndpointID string
			Aliases    []string
		}
	}
}

var errNotYet = errors.New("dockerd does not know the endpoint yet")

func (d *Driver) nameOnce(ctx context.Context, s api.AttachmentSpec, network string) error {
	var nw struct {
		Containers map[string]struct{ EndpointID string }
	}
	if err := d.ask(ctx, "/networks/"+url.PathEscape(network), &nw); err != nil {
		return err
	}
	id := ""
	for c, ep := range nw.Containers {
		if ep.EndpointID == s.Container {
			id = c
		}
	}
	if id == "" {
		return errNotYet
	}
	var c dockerContainer
	if err := d.ask(ctx, "/containers/"+url.PathEscape(id)+"/json", &c); err != nil {
		return err
	}
	s.Name, s.Labels = strings.TrimPrefix(c.Name, "/"), map[string]string{}
	for k, v := range c.Config.Labels {
		if len(s.Labels) < maxLabels && len(k)+len(v) <= maxLabel {
			s.Labels[k] = v
		}
	}
	for _, at := range c.NetworkSettings.Networks {
		if at.EndpointID == s.Container {
			s.Aliases = at.Aliases
		}
	}
	if short := fmt.Sprintf("%.12s", id); !slices.Contains(s.Aliases, short) {
		s.Aliases = append(s.Aliases, short)
	}
	s.Aliases = s.Aliases[:min(len(s.Aliases), maxAliases)]
	_, err := d.Daemon.Attach(ctx, s)
	return err
}

// What the daemon takes of labels and aliases.
const (
	maxLabels  = 64
	maxLabel   = 4096
	maxAliases = 64
)

func (d *Driver) ask(ctx context.Context, path string, answer any) error {
	ctx, cancel := context.WithTimeout(ctx, askDocker)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://docker"+path, nil)
	if err != nil {
		return err
	}
	res, err := d.dockerd.Do(req)
	if err != nil {
		return fmt.Errorf("ask Docker at %s: %w", d.Docker, err)
	}
	defer res.Body.Close()
	if res.StatusCode != http.StatusOK {
		return fmt.Errorf("ask Docker for %s: %s", path, res.Status)
	}
	return json.NewDecoder(io.LimitReader(res.Body, maxAnswer)).Decode(answer)
}
