package client

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strconv"

	"github.com/bulkhead-net/bulkhead/api"
)

// AttachContainer connects streams with the first process of a container, until it ends or the detach keys come. It does not tell
// the exit code; WaitContainer does. ready, unless nil, is called when the attach is in place: a container that is started
// after that writes nothing that is missed.
//
// A Read of Stdin that is under way when the call returns is not interrupted, and what it reads is lost: no reader can promise
// more. The same is true of ExecContainer.
func (c *Client) AttachContainer(ctx context.Context, ref string, streams api.Streams, ready func()) error {
	v := url.Values{
		"stdin":  {strconv.FormatBool(streams.Stdin != nil)},
		"stdout": {strconv.FormatBool(streams.Stdout != nil)},
		"stderr": {strconv.FormatBool(streams.Stderr != nil)},
	}
	if streams.Wait {
		v.Set("wait", "true")
	}
	if len(streams.DetachKeys) > 0 {
		v.Set("detachKeys", string(streams.DetachKeys))
	}
	_, err := c.upgrade(ctx, post(container(ref, "/attach"), v, nil), streams, ready)
	return err
}

// ExecContainer runs a further process in a container and returns its exit code; with Detach it returns once the process runs.
func (c *Client) ExecContainer(ctx context.Context, ref string, spec api.ExecSpec, streams api.Streams) (int, error) {
	r := post(container(ref, "/exec"), nil, spec)
	if spec.Detach {
		var res api.WaitResult
		err := c.call(ctx, r, &res)
		return res.ExitCode, err
	}
	return c.upgrade(ctx, r, streams, nil)
}

// upgrade makes a call on a connection of its own and then exchanges frames over it. The exit code is -1 with an error.
func (c *Client) upgrade(ctx context.Context, r request, streams api.Streams, ready func()) (int, error) {
	r.header = http.Header{"Connection": {"Upgrade"}, "Upgrade": {api.UpgradeProtocol}}
	req, err := r.build(ctx)
	if err != nil {
		return -1, err
	}
	conn, err := c.dial(ctx)
	if err != nil {
		return -1, err
	}
	defer conn.Close()
	defer context.AfterFunc(ctx, func() { conn.Close() })()
	code, err := c.exchange(conn, req, streams, ready)
	if err != nil && ctx.Err() != nil {
		return -1, ctx.Err()
	}
	return code, err
}

func (c *Client) exchange(conn net.Conn, req *http.Request, streams api.Streams, ready func()) (int, error) {
	in, err := c.switchTo(conn, req)
	if err != nil {
		return -1, err
	}
	if ready != nil {
		ready()
	}
	out := api.NewFrameWriter(conn)
	done := make(chan struct{})
	defer close(done)
	// A size that is known already goes first: behind input that nobody reads yet it would not arrive.
	select {
	case size, ok := <-streams.Resize:
		if ok {
			_ = out.WriteJSON(api.ChannelResize, size) // the receiving side tells why the connection is gone
		}
	default:
	}
	if streams.Stdin != nil {
		go sendStdin(out, streams.Stdin)
	}
	if streams.Resize != nil {
		go sendSizes(out, streams.Resize, done)
	}
	return receive(in, streams)
}

// sendStdin ends when the reader does, or with the first write after the connection was closed; the receiving side tells why it was.
func sendStdin(out *api.FrameWriter, stdin io.Reader) {
	_, _ = io.Copy(out.Channel(api.ChannelStdin), stdin)
	_ = out.WriteFrame(api.ChannelCloseStdin, nil)
}

func sendSizes(out *api.FrameWriter, sizes <-chan api.WindowSize, done <-chan struct{}) {
	for {
		select {
		case <-done:
			return
		case size, ok := <-sizes:
			if !ok || out.WriteJSON(api.ChannelResize, size) != nil {
				return
			}
		}
	}
}

// receive passes output on until the exit frame.
func receive(in io.Reader, streams api.Streams) (int, error) {
	sinks := map[byte]io.Writer{api.ChannelStdout: streams.Stdout, api.ChannelStderr: streams.Stderr}
	var buf []byte
	for {
		channel, payload, err := api.ReadFrame(in, buf)
		if err != nil {
			if errors.Is(err, io.EOF) {
				err = io.ErrUnexpectedEOF
			}
			return -1, api.Errorf(api.KindUnavailable, "the stream broke off: %w", err).Hint("see whether the daemon runs; containers go on without it")
		}
		buf = payload[:cap(payload)]
		if channel == api.ChannelExit {
			return exit(payload)
		}
		if w := sinks[channel]; w != nil {
			if _, err := w.Write(payload); err != nil {
				return -1, fmt.Errorf("write output: %w", err)
			}
		}
	}
}

// exit reads the last frame: a WaitResult, with the rest of an error record where something failed.
func exit(payload []byte) (int, error) {
	var last struct {
		api.WaitResult
		Kind string `json:"kind"`
		Next string `json:"next"`
	}
	if err := json.Unmarshal(payload, &last); err != nil {
		return -1, api.Errorf(api.KindInternal, "read how the process ended: %w", err)
	}
	if last.Kind != "" {
		return last.ExitCode, &api.Error{Kind: last.Kind, Message: last.Error, Next: last.Next}
	}
	if last.Error != "" {
		return last.ExitCode, api.Errorf(api.KindInternal, "%s", last.Error)
	}
	return last.ExitCode, nil
}
