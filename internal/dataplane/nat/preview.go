package nat

import (
	"context"
	"errors"
	"maps"
	"slices"
	"strings"

	"github.com/bulkhead-net/bulkhead/internal/plan"
)

// Preview says which elements an Update would write. It writes nothing, and takes no port: who asks has done that to
// know whether they are free.
func (a *Applier) Preview(_ context.Context, p *plan.Plan, d *plan.Delta) ([]plan.Write, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.applied == nil {
		want, errs := planElements(p)
		steps := []plan.Write{{Object: previewed, Sign: plan.Adds, Text: "table"}}
		return append(steps, elementSteps(want, plan.Adds)...), errors.Join(errs...)
	}
	was, is, errs := deltaElements(d)
	errs = append(errs, a.refuseTaken(was, is)...)
	gone, come := a.changes(was, is)
	return append(elementSteps(gone, plan.Removes), elementSteps(come, plan.Adds)...), errors.Join(errs...)
}

// changes are the elements that go and come when was becomes is. What Cut has deleted is gone.
func (a *Applier) changes(was, is elements) (del, add elements) {
	del, add = was.without(is), is.without(was)
	maps.DeleteFunc(del, func(k elemKey, _ elem) bool { _, there := a.applied[k]; return !there })
	return del, add
}

// previewed names the table whose elements are previewed.
const previewed = "table inet " + TableName

func elementSteps(es elements, sign plan.Sign) []plan.Write {
	var out []plan.Write
	for _, k := range es.sorted() {
		if k.end {
			continue // part of the prefix
		}
		e := es[k]
		text := describeElement(k, e)
		if len(e.valText) > 0 {
			text = strings.TrimSuffix(text, " }") + " : " + strings.Join(e.valText, " . ") + " }"
		}
		out = append(out, plan.Write{Owner: e.owner, Object: previewed, Sign: sign, Text: text})
	}
	return out
}

// Preview says in which compartments an Update would write the table.
func (s *SideCars) Preview(_ context.Context, p *plan.Plan, d *plan.Delta) ([]plan.Write, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	var out []plan.Write
	for _, path := range slices.Sorted(maps.Keys(redirectsTouched(d))) {
		want := redirectsIn(p, path)
		step := plan.Write{Owner: want.owner(), Object: "table inet " + SideCarTable + " in " + path, Text: "table"}
		had := s.held[path]
		switch {
		case len(want.ports) == 0:
			if had == nil {
				continue
			}
			step.Sign, step.Owner = plan.Removes, had.owner()
		case had == nil:
			step.Sign = plan.Adds
		default:
			step.Sign = plan.Changes
		}
		out = append(out, step)
	}
	return out, nil
}
