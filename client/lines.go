package client

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"

	"github.com/bulkhead-net/bulkhead/api"
)

func readAll(r io.Reader) ([]byte, error) {
	b, err := io.ReadAll(io.LimitReader(r, maxAnswer))
	if err != nil {
		return nil, fmt.Errorf("read the answer: %w", err)
	}
	return b, nil
}

// readLines reads newline-delimited JSON until it ends. A last line with an error record is that error.
func readLines[T any](ctx context.Context, c *Client, r request, each func(T) error) error {
	res, err := c.send(ctx, r)
	if err != nil {
		return err
	}
	defer res.Body.Close()
	dec := json.NewDecoder(res.Body)
	for {
		var line json.RawMessage
		err := dec.Decode(&line)
		switch {
		case errors.Is(err, io.EOF):
			return nil
		case ctx.Err() != nil:
			return ctx.Err()
		case err != nil:
			return api.Errorf(api.KindUnavailable, "read the stream of %s: %w", r.path, err).Hint("see the daemon's log")
		}
		if err := errorLine(line); err != nil {
			return err
		}
		var v T
		if err := json.Unmarshal(line, &v); err != nil {
			return api.Errorf(api.KindInternal, "read a line of %s: %w", r.path, err)
		}
		if err := each(v); err != nil {
			return err
		}
	}
}

// errorLine finds an error record: no other line has both members.
func errorLine(line json.RawMessage) error {
	var e api.Error
	if json.Unmarshal(line, &e) == nil && e.Kind != "" && e.Message != "" {
		return &e
	}
	return nil
}
