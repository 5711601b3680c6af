package main

import (
	"context"

	"github.com/bulkhead-net/bulkhead/internal/engine"
	"github.com/bulkhead-net/bulkhead/internal/sandbox/process"
)

// sandbox shows the runtime to the engine, whose interface names its own types.
type sandbox struct{ *process.Runtime }

func (s sandbox) Connect(ctx context.Context, id string) (engine.Attachment, error) {
	a, err := s.Runtime.Connect(ctx, id)
	if err != nil {
		return nil, err // a nil *process.Attachment would be no nil interface
	}
	return a, nil
}
