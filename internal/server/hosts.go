package server

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"reflect"
	"strings"
	"sync"
	"time"

	"github.com/bulkhead-net/bulkhead/api"
)

// Hosts of containers have daemons of their own. Nobody but this daemon reaches them, so it hands connections on: who may use this
// daemon's API may use theirs, as root there.

// connection marks routes whose connection becomes another's.
const connection = "connection"

func (s *Server) hostRoutes() {
	const one = "/v1/hosts/{ref}"
	for _, rt := range []route{
		{
			method: http.MethodGet, path: "/v1/hosts", id: "listHosts", summary: "List the hosts of containers, each of which is asked how it is",
			answer: reflect.TypeFor[[]api.Host](), handle: s.listHosts,
		},
		{
			method: http.MethodGet, path: one, id: "showHost", summary: "Show a host of containers",
			description: "It is a container with `host` in its spec, and goes by what containers go by.", answer: reflect.TypeFor[api.Host](), handle: s.showHost,
		},
		{
			method: http.MethodPost, path: one + "/api", id: "connectHost", summary: "Connect with the daemon in a host of containers",
			description: "Send `Connection: Upgrade` and `Upgrade: " + api.HostProtocol + "`. What is sent from then on is a connection to that daemon, which speaks HTTP, and this API.",
			answerType:  connection, handle: s.connectHost,
		},
	} {
		rt.tag = "hosts"
		s.handle(rt)
	}
}

func (s *Server) listHosts(w http.ResponseWriter, r *http.Request) error {
	s.write(w, http.StatusOK, list(s.backend.Hosts(r.Context())))
	return nil
}

func (s *Server) showHost(w http.ResponseWriter, r *http.Request) error {
	h, err := s.backend.Host(r.Context(), r.PathValue("ref"))
	if err != nil {
		return err
	}
	s.write(w, http.StatusOK, h)
	return nil
}

func (s *Server) connectHost(w http.ResponseWriter, r *http.Request) error {
	if !strings.EqualFold(r.Header.Get("Upgrade"), api.HostProtocol) || !hasToken(r.Header, "Connection", "upgrade") {
		return refusal{http.StatusUpgradeRequired, api.Errorf(api.KindInvalid, "the connection must be upgraded to %s", api.HostProtocol).
			Hint("send the headers Connection: Upgrade and Upgrade: %s", api.HostProtocol)}
	}
	if n, err := io.Copy(io.Discard, io.LimitReader(r.Body, maxBody)); err != nil || n != 0 {
		return api.Errorf(api.KindInvalid, "read the request: it has a body, or one that does not end")
	}
	ctx, cancel := s.streamContext(w, r)
	defer cancel()
	s.streams.Add(1)
	defer s.streams.Done()
	there, err := s.backend.DialHost(ctx, r.PathValue("ref"))
	if err != nil {
		return s.interrupted(err)
	}
	defer there.Close()
	here, rw, err := http.NewResponseController(w).Hijack()
	if err != nil {
		return fmt.Errorf("take the connection over: %w", err)
	}
	defer here.Close()
	if rec, ok := w.(*recorder); ok {
		rec.status = http.StatusSwitchingProtocols
	}
	// Nobody is told of an error from here on: the connection's end says it all.
	if _, err := fmt.Fprintf(here, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: %s\r\n\r\n", api.HostProtocol); err == nil {
		s.handOn(ctx, here, rw.Reader, there)
	}
	return nil
}

// ahead reads what has been read of a connection, and then the connection. Its end, met by the reader of net/http, would be that of
// the request's context.
func ahead(r *bufio.Reader, conn net.Conn) io.Reader {
	read, _ := r.Peek(r.Buffered()) // all of it is there
	return io.MultiReader(bytes.NewReader(read), conn)
}

// handOn carries both ways until either side has gone, or the daemon stops. The end of what one side sends is told to the other.
func (s *Server) handOn(ctx context.Context, here net.Conn, r *bufio.Reader, there net.Conn) {
	over := time.Unix(1, 0)
	stop := context.AfterFunc(ctx, func() { _ = errors.Join(here.SetDeadline(over), there.SetDeadline(over)) })
	defer stop()
	var wg sync.WaitGroup
	wg.Go(func() { carry(there, ahead(r, here), here) })
	wg.Go(func() { carry(here, there, there) })
	wg.Wait()
}

// carry copies to the end, and says that it is the end. Who takes no more is not read from any more.
func carry(to net.Conn, from io.Reader, source net.Conn) {
	_, err := io.Copy(to, from)
	half, ok := to.(interface{ CloseWrite() error })
	if err == nil && ok {
		err = half.CloseWrite()
	}
	if err != nil || !ok {
		_ = errors.Join(to.Close(), source.Close())
	}
}
