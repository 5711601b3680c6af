package client

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/url"
	"strconv"
	"strings"

	"github.com/bulkhead-net/bulkhead/api"
	"github.com/bulkhead-net/bulkhead/hcn"
)

// maxEvent bounds one line of an event stream.
const maxEvent = 4 << 20

// EventOptions say where a stream of events begins.
type EventOptions struct {
	// Resume goes on after the event numbered After, as far as events are kept; otherwise the stream begins now.
	Resume bool
	After  uint64
	// Kinds are the only ones wanted; none: all. They are not for events of HCN.
	Kinds []string
}

// Stream is a stream of events. A stream that ended can be taken up again with Resume and Last.
type Stream[T any] struct {
	body   io.ReadCloser
	scan   *bufio.Scanner
	last   uint64
	decode func(message) (T, error)
}

type message struct {
	name string
	data []byte
}

// ErrStreamEnded says that the daemon ended the stream: it stops, or its reader was too slow.
var ErrStreamEnded = errors.New("the event stream ended")

// WatchEvents watches everything that happens. What happens after it returns is in the stream.
func (c *Client) WatchEvents(ctx context.Context, o EventOptions) (*Stream[api.Event], error) {
	v := url.Values{}
	if len(o.Kinds) > 0 {
		v.Set("kind", strings.Join(o.Kinds, ","))
	}
	return open(ctx, c, "/v1/events", v, o, func(m message) (api.Event, error) {
		var ev api.Event
		err := json.Unmarshal(m.data, &ev)
		return ev, err
	})
}

// WatchHCN watches the notifications of HCN.
func (c *Client) WatchHCN(ctx context.Context, o EventOptions) (*Stream[hcn.Event], error) {
	return open(ctx, c, "/hcn/v2/events", url.Values{}, o, func(m message) (hcn.Event, error) {
		var d struct {
			ID     hcn.GUID
			Flags  uint32
			Data   json.RawMessage
			Status hcn.ErrorCode
		}
		err := json.Unmarshal(m.data, &d)
		return hcn.Event{
			Type: notification(m.name), Status: d.Status,
			NotificationData: hcn.NotificationData{ID: d.ID, Flags: d.Flags, Data: d.Data},
		}, err
	})
}

// notification is the number of a name; the numbers are few and close.
func notification(name string) hcn.NotificationType {
	for t := range hcn.NotificationGuestNetworkServiceIfaceChanged + 1 {
		if t.String() == name {
			return t
		}
	}
	if name == hcn.NotificationServiceDisconnect.String() {
		return hcn.NotificationServiceDisconnect
	}
	return 0
}

func open[T any](ctx context.Context, c *Client, path string, v url.Values, o EventOptions, decode func(message) (T, error)) (*Stream[T], error) {
	if o.Resume {
		v.Set("after", strconv.FormatUint(o.After, 10))
	}
	res, err := c.send(ctx, get(path, v)) //nolint:bodyclose // Stream.Close does
	if err != nil {
		return nil, err
	}
	s := &Stream[T]{body: res.Body, scan: bufio.NewScanner(res.Body), last: o.After, decode: decode}
	s.scan.Buffer(make([]byte, 0, 4096), maxEvent)
	// The first message tells that the stream is live.
	if _, err := s.next(); err != nil {
		return nil, errors.Join(err, s.Close())
	}
	return s, nil
}

// Last is the number of the last event, to resume by.
func (s *Stream[T]) Last() uint64 { return s.last }

// Close ends the stream.
func (s *Stream[T]) Close() error { return s.body.Close() }

// Next waits for an event. When the stream ends it fails with ErrStreamEnded.
func (s *Stream[T]) Next() (T, error) {
	for {
		m, err := s.next()
		if err != nil {
			var none T
			return none, err
		}
		if m.data == nil {
			continue
		}
		v, err := s.decode(m)
		if err != nil {
			return v, fmt.Errorf("read event %d: %w", s.last, err)
		}
		return v, nil
	}
}

// next reads one message: lines up to an empty one. A comment alone is none.
func (s *Stream[T]) next() (message, error) {
	var m message
	seen := false
	for s.scan.Scan() {
		line := s.scan.Text()
		if line == "" {
			if seen {
				return m, nil
			}
			continue
		}
		name, value, _ := strings.Cut(line, ":")
		value = strings.TrimPrefix(value, " ")
		switch name {
		case "id":
			n, err := strconv.ParseUint(value, 10, 64)
			if err != nil {
				return m, fmt.Errorf("read the number of an event: %w", err)
			}
			s.last, seen = n, true
		case "event":
			m.name, seen = value, true
		case "data":
			if m.data != nil {
				m.data = append(m.data, '\n')
			}
			m.data, seen = append(m.data, value...), true
		}
	}
	if err := s.scan.Err(); err != nil {
		return m, fmt.Errorf("%w: %w", ErrStreamEnded, err)
	}
	return m, ErrStreamEnded
}
