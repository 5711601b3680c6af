// Package client talks to the daemon over its unix socket, or from afar by mutual TLS: the HCN documents of package hcn, and the containers, images and
// reports of package api. Methods are named as what they do in the daemon.
//
// Errors of the daemon come back as *hcn.Error from calls of HCN and as *api.Error from all others, to be found with errors.As. A
// daemon that cannot be reached is an *api.Error of the kind "unavailable".
package client

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"net"
	"net/http"
	"net/url"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/bulkhead-net/bulkhead/api"
	"github.com/bulkhead-net/bulkhead/hcn"
)

// DefaultSocket is where the daemon listens.
const DefaultSocket = "/run/bulkhead/bulkhead.sock"

// maxAnswer bounds an answer that is held in memory as a whole.
const maxAnswer = 256 << 20

// Client calls one daemon. It may be used by several goroutines.
type Client struct {
	socket string      // a path, HOST:PORT with tls, or what way leads to
	tls    *tls.Config // nil: a unix socket
	way    func(ctx context.Context) (net.Conn, error)
	http   *http.Client
	// Warn is told what the daemon warns of, such as members of a document that it ignored. Nil: nobody is.
	Warn func(text string)
	// Planned, where it is set, turns every change into the question what it would do. It is told the answer, and the
	// call fails with ErrPlanned.
	Planned func(api.Plan)
	// ConfirmWithin, where it is not 0, is the time within which Confirm has to be called for what attaches an endpoint to a network on a
	// NIC, or it is undone. Other changes are as without it.
	ConfirmWithin time.Duration
}

// planBase is put before the path of a change to ask what it would do.
const planBase = "/v1/plan"

// ErrPlanned is the end of a change that was only asked about.
var ErrPlanned = errors.New("the change was not made: only what it would do was asked")

// New makes a client of the daemon at a socket, given as a path or as unix:///path. It does not connect yet.
func New(socket string) (*Client, error) {
	path := strings.TrimPrefix(socket, "unix://")
	if !filepath.IsAbs(path) {
		return nil, api.Errorf(api.KindInvalid, "socket %q: it is not an absolute path", socket).
			Hint("write it like unix://%s", DefaultSocket)
	}
	return newClient(path, nil), nil
}

func newClient(socket string, conf *tls.Config) *Client {
	c := &Client{socket: socket, tls: conf}
	c.http = &http.Client{Transport: &http.Transport{
		DialContext:         func(ctx context.Context, _, _ string) (net.Conn, error) { return c.dial(ctx) },
		MaxIdleConnsPerHost: 16,
		DisableCompression:  true,
	}}
	return c
}

// Close drops the connections that are kept open for the next call.
func (c *Client) Close() { c.http.CloseIdleConnections() }

func (c *Client) dial(ctx context.Context) (net.Conn, error) {
	switch {
	case c.way != nil:
		return c.way(ctx)
	case c.tls != nil:
		return c.dialTLS(ctx)
	}
	var d net.Dialer
	conn, err := d.DialContext(ctx, "unix", c.socket)
	if err != nil {
		return nil, c.unreachable(err)
	}
	return conn, nil
}

// unreachable says what to do about a daemon that does not answer.
func (c *Client) unreachable(err error) error {
	cause := err
	if errno, ok := errors.AsType[syscall.Errno](err); ok {
		cause = errno // the words around it repeat the path
	}
	e := api.Errorf(api.KindUnavailable, "connect to the daemon at %s: %w", c.socket, cause)
	switch {
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, syscall.ECONNREFUSED):
		return e.Hint("start it with `bulkhead daemon`, or name another socket")
	case errors.Is(err, fs.ErrPermission):
		return e.Hint("become root, or a member of the socket's group")
	case errors.Is(err, context.Canceled), errors.Is(err, context.DeadlineExceeded):
		return err
	}
	return e
}

// request is one call.
type request struct {
	method, path string
	query        url.Values
	body         any       // encoded as JSON, unless it is a json.RawMessage
	stream       io.Reader // a body of any length instead
	header       http.Header
	attaches     bool // it may attach an endpoint
}

// encode gives the body; a nil one is none.
func (r request) encode() ([]byte, error) {
	switch b := r.body.(type) {
	case nil:
		return nil, nil
	case json.RawMessage:
		return b, nil
	}
	b, err := json.Marshal(r.body)
	if err != nil {
		return nil, fmt.Errorf("encode the request: %w", err)
	}
	return b, nil
}

func (r request) build(ctx context.Context) (*http.Request, error) {
	body := r.stream
	kind := "application/x-tar"
	if body == nil {
		b, err := r.encode()
		if err != nil {
			return nil, err
		}
		kind = "application/json"
		if b != nil {
			body = bytes.NewReader(b)
		}
	}
	target := "http://bulkhead" + r.path
	if len(r.query) > 0 {
		target += "?" + r.query.Encode()
	}
	req, err := http.NewRequestWithContext(ctx, r.method, target, body)
	if err != nil {
		return nil, fmt.Errorf("make the request %s %s: %w", r.method, r.path, err)
	}
	if body != nil {
		req.Header.Set("Content-Type", kind)
	}
	maps.Copy(req.Header, r.header)
	return req, nil
}

