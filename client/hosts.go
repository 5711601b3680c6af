package client

import (
	"bufio"
	"context"
	"net"
	"net/http"

	"github.com/bulkhead-net/bulkhead/api"
)

// Hosts lists the hosts of containers, each of which is asked how it is.
func (c *Client) Hosts(ctx context.Context) ([]api.Host, error) {
	var out []api.Host
	err := c.call(ctx, get("/v1/hosts", nil), &out)
	return out, err
}

// Host shows one.
func (c *Client) Host(ctx context.Context, ref string) (api.Host, error) {
	var out api.Host
	err := c.call(ctx, get(hostPath(ref, ""), nil), &out)
	return out, err
}

// OnHost is a client of the daemon in a host of containers, by way of this client's daemon.
func (c *Client) OnHost(name string) *Client {
	return Over(func(ctx context.Context) (net.Conn, error) { return c.dialHost(ctx, name) }, "host "+name)
}

// Over is a client of the daemon that connections of dial lead to, which messages name so.
func Over(dial func(ctx context.Context) (net.Conn, error), name string) *Client {
	c := newClient(name, nil)
	c.way = dial
	return c
}

func (c *Client) dialHost(ctx context.Context, name string) (net.Conn, error) {
	r := post(hostPath(name, "/api"), nil, nil)
	r.header = http.Header{"Connection": {"Upgrade"}, "Upgrade": {api.HostProtocol}}
	req, err := r.build(ctx)
	if err != nil {
		return nil, err
	}
	conn, err := c.dial(ctx)
	if err != nil {
		return nil, err
	}
	stop := context.AfterFunc(ctx, func() { conn.Close() })
	in, err := c.switchTo(conn, req)
	if !stop() && err == nil {
		err = ctx.Err()
	}
	if err != nil {
		conn.Close()
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
		return nil, err
	}
	return &readAhead{Conn: conn, in: in}, nil
}

// switchTo makes the call after which a connection is another's.
func (c *Client) switchTo(conn net.Conn, req *http.Request) (*bufio.Reader, error) {
	if err := req.Write(conn); err != nil {
		return nil, c.broken(err)
	}
	in := bufio.NewReader(conn)
	res, err := http.ReadResponse(in, req)
	if err != nil {
		return nil, c.broken(err)
	}
	defer res.Body.Close()
	if res.StatusCode != http.StatusSwitchingProtocols {
		return nil, answeredError(res)
	}
	return in, nil
}

// readAhead is a connection of which something has been read.
type readAhead struct {
	net.Conn
	in *bufio.Reader
}

func (r *readAhead) Read(p []byte) (int, error) { return r.in.Read(p) }

func hostPath(ref, verb string) string { return "/v1/hosts/" + segment(ref) + verb }
