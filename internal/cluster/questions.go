package cluster

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"

	"github.com/bulkhead-net/bulkhead/api"
	"github.com/bulkhead-net/bulkhead/hcn"
	"github.com/bulkhead-net/bulkhead/internal/engine"
	"github.com/bulkhead-net/bulkhead/internal/overlay"
)

// question is what hosts ask each other.
type question struct {
	Explain *engine.ExplainQuestion `json:"explain,omitempty"`
}

// ExplainThere is the engine's.
func (h *Host) ExplainThere(ctx context.Context, network, endpoint hcn.GUID, q engine.ExplainQuestion) (x api.Explanation, host string, err error) {
	a := h.member.Agent()
	if a == nil {
		return x, "", errNone
	}
	on, ok := a.HostOf(network, endpoint)
	if !ok {
		return x, "", fmt.Errorf("endpoint %s: %w", endpoint, overlay.ErrNotFound)
	}
	raw, err := a.Ask(ctx, on.ID, question{Explain: &q})
	if err == nil {
		err = json.Unmarshal(raw, &x)
	}
	return x, on.Name, err
}

var errUnknownQuestion = errors.New("this host does not know the question: run the same version of Bulkhead on all hosts")

// answer answers a question of another host.
func (h *Host) answer(ctx context.Context, _ string, body json.RawMessage) (any, error) {
	var q question
	if err := json.Unmarshal(body, &q); err != nil || q.Explain == nil {
		return nil, errUnknownQuestion
	}
	return h.engine().ExplainFor(ctx, *q.Explain)
}