// send makes the call. The answer is a good one; its body is the caller's to close.
func (c *Client) send(ctx context.Context, r request) (*http.Response, error) {
	if c.Planned != nil && r.method != http.MethodGet && !strings.HasPrefix(r.path, planBase) {
		return nil, api.Errorf(api.KindUnsupported, "what %s %s would do cannot be told beforehand", r.method, r.path)
	}
	req, err := r.build(ctx)
	if err != nil {
		return nil, err
	}
	res, err := c.http.Do(req)
	if err != nil {
		return nil, c.broken(err)
	}
	for _, w := range res.Header.Values("Warning") {
		if c.Warn == nil {
			break
		}
		c.Warn(warningText(w))
	}
	if res.StatusCode/100 == 2 {
		return res, nil
	}
	defer res.Body.Close()
	return nil, answeredError(res)
}

// broken is an error of a call that got no answer. What dial said is the whole story; net/http adds an address that nobody knows.
func (c *Client) broken(err error) error {
	var ours *api.Error
	var u *url.Error
	switch {
	case errors.As(err, &ours):
		return ours
	case errors.Is(err, context.Canceled), errors.Is(err, context.DeadlineExceeded):
		return err
	case alerted(err):
		if errors.As(err, &u) {
			err = u.Err
		}
		return c.refused(err)
	case errors.As(err, &u):
		err = u.Err
	}
	return api.Errorf(api.KindUnavailable, "ask the daemon at %s: %w", c.socket, err).
		Hint("see whether it runs, and its log")
}

// call makes a call and decodes its answer; a nil answer is dropped.
func (c *Client) call(ctx context.Context, r request, answer any) error {
	if c.Planned != nil && r.method != http.MethodGet {
		return c.plan(ctx, r)
	}
	if r.attaches && c.ConfirmWithin != 0 {
		r.path, r.query = "/v1/tentative"+r.path, maps.Clone(r.query)
		if r.query == nil {
			r.query = url.Values{}
		}
		r.query.Set("confirmWithin", c.ConfirmWithin.String())
	}
	res, err := c.send(ctx, r)
	if err != nil {
		return err
	}
	defer res.Body.Close()
	b, err := io.ReadAll(io.LimitReader(res.Body, maxAnswer))
	if err != nil {
		return c.broken(err)
	}
	if answer == nil {
		return nil
	}
	if err := json.Unmarshal(b, answer); err != nil {
		return api.Errorf(api.KindInternal, "read the answer to %s %s: %w", r.method, r.path, err)
	}
	return nil
}

// plan asks what a change would do.
func (c *Client) plan(ctx context.Context, r request) error {
	r.path = planBase + r.path
	res, err := c.send(ctx, r)
	if err != nil {
		return err
	}
	defer res.Body.Close()
	b, err := readAll(res.Body)
	if err != nil {
		return c.broken(err)
	}
	var p api.Plan
	if err := json.Unmarshal(b, &p); err != nil {
		return api.Errorf(api.KindInternal, "read the answer to %s %s: %w", r.method, r.path, err)
	}
	c.Planned(p)
	return ErrPlanned
}

// answeredError is the error record of an answer.
func answeredError(res *http.Response) error {
	b, _ := io.ReadAll(io.LimitReader(res.Body, 1<<20)) // half a record is still worth a try
	return recordOf(b, res.Status)
}

func recordOf(b []byte, status string) error {
	var probe struct {
		Success *bool  `json:"Success"`
		Kind    string `json:"kind"`
	}
	if json.Unmarshal(b, &probe) == nil {
		switch {
		case probe.Kind != "":
			e := new(api.Error)
			if json.Unmarshal(b, e) == nil {
				return e
			}
		case probe.Success != nil:
			e := new(hcn.Error)
			if json.Unmarshal(b, e) == nil {
				return e
			}
		}
	}
	return api.Errorf(api.KindInternal, "the daemon answered %s: %.200q", status, b)
}

// warningText is the text of a Warning header: 299 - "text".
func warningText(h string) string {
	_, quoted, ok := strings.Cut(h, "- ")
	if !ok {
		return h
	}
	var s string
	if json.Unmarshal([]byte(quoted), &s) == nil {
		return s
	}
	return strings.Trim(quoted, `"`)
}

func get(path string, query url.Values) request {
	return request{method: http.MethodGet, path: path, query: query}
}

func post(path string, query url.Values, body any) request {
	return request{method: http.MethodPost, path: path, query: query, body: body}
}

func remove(path string, query url.Values) request {
	return request{method: http.MethodDelete, path: path, query: query}
}

// OpenAPI is the description of the daemon's API.
func (c *Client) OpenAPI(ctx context.Context) (json.RawMessage, error) {
	var doc json.RawMessage
	err := c.call(ctx, get("/openapi.json", nil), &doc)
	return doc, err
}
